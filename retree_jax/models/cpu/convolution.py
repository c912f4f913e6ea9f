"""3x3 convolutions in forms that are fast on CPUs; on other platforms XLA's own convolution is used.

XLA computes convolutions on a CPU as matrix products. With many channels, Winograd's algorithm halves their number. XLA
expresses gradients as convolutions too, for which it first flips the kernel or moves the batch to the innermost axis; where
this data movement costs more than the arithmetic, the same sums are computed in another order. Results are equal up to
rounding, and can be differentiated any number of times.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from retree_jax.models.cpu import winograd

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_BATCH = 8  # minimum batch for XLA's gradient with respect to the kernel, which vectorises over the batch


def layer(features: int, **kw) -> nn.Conv:
  """A 3x3 convolution layer, [B, H, W, C] -> [B, H, W, features]; `kw` are further arguments of `flax.linen.Conv`."""
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
  """Replaces `jax.lax.conv_general_dilated` in `flax.linen.Conv(conv_general_dilated=...)`.

  Faster for float32 3x3 convolutions of stride 1 and unchanged size; all others are passed on to `jax.lax`.

  Args:
    x: images [B, H, W, C].
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


# Below: x [B, H, W, C], kernel [3, 3, C, D], and g [B, H, W, D], the gradient with respect to the output; all float32.
# d_x and d_kernel are the gradients with respect to x and kernel.


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


# --- CPU: bounds chosen by timing with JAX 0.10 and 0.12, 1 to 32 images of 4x4 to 256x256, 16 to 512 channels ----------------


def _on_cpu(x, kernel):
  return winograd.convolve(x, kernel) if _winograd_pays(x, kernel.shape[3], 64) else _direct(x, kernel)


def _gradients_on_cpu(x, kernel, g):
  """(d_x, d_kernel)."""
  b, h, w, in_channels = x.shape
  out_channels, pixels = kernel.shape[3], b * h * w
  if _winograd_pays(g, in_channels, 64):
    d_x = winograd.convolve(g, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
  elif pixels <= 4 * min(in_channels, out_channels):
    d_x = _d_x_by_product(kernel, g)
  else:
    d_x = jax.vjp(lambda x: _direct(x, kernel), x)[1](g)[0]
  if pixels <= out_channels:
    d_kernel = _d_kernel_by_product(x, g)
  elif _winograd_pays(x, out_channels, 128):
    d_kernel = winograd.kernel_gradient(x, g)
  else:
    d_kernel = _d_kernel_by_sliding(x, g)
  return d_x, d_kernel


def _winograd_pays(x, out_channels: int, channels: int) -> bool:
  """Whether Winograd's algorithm is faster for a convolution of x to `out_channels`: if the arithmetic is large enough, and
  both numbers of channels are at least `channels`."""
  b, h, w, in_channels = x.shape
  pixels, fewer = b * h * w, min(in_channels, out_channels)
  large = (
    fewer >= channels
    and pixels >= 2 * max(in_channels, out_channels)
    and 18 * pixels * in_channels * out_channels >= 500_000_000
  )
  return large and h % 2 == 0 and w % 2 == 0


def _d_x_by_product(kernel, g):
  """One matrix product gives the contribution of each output to its nine inputs; shifted sums collect them. Reads the kernel
  in its memory order."""
  b, h, w, out_channels = g.shape
  in_channels = kernel.shape[2]
  parts = lax.dot_general(g.reshape(-1, out_channels), kernel.reshape(-1, out_channels), (((1,), (1,)), ((), ())))
  parts = parts.reshape(b, h, w, 3, 3, in_channels)
  padded = (jnp.pad(parts[:, :, :, i, j], ((0, 0), (i, 2 - i), (j, 2 - j), (0, 0))) for i in range(3) for j in range(3))
  return sum(padded)[:, 1:-1, 1:-1]


def _d_kernel_by_product(x, g):
  """Matrix product of every pixel's neighbourhood [B H W, 9 C] and g; the result has the kernel's memory order."""
  h, w, out_channels = g.shape[1:]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  patches = jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)
  product = lax.dot_general(patches.reshape(-1, patches.shape[-1]), g.reshape(-1, out_channels), (((0,), (0,)), ((), ())))
  return product.reshape(3, 3, -1, out_channels)


def _d_kernel_by_sliding(x, g):
  """XLA's form, a convolution with an image as its window, which slides over x, or over g if that has fewer channels (the
  result is then a flipped kernel). Small batches are split into horizontal strips."""
  swapped = g.shape[3] < x.shape[3]
  moving, window = (g, x) if swapped else (x, g)
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
  return rearrange(out[:, ::-1, ::-1], "d kh kw c -> kh kw c d") if swapped else rearrange(out, "c kh kw d -> kh kw c d")
