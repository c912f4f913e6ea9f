"""What the second model of a cascade is given: the first one's output, degraded on purpose and enlarged.

Trained on real low-resolution pictures alone, the second model would reproduce every fault of drawn ones. So it is trained on
blurred and noisy ones, with the level of degradation as an input; in sampling, the first model's output is degraded likewise,
at a level that hides its faults (conditioning augmentation, Ho et al. 2021, arXiv 2106.15282, section 4).
"""

import jax
import jax.numpy as jnp

FACTOR = 2  # how many times larger, along a side, than its condition a refined picture is
_DETAIL_GAIN = 4.0  # the detail of photographs is within 32 of 255 grey levels nearly everywhere


def degrade(low: jax.Array, level: jax.Array, noise: jax.Array, most_blur: float, most_noise: float) -> jax.Array:
  """Blurs pictures and adds noise, both in proportion to a level.

  Args:
    low: pictures [B, h, w, C] in [-1, 1].
    level: [B] in [0, 1].
    noise: standard normal, of `low`'s shape.
    most_blur: standard deviation of the Gaussian blur at level 1, pixels; about 1.5 at most, since 7 taps are taken.
    most_noise: standard deviation of the noise at level 1.

  Returns:
    [B, h, w, C]; not clipped.
  """
  sigma = jnp.maximum(level * most_blur, 1e-3)[:, None]
  taps = jnp.exp(-0.5 * jnp.square(jnp.arange(-3, 4) / sigma))
  taps = (taps / taps.sum(axis=1, keepdims=True))[:, :, None, None, None]
  for axis in (1, 2):
    pad = [(0, 0)] * 4
    pad[axis] = (3, 3)
    padded = jnp.pad(low, pad, mode="edge")
    low = sum(taps[:, i] * jax.lax.slice_in_dim(padded, i, i + low.shape[axis], axis=axis) for i in range(7))
  return low + (most_noise * level)[:, None, None, None] * noise


def without_haze(low: jax.Array, haze: jax.Array) -> jax.Array:
  """Coverage without the faint background that drawn maps have and real ones lack.

  Args:
    low: coverage [B, h, w, 1], from -1 (none) to 1.
    haze: shares of a pixel, [B]. What covers less goes, what covers twice as much stays as it is, and what lies between fades.
      0 leaves a picture as it is.
  """
  haze = haze[:, None, None, None]
  share = (low + 1.0) / 2.0
  faded = 2.0 * share * jnp.clip(share / jnp.maximum(haze, 1e-6) - 1.0, 0.0, 1.0) - 1.0
  return jnp.where(haze > 0, faded, low)


def condition(low: jax.Array, sharp: jax.Array, level: jax.Array, noise: jax.Array, options) -> jax.Array:
  """All that a refining network is given besides the noisy picture.

  Args:
    low: coverage or photograph [B, h, w, C] in [-1, 1].
    sharp: what it is given at the refined size, [B, H, W, D] in [-1, 1]: the field of view, of photographs the tree before it.
    level: how much `low` is degraded, [B] in [0, 1].
    noise: standard normal, of `low`'s shape.
    options: `config.diffusion`, whose "condition_blur" and "condition_noise" are what level 1 means.

  Returns:
    [B, H, W, C + D + 1]: `low`, degraded and enlarged bilinearly; `sharp`; the level, from -1 to 1.
  """
  low = degrade(low, level, noise, options["condition_blur"], options["condition_noise"])
  large = jax.image.resize(low, (*sharp.shape[:3], low.shape[-1]), "linear")
  told = jnp.broadcast_to((2.0 * level - 1.0)[:, None, None, None], (*sharp.shape[:3], 1))
  return jnp.concatenate([large, sharp, told], axis=-1)


def detail_of(picture: jax.Array, cond: jax.Array) -> jax.Array:
  """What a picture [B, H, W, C] has beyond the enlarged one that its condition begins with, amplified; clipped to [-1, 1]."""
  return jnp.clip(_DETAIL_GAIN * (picture - cond[..., : picture.shape[-1]]), -1.0, 1.0)


def with_detail(detail: jax.Array, cond: jax.Array) -> jax.Array:
  """The picture that has this detail, the inverse of `detail_of`."""
  return cond[..., : detail.shape[-1]] + detail / _DETAIL_GAIN
