"""U-Net that segments the vessels of a fundus photograph; also the feature extractor of a distance between photographs."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from retree_jax.models import layers
from retree_jax.models.cpu import convolution


class Cbam(nn.Module):
  """Channel, then spatial attention (Woo et al. 2018, eqs. 2-3): each multiplies the features by a gate in (0, 1).

  Attributes:
    ratio: channels divided by the hidden width of the channel attention's MLP.
    dtype: of the computations.
  """

  ratio: int = 16
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    channels = x.shape[-1]
    squeeze = nn.Dense(max(1, channels // self.ratio), use_bias=False, dtype=self.dtype, name="squeeze")
    excite = nn.Dense(channels, use_bias=False, dtype=self.dtype, name="excite")
    average, highest = jnp.mean(x, axis=(1, 2)), layers.max_over(rearrange(x, "b h w c -> b (h w) c"), 1)
    gate = nn.sigmoid(excite(nn.relu(squeeze(average))) + excite(nn.relu(squeeze(highest))))
    x = x * gate[:, None, None, :]
    maps = jnp.stack([jnp.mean(x, axis=-1), layers.max_over(x, -1)], axis=-1)
    return x * nn.sigmoid(nn.Conv(1, (7, 7), use_bias=False, dtype=self.dtype, name="where")(maps))


class Block(nn.Module):
  """Two 3x3 convolutions, each followed by norm and ReLU; then optionally dropout and attention."""

  width: int
  norm: str
  attention: str
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, width]."""
    # FilmNorm uses the greatest common divisor of groups and channels: `width` groups are one per channel.
    groups = self.width if self.norm == "instance" else 8
    for _ in range(2):
      x = convolution.layer(self.width, use_bias=False, dtype=self.dtype)(x)
      x = nn.relu(layers.FilmNorm(groups)(x))
    if self.dropout:
      # Whole channels, because single pixels could be inferred from their neighbours.
      x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
    return Cbam(dtype=self.dtype)(x) if self.attention == "cbam" else x


class Segmenter(nn.Module):
  """Photograph [B, H, W, 3] in [-1, 1] -> vessel logits [B, H, W, 1], float32 (U-Net, Ronneberger et al. 2015).

  The norms use the statistics of the input, so a network trained on crops should be applied to tiles of the same size
  (`retree_jax.inference.tiling`), not to a whole photograph at once.

  `Segmenter(widths=(64, 128, 256, 512), bottleneck=(640, 768, 896, 1024), patch=1, norm="instance", attention="cbam",
  dropout=0.0)` is the CBAM-UNet of the companion paper (arXiv 2209.04234), 64.8 million parameters.

  Attributes:
    widths: channels of each resolution level, finest first; each level halves height and width.
    bottleneck: channels of each block at the coarsest level, which is half as large as the last level of `widths`.
    patch: 1, or 2 for a lossless space-to-depth of 2x2 pixels at the input, so that the most expensive level has a quarter of
      the positions; a small convolution at full resolution then produces the output.
    norm: "group" (8 groups) or "instance".
    attention: "none" or "cbam".
    dropout: probability of dropping a channel after a block, in training.
    dtype: of the computations; parameters and output are float32.
  """

  widths: tuple[int, ...] = (64, 128, 192, 256)
  bottleneck: tuple[int, ...] = (384, 384)
  patch: int = 2
  norm: str = "group"
  attention: str = "none"
  dropout: float = 0.1
  dtype: str = "float32"

  @property
  def size_multiple(self) -> int:
    """Height and width must be divisible by it."""
    return self.patch * 2 ** len(self.widths)

  def check_settings(self) -> None:
    """Raises ValueError for invalid settings."""
    if not self.widths or not self.bottleneck or min(*self.widths, *self.bottleneck) < 1:
      raise ValueError(
        "A segmenter needs positive widths and bottleneck, not "
        f"{self.widths} and {self.bottleneck}; for instance (32, 48, 64) and (96,)."
      )
    choices = {"patch": (1, 2), "norm": ("group", "instance"), "attention": ("none", "cbam")}
    for name, valid in choices.items():
      if getattr(self, name) not in valid:
        raise ValueError(f"Setting {name!r} of the segmenter is {getattr(self, name)!r}; use one of {valid}.")
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(f"Setting 'dropout' of the segmenter is {self.dropout}; use at least 0, less than 1.")

  @nn.compact
  def __call__(
    self, x: jax.Array, t=None, cond: jax.Array | None = None, train: bool = False, features: bool = False
  ) -> jax.Array:
    """Logits [B, H, W, 1], or with `features=True` the bottleneck's features averaged over the image.

    Args:
      x: photographs [B, H, W, C] in [-1, 1].
      t: unused; part of the interface that all networks share.
      cond: further channels [B, H, W, D] or None, e.g. the field of view.
      train: enables dropout.
      features: return features [B, bottleneck[-1]], float32, for distances between sets of photographs.
    """
    if cond is not None:
      x = jnp.concatenate([x, cond.astype(x.dtype)], axis=-1)
    image = x.astype(self.dtype)
    x = layers.space_to_depth(image, self.patch)

    def block(x, width):
      return Block(width, self.norm, self.attention, self.dropout, self.dtype)(x, train)

    skips = []
    for width in self.widths:
      x = block(x, width)
      skips.append(x)
      x = layers.max_pool(x, 2)
    for width in self.bottleneck:
      x = block(x, width)
    if features:
      return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    for width, skip in zip(reversed(self.widths), reversed(skips), strict=True):
      # Equivalent to a transposed 2x2 convolution of stride 2.
      x = layers.depth_to_space(nn.Dense(4 * width, dtype=self.dtype)(x), 2)
      x = block(jnp.concatenate([skip, x], axis=-1), width)
    if self.patch > 1:
      width = max(8, self.widths[0] // self.patch**2)
      x = layers.depth_to_space(nn.Dense(width * self.patch**2, dtype=self.dtype)(x), self.patch)
      x = jnp.concatenate([image, x], axis=-1)
      x = nn.relu(convolution.layer(width, dtype=self.dtype, name="draw")(x))
    # Vessels are about a tenth of the pixels; starting from that probability saves the first hundreds of steps.
    bias = nn.initializers.constant(math.log(0.1 / 0.9))
    return nn.Dense(1, dtype=jnp.float32, bias_init=bias, name="head")(x.astype(jnp.float32))
