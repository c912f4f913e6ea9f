"""The denoiser of Alimanov & Islam 2023 (arXiv 2308.08339), computed exactly as the original computes it.

Written from a description in words and formulas; `torch_import.py` reads the original's checkpoints into
it. What looks odd here (no time MLP, no time in the bottleneck, a token that cannot see itself, pooling by
4, one group in every norm) is the original's. Forms that are quick in XLA were chosen where the result is
the same: pooling as a maximum over a reshaped array, bilinear upsampling as two small fixed matrices.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from retree_jax.models import layers, locality
from retree_jax.models.cpu import convolution


class PaperDenoiser(nn.Module):
  """U-Net of three levels, a factor 4 apart, with locality self-attention at the lower two.

  249.3 million parameters at dim 4096, 62.9 at 2048, 16.0 at 1024, 4.15 at 512.

  Attributes:
    dim: the widest layer that the channel ladder dim/32, /16, /8, /4, /2 leads to; divisible by 32.
    time_dim: number of sinusoids of the timestep, even.
    out_channels: 1 for trees, 3 for photographs.
    heads, head_width: of the attention.
    depth: attention blocks at each of the two attending levels.
    dtype: "float32" or "bfloat16": what it computes in; parameters and output are float32.
  """

  dim: int = 4096
  time_dim: int = 256
  out_channels: int = 1
  heads: int = 4
  head_width: int = 64
  depth: int = 1
  dtype: str = "float32"

  @property
  def size_multiple(self) -> int:
    return 16

  def cpu_block(self, height: int, width: int) -> int:
    """Images that a CPU should sample at once: where they are small, a few use its cores better than one after the other
    (a quarter less time at 64x64), and more than a few do no better."""
    return 4 if height * width <= 128 * 128 else 1

  def check_settings(self) -> None:
    """Raises ValueError for settings that no such network can have."""
    if self.dim < 32 or self.dim % 32:
      raise ValueError(
        f"Setting 'dim' of the paper's denoiser must be a positive multiple of 32, for instance 512, not {self.dim}."
      )
    if self.time_dim < 2 or self.time_dim % 2:
      raise ValueError(f"Setting 'time_dim' of the paper's denoiser must be even and at least 2, not {self.time_dim}.")
    for field in ("out_channels", "heads", "head_width", "depth"):
      if getattr(self, field) < 1:
        raise ValueError(f"Setting {field!r} of the paper's denoiser must be at least 1, not {getattr(self, field)}.")

  @nn.compact
  def __call__(self, x: jax.Array, t: jax.Array | None = None, cond: jax.Array | None = None, train: bool = False) -> jax.Array:
    """Predicts the noise in a noisy image.

    Args:
      x: noisy image [B, H, W, C], H and W multiples of 16.
      t: timesteps [B], float or int, 0 .. T-1.
      cond: condition [B, H, W, D] or None, concatenated after x (the tree, in the image stage).
      train: without effect, the original has no dropout.

    Returns:
      [B, H, W, out_channels] float32.
    """
    del train
    if t is None:
      raise ValueError("The paper's denoiser needs the timesteps t, an array of one number per image.")
    c = [self.dim // 2**k for k in (5, 4, 3, 2, 1)]
    dtype = jnp.dtype(self.dtype)
    time = nn.silu(layers.time_features(t, self.time_dim))
    x = (x if cond is None else jnp.concatenate([x, cond], axis=-1)).astype(dtype)
    vit = functools.partial(LocalityTransformer, self.heads, self.head_width, self.depth, dtype=self.dtype)

    x = conv(c[0], dtype, "initial_conv")(x)
    x = full = _gelu(layers.FilmNorm(1, name="initial_norm")(x))
    x = DoubleConv(c[0], residual=True, dtype=self.dtype, name="down_0_res")(_max_pool(x))
    x = DoubleConv(c[2], dtype=self.dtype, name="down_0_out")(x)
    x = x + _time(time, c[2], dtype, "down_0_time")
    x = quarter = vit(name="vit_0")(x)
    x = DoubleConv(c[2], residual=True, dtype=self.dtype, name="down_1_res")(_max_pool(x))
    x = DoubleConv(c[3], dtype=self.dtype, name="down_1_out")(x)
    x = x + _time(time, c[3], dtype, "down_1_time")
    x = vit(name="vit_1")(x)

    for i, width in enumerate((c[4], c[4], c[3])):
      x = DoubleConv(width, dtype=self.dtype, name=f"bottleneck_{i}")(x)

    for i, (width, skip) in enumerate(((c[2], None), (c[1], quarter), (c[0], None), (c[0], full))):
      x = _upsample(x)
      if skip is not None:
        x = jnp.concatenate([skip, x], axis=-1)
      entering = x.shape[-1]
      x = DoubleConv(entering, residual=True, dtype=self.dtype, name=f"up_{i}_res")(x)
      x = DoubleConv(width, entering // 2, dtype=self.dtype, name=f"up_{i}_out")(x)
      x = x + _time(time, width, dtype, f"up_{i}_time")
    return nn.Dense(self.out_channels, dtype=dtype, **torch_init(c[0]), name="head")(x).astype(jnp.float32)


class DoubleConv(nn.Module):
  """Convolution 3x3, norm, GELU, convolution 3x3, norm; with `residual` then GELU(x + that).

  Attributes:
    width: channels that come out.
    middle: channels in between; 0: as many as come out.
  """

  width: int
  middle: int = 0
  residual: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = jnp.dtype(self.dtype)
    h = conv(self.middle or self.width, dtype, "conv_0")(x)
    h = _gelu(layers.FilmNorm(1, name="norm_0")(h))
    h = conv(self.width, dtype, "conv_1")(h)
    h = layers.FilmNorm(1, name="norm_1")(h)
    return _gelu(x + h) if self.residual else h


class LocalityTransformer(nn.Module):
  """Transformer blocks with locality self-attention (Lee et al. 2021, arXiv 2112.13492, section 3.2).

  Tokens are pixels, without positions. Scores are scaled by exp of one learned number instead of
  1/sqrt(head_width), and a token does not attend to itself. No norm at the end.
  """

  heads: int = 4
  head_width: int = 64
  depth: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, h, w, C] -> the same shape and dtype."""
    dtype = jnp.dtype(self.dtype)
    b, height, width, channels = x.shape
    inner, tokens = self.heads * self.head_width, height * width
    tau = nn.initializers.constant(-0.5 * math.log(self.head_width))
    for i in range(self.depth):
      scale = jnp.exp(self.param(f"temperature_{i}", tau, ()))
      h = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=f"norm_{i}_0")(x)
      qkv = nn.Dense(3 * inner, use_bias=False, dtype=dtype, kernel_init=TORCH_KERNEL, name=f"qkv_{i}")(h)
      q, k, v = jnp.split(qkv.reshape(b, tokens, 3 * self.heads, self.head_width), 3, axis=2)
      h = locality.locality_attention((q * scale).astype(dtype), k, v, height).reshape(b, height, width, inner)
      x = x + nn.Dense(channels, dtype=dtype, **torch_init(inner), name=f"out_{i}")(h)
      h = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=f"norm_{i}_1")(x)
      h = _gelu(nn.Dense(4 * channels, dtype=dtype, **torch_init(channels), name=f"mlp_{i}_0")(h))
      x = x + nn.Dense(channels, dtype=dtype, **torch_init(4 * channels), name=f"mlp_{i}_1")(h)
    return x


# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for convolutions and dense layers.
TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_init(fan_in: int) -> dict:
  """Keyword arguments that give a layer with `fan_in` inputs per output PyTorch's default initialisation."""
  bound = 1 / math.sqrt(fan_in)

  def bias(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return {"kernel_init": TORCH_KERNEL, "bias_init": bias}


def conv(width: int, dtype, name: str) -> nn.Conv:
  """A 3x3 convolution without bias, PyTorch's initialisation, that keeps the size."""
  return convolution.layer(width, use_bias=False, dtype=dtype, kernel_init=TORCH_KERNEL, name=name)


def _time(features: jax.Array, width: int, dtype, name: str) -> jax.Array:
  """What a block adds to every pixel: a dense layer of SiLU(sinusoids), [B, 1, 1, width]."""
  return nn.Dense(width, **torch_init(features.shape[-1]), name=name)(features).astype(dtype)[:, None, None]


def _gelu(x: jax.Array) -> jax.Array:
  # nn.gelu writes 1 + erf(x) as erfc(-x), which takes a CPU longer and which the original does not.
  return 0.5 * x * (1 + jax.lax.erf(x * x.dtype.type(math.sqrt(0.5))))


def _max_pool(x: jax.Array) -> jax.Array:
  b, h, w, c = x.shape
  return x.reshape(b, h // 4, 4, w // 4, 4, c).max(axis=(2, 4))


def _upsample(x: jax.Array) -> jax.Array:
  """Twice the height and width, bilinear, corners aligned."""
  rows, columns = (jnp.asarray(_upsampling_matrix(size), x.dtype) for size in x.shape[1:3])
  return jnp.einsum("oh,pw,bhwc->bopc", rows, columns, x, optimize="optimal")


@functools.lru_cache(maxsize=64)
def _upsampling_matrix(size: int) -> np.ndarray:
  """[2 size, size]: each output a weighted sum of two inputs; output i lies at i (size-1) / (2 size-1)."""
  place = np.arange(2 * size) * (size - 1) / max(2 * size - 1, 1)
  return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(size))).astype(np.float32)
