"""Convolution 3x3 by Winograd's minimal filtering F(2x2, 3x3): 16 products for four outputs instead of 36.

Lavin & Gray 2016 (arXiv 1509.09308), section 4.1. Each 2x2 of the output is made of the 4x4 inputs around it, transformed; the
kernel likewise; then every one of the 16 places is a matrix product over the channels, and the output a transform of those.
Additions and halvings alone: in float32 the error is of the size of the direct sum's.
"""

import jax
import jax.numpy as jnp
from jax import lax


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, C], H and W even, kernel [3, 3, C, D] -> [B, H, W, D]: stride 1, a border of one pixel of 0."""
  b, h, w, entering = x.shape
  leaving = kernel.shape[3]

  def product(u, v):
    return lax.dot_general(u.reshape(-1, entering), v, (((1,), (0,)), ((), ())))

  products = [
    [product(u, v) for u, v in zip(us, vs, strict=True)] for us, vs in zip(_inputs(x), _both_axes(_kernel, kernel), strict=True)
  ]
  out = _turn([_output(row) for row in products], _output)  # [2][2] of [B H/2 W/2, D]
  rows = [jnp.stack([pixel.reshape(b, h // 2, w // 2, leaving) for pixel in row], axis=3) for row in out]
  return jnp.stack(rows, axis=2).reshape(b, h, w, leaving)


def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
  """The transpose of `convolve` in its kernel: x [B, H, W, C], gradient of its output g [B, H, W, D] -> [3, 3, C, D]."""
  b, h, w, leaving = g.shape
  entering = x.shape[3]
  blocks = g.reshape(b, h // 2, 2, w // 2, 2, leaving)
  gradients = _turn([_output_transposed([blocks[:, :, i, :, j] for j in range(2)]) for i in range(2)], _output_transposed)

  def product(u, v):
    return lax.dot_general(u.reshape(-1, entering), v.reshape(-1, leaving), (((0,), (0,)), ((), ())))

  products = [[product(u, v) for u, v in zip(us, vs, strict=True)] for us, vs in zip(_inputs(x), gradients, strict=True)]
  out = _turn([_kernel_transposed(row) for row in products], _kernel_transposed)
  return jnp.stack([jnp.stack(row) for row in out])


def _inputs(x):
  """The transformed 4x4 around each 2x2 of the output: [4][4] of [B, H/2, W/2, C]."""
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return [_input(row, axis=2) for row in _input(padded, axis=1)]


def _input(x, axis):
  """B^T d along one axis, for every window of four at steps of two."""
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
  """A transform along the first two axes, [4][4] of the rest."""
  return [transform(row) for row in transform(x)]


def _turn(rows, transform):
  """A transform of the first index of a nested list, the second stays second."""
  columns = [transform(list(column)) for column in zip(*rows, strict=True)]
  return [list(row) for row in zip(*columns, strict=True)]
