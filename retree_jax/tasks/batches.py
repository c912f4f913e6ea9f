"""From the pipeline's uint8 batches to what networks take."""

import jax.numpy as jnp


def to_signed(x):
  """uint8 0..255 as float32 in [-1, 1]."""
  return x.astype(jnp.float32) / 127.5 - 1.0


def to_unit(x):
  """uint8 0..255 as float32 in [0, 1]."""
  return x.astype(jnp.float32) / 255.0


def stack_signed(batch, fields):
  """The named fields of a batch side by side: [B, H, W, sum of channels] float32 in [-1, 1]."""
  return jnp.concatenate([to_signed(batch[name]) for name in fields], axis=-1)
