"""The super-resolution task: terms that switch on and off, the discriminator's start, and that training beats bicubic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import superres as config_file
from retree_jax import keys, losses, tasks
from retree_jax.models.pretrained import vgg
from retree_jax.tasks import image_transforms
from tests import small
from tests.superres_stage import begin, config, eyes, loaded


@pytest.mark.parametrize("name", ["l1", "ssim", "bce", "adversarial"])
def test_a_term_of_weight_0_is_not_even_computed(name):
  task = tasks.make(config(**{f"loss__{name}": 0.0}))
  state = jax.eval_shape(lambda: task.init(keys.stream(0, "test")))
  metrics = jax.eval_shape(task.train_step, state, eyes())[1]
  gan = set() if name == "adversarial" else {"discriminator", "discriminator_gradient_norm"}
  assert set(metrics) == {"loss", "gradient_norm", "l1", "ssim", "bce", "adversarial", *gan} - {name}
  assert bool(jax.tree.leaves(state.params["discriminator"])) == bool(gan)


def test_the_loss_is_the_weighted_sum_of_its_terms():
  weights = {"l1": 2.0, "ssim": 0.3, "bce": 0.7, "adversarial": 0.05}
  task, state = begin(config(**{f"loss__{n}": w for n, w in weights.items()}, loss__adversarial_start=0))
  metrics = jax.jit(task.train_step)(state, eyes())[1]
  assert min(float(metrics[n]) for n in weights) > 0
  assert float(metrics["loss"]) == pytest.approx(sum(w * float(metrics[n]) for n, w in weights.items()), rel=1e-5)


def test_terms_of_the_untrained_network_are_those_of_bicubic_enlargement():
  task, state = begin(config(loss__adversarial=0.0, data__crop=0, data__turns=False, data__degradation__probability=0.0))
  batch = eyes()
  metrics = jax.jit(task.train_step)(state, batch)[1]
  high = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1
  low = image_transforms.downscale(high, 2)
  large = jax.image.resize(low, high.shape, "cubic")
  assert float(metrics["l1"]) == pytest.approx(float(jnp.abs(large - high).mean()), rel=1e-5)
  assert float(metrics["ssim"]) == pytest.approx(1 - float(losses.ssim(large, high).mean()), rel=1e-4)


def _vgg_file(folder):
  """Two layers of random weights: the reading of real ones is tested in test_vgg.py."""
  rng = np.random.default_rng(0)
  arrays = {
    "block1_conv1/kernel": rng.normal(0, 0.3, (3, 3, 3, 64)),
    "block1_conv1/bias": np.zeros(64),
    "block1_conv2/kernel": rng.normal(0, 0.1, (3, 3, 64, 64)),
    "block1_conv2/bias": np.zeros(64),
  }
  np.savez(folder / "vgg.npz", **{k: v.astype(np.float32) for k, v in arrays.items()})
  return str(folder / "vgg.npz")


def test_the_perceptual_term_compares_features_and_is_off_without_weights(tmp_path, caplog):
  with caplog.at_level("INFO"):
    task, _ = begin(config())
  assert len([r for r in caplog.records if "perceptual loss is off" in r.getMessage()]) == 1
  output = jax.random.uniform(jax.random.key(0), (2, 16, 16, 4))
  high = jax.random.uniform(jax.random.key(1), (2, 16, 16, 4))
  assert set(task._terms(output, high)) == {"l1", "ssim", "bce"}
  path = _vgg_file(tmp_path)
  task, _ = begin(config(loss__perceptual_weights=path, loss__perceptual_layers=("relu1_2",)))
  term = task._terms(output, high)["perceptual"]
  weights = vgg.load_weights(path)
  a, b = (vgg.features(weights, x[..., :3], ("relu1_2",))["relu1_2"] for x in (output, high))
  plain = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
  np.testing.assert_allclose(term / plain, np.full(2, term[0] / plain[0]), rtol=1e-4)  # scaled by one constant
  assert 0 < task._terms(high, high)["perceptual"].max() + 1 <= 1  # zero where nothing differs
  with pytest.raises(ValueError, match="No VGG19 weights"):
    begin(config(loss__perceptual_weights="nowhere.npz"))


@pytest.mark.parametrize(("gan", "penalty", "every"), [("nonsaturating", "r1", 2), ("least_squares", "original", 1)])
def test_the_discriminator_waits_then_learns(gan, penalty, every):
  c = config(loss__gan=gan, loss__penalty=penalty, loss__penalty_every=every, loss__adversarial_start=1)
  task, state = begin(c)
  step = jax.jit(task.train_step)
  first = small.on_host(state.params["discriminator"])
  state, metrics = step(state, eyes())
  small.assert_same(state.params["discriminator"], first)
  assert metrics["adversarial"] == metrics["discriminator"] == metrics["discriminator_gradient_norm"] == 0
  state, metrics = step(state, eyes())
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), small.on_host(state.params["discriminator"]), first)
  assert max(jax.tree.leaves(moved)) > 0 and float(metrics["discriminator"]) > 0 and metrics["discriminator_gradient_norm"] > 0
  for _ in range(5):
    state, metrics = step(state, eyes())
  assert np.isfinite(float(metrics["loss"])) and float(metrics["l1"]) < 1


def test_every_example_is_trained_with_a_noise_of_its_own():
  task, _ = begin(config(model__noise=True))
  params = loaded(noisy=True).params
  keys = jax.random.split(jax.random.key(0), 2)
  prepared = {"high": jnp.zeros((3, 16, 16, 4)), "low": jnp.zeros((3, 8, 8, 4)), "key": keys[jnp.array([0, 1, 0])]}
  out = np.asarray(jax.jit(task._enlarged)(params, prepared))
  np.testing.assert_array_equal(out[0], out[2])
  assert np.abs(out[0] - out[1]).max() > 1e-3


def test_training_beats_bicubic_on_what_it_is_trained_on():
  c = config(data__crop=0, data__degradation__probability=0.0, loss__adversarial=0.0, optimizer__learning_rate=3e-3)
  task, state = begin(c)
  step = jax.jit(task.train_step)
  state, first = step(state, eyes())
  for _ in range(120):
    state, last = step(state, eyes())
  assert last["l1"] < 0.9 * first["l1"] and last["bce"] < first["bce"]
  scores = jax.jit(task.evaluate)(state.ema, eyes(), np.arange(8))
  assert scores["psnr"].mean() > scores["psnr_bicubic"].mean() + 0.3
  assert scores["f1"].mean() > scores["f1_bicubic"].mean()


def test_without_an_average_the_generator_itself_is_what_is_used():
  task, state = begin(config(train__ema_decay=0.0))
  state, _ = jax.jit(task.train_step)(state, eyes())
  assert state.ema is None and state.averaged is state.params["generator"]
  assert jax.jit(task.evaluate)(state.averaged, eyes(), np.arange(8))["psnr"].shape == (8,)


def test_accumulated_parts_are_the_whole():
  settings = dict(loss__adversarial_start=0, loss__ssim=0.0)
  results = []
  for parts in (1, 2):
    task, state = begin(config(**settings, train__accumulate=parts))
    results.append(jax.jit(task.train_step)(state, eyes())[1])
  small.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
  ({"loss__gan": "hinge"}, "use nonsaturating, least_squares"),
  ({"loss__penalty": "r2"}, "use none, r1, original"),
  ({"loss__ssim": -1.0}, "0 switches the term off"),
  ({"loss__l1": 0.0, "loss__ssim": 0.0, "loss__bce": 0.0, "loss__perceptual": 0.0}, "set for example config.loss.l1=1.0"),
  ({"data__crop": 64}, "make it smaller"),
  ({"data__crop": 15}, "multiples of config.model.factor=2"),
  ({"data__crop": 0, "data__crops": 2}, "needs config.data.crop above 0"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused_with_a_remedy(changes, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(config(**changes))


@pytest.mark.parametrize("variant", ["", "cpu", "tiny", "paper"])
def test_every_variant_makes_its_task(variant):
  task = tasks.make(config_file.get_config(variant))
  state = jax.eval_shape(lambda: task.init(keys.stream(0, "test")))
  assert task.adversarial and jax.tree.leaves(state.params["discriminator"])
