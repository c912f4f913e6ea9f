"""3x3 convolution by Winograd's minimal filtering F(2x2, 3x3): 16 multiplications for four outputs instead of 36.

Lavin & Gray 2016 (arXiv 1509.09308), section 4.1. For each 2x2 block of outputs, the surrounding 4x4 inputs are transformed;
so is the kernel. Each of the 16 transformed positions is a matrix product over the channels, and the outputs are a transform of
the products. The transforms use additions and halvings only, so the float32 error is comparable to that of a direct sum.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, C], H and W even, kernel [3, 3, C, D] -> [B, H, W, D]: stride 1, zero padding of one pixel."""
  b, h, w, in_channels = x.shape

  def product(u, v):
    return lax.dot_general(u.reshape(-1, in_channels), v, (((1,), (0,)), ((), ())))

  products = [
    [product(u, v) for u, v in zip(us, vs, strict=True)] for us, vs in zip(_inputs(x), _both_axes(_kernel, kernel), strict=True)
  ]
  out = _along_columns([_output(row) for row in products], _output)  # [2][2] of [B H/2 W/2, D]
  rows = [jnp.stack([rearrange(y, "(b h w) d -> b h w d", b=b, h=h // 2) for y in row], axis=3) for row in out]
  return rearrange(jnp.stack(rows, axis=2), "b h p w q d -> b (h p) (w q) d")


def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
  """Gradient of `convolve` with respect to its kernel: x [B, H, W, C], the output's gradient g [B, H, W, D] -> [3, 3, C, D]."""
  in_channels, out_channels = x.shape[3], g.shape[3]
  blocks = rearrange(g, "b (h p) (w q) d -> b h p w q d", p=2, q=2)
  rows = [_output_transposed([blocks[:, :, i, :, j] for j in range(2)]) for i in range(2)]
  gradients = _along_columns(rows, _output_transposed)

  def product(u, v):
    return lax.dot_general(u.reshape(-1, in_channels), v.reshape(-1, out_channels), (((0,), (0,)), ((), ())))

  products = [[product(u, v) for u, v in zip(us, vs, strict=True)] for us, vs in zip(_inputs(x), gradients, strict=True)]
  out = _along_columns([_kernel_transposed(row) for row in products], _kernel_transposed)
  return jnp.stack([jnp.stack(row) for row in out])


def _inputs(x):
  """The transformed 4x4 inputs of each 2x2 block of outputs: [4][4] of [B, H/2, W/2, C]."""
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return [_input(row, axis=2) for row in _input(padded, axis=1)]


def _input(x, axis):
  """B^T d along one axis, for every window of four with stride two."""
  pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
  even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
  num = even.shape[axis]
  d0, d1 = (lax.slice_in_dim(part, 0, num - 1, axis=axis) for part in (even, odd))
  d2, d3 = (lax.slice_in_dim(part, 1, num, axis=axis) for part in (even, odd))
  return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _kernel(g):
  """G g."""
  return [g[0], 0.5 * (g[0] + g[1] + g[2]), 0.5 * (g[0] - g[1] + g[2]), g[2]]


def _kernel_transposed(m):
  """G^T m."""
  half, difference = 0.5 * (m[1] + m[2]), 0.5 * (m[1] - m[2])
  return [m[0] + half, difference, half + m[3]]


def _output(m):
  """A^T m."""
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _output_transposed(g):
  """A g."""
  return [g[0], g[0] + g[1], g[0] - g[1], -g[1]]


def _both_axes(transform, x):
  """A transform along the first two axes of x: [4][4] of the remaining axes."""
  return [transform(row) for row in transform(x)]


def _along_columns(rows, transform):
  """Applies a transform along the first index of a nested list."""
  columns = [transform(list(column)) for column in zip(*rows, strict=True)]
  return [list(row) for row in zip(*columns, strict=True)]
