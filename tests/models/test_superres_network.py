"""Super-resolution network and its discriminator: what their docstrings promise, on a few channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import models
from retree_jax.models import superres
from tests.models import checks

TINY = {
  "name": "superres",
  "factor": 4,
  "width": 6,
  "depth": 1,
  "up_widths": (),
  "vit_blocks": 1,
  "vit_patch": 2,
  "token_width": 8,
  "heads": 2,
  "head_width": 4,
}
JUDGE = {"name": "superres_discriminator", "widths": (4, 6), "vit_blocks": 1, "heads": 1, "head_width": 4}


def keys_cubic(x, factor):
  """Bicubic enlargement (Keys 1981, a = -1/2) of [H, W, C], centres of pixels aligned, by its definition."""

  def kernel(d):
    d = np.abs(d)
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d < 2, far, 0))

  def matrix(size):
    place = (np.arange(size * factor) + 0.5) / factor - 0.5
    weights = kernel(place[:, None] - np.arange(size))
    return weights / weights.sum(1, keepdims=True)  # at the borders only what is there counts

  return np.einsum("ih,jw,hwc->ijc", matrix(x.shape[0]), matrix(x.shape[1]), x)


@pytest.mark.parametrize("factor, up_widths", [(2, ()), (4, (5, 4)), (8, ())])
def test_untrained_it_is_bicubic_in_photograph_and_tree(factor, up_widths):
  network = models.build({**TINY, "factor": factor, "up_widths": up_widths})
  x = jnp.clip(0.5 * jax.random.normal(jax.random.key(0), (2, 4, 6, 4)), -1, 1)
  params = network.init(jax.random.key(1), x)
  out = jax.jit(network.apply)(params, x)
  assert out.shape == (2, 4 * factor, 6 * factor, 4) and out.dtype == jnp.float32
  wanted = np.stack([keys_cubic(np.asarray(picture, np.float64), factor) for picture in x])
  np.testing.assert_allclose(out[..., :3], wanted[..., :3], atol=1e-5)
  np.testing.assert_allclose(out[..., 3], superres.TREE_GAIN * wanted[..., 3], atol=1e-5)
  # Logits: a pixel is vessel where its coverage is over one half, and surely so where it is all vessel.
  assert 1 / (1 + np.exp(-superres.TREE_GAIN)) == pytest.approx(0.98, abs=0.01)


@pytest.fixture(scope="module")
def tiny():
  network = models.build(TINY)
  x = jax.random.uniform(jax.random.key(0), (2, 4, 6, 4), minval=-1)
  return network, checks.awake(network.init(jax.random.key(1), x)), x


def test_photograph_and_tree_are_drawn_from_both(tiny):
  network, params, x = tiny

  def reaches(params, given):  # [4 out, 4 in]: how much each channel of the answer hangs on each that was given
    jacobian = jax.jacrev(lambda x: jnp.mean(network.apply(params, x)[0] ** 2, axis=(0, 1)))(given)
    return jnp.abs(jacobian[:, 0]).max(axis=(1, 2))

  assert np.all(jax.jit(reaches)(params, x) > 1e-6)


def test_every_parameter_is_trained(tiny):
  network, params, x = tiny
  gradients = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, x) ** 2)))(params)
  assert not checks.untrained(gradients)


def test_bfloat16_keeps_parameters_and_output_in_float32(tiny):
  _, params, x = tiny
  assert 1e-5 < checks.bfloat16_difference(TINY, params, x) < 0.05


def test_texture_is_drawn_from_the_noise_of_its_place_and_size():
  network = models.build({**TINY, "vit_blocks": 0, "noise": True})
  x, z = jnp.zeros((1, 3, 5, 4)), jax.random.normal(jax.random.key(0), (1, 12, 20, 2))
  fresh = network.init(jax.random.key(1), x)
  params = checks.awake(fresh)
  run = jax.jit(lambda p, z: network.apply(p, x, noise=z))
  assert run(params, z).shape == (1, 12, 20, 4)  # without transformer any size will do
  np.testing.assert_array_equal(run(fresh, z), network.apply(fresh, x))  # nothing before it is learnt
  np.testing.assert_allclose(run(params, 0 * z), network.apply(params, x), atol=1e-5)
  plain = run(params, 0 * z)

  def touched(place, channel):  # rows and columns that one pixel's noise reaches
    changed = np.abs(run(params, jnp.zeros_like(z).at[0, *place, channel].set(1.0)) - plain)[0].max(-1) > 1e-6
    return [(int(np.nonzero(side)[0].min()), int(np.nonzero(side)[0].max())) for side in (changed.any(1), changed.any(0))]

  assert touched((6, 9), 1) == [(4, 8), (7, 11)]  # at full size: two convolutions of 3 pixels
  rows, columns = touched((6, 9), 0)  # at half size: that of pixel (3, 4), three pixels on either side, and the rest
  assert rows[0] < 4 <= 7 < rows[1] and columns[0] < 7 <= 10 < columns[1]


def test_the_largest_enlargements_are_affordable():
  shape = jax.ShapeDtypeStruct
  for factor, size in ((8, 64), (4, 128), (2, 256)):
    network = models.build({"name": "superres", "factor": factor})
    x = shape((1, size, size, 4), jnp.float32)
    params = jax.eval_shape(lambda n=network, x=x: n.init(jax.random.key(0), x))
    assert jax.eval_shape(network.apply, params, x).shape == (1, 512, 512, 4)


@pytest.mark.parametrize("iterations, tolerance", [(10, 0.1), (200, 1e-4)])
def test_largest_singular_value_is_the_largest_singular_value(iterations, tolerance):
  matrix = jax.random.normal(jax.random.key(3), (36, 8))
  value = jax.jit(superres.largest_singular_value, static_argnums=1)(matrix, iterations)
  exact = np.linalg.svd(matrix, compute_uv=False)[0]
  assert exact * (1 - tolerance) < value < exact * (1 + 1e-5)
  if iterations == 200:  # d sigma / d matrix = u v^T
    u, _, v = np.linalg.svd(matrix)
    slope = jax.grad(superres.largest_singular_value)(matrix, 200)
    np.testing.assert_allclose(slope, np.outer(u[:, 0], v[0]), atol=1e-2)


def test_the_discriminator_judges_patches_at_a_scale_that_training_cannot_blow_up():
  x = jax.random.uniform(jax.random.key(0), (2, 8, 12, 4), minval=-1)
  network = models.build(JUDGE)
  params = checks.awake(network.init(jax.random.key(1), x))
  run = jax.jit(network.apply)
  logits = run(params, x)
  assert logits.shape == (2, 2, 3, 1) and logits.dtype == jnp.float32
  changed = run(params, x.at[0, :, :, 3].mul(-1))
  assert np.abs(changed[0] - logits[0]).max() > 1e-4  # it looks at the tree
  np.testing.assert_allclose(changed[1], logits[1], rtol=1e-4, atol=1e-6)
  louder = {k: {**v, "kernel": 10 * v["kernel"]} if k.startswith("SpectralConv") else v for k, v in params.items()}
  np.testing.assert_allclose(run(louder, x), logits, rtol=1e-3, atol=1e-5)
  free = models.build({**JUDGE, "spectral_norm": False})
  assert np.abs(jax.jit(free.apply)(louder, x) - logits).max() > 1


def test_detail_shows_the_discriminator_texture_and_hides_plain_colour():
  x = jax.random.uniform(jax.random.key(0), (1, 8, 12, 4), minval=-1)
  plain = models.build(JUDGE)
  network = models.build({**JUDGE, "detail": 16.0, "spectral_norm": False})
  params = network.init(jax.random.key(1), x)
  first = params["SpectralConv_0"]["kernel"]
  assert first.shape[2] == plain.init(jax.random.key(1), x)["SpectralConv_0"]["kernel"].shape[2] + 3
  # Only the three channels of detail are looked at: what they say is all that is left.
  params = checks.awake(params)
  params["SpectralConv_0"]["kernel"] = params["SpectralConv_0"]["kernel"].at[:, :, :4].set(0)
  run = jax.jit(network.apply)
  reference = run(params, jnp.zeros_like(x))
  ramp = jnp.arange(8.0)[:, None, None] / 8 * jnp.ones_like(x)
  np.testing.assert_allclose(run(params, jnp.full_like(x, 0.7)), reference, atol=1e-5)  # to the borders
  assert np.abs(run(params, x) - reference).max() > 0.1
  # One pixel above its surroundings by a is a · 8/9 above their mean, and its neighbours a / 9 below.
  dot = jnp.zeros((1, 5, 5, 3)).at[0, 2, 2].set(0.9)
  wanted = np.zeros((5, 5))
  wanted[1:4, 1:4], wanted[2, 2] = -0.1, 0.8
  np.testing.assert_allclose(superres._minus_local_mean(dot)[0, ..., 0], wanted, atol=1e-6)
  np.testing.assert_allclose(superres._minus_local_mean(ramp[..., :3])[:, 1:-1], 0, atol=1e-6)  # a slope is no texture


@pytest.mark.parametrize(
  "settings, words",
  [
    ({**TINY, "factor": 3}, "'factor' of superres is 3; use 2, 4 or 8"),
    ({**TINY, "up_widths": (8,)}, "a factor of 4 doubles 2 times; give 2 widths"),
    ({**TINY, "heads": 0}, "widths, heads and vit_patch of superres must be at least 1"),
    ({**TINY, "depth": -1}, "depth and vit_blocks at least 0"),
    ({**JUDGE, "widths": ()}, "for instance widths \\(32, 64, 128\\)"),
    ({**JUDGE, "vit_blocks": -1}, "vit_blocks at least 0"),
    ({**JUDGE, "detail": -1.0}, "detail=-1.0 must be 0"),
    ({**JUDGE, "detail": float("nan")}, "detail=nan must be 0"),
  ],
)
def test_bad_settings_are_answered_in_a_sentence(settings, words):
  with pytest.raises(ValueError, match=words):
    models.build(settings)


def test_bad_sizes_are_answered_in_a_sentence():
  network = models.build(TINY)
  with pytest.raises(ValueError, match="multiples of 2, for instance 4x6"):
    network.check_size(5, 6)
  with pytest.raises(ValueError, match="attend over 128x128 tokens of 256x256 pixels, .* raise the network's vit_patch"):
    network.check_size(256, 256)
  with pytest.raises(ValueError, match="add another entry to its widths"):
    models.build(JUDGE).check_size(512, 512)
  with pytest.raises(ValueError, match="takes RGB and tree, 4 channels, not 3; join the two"):
    network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
