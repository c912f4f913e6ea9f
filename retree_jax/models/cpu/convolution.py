"""Convolutions 3x3 in the forms that are quick on a CPU; everywhere else they are XLA's own.

A CPU's convolutions are matrix products behind the scenes. With many channels, Winograd's transform saves half of them. XLA
writes gradients as convolutions too, for which a CPU first turns the kernel around, or gathers the batch innermost; where that
costs more than the arithmetic, another order of the same sums is used. Equal to rounding, and differentiable again.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from retree_jax.models.cpu import winograd

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_BATCH = 8  # pictures that XLA's gradient of the kernel wants: it reads so many values in a row


def layer(features: int, **kw) -> nn.Conv:
  """A 3x3 convolution, [B, H, W, C] -> [B, H, W, features]; `kw` is what else `flax.linen.Conv` takes."""
  return nn.Conv(features, (3, 3), padding=1, conv_general_dilated=conv_general_dilated, **kw)


def conv_general_dilated(
  x: jax.Array,
  kernel: jax.Array,
  strides,
  padding,
  *,
  lhs_dilation=None,
  rhs_dilation=None,
  dimension_numbers=None,
  feature_group_count: int = 1,
  precision=None,
) -> jax.Array:
  """`jax.lax.conv_general_dilated`, for `flax.linen.Conv(conv_general_dilated=...)`.

  What this module speeds up is a float32 convolution 3x3 of stride 1 that keeps the size; any other goes to `jax.lax`.

  Args:
    x: pictures [B, H, W, C].
    kernel: [3, 3, C, D].
    strides, padding, ...: as `jax.lax.conv_general_dilated` takes them.

  Returns:
    [B, H, W, D].
  """
  dilated = {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} != {1}
  keeps_size = padding == "SAME" if isinstance(padding, str) else [tuple(p) for p in padding] == [(1, 1), (1, 1)]
  if (
    x.ndim == 4
    and kernel.shape[:2] == (3, 3)
    and tuple(strides) == (1, 1)
    and keeps_size
    and not dilated
    and feature_group_count == 1
    and precision is None
    and x.dtype == kernel.dtype == jnp.float32
  ):
    return _conv3x3(x, kernel)
  return lax.conv_general_dilated(
    x, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision=precision
  )


# Below: x [B, H, W, C], kernel [3, 3, C, D], g [B, H, W, D] the gradient with respect to the output; all float32.


def _direct(x, kernel):
  return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _direct_gradients(x, kernel, g):
  return jax.vjp(_direct, x, kernel)[1](g)


@jax.custom_vjp
def _conv3x3(x, kernel):
  return lax.platform_dependent(x, kernel, cpu=_on_cpu, default=_direct)


def _forward(x, kernel):
  return _conv3x3(x, kernel), (x, kernel)


def _backward(residuals, g):
  return lax.platform_dependent(*residuals, g, cpu=_gradients_on_cpu, default=_direct_gradients)


_conv3x3.defvjp(_forward, _backward)


# --- on a CPU: bounds found by timing with JAX 0.10 and 0.12, 1 to 32 pictures of 4x4 to 256x256, 16 to 512 channels ----------


def _on_cpu(x, kernel):
  return winograd.convolve(x, kernel) if _winograd_pays(x, kernel.shape[3], 64) else _direct(x, kernel)


def _gradients_on_cpu(x, kernel, g):
  """Gradients with respect to x and kernel; g [B, H, W, D] is the one with respect to the output."""
  b, h, w, entering = x.shape
  leaving, pixels = kernel.shape[3], b * h * w
  if _winograd_pays(g, entering, 64):
    of_x = winograd.convolve(g, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
  elif pixels <= 4 * min(entering, leaving):
    of_x = _of_x_by_product(kernel, g)
  else:
    of_x = jax.vjp(lambda x: _direct(x, kernel), x)[1](g)[0]
  if pixels <= leaving:
    of_kernel = _of_kernel_by_product(x, g)
  elif _winograd_pays(x, leaving, 128):
    of_kernel = winograd.kernel_gradient(x, g)
  else:
    of_kernel = _of_kernel_by_sliding(x, g)
  return of_x, of_kernel


def _winograd_pays(x, leaving: int, channels: int) -> bool:
  """Whether the convolution of x to so many channels is large enough, with so many channels on either side."""
  b, h, w, entering = x.shape
  pixels, fewer = b * h * w, min(entering, leaving)
  large = fewer >= channels and pixels >= 2 * max(entering, leaving) and 18 * pixels * entering * leaving >= 500_000_000
  return large and h % 2 == 0 and w % 2 == 0


def _of_x_by_product(kernel, g):
  """Each output's share in the nine inputs that it saw, added up where they lie: the kernel is read as it lies."""
  b, h, w, leaving = g.shape
  entering = kernel.shape[2]
  shares = lax.dot_general(g.reshape(-1, leaving), kernel.reshape(-1, leaving), (((1,), (1,)), ((), ())))
  shares = shares.reshape(b, h, w, 3, 3, entering)
  padded = (jnp.pad(shares[:, :, :, i, j], ((0, 0), (i, 2 - i), (j, 2 - j), (0, 0))) for i in range(3) for j in range(3))
  return sum(padded)[:, 1:-1, 1:-1]


def _of_kernel_by_product(x, g):
  """Every pixel's neighbourhood [B H W, 9 C] against g: the result lies as the kernel does."""
  h, w, leaving = g.shape[1:]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  around = jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)
  product = lax.dot_general(around.reshape(-1, around.shape[-1]), g.reshape(-1, leaving), (((0,), (0,)), ((), ())))
  return product.reshape(3, 3, -1, leaving)


def _of_kernel_by_sliding(x, g):
  """XLA's own form, a convolution whose window is the picture: it slides over x, or over g where that has fewer channels (the
  kernel comes out upside down); few pictures are cut into as many strips as make up a batch."""
  turned = g.shape[3] < x.shape[3]
  moving, window = (g, x) if turned else (x, g)
  b, h, w, _ = window.shape
  strips = next(n for n in range(max(1, _BATCH // b), 0, -1) if h % n == 0)
  rows = (1, 1)
  if strips > 1:
    height, rows = h // strips, (0, 0)
    moving = jnp.pad(moving, ((0, 0), (1, 1), (0, 0), (0, 0)))
    moving = jnp.concatenate([moving[:, k * height : (k + 1) * height + 2] for k in range(strips)])
    window = jnp.concatenate([window[:, k * height : (k + 1) * height] for k in range(strips)])
  numbers = lax.conv_dimension_numbers(moving.shape, window.shape, ("CHWN", "IHWO", "NHWC"))
  out = lax.conv_general_dilated(moving, window, (1, 1), (rows, (1, 1)), dimension_numbers=numbers)
  return jnp.transpose(out[:, ::-1, ::-1], (1, 2, 3, 0)) if turned else jnp.transpose(out, (1, 2, 0, 3))
