"""Parts that several networks share: time and position features, group norm as one affine map, resampling."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def time_features(t: jax.Array, dim: int) -> jax.Array:
  """Sinusoids of the timestep, as in Vaswani et al. 2017, section 3.5, sines first, then cosines.

  Args:
    t: timesteps [B], float or int, not scaled.
    dim: number of features, even; frequency i is 10000^(-2i/dim), i = 0 .. dim/2 - 1.

  Returns:
    [B, dim] float32.
  """
  frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
  angles = t.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def position_features(height: int, width: int, num: int = 4) -> jax.Array:
  """Where a pixel lies in the picture: sinusoids of its row and column, the same corners whatever the size.

  Args:
    height, width: grid size.
    num: octaves; the coarsest half-wave spans the picture's longer side.

  Returns:
    [height, width, 4 num] float32.
  """
  longer = max(height, width)

  def axis(size):  # centres of the pixels, the longer side from -1 to 1
    place = (2 * jnp.arange(size, dtype=jnp.float32) + 1 - size) / longer
    angles = place[:, None] * (math.pi / 2 * 2.0 ** jnp.arange(num))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

  rows, columns = axis(height)[:, None], axis(width)[None, :]
  shape = (height, width, 2 * num)
  return jnp.concatenate([jnp.broadcast_to(rows, shape), jnp.broadcast_to(columns, shape)], axis=-1)


def rotate(x: jax.Array, height: int, width: int) -> jax.Array:
  """Rotary positions in two dimensions: half of each head turns with the row, half with the column.

  Su et al. 2021 (RoFormer), eq. 34, on both axes. Scores then depend on the offset between two pixels, which
  carries over to sizes that were never trained on.

  Args:
    x: queries or keys [B, height * width, heads, D], D divisible by 4, row-major tokens.
    height, width: the grid.

  Returns:
    The same shape and dtype.
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
  """[B, H, W, C] -> [B, H/block, W/block, block * block * C]; nothing is lost."""
  if block == 1:
    return x
  b, h, w, c = x.shape
  x = x.reshape(b, h // block, block, w // block, block, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
  """[B, h, w, block * block * C] -> [B, h * block, w * block, C], the inverse of `space_to_depth`."""
  if block == 1:
    return x
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * block, w * block, c // block**2)


class FilmNorm(nn.Module):
  """Group norm (Wu & He 2018), optionally with FiLM (Perez et al. 2018), as one multiply and add per pixel.

  Statistics in float32; the per-channel scale and offset of norm and FiLM are folded together first, so the
  picture is read once for the statistics and once for the result, which the caller's activation fuses into.

  Attributes:
    groups: at most so many groups; the greatest common divisor with the channels is used.
    eps: added to the variance.
  """

  groups: int = 32
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
    """x [B, H, W, C], scale and shift [B, C] (FiLM: (1 + scale) * norm + shift) -> like x."""
    channels = x.shape[-1]
    groups = math.gcd(self.groups, channels)
    gamma = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    beta = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    wide = x.astype(jnp.float32)
    # Mean per channel first, then per group: reduces along the contiguous axis last, on a small array.
    mean, square = (
      jnp.mean(v, axis=(1, 2)).reshape(-1, groups, channels // groups).mean(-1, keepdims=True) for v in (wide, wide * wide)
    )
    rstd = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.eps)
    expand = (1, 1, channels // groups)
    mean, rstd = (jnp.tile(v, expand).reshape(-1, channels) for v in (mean, rstd))
    a = rstd * gamma
    b = beta - mean * a
    if scale is not None:
      scale, shift = scale.astype(jnp.float32), shift.astype(jnp.float32)
      a, b = a * (1 + scale), b * (1 + scale) + shift
    return (wide * a[:, None, None, :] + b[:, None, None, :]).astype(x.dtype)
