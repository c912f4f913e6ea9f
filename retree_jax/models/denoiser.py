"""The denoiser of the default variants: a residual U-Net with transformer blocks at low resolutions.

Differences from the paper's network (`paper.py`), and reasons:
  * four resolution levels a factor of 2 apart, instead of three a factor of 4 apart with max-pooling, and a full-resolution
    path around the U-Net, which preserve vessels that are one pixel wide;
  * the time embedding passes through an MLP and modulates every block (FiLM), including the bottleneck, where most parameters
    are;
  * attention with position features, over all tokens including the query's own, with normalised queries and keys (stable in
    bfloat16);
  * the last layer of each block is initialised with zeros, so that training starts from the identity and an output of 0.

Sources: Ho et al. 2020 (DDPM U-Net), Dhariwal & Nichol 2021 (FiLM in the blocks), Hoogeboom et al. 2023 (simple diffusion: most
parameters at low resolution, a transformer as bottleneck), Peebles & Xie 2023 (time embedding in transformer blocks), Dehghani
et al. 2023 (query and key normalisation).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from retree_jax.models import attention, layers
from retree_jax.models.cpu import convolution

_ZEROS = nn.initializers.zeros
_LECUN = nn.initializers.lecun_normal()
_TIME_FEATURES = 256  # sinusoidal features of the timestep, the input of the time MLP


class Denoiser(nn.Module):
  """A U-Net on a space-to-depth grid, with a full-resolution path around it.

  Attributes:
    out_channels: channels of the prediction, 1 for trees, 3 for photographs.
    patch: factor of the space-to-depth at the input: 1, 2 or 4. At 256x256 with patch 2, the first level of the U-Net is
      128x128. Reduces the cost by about patch^2.
    detail: channels of the full-resolution path; 0 for none. No effect with patch 1.
    widths: channels of each level, finest first; each level halves height and width. Multiples of 128 use a TPU fully.
    blocks: residual blocks per level in the encoder, and as many in the decoder; one number applies to all levels.
    attention: levels with a transformer block after each residual block; 0 is the finest, -1 the coarsest.
    middle: transformer blocks at the coarsest level, between encoder and decoder.
    head_width: channels per attention head, divisible by 4; divides the widths of the levels with attention.
    mlp_ratio: hidden width of a transformer block's MLP divided by its width.
    time_dim: width of the time embedding.
    attributes: number of attributes that it takes beside the time, each with a flag; 0 for none.
    dropout: rate before the second convolution of each residual block, in training.
    remat: recompute blocks in the backward pass: less memory, about a third more time.
    dtype: "float32" or "bfloat16", the type of the computations. Parameters, statistics and output are float32.
  """

  out_channels: int = 1
  patch: int = 2
  detail: int = 32
  widths: tuple[int, ...] = (128, 256, 384, 512)
  blocks: tuple[int, ...] = (2,)
  attention: tuple[int, ...] = (-2, -1)
  middle: int = 4
  head_width: int = 64
  mlp_ratio: int = 4
  time_dim: int = 512
  attributes: int = 0
  dropout: float = 0.0
  remat: bool = False
  dtype: str = "float32"

  @property
  def size_multiple(self) -> int:
    return self.patch * 2 ** (len(self.widths) - 1)

  def check_settings(self) -> None:
    """Raises ValueError for invalid settings."""
    levels = len(self.widths)
    if self.patch not in (1, 2, 4):
      raise ValueError(f"Setting 'patch' of the denoiser must be 1, 2 or 4, not {self.patch}.")
    if not levels or min(self.widths) < 1:
      raise ValueError(
        "Setting 'widths' of the denoiser must name at least one level, each with at least "
        f"one channel, for instance (128, 256, 512), not {self.widths}."
      )
    if len(self.blocks) not in (1, levels) or min(self.blocks, default=0) < 1:
      raise ValueError(
        f"Setting 'blocks' of the denoiser must be one number, or one for each of the "
        f"{levels} levels of 'widths', all at least 1, not {self.blocks}."
      )
    wrong = [level for level in self.attention if not -levels <= level < levels]
    if wrong:
      raise ValueError(
        f"Setting 'attention' of the denoiser names level {wrong[0]}, but 'widths' has only "
        f"{levels}: choose from 0 (finest) to {levels - 1}, or -1 (coarsest) to {-levels}."
      )
    attending = [self.widths[level] for level in self.attention] + [self.widths[-1]] * (self.middle > 0)
    head = self.head_width
    wrong = [width for width in attending if head < 4 or head % 4 or width % head]
    if wrong:
      raise ValueError(
        "Setting 'head_width' of the denoiser must be a multiple of 4 that divides the width "
        f"of every level with attention, but {head} does not for width {wrong[0]}: change one "
        "of the two."
      )
    for field in ("out_channels", "mlp_ratio", "time_dim"):
      if getattr(self, field) < 1:
        raise ValueError(f"Setting {field!r} of the denoiser must be at least 1, not {getattr(self, field)}.")
    for field in ("detail", "middle", "attributes"):
      if getattr(self, field) < 0:
        raise ValueError(f"Setting {field!r} of the denoiser must be 0 or more, not {getattr(self, field)}.")
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(f"Setting 'dropout' of the denoiser must lie in [0, 1), not {self.dropout}.")

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    t: jax.Array | None = None,
    cond: jax.Array | None = None,
    train: bool = False,
    attributes: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts noise, clean image or velocity, whichever it is trained for, from a noisy image.

    Args:
      x: noisy image [B, H, W, C], H and W multiples of `size_multiple`.
      t: timesteps [B], float or int.
      cond: condition [B, H, W, D] or None.
      train: enables dropout.
      attributes: [B, 2 * attributes], the values (0 where unknown), then 1 for each that is known and 0 for each other; None
        where all are unknown.

    Returns:
      [B, H, W, out_channels] float32; all 0 at initialisation.
    """
    if t is None:
      raise ValueError("The denoiser needs the timesteps t, an array of one number per image.")
    dtype = jnp.dtype(self.dtype)
    levels = len(self.widths)
    blocks = self.blocks * levels if len(self.blocks) == 1 else self.blocks
    attention = {level % levels for level in self.attention}
    residual, transformer = ResidualBlock, TransformerBlock
    if self.remat:
      residual, transformer = (nn.remat(block, static_argnums=(3,)) for block in (residual, transformer))

    time = nn.Dense(self.time_dim, name="time_0")(layers.time_features(t, _TIME_FEATURES))
    time = nn.Dense(self.time_dim, name="time_1")(nn.silu(time))
    if self.attributes:
      if attributes is None:
        attributes = jnp.zeros((x.shape[0], 2 * self.attributes))
      asked = nn.silu(nn.Dense(self.time_dim, name="attributes_0")(attributes))
      time = time + nn.Dense(self.time_dim, kernel_init=_ZEROS, name="attributes_1")(asked)
    time = nn.silu(time)
    image = (x if cond is None else jnp.concatenate([x, cond], axis=-1)).astype(dtype)

    def stage(h, level, name):
      h = residual(self.widths[level], self.dropout, self.dtype, name=name)(h, time, train)
      if level in attention:
        h = transformer(self.head_width, self.mlp_ratio, self.dtype, name=f"{name}_vit")(h, time, train)
      return h

    has_detail = self.detail > 0 and self.patch > 1
    if has_detail:
      detail = _conv(self.detail, dtype, name="detail_in")(image)
      image = jnp.concatenate([image, detail], axis=-1)
    h = layers.space_to_depth(image, self.patch)
    if self.patch == 1:
      h = _conv(self.widths[0], dtype, name="stem")(h)
    else:
      h = nn.Dense(self.widths[0], dtype=dtype, name="stem")(h)

    skips = []
    for level in range(levels):
      if level:
        h = nn.Dense(self.widths[level], dtype=dtype, name=f"down_{level}")(layers.space_to_depth(h, 2))
      for i in range(blocks[level]):
        h = stage(h, level, f"down_{level}_{i}")
        skips.append(h)
    for i in range(self.middle):
      h = transformer(self.head_width, self.mlp_ratio, self.dtype, name=f"middle_{i}")(h, time, train)
    for level in reversed(range(levels)):
      for i in range(blocks[level]):
        h = stage(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_{i}")
      if level:  # dense layer, then nearest-neighbour upsampling: the same as in the reverse order at a quarter of the cost
        h = nn.Dense(self.widths[level - 1], dtype=dtype, name=f"up_{level}")(h)
        h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)

    h = nn.silu(layers.FilmNorm(name="head_norm")(h))
    if has_detail:
      h = nn.Dense(self.patch**2 * self.detail, dtype=dtype, name="detail_up")(h)
      h = jnp.concatenate([layers.depth_to_space(h, self.patch), detail], axis=-1)
      h = _conv(self.detail, dtype, name="detail_mix")(h)
      h = nn.silu(layers.FilmNorm(name="detail_norm")(h, *_film(self.detail, time, "detail_time")))
    elif self.patch > 1:
      h = nn.Dense(self.patch**2 * self.out_channels, dtype=dtype, kernel_init=_ZEROS, name="head")(h)
      return layers.depth_to_space(h, self.patch).astype(jnp.float32)
    return _conv(self.out_channels, dtype, kernel_init=_ZEROS, name="head")(h).astype(jnp.float32)


