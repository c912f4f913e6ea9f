"""U-Net that finds the vessels in a fundus photograph: the fourth stage, and the feature extractor of our
distances."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from retree_jax.models import layers
from retree_jax.models.cpu import convolution


class Cbam(nn.Module):
  """Channel, then spatial attention (Woo et al. 2018, eqs. 2-3): two gates in (0, 1) that scale the features.

  Attributes:
    ratio: the channel gate's hidden layer has 1/ratio of the channels.
  """

  ratio: int = 16
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    channels = x.shape[-1]
    squeeze = nn.Dense(max(1, channels // self.ratio), use_bias=False, dtype=self.dtype, name="squeeze")
    excite = nn.Dense(channels, use_bias=False, dtype=self.dtype, name="excite")
    average, highest = jnp.mean(x, axis=(1, 2)), jnp.max(x, axis=(1, 2))
    gate = nn.sigmoid(excite(nn.relu(squeeze(average))) + excite(nn.relu(squeeze(highest))))
    x = x * gate[:, None, None, :]
    maps = jnp.stack([jnp.mean(x, axis=-1), jnp.max(x, axis=-1)], axis=-1)
    return x * nn.sigmoid(nn.Conv(1, (7, 7), use_bias=False, dtype=self.dtype, name="where")(maps))


class Block(nn.Module):
  """Two 3x3 convolutions, each followed by norm and ReLU; then optional dropout and attention."""

  width: int
  norm: str
  attention: str
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, width]."""
    # FilmNorm takes the greatest common divisor of groups and channels: `width` groups are one per channel.
    groups = self.width if self.norm == "instance" else 8
    for _ in range(2):
      x = convolution.layer(self.width, use_bias=False, dtype=self.dtype)(x)
      x = nn.relu(layers.FilmNorm(groups)(x))
    if self.dropout:
      # Whole channels: neighbouring pixels are so alike that dropping single ones hides nothing.
      x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
    return Cbam(dtype=self.dtype)(x) if self.attention == "cbam" else x


class Segmenter(nn.Module):
  """Photograph [B, H, W, 3] in [-1, 1] -> vessel logits [B, H, W, 1], float32 (U-Net, Ronneberger et al.
  2015).

  The norms take their statistics from the picture at hand, so a network trained on patches should be used on
  tiles of that size (`retree_jax.inference.tiling`), not on the whole photograph at once.

  `Segmenter(widths=(64, 128, 256, 512), bottleneck=(640, 768, 896, 1024), patch=1, norm="instance",
  attention="cbam", dropout=0.0)` is the companion CBAM-UNet of the paper (arXiv 2209.04234), 64.8 million
  parameters.

  Attributes:
    widths: channels of each resolution level, finest first; each level halves the size.
    bottleneck: channels of the blocks at the coarsest level, which is half the size of the last of `widths`.
    patch: 1, or 2 to work on 2x2 pixels at a time: they are laid side by side as channels, so nothing is
      lost, and the most expensive level has a quarter of the positions; a small convolution at full size
      draws the result.
    norm: "group" (8 groups) or "instance".
    attention: "none" or "cbam".
    dropout: probability of dropping a channel after a block, in training.
    dtype: of the computations; parameters and output stay float32.
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
    """Raises ValueError for settings that make no network."""
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
    """Logits [B, H, W, 1], or with `features=True` the coarsest features, averaged over the picture.

    Args:
      x: photographs [B, H, W, C] in [-1, 1].
      t: not used; there so that all networks are called alike.
      cond: more channels [B, H, W, D], e.g. the field of view; optional.
      train: dropout on.
      features: return [B, bottleneck[-1]] float32 instead, for distances between sets of photographs.
    """
    if cond is not None:
      x = jnp.concatenate([x, cond.astype(x.dtype)], axis=-1)
    picture = x.astype(self.dtype)
    x = layers.space_to_depth(picture, self.patch)

    def block(x, width):
      return Block(width, self.norm, self.attention, self.dropout, self.dtype)(x, train)

    skips = []
    for width in self.widths:
      x = block(x, width)
      skips.append(x)
      b, h, w, c = x.shape
      # Max-pooling as a maximum over two axes: its gradient is cheap everywhere, unlike that of a windowed
      # reduction.
      x = jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
    for width in self.bottleneck:
      x = block(x, width)
    if features:
      return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    for width, skip in zip(reversed(self.widths), reversed(skips), strict=True):
      # A transposed 2x2 convolution of stride 2, written as what it is: four values per pixel, laid out as
      # pixels.
      x = layers.depth_to_space(nn.Dense(4 * width, dtype=self.dtype)(x), 2)
      x = block(jnp.concatenate([skip, x], axis=-1), width)
    if self.patch > 1:
      width = max(8, self.widths[0] // self.patch**2)
      x = layers.depth_to_space(nn.Dense(width * self.patch**2, dtype=self.dtype)(x), self.patch)
      x = jnp.concatenate([picture, x], axis=-1)
      x = nn.relu(convolution.layer(width, dtype=self.dtype, name="draw")(x))
    # Vessels are about a tenth of the pixels: starting there spares the first hundreds of steps.
    bias = nn.initializers.constant(math.log(0.1 / 0.9))
    return nn.Dense(1, dtype=jnp.float32, bias_init=bias, name="head")(x.astype(jnp.float32))
