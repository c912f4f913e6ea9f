"""What all tasks share: the gradient norms they report, the fields they read, and what they derive from a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import keys, models, sharding, tasks
from retree_jax.config.network import network_settings
from tests import small, superres_stage
from tests.inference import test_segmentation, test_tree_filter


def begin(task):
  return jax.jit(lambda: task.init(keys.stream(0, "test")))()


@pytest.fixture(params=["tree", "repeated", "segmentation", "filter", "superres"])
def stage(request, tmp_path, monkeypatch):
  """(config without clipping, a batch) of one stage."""
  if request.param == "segmentation":
    config, batch = test_segmentation.small(), test_segmentation.eyes()
  elif request.param == "filter":
    folder = test_tree_filter.generated(tmp_path / "dots")
    config, batch = test_tree_filter.config(folder), {"tree": np.stack([test_tree_filter.EYE] * 4)}
  elif request.param == "superres":
    config, batch = superres_stage.config(loss__adversarial_start=0), superres_stage.eyes()
  else:
    monkeypatch.setattr(models, "build", small.Toy)
    config, batch = small.config(train__rtt=request.param == "repeated"), {"tree": small.arrays()["train"]["tree"][:8]}
  return config, batch


def test_previews_compile_once(stage):
  config, batch = stage
  task, mesh = tasks.make(config), sharding.make_mesh(devices=jax.devices()[:2])
  params = jax.device_put(begin(task).averaged, sharding.replicated(mesh))
  with small.compilations() as first:
    pictures = task.preview(params, batch, mesh)
  with small.compilations() as again:
    same = task.preview(params, batch, mesh)
  assert first and not again
  for name, pixels in pictures.items():
    np.testing.assert_array_equal(pixels, same[name])


def test_every_task_reports_the_norm_of_its_gradients(stage):
  config, batch = stage
  for optimizer in ("optimizer", "discriminator_optimizer"):
    if optimizer in config:  # the norm is that before clipping
      config[optimizer].clip_norm = 1e-3
  task = tasks.make(config)
  current = begin(task)
  metrics = jax.jit(task.train_step)(current, batch)[1]
  if config.stage == "superres":
    discriminator = metrics["discriminator_gradient_norm"]
    assert np.isfinite(discriminator) and discriminator > 1e-2 and np.isfinite(metrics["gradient_norm"])
    return
  prepared = task.prepare(batch, keys.at_step(current.key, current.step))
  grads = jax.jit(jax.grad(lambda p: task.loss(p, prepared)[0]))(current.params)
  norm = np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(grads)))
  assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-3) and norm > 1e-2


def test_the_generators_norm_is_that_of_its_own_loss():
  task = tasks.make(superres_stage.config(loss__adversarial=0.0))
  current = begin(task)
  metrics = jax.jit(task.train_step)(current, superres_stage.eyes())[1]
  prepared = task.prepare(superres_stage.eyes(), keys.at_step(current.key, current.step))
  grads = jax.grad(lambda p: task._generator_loss(p, prepared, {}, 0.0)[0])(current.params["generator"])
  norm = np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(grads)))
  assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-3)


def test_a_discriminator_that_is_not_trained_yet_cannot_spoil_the_state(monkeypatch):
  task = tasks.make(superres_stage.config(loss__adversarial_start=5))
  honest = task._discriminator_loss
  monkeypatch.setattr(task, "_discriminator_loss", lambda *args, **kw: (jnp.nan * honest(*args, **kw)[0], {}))
  current = begin(task)
  state, metrics = jax.jit(task.train_step)(current, superres_stage.eyes())
  small.assert_same(state.params["discriminator"], current.params["discriminator"])
  small.assert_same(state.opt_state["discriminator"], current.opt_state["discriminator"])
  assert metrics["discriminator"] == metrics["discriminator_gradient_norm"] == 0


def test_fields_are_known_before_the_task_is_made(stage):
  config, _ = stage
  assert tasks.fields(config) == tasks.make(config).fields
  config.stage = "veins"
  with pytest.raises(ValueError, match="config.stage='veins' is unknown: use tree"):
    tasks.fields(config)


def test_fields_of_a_diffusion_stage_follow_its_config():
  config = small.config(data__target=("image",), data__condition=("tree", "fov"))
  assert tasks.fields(config) == ("image", "tree", "fov")
  config.diffusion.condition_dropout = 0.1
  assert tasks.fields(config) == ("image", "tree?", "fov")
  config.data.condition = ("tree",)
  config.loss.outside_fov = 0.1  # pixels are weighted by the field of view, whether the network sees it or not
  assert tasks.fields(config) == ("image", "tree?", "fov")
  config.data.target = ("vein",)
  with pytest.raises(ValueError, match="unknown field 'vein'"):
    tasks.fields(config)


def test_output_channels_follow_the_target():
  config = small.config(data__target=("image", "tree"))
  assert network_settings(config)["out_channels"] == 4
  assert models.build(network_settings(config)).settings["out_channels"] == 4
  assert "out_channels" not in network_settings(superres_stage.config())


def test_repetitions_are_a_loop_on_accelerators_and_unrolled_on_cpus(monkeypatch):
  """Which of the two follows the platform that the step is compiled for, not the machine's default device."""
  monkeypatch.setattr(models, "build", small.Toy)
  task = tasks.make(small.config(train__rtt=True))
  current, batch = begin(task), {"tree": small.arrays()["train"]["tree"][:8]}

  def forward_passes(platform):  # the network has one tanh
    return (
      jax.jit(task.train_step).trace(current, batch).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.tanh")
    )

  assert forward_passes("tpu") == forward_passes("cuda") == 2  # the first step's, and the loop's
  assert forward_passes("cpu") == 5


def test_the_epoch_has_as_many_steps_as_the_task_is_told(monkeypatch):
  monkeypatch.setattr(models, "build", small.Toy)
  task = tasks.make(small.config(train__rtt=True), epoch_steps=2)
  current, batch = begin(task), {"tree": small.arrays()["train"]["tree"][:8]}
  step = jax.jit(task.train_step)
  bars = []
  for _ in range(4):
    current, _ = step(current, batch)
    bars.append(float(current.extra["bar"]))
  assert bars[0] == np.inf and bars[1] == bars[2] < np.inf and bars[3] <= bars[1]