class ResidualBlock(nn.Module):
  """Norm, SiLU and 3x3 convolution, twice, added to the input; the time embedding modulates the second norm."""

  width: int
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array, train: bool) -> jax.Array:
    """x [B, h, w, C], time [B, time_dim] after its last SiLU -> [B, h, w, width]."""
    dtype = jnp.dtype(self.dtype)
    h = nn.silu(layers.FilmNorm(name="norm_0")(x))
    h = _conv(self.width, dtype, name="conv_0")(h)
    h = nn.silu(layers.FilmNorm(name="norm_1")(h, *_film(self.width, time, "time")))
    if self.dropout:
      h = nn.Dropout(self.dropout, deterministic=not train)(h)
    h = _conv(self.width, dtype, kernel_init=_ZEROS, name="conv_1")(h)
    if x.shape[-1] != self.width:
      x = nn.Dense(self.width, dtype=dtype, name="skip")(x)
    return x + h


class TransformerBlock(nn.Module):
  """Self-attention over all pixels, then an MLP, each after a norm that the time embedding modulates."""

  head_width: int
  mlp_ratio: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array, train: bool) -> jax.Array:
    """x [B, h, w, C], time [B, time_dim] after its last SiLU -> [B, h, w, C]."""
    del train
    dtype = jnp.dtype(self.dtype)
    _, height, width, channels = x.shape

    position = layers.position_features(height, width).astype(dtype)
    x = x + nn.Dense(channels, dtype=dtype, use_bias=False, name="position")(position)

    h = _modulated(x, time, "norm_0")
    qkv = nn.Dense(3 * channels, dtype=dtype, name="qkv")(h)
    qkv = rearrange(qkv, "b h w (three heads d) -> b (h w) three heads d", three=3, d=self.head_width)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    q = layers.rotate(nn.RMSNorm(dtype=dtype, name="query_norm")(q), height, width)
    k = layers.rotate(nn.RMSNorm(dtype=dtype, name="key_norm")(k), height, width)
    h = rearrange(attention.attend(q, k, v), "b (h w) heads d -> b h w (heads d)", h=height)
    x = x + nn.Dense(channels, dtype=dtype, kernel_init=_ZEROS, name="out")(h)

    h = _modulated(x, time, "norm_1")
    h = nn.gelu(nn.Dense(self.mlp_ratio * channels, dtype=dtype, name="mlp_0")(h))
    return x + nn.Dense(channels, dtype=dtype, kernel_init=_ZEROS, name="mlp_1")(h)


def _conv(width: int, dtype, kernel_init=_LECUN, name: str | None = None) -> nn.Conv:
  return convolution.layer(width, dtype=dtype, kernel_init=kernel_init, name=name)


def _film(width: int, time: jax.Array, name: str) -> list[jax.Array]:
  """Scale and shift [B, width], projected from the time embedding."""
  return jnp.split(nn.Dense(2 * width, name=name)(time), 2, axis=-1)


def _modulated(x: jax.Array, time: jax.Array, name: str) -> jax.Array:
  """Layer norm over the channels, with scale and shift projected from the time embedding; [B, h, w, C]."""
  scale, shift = _film(x.shape[-1], time, f"{name}_time")
  h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32, name=name)(x)
  return (h * (1 + scale[:, None, None]) + shift[:, None, None]).astype(x.dtype)
