"""Layers shared by several networks: time and position features, group norm, space-to-depth, maxima."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat


def time_features(t: jax.Array, dim: int) -> jax.Array:
  """Sinusoidal features of the timestep (Vaswani et al. 2017, section 3.5), sines first, then cosines.

  Args:
    t: timesteps [B], float or int, unscaled.
    dim: number of features, even; frequency i is 10000^(-2i/dim), i = 0 .. dim/2 - 1.

  Returns:
    [B, dim] float32.
  """
  frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
  angles = t.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def position_features(height: int, width: int, num: int = 4) -> jax.Array:
  """Sinusoidal features of each pixel's row and column, relative to the image: corners have the same features at any size.

  Args:
    height, width: grid size.
    num: octaves; half a period of the lowest frequency spans the longer side of the image.

  Returns:
    [height, width, 4 num] float32.
  """
  longer = max(height, width)

  def axis(size):  # of the pixel centres, with the longer side spanning -1 to 1
    position = (2 * jnp.arange(size, dtype=jnp.float32) + 1 - size) / longer
    angles = position[:, None] * (math.pi / 2 * 2.0 ** jnp.arange(num))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

  rows, columns = repeat(axis(height), "h f -> h w f", w=width), repeat(axis(width), "w f -> h w f", h=height)
  return jnp.concatenate([rows, columns], axis=-1)


def rotate(x: jax.Array, height: int, width: int) -> jax.Array:
  """Rotary position embedding in two dimensions (Su et al. 2021, RoFormer, eq. 34): half of each head encodes the row, half the
  column.

  Attention scores then depend on the offset between two pixels only, which generalises to sizes not seen in training.

  Args:
    x: queries or keys [B, height * width, heads, D], D divisible by 4, tokens in row-major order.
    height, width: grid size.

  Returns:
    Array of x's shape and dtype.
  """
  quarter = x.shape[-1] // 4
  frequencies = 100.0 ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
  rows = jnp.repeat(jnp.arange(height, dtype=jnp.float32), width)[:, None] * frequencies
  columns = jnp.tile(jnp.arange(width, dtype=jnp.float32), height)[:, None] * frequencies
  angles = jnp.concatenate([rows, columns], axis=-1)[:, None, :]
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
  """Moves blocks of pixels into the channels, without loss: [B, H, W, C] -> [B, H/block, W/block, block * block * C]."""
  return x if block == 1 else rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=block, q=block)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
  """The inverse of `space_to_depth`: [B, h, w, block * block * C] -> [B, h * block, w * block, C]."""
  return x if block == 1 else rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=block, q=block)


def max_pool(x: jax.Array, factor: int) -> jax.Array:
  """The highest value of each block of `factor` x `factor` pixels, [B, H, W, C] -> [B, H/factor, W/factor, C].

  The gradient goes to the pixel that was chosen, the first of equal ones, as in PyTorch. That of `jnp.max` goes to the pixels
  that equal the maximum, divided by their number. Where the compiler computes the pixels twice and rounds differently, none is
  equal to it, and the gradient is 0 / 0.
  """
  for axis in (2, 1):
    first, *others = (jax.lax.slice_in_dim(x, i, None, stride=factor, axis=axis) for i in range(factor))
    x = functools.reduce(lambda best, other: jnp.where(other > best, other, best), others, first)
  return x


def max_over(x: jax.Array, axis: int) -> jax.Array:
  """`jnp.max` over one axis, [B, n, C] -> [B, C] for axis 1; its gradient goes to the first of equal maxima, see `max_pool`."""
  best = jnp.argmax(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
  places = jax.lax.broadcasted_iota(best.dtype, x.shape, axis % x.ndim)
  return jnp.sum(jnp.where(places == best, x, 0), axis=axis)


class FilmNorm(nn.Module):
  """Group norm (Wu & He 2018), optionally with FiLM (Perez et al. 2018), as one multiplication and addition per pixel.

  Statistics are computed in float32. The per-channel scales and offsets of norm and FiLM are combined first, so the features
  are read only twice: for the statistics, and for the result, with which XLA fuses the caller's activation.

  Attributes:
    groups: number of groups, replaced by its greatest common divisor with the number of channels.
    eps: added to the variance.
  """

  groups: int = 32
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
    """x [B, H, W, C], scale and shift [B, C] (FiLM: (1 + scale) * norm + shift) -> array of x's shape and dtype."""
    channels = x.shape[-1]
    groups = math.gcd(self.groups, channels)
    gamma = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    beta = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    wide = x.astype(jnp.float32)
    # Mean per channel first, then per group, so that the reduction along the contiguous axis is over a small array.
    mean, square = (
      rearrange(jnp.mean(v, axis=(1, 2)), "b (groups c) -> b groups c", groups=groups).mean(-1) for v in (wide, wide * wide)
    )
    rstd = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.eps)
    mean, rstd = (repeat(v, "b groups -> b (groups c)", c=channels // groups) for v in (mean, rstd))
    a = rstd * gamma
    b = beta - mean * a
    if scale is not None:
      scale, shift = scale.astype(jnp.float32), shift.astype(jnp.float32)
      a, b = a * (1 + scale), b * (1 + scale) + shift
    return (wide * a[:, None, None, :] + b[:, None, None, :]).astype(x.dtype)
