"""Conversions between 8-bit pixels and the ranges of networks ([-1, 1]) and of probabilities ([0, 1]).

All functions but `stack_signed` take NumPy and JAX arrays and return an array of the same kind. The two may differ in the
last bit, because XLA replaces a division by a constant with a multiplication.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

HALF_RANGE = 127.5  # grey levels that correspond to 1 in the range [-1, 1]


def to_signed(pixels):
  """Grey levels 0..255 (uint8, or floating point) as float32 in [-1, 1]."""
  return pixels.astype(np.float32) / HALF_RANGE - 1.0


def to_unit(pixels):
  """uint8 0..255 as float32 in [0, 1]."""
  return pixels.astype(np.float32) / 255.0


def to_levels(x):
  """[-1, 1] as grey levels 0..255, floating point, neither rounded nor clipped."""
  return (x + 1.0) * HALF_RANGE


def from_signed(x):
  """[-1, 1] as uint8: rounded, and clipped to 0..255."""
  return to_levels(x).round().clip(0, 255).astype(np.uint8)


def from_unit(x):
  """[0, 1] as uint8: rounded, and clipped to 0..255."""
  return (x * 255.0).round().clip(0, 255).astype(np.uint8)


def stack_signed(fields: Mapping, names: Sequence[str]):
  """What a network takes: the named uint8 fields [B, H, W, C] of a batch, concatenated along the channels.

  Returns:
    JAX array [B, H, W, sum of channels], float32 in [-1, 1].
  """
  return jnp.concatenate([to_signed(fields[name]) for name in names], axis=-1)
