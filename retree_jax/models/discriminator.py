"""The paper's tree filter: a patch discriminator with locality transformers between its convolutions.

Alimanov & Islam 2023 (arXiv 2308.08339) use it to accept or reject generated trees; based on the patch discriminator of Isola
et al. 2017 (arXiv 1611.07004).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from retree_jax.models import paper


class Discriminator(nn.Module):
  """Classifies overlapping patches of an image as real (1) or generated (0); 6.44 million parameters.

  Attributes:
    width: channels after the first convolution; doubled by each of the next three.
    heads, head_width: attention heads, and channels per head.
    depth: blocks in each of the three transformers.
    dtype: "float32" or "bfloat16", the type of the computations; parameters and output are float32.
  """

  width: int = 64
  heads: int = 4
  head_width: int = 64
  depth: int = 1
  dtype: str = "float32"

  @property
  def size_multiple(self) -> int:
    return 1

  def check_settings(self) -> None:
    """Raises ValueError for invalid settings."""
    for field in ("width", "heads", "head_width", "depth"):
      if getattr(self, field) < 1:
        raise ValueError(f"Setting {field!r} of the discriminator must be at least 1, not {getattr(self, field)}.")

  def check_size(self, height: int, width: int) -> None:
    """Raises ValueError for images that leave fewer than 2x2 pixels to the last convolution."""
    if min(height, width) < 20:
      raise ValueError(
        f"The discriminator cannot take {height}x{width} pixels: height and width must be at least 20; it was made for 64x64."
      )

  @nn.compact
  def __call__(
    self, x: jax.Array, t: jax.Array | None = None, cond: jax.Array | None = None, train: bool = False, logits: bool = False
  ) -> jax.Array:
    """Scores patches.

    Args:
      x: images [B, H, W, C] in [-1, 1], H and W at least 20.
      t: unused; part of the interface that all networks share.
      cond: condition [B, H, W, D] or None, concatenated to x along the channels.
      train: no effect.
      logits: return logits instead of their sigmoid.

    Returns:
      [B, h, w, 1] float32, in (0, 1) unless `logits`; 6x6 for 64x64 pixels. The original's score of an image is the mean of
      this map.
    """
    del t, train
    dtype = jnp.dtype(self.dtype)
    x = (x if cond is None else jnp.concatenate([x, cond], axis=-1)).astype(dtype)
    x = nn.leaky_relu(_conv(x, self.width, 2, dtype, "initial"), 0.2)
    for i, stride in enumerate((1, 2, 2)):
      x = _conv(x, self.width * 2 ** (i + 1), stride, dtype, f"conv_{i}")
      x = nn.leaky_relu(_instance_norm(x), 0.2)
      x = paper.LocalityTransformer(self.heads, self.head_width, self.depth, self.dtype, name=f"vit_{i}")(x)
    x = _conv(x, 1, 1, dtype, "head").astype(jnp.float32)
    return x if logits else nn.sigmoid(x)


def _conv(x: jax.Array, width: int, stride: int, dtype, name: str) -> jax.Array:
  """4x4 convolution with reflection padding of one pixel."""
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
  init = paper.torch_init(16 * x.shape[-1])
  return nn.Conv(width, (4, 4), (stride, stride), padding="VALID", dtype=dtype, **init, name=name)(x)


def _instance_norm(x: jax.Array) -> jax.Array:
  """Instance norm without parameters (Ulyanov et al. 2016): each channel of each image to mean 0 and variance 1, in float32."""
  wide = x.astype(jnp.float32)
  centred = wide - jnp.mean(wide, axis=(1, 2), keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)
  return (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)
