"""The default denoiser: what its docstrings promise, on networks of a few channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import models
from tests.models import checks

TINY = {
  "name": "denoiser",
  "patch": 2,
  "detail": 4,
  "widths": (8, 12),
  "blocks": (1,),
  "attention": (-1,),
  "middle": 1,
  "head_width": 4,
  "mlp_ratio": 2,
  "time_dim": 8,
}


@pytest.fixture(scope="module")
def tiny():
  """(run, parameters, x, t, cond): non-square pictures of two channels with a condition of one."""
  network = models.build({**TINY, "out_channels": 2})
  x, cond = (jax.random.normal(jax.random.key(i), (2, 8, 16, c)) for i, c in enumerate((2, 1)))
  t = jnp.array([10.0, 700.0])
  return jax.jit(network.apply), network.init(jax.random.key(2), x, t, cond), x, t, cond


def test_it_starts_as_zero(tiny):
  run, params, x, t, cond = tiny
  out = run(params, x, t, cond)
  assert out.shape == (2, 8, 16, 2) and out.dtype == jnp.float32
  np.testing.assert_array_equal(out, 0)


def test_every_input_and_every_parameter_counts(tiny):
  run, params, x, t, cond = tiny
  params = checks.awake(params)
  out = run(params, x, t, cond)
  assert np.abs(out).max() > 0.01
  for other in ((x.at[1].mul(0.9), t, cond), (x, t.at[1].set(50), cond), (x, t, cond.at[1].mul(0.9))):
    changed = run(params, *other)
    np.testing.assert_allclose(changed[0], out[0], rtol=1e-4, atol=1e-6)  # pictures do not see each other
    assert np.abs(changed[1] - out[1]).max() > 1e-4
  network = models.build({**TINY, "out_channels": 2})
  gradients = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, x, t, cond) ** 2)))(params)
  assert not checks.untrained(gradients)


def test_remat_changes_no_gradient(tiny):
  _, params, x, t, cond = tiny
  params = checks.awake(params)
  values = []
  for remat in (False, True):
    network = models.build({**TINY, "out_channels": 2, "remat": remat})
    compiled = jax.jit(jax.value_and_grad(lambda p, n=network: jnp.mean(n.apply(p, x, t, cond) ** 2)))
    values.append(compiled(params))
  (loss, plain), (loss_again, recomputed) = values
  assert jax.tree.structure(plain) == jax.tree.structure(recomputed) == jax.tree.structure(params)
  np.testing.assert_allclose(loss, loss_again, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), plain, recomputed)


def test_bfloat16_keeps_parameters_and_output_in_float32(tiny):
  _, params, x, t, cond = tiny
  settings = {**TINY, "out_channels": 2}
  params = checks.awake(params)
  # It did compute with 8 bits, and rounds no worse than that.
  assert 1e-4 < checks.bfloat16_difference(settings, params, x, t, cond) < 0.1
  # Every matrix product and convolution is in bfloat16, those of the time embedding aside.
  jaxpr = str(jax.make_jaxpr(models.build({**settings, "dtype": "bfloat16"}).apply)(params, x, t, cond))
  convolutions = [line for line in jaxpr.splitlines() if "= conv_general_dilated" in line]
  assert convolutions and all(":bf16" in line for line in convolutions)


@pytest.mark.parametrize(
  "settings, multiple, size",
  [
    ({"patch": 1}, 2, (6, 4)),
    ({"patch": 4, "detail": 0}, 8, (8, 16)),
    ({"patch": 2, "widths": (4, 8, 12), "blocks": (1, 2, 1), "attention": (1, 2), "middle": 0}, 8, (8, 8)),
    ({"attention": (), "middle": 0, "detail": 0, "dropout": 0.5}, 4, (4, 4)),
  ],
)
def test_other_shapes_of_network(settings, multiple, size):
  network = models.build({**TINY, **settings})
  assert network.size_multiple == multiple
  network.check_size(*size)
  x, t = jax.ShapeDtypeStruct((3, *size, 1), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
  params = jax.eval_shape(lambda: network.init(jax.random.key(0), x, t))
  out = jax.eval_shape(lambda p, x, t: network.apply(p, x, t, key=jax.random.key(0)), params, x, t)
  assert out.shape == (3, *size, 1) and out.dtype == jnp.float32
  transformers = {k for k in params if "vit" in k or "middle" in k}
  assert bool(transformers) == bool(network.settings["attention"] or network.settings["middle"])
  assert ("detail_in" in params) == (network.settings["detail"] > 0 and network.settings["patch"] > 1)
  with pytest.raises(ValueError, match=f"multiples of {multiple}, .*; change config.data.image_size"):
    network.check_size(size[0] + 1, size[1], field="config.data.image_size")


def test_dropout_needs_a_key_and_only_then_drops():
  network = models.build({**TINY, "dropout": 0.5, "attention": (), "middle": 0})
  x, t = jax.random.normal(jax.random.key(0), (1, 4, 4, 1)), jnp.zeros(1)
  params = checks.awake(network.init(jax.random.key(1), x, t))
  use = jax.jit(network.apply)
  train = jax.jit(lambda key: network.apply(params, x, t, key=key))
  np.testing.assert_array_equal(use(params, x, t), use(params, x, t))
  one, two = train(jax.random.key(0)), train(jax.random.key(1))
  assert np.abs(one - two).max() > 1e-3
  np.testing.assert_array_equal(one, train(jax.random.key(0)))


def test_the_default_fits_its_images():
  network = models.build({"name": "denoiser", "dtype": "bfloat16"})
  network.check_size(256, 256)
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 256, 256, 1)), jnp.zeros(1)))
  assert 40e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 120e6


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"patch": 3}, "'patch' of the denoiser must be 1, 2 or 4, not 3"),
    ({"widths": ()}, "'widths' of the denoiser must name at least one level"),
    ({"widths": (8, 0)}, "'widths' of the denoiser must name at least one level"),
    ({"blocks": (1, 2, 3)}, "one for each of the 2 levels"),
    ({"blocks": (0,)}, "all at least 1"),
    ({"attention": (2,)}, "names level 2, but 'widths' has only 2: choose from 0 .finest. to 1, or -1"),
    ({"head_width": 6}, "multiple of 4 that divides the width of every level with attention, but 6"),
    ({"head_width": 8}, "but 8 does not for width 12"),
    ({"time_dim": 0}, "'time_dim' of the denoiser must be at least 1"),
    ({"middle": -1}, "'middle' of the denoiser must be 0 or more"),
    ({"dropout": 1.0}, "'dropout' of the denoiser must lie in"),
  ],
)
def test_bad_settings_are_answered_in_a_sentence(settings, words):
  with pytest.raises(ValueError, match=words):
    models.build({**TINY, **settings})


def test_a_missing_time_is_answered_in_a_sentence():
  with pytest.raises(ValueError, match="needs the timesteps t"):
    models.build(TINY).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
