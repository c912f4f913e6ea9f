"""Building networks by name, what a Network promises, and the generator behind initial parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce

from retree_jax import models
from retree_jax.models import init_prng, layers

TINY = {"name": "superres", "factor": 2, "width": 4, "depth": 1, "vit_blocks": 0}


@pytest.mark.parametrize(
  "name", ["paper_denoiser", "denoiser", "discriminator", "superres", "superres_discriminator", "segmenter"]
)
def test_settings_build_the_same_network_again(name):
  settings = models.defaults(name)
  network = models.build({"name": name})
  assert network.settings == settings and settings["name"] == name
  as_json = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
  again = models.build(as_json)
  assert again.settings == settings and again.module == network.module


def test_initial_parameters_depend_on_the_key_alone():
  network = models.build(TINY)
  shape = jax.ShapeDtypeStruct((5, 6, 8, 4), jnp.float32)
  params = network.init(jax.random.key(1), shape)
  leaves = jax.tree.leaves(params)
  assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
  again = jax.jit(lambda key: network.init(key, jnp.ones((1, 6, 8, 4))))(jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  other = network.init(jax.random.key(2), shape)
  kernels = [p["Conv_1"]["kernel"] for p in (params, other)]
  assert abs(np.corrcoef(*(np.ravel(k) for k in kernels))[0, 1]) < 0.3
  assert not np.array_equal(params["Conv_1"]["kernel"], params["Conv_2"]["kernel"])


def test_initial_draws_are_uniform_and_independent():
  keys = jax.vmap(lambda i: jax.random.fold_in(init_prng.key_from(jax.random.key(0)), i))(jnp.arange(4))
  draws = np.asarray(jax.vmap(lambda k: jax.random.uniform(k, (256, 256)))(keys)).astype(np.float64)
  n = draws.size
  assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * n)
  counts = np.histogram(draws, 1024, (0, 1))[0]
  chi_square = np.sum((counts - n / 1024) ** 2) / (n / 1024)
  assert abs(chi_square - 1023) < 4 * np.sqrt(2 * 1023)
  centred = (draws - 0.5) * np.sqrt(12)
  for a, b in (
    (centred[:, 1:], centred[:, :-1]),
    (centred[:, :, 1:], centred[:, :, :-1]),
    (centred[1:], centred[:-1]),
    (centred[:, 64:], centred[:, :-64]),
  ):
    assert abs(np.mean(a * b)) < 4.5 / np.sqrt(a.size)
  pairs = np.histogram2d(draws[:, :, ::2].ravel(), draws[:, :, 1::2].ravel(), 32, ((0, 1), (0, 1)))[0]
  expected = n / 2 / 1024
  assert abs(np.sum((pairs - expected) ** 2) / expected - 1023) < 4 * np.sqrt(2 * 1023)


def test_initial_draws_of_other_kinds():
  key = init_prng.key_from(jax.random.key(0))
  bits = np.asarray(jax.random.bits(key, (4096,), jnp.uint8))
  assert np.bincount(bits, minlength=256).max() < 48 and abs(bits.mean() - 127.5) < 5
  one, two = jax.random.split(key)
  assert not np.array_equal(jax.random.bits(one, (8,)), jax.random.bits(two, (8,)))
  normal = np.asarray(jax.random.normal(key, (128, 128)))
  assert abs(normal.mean()) < 0.03 and normal.std() == pytest.approx(1, abs=0.03)
  raw = init_prng.key_from(jax.random.key_data(jax.random.key(0)))
  assert np.array_equal(jax.random.bits(raw, (8,)), jax.random.bits(key, (8,)))


def test_time_features_are_the_published_sinusoids():
  features = layers.time_features(jnp.array([0, 7, 999]), 6)
  w = 10000.0 ** (-np.array([0, 2, 4]) / 6)
  wanted = [np.r_[np.sin(t * w), np.cos(t * w)] for t in (0, 7, 999)]
  np.testing.assert_allclose(features, wanted, atol=1e-4)  # float32 of an angle near 1000


def test_rotation_makes_scores_depend_on_offsets_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 8))
  place = lambda v: layers.rotate(jnp.broadcast_to(v, (1, 20, 1, 8)), 4, 5)[0, :, 0].reshape(4, 5, 8)  # noqa: E731
  q, k = place(q), place(k)
  scores = jnp.einsum("rcd,sed->rcse", q, k)
  np.testing.assert_allclose(scores[0, 0, 2, 3], scores[1, 1, 3, 4], rtol=1e-4)
  np.testing.assert_allclose(scores[3, 4, 1, 2], scores[2, 2, 0, 0], rtol=1e-4)
  assert abs(scores[0, 0, 2, 3] - scores[0, 0, 3, 2]) > 1e-3
  np.testing.assert_allclose(jnp.linalg.norm(q, axis=-1), jnp.linalg.norm(q[0, 0]), rtol=1e-5)


def test_positions_have_the_same_corners_at_any_size():
  small, large = layers.position_features(8, 4), layers.position_features(800, 400)
  np.testing.assert_allclose(small[0, 0, ::4], large[50, 50, ::4], atol=0.02)
  assert small.shape == (8, 4, 16)
  assert len(np.unique(np.round(np.asarray(small).reshape(32, 16), 4), axis=0)) == 32  # no two pixels alike


@pytest.mark.parametrize("block", [1, 2, 4])
def test_folding_loses_nothing(block):
  x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
  folded = layers.space_to_depth(x, block)
  assert folded.shape == (2, 8 // block, 12 // block, 3 * block**2)
  np.testing.assert_array_equal(np.sort(folded[1, 1, 1]), np.sort(x[1, block : 2 * block, block : 2 * block].ravel()))
  np.testing.assert_array_equal(layers.depth_to_space(folded, block), x)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_blocks_are_pooled_to_their_maximum_and_its_pixel_has_the_gradient(factor):
  x = jax.random.permutation(jax.random.key(0), jnp.arange(2 * 8 * 12 * 3.0)).reshape(2, 8, 12, 3)
  blocks = reduce(x, "b (h p) (w q) c -> b h w c", "max", p=factor, q=factor)
  pooled, gradient = layers.max_pool(x, factor), jax.grad(lambda x: jnp.sum(layers.max_pool(x, factor) ** 2))(x)
  np.testing.assert_array_equal(pooled, blocks)
  np.testing.assert_array_equal(gradient, jnp.where(jnp.isin(x, blocks), 2 * x, 0))
  equal = jax.grad(lambda x: jnp.sum(layers.max_pool(x, factor)))(jnp.ones((1, 4, 4, 1)))
  first = np.arange(4) % factor == 0
  np.testing.assert_array_equal(equal[0, ..., 0], first[:, None] & first)


@pytest.mark.parametrize("maximum", [lambda x: layers.max_pool(x, 2), lambda x: layers.max_over(x, -1)])
@pytest.mark.parametrize("level", ["0", "3"])
def test_gradients_through_a_maximum_stay_finite_however_the_compiler_rounds(maximum, level):
  # Without optimizations, XLA computes the norm twice and rounds differently: the gradient through `jnp.max` is NaN there.
  x, norm = jax.random.uniform(jax.random.key(0), (2, 16, 24, 8), minval=-1), layers.FilmNorm(8)
  lowered = jax.jit(jax.grad(lambda p: jnp.sum(maximum(norm.apply(p, x)) ** 2))).lower(norm.init(jax.random.key(1), x))
  gradient = lowered.compile(compiler_options={"xla_backend_optimization_level": level})
  for leaf in jax.tree.leaves(gradient(norm.init(jax.random.key(1), x))):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1


@pytest.mark.parametrize("axis", [1, -1])
def test_a_maximum_has_its_gradient_in_one_place_even_among_equal_ones(axis):
  x = jax.random.permutation(jax.random.key(0), jnp.arange(2 * 9 * 5.0)).reshape(2, 9, 5)
  value, gradient = jax.value_and_grad(lambda x: jnp.sum(layers.max_over(x, axis) ** 2))(x)
  assert value == jnp.sum(jnp.max(x, axis) ** 2)
  np.testing.assert_array_equal(gradient, jnp.where(x == jnp.max(x, axis, keepdims=True), 2 * x, 0))
  equal = jax.grad(lambda x: jnp.sum(layers.max_over(x, axis)))(jnp.ones((2, 9, 5)))
  assert np.all(np.sum(equal, axis) == 1) and set(np.unique(equal)) == {0, 1}


def test_film_norm_is_group_norm_then_film():
  x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 4, 5, 12))
  scale, shift = jax.random.normal(jax.random.key(1), (2, 2, 12))
  params = {"scale": jnp.linspace(0.5, 2, 12), "bias": jnp.linspace(-1, 1, 12)}
  out = layers.FilmNorm(8).apply({"params": params}, x, scale, shift)  # gcd(8, 12) = 4 groups of 3
  grouped = np.asarray(x, np.float64).reshape(2, 4, 5, 4, 3)
  mean, std = grouped.mean((1, 2, 4), keepdims=True), np.sqrt(grouped.var((1, 2, 4), keepdims=True) + 1e-5)
  normed = ((grouped - mean) / std).reshape(x.shape) * params["scale"] + params["bias"]
  np.testing.assert_allclose(out, normed * (1 + scale[:, None, None]) + shift[:, None, None], atol=2e-5)


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"name": "unet"}, "There is no network 'unet': set its name to one of denoiser, discriminator"),
    ({}, "There is no network None"),
    ({"name": "superres", "factr": 4}, "did you mean 'factor'\\? it has depth, dtype"),
    ({"name": "superres", "factor": 4.0}, "must be a whole number, not 4.0; the default is 4"),
    ({"name": "superres", "factor": True}, "'factor' of the network 'superres' must be a whole number, not True"),
    ({"name": "denoiser", "dropout": "0.1"}, "'dropout' of the network 'denoiser' must be a number"),
    ({"name": "denoiser", "remat": 1}, "must be True or False"),
    ({"name": "denoiser", "widths": 64}, "must be a tuple of whole numbers"),
    ({"name": "denoiser", "widths": (64, 128.5)}, "must be a tuple of whole numbers"),
    ({"name": "segmenter", "dtype": "float16"}, "must be 'float32' or 'bfloat16'"),
    ({"name": "segmenter", "norm": 8}, "'norm' of the network 'segmenter' must be a string"),
  ],
)
def test_bad_settings_are_answered_in_a_sentence(settings, words):
  with pytest.raises(ValueError, match=words):
    models.build(settings)


def test_misfits_are_answered_in_a_sentence():
  network = models.build(TINY)
  x = jnp.zeros((2, 4, 4, 4))
  params = network.init(jax.random.key(0), x)
  with pytest.raises(ValueError, match="condition has shape .* must be equal"):
    network.apply(params, x, None, jnp.zeros((1, 4, 4, 1)))
  with pytest.raises(ValueError, match="takes no condition"):
    network.apply(params, x, None, jnp.zeros((2, 4, 4, 1)))
  with pytest.raises(ValueError, match="not parameters of the network 'superres' with its present settings"):
    network.apply({k: v for k, v in params.items() if k != "head"}, x)
  with pytest.raises(ValueError, match="cannot take 6x4 pixels: .* multiples of 4, for instance 8x4"):
    models.build({**TINY, "vit_blocks": 1}).check_size(6, 4)


def test_a_condition_that_the_parameters_do_not_know_is_answered_in_a_sentence():
  network = models.build(
    {
      "name": "denoiser",
      "patch": 1,
      "widths": (8,),
      "blocks": (1,),
      "attention": (),
      "middle": 0,
      "head_width": 8,
      "time_dim": 8,
    }
  )
  x, t = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2)
  params = network.init(jax.random.key(0), x, t)
  with pytest.raises(ValueError, match="do not fit the network 'denoiser' with an input of 3 channels and a condition"):
    network.apply(params, x, t, jnp.zeros((2, 4, 4, 1)))
