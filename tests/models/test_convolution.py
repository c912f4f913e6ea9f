"""The quick forms of convolutions against direct sums in float64, XLA's own and finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.models.cpu import convolution, winograd

# images, height, width, input and output channels: a shape for every form used on CPUs, forward and for both gradients
SHAPES = {
  "winograd": (2, 16, 16, 256, 256),
  "winograd, kernel's gradient not": (8, 32, 32, 64, 64),
  "winograd, not square": (1, 64, 80, 128, 64),
  "products": (8, 4, 4, 256, 256),
  "product for the picture": (4, 8, 8, 128, 128),
  "swapped": (3, 12, 10, 16, 8),
  "strips": (1, 16, 6, 4, 6),
  "strips that do not divide": (1, 7, 5, 4, 4),
  "one channel": (8, 8, 8, 1, 3),
}


def _drawn(shape, dtype=np.float64, seed=0):
  n, h, w, c_in, c_out = shape
  rng = np.random.default_rng(seed)
  return tuple(rng.standard_normal(s).astype(dtype) for s in ((n, h, w, c_in), (3, 3, c_in, c_out), (n, h, w, c_out)))


def _reference(x, kernel, g):
  """Convolution and both gradients as sums over the nine places, float64."""
  h, w = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  out, d_padded, d_kernel = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(kernel)
  for i in range(3):
    for j in range(3):
      seen = padded[:, i : i + h, j : j + w]
      out += seen @ kernel[i, j]
      d_padded[:, i : i + h, j : j + w] += g @ kernel[i, j].T
      d_kernel[i, j] = np.tensordot(seen, g, ((0, 1, 2), (0, 1, 2)))
  return out, d_padded[:, 1:-1, 1:-1], d_kernel


def _error(got, wanted):
  return np.linalg.norm(np.float64(got) - wanted) / np.linalg.norm(wanted)


def _conv(x, kernel):
  return convolution.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_form_is_the_direct_sum(shape):
  x, kernel, g = _drawn(shape)
  args = tuple(np.float32(a) for a in (x, kernel, g))

  @jax.jit
  def both(x, kernel, g):
    out, back = jax.vjp(_conv, x, kernel)
    return out, *back(g)

  for got, wanted in zip(both(*args), _reference(x, kernel, g), strict=True):
    assert got.dtype == jnp.float32 and got.shape == wanted.shape
    assert _error(got, wanted) < 3e-6  # what XLA makes of the largest of these sums is off by 1.6e-6


def test_the_bounds_choose_the_forms_that_the_shapes_are_named_after():
  pays = {
    name: [convolution._winograd_pays(np.empty((n, h, w, c), np.float32), d, least) for least in (64, 128)]
    for name, (n, h, w, c, d) in SHAPES.items()
  }
  assert pays.pop("winograd") == [True, True]
  assert pays.pop("winograd, kernel's gradient not") == [True, False]
  assert pays.pop("winograd, not square") == [True, False]
  assert not any(any(p) for p in pays.values())
  odd = np.empty((8, 31, 32, 128), np.float32)
  assert not convolution._winograd_pays(odd, 128, 64)


def test_winograd_is_exact_where_the_arithmetic_is():
  # Small integers: every sum and half of Winograd's transform is a float32 without rounding.
  rng = np.random.default_rng(1)
  x, g = (rng.integers(-4, 5, s).astype(np.float32) for s in ((2, 6, 8, 3), (2, 6, 8, 5)))
  kernel = 4.0 * rng.integers(-3, 4, (3, 3, 3, 5)).astype(np.float32)
  out, _, d_kernel = _reference(*(np.float64(a) for a in (x, kernel, g)))
  np.testing.assert_array_equal(winograd.convolve(x, kernel), out)
  np.testing.assert_array_equal(winograd.kernel_gradient(x, g), d_kernel)


def test_the_gradient_of_a_gradient_is_the_direct_ones():
  # What a gradient penalty takes: the gradient with respect to the picture, differentiated by the kernel.
  shape = (2, 6, 8, 3, 4)
  x, kernel, _ = (np.float32(a) for a in _drawn(shape))

  def penalty(conv):
    def of(kernel):
      grad = jax.grad(lambda x: jnp.sum(jnp.tanh(conv(x, kernel))))(x)
      return jnp.sum(grad**2)

    return jax.jit(jax.grad(of))(kernel)

  np.testing.assert_allclose(penalty(_conv), penalty(convolution._direct), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "options",
  [
    {"strides": (2, 2)},
    {"kernel_dilation": (2, 2)},
    {"feature_group_count": 2},
    {"padding": "VALID"},
    {"kernel_size": (5, 5)},
    {"dtype": jnp.bfloat16},
    {"precision": "highest"},
  ],
  ids=str,
)
def test_anything_else_goes_to_xla_as_it_is(options):
  options = {"kernel_size": (3, 3), "padding": "SAME", **options}
  x = np.float32(_drawn((1, 8, 8, 4, 4))[0])
  ours = nn.Conv(6, conv_general_dilated=convolution.conv_general_dilated, **options)
  params = ours.init(jax.random.key(0), x)
  np.testing.assert_array_equal(ours.apply(params, x), nn.Conv(6, **options).apply(params, x))


def test_the_layer_has_the_parameters_and_the_output_of_flax():
  x = np.float32(_drawn((2, 10, 6, 3, 4))[0])
  params = convolution.layer(4).init(jax.random.key(0), x)
  plain = nn.Conv(4, (3, 3), padding=1)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain.init(jax.random.key(0), x))
  np.testing.assert_allclose(convolution.layer(4).apply(params, x), plain.apply(params, x), rtol=1e-5, atol=1e-6)


def test_an_accelerator_gets_xlas_own_convolutions():
  x, kernel, g = (np.float32(a) for a in _drawn(SHAPES["winograd"]))

  def both(conv):
    return jax.jit(lambda x, kernel, g: jax.vjp(conv, x, kernel)[1](g)).trace(x, kernel, g).lower(lowering_platforms=("tpu",))

  ours, direct = (both(conv).as_text() for conv in (_conv, convolution._direct))
  assert ours.count("stablehlo.convolution") == direct.count("stablehlo.convolution") == 2
  assert "stablehlo.dot" not in ours
