"""The denoiser of Alimanov & Islam 2023 (arXiv 2308.08339), numerically equal to the original.

Written from a description in words and formulas; `torch_import.py` loads the original's checkpoints into it. The unusual
choices (no time MLP, no time embedding in the bottleneck, tokens that do not attend to themselves, pooling by 4, a single
group in every norm) are the original's. Where the result is the same, the form that is fast in XLA was chosen: pooling as a
maximum over a reshaped array, bilinear upsampling as products with two small constant matrices.
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
  """U-Net with three resolution levels a factor of 4 apart, and locality self-attention at the two coarser ones.

  249.3 million parameters at dim 4096, 62.9 at 2048, 16.0 at 1024, 4.15 at 512.

  Attributes:
    dim: base width; the layers have dim/32, /16, /8, /4 and /2 channels. Divisible by 32.
    time_dim: number of sinusoidal features of the timestep, even.
    out_channels: 1 for trees, 3 for photographs.
    heads, head_width: attention heads, and channels per head.
    depth: transformer blocks at each of the two levels with attention.
    dtype: "float32" or "bfloat16", the type of the computations; parameters and output are float32.
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
    """Images that a CPU should process at once: for small images, 4 at a time take a quarter less time than one by one
    (measured at 64x64); larger blocks bring no further gain."""
    return 4 if height * width <= 128 * 128 else 1

  def check_settings(self) -> None:
    """Raises ValueError for invalid settings."""
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
      cond: condition [B, H, W, D] or None, concatenated to x along the channels (the tree, in the fundus stage).
      train: no effect; the original has no dropout.

    Returns:
      [B, H, W, out_channels] float32.
    """
    del train
    if t is None:
      raise ValueError("The paper's denoiser needs the timesteps t, an array of one number per image.")
    widths = [self.dim // 2**k for k in (5, 4, 3, 2, 1)]
    dtype = jnp.dtype(self.dtype)
    time = nn.silu(layers.time_features(t, self.time_dim))
    x = (x if cond is None else jnp.concatenate([x, cond], axis=-1)).astype(dtype)
    vit = functools.partial(LocalityTransformer, self.heads, self.head_width, self.depth, dtype=self.dtype)

    x = conv(widths[0], dtype, "initial_conv")(x)
    x = full = _gelu(layers.FilmNorm(1, name="initial_norm")(x))
    x = DoubleConv(widths[0], residual=True, dtype=self.dtype, name="down_0_res")(layers.max_pool(x, 4))
    x = DoubleConv(widths[2], dtype=self.dtype, name="down_0_out")(x)
    x = x + _time(time, widths[2], dtype, "down_0_time")
    x = quarter = vit(name="vit_0")(x)
    x = DoubleConv(widths[2], residual=True, dtype=self.dtype, name="down_1_res")(layers.max_pool(x, 4))
    x = DoubleConv(widths[3], dtype=self.dtype, name="down_1_out")(x)
    x = x + _time(time, widths[3], dtype, "down_1_time")
    x = vit(name="vit_1")(x)

    for i, width in enumerate((widths[4], widths[4], widths[3])):
      x = DoubleConv(width, dtype=self.dtype, name=f"bottleneck_{i}")(x)

    for i, (width, skip) in enumerate(((widths[2], None), (widths[1], quarter), (widths[0], None), (widths[0], full))):
      x = _upsample(x)
      if skip is not None:
        x = jnp.concatenate([skip, x], axis=-1)
      in_channels = x.shape[-1]
      x = DoubleConv(in_channels, residual=True, dtype=self.dtype, name=f"up_{i}_res")(x)
      x = DoubleConv(width, in_channels // 2, dtype=self.dtype, name=f"up_{i}_out")(x)
      x = x + _time(time, width, dtype, f"up_{i}_time")
    return nn.Dense(self.out_channels, dtype=dtype, **torch_init(widths[0]), name="head")(x).astype(jnp.float32)


class DoubleConv(nn.Module):
  """3x3 convolution, norm, GELU, 3x3 convolution, norm; with `residual`, the result is GELU(x + that).

  Attributes:
    width: output channels.
    middle: channels between the convolutions; 0 for `width`.
    residual: add the input, which must have `width` channels.
    dtype: of the computations.
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
  """`depth` transformer blocks with locality self-attention, see `locality.transformer_block`."""

  heads: int = 4
  head_width: int = 64
  depth: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, h, w, C] -> the same shape and dtype."""
    attention = functools.partial(locality.query_scaled_attention, height=x.shape[1])
    for i in range(self.depth):
      names = locality.BlockNames(
        f"temperature_{i}", f"norm_{i}_0", f"qkv_{i}", f"out_{i}", f"norm_{i}_1", f"mlp_{i}_0", f"mlp_{i}_1"
      )
      x = locality.transformer_block(self, x, names, attention, _gelu, torch_init)
    return x


# Uniform on ±1/sqrt(fan_in), PyTorch's default for convolutions and dense layers.
TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_init(fan_in: int) -> dict:
  """PyTorch's default initialisers for a layer with `fan_in` inputs per output, as keyword arguments of a Flax layer."""
  bound = 1 / math.sqrt(fan_in)

  def bias(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return {"kernel_init": TORCH_KERNEL, "bias_init": bias}


def conv(width: int, dtype, name: str) -> nn.Conv:
  """A 3x3 convolution of unchanged size without bias, with PyTorch's initialisation."""
  return convolution.layer(width, use_bias=False, dtype=dtype, kernel_init=TORCH_KERNEL, name=name)


def _time(features: jax.Array, width: int, dtype, name: str) -> jax.Array:
  """Time embedding that a block adds to every pixel: a dense layer of SiLU(sinusoids), [B, 1, 1, width]."""
  return nn.Dense(width, **torch_init(features.shape[-1]), name=name)(features).astype(dtype)[:, None, None]


def _gelu(x: jax.Array) -> jax.Array:
  # nn.gelu computes 1 + erf(x) as erfc(-x), which is slower on CPUs and rounds differently from the original.
  return 0.5 * x * (1 + jax.lax.erf(x * x.dtype.type(math.sqrt(0.5))))


def _upsample(x: jax.Array) -> jax.Array:
  """Doubles height and width by bilinear interpolation with aligned corners."""
  rows, columns = (jnp.asarray(_upsampling_matrix(size), x.dtype) for size in x.shape[1:3])
  return jnp.einsum("oh,pw,bhwc->bopc", rows, columns, x, optimize="optimal")


@functools.lru_cache(maxsize=64)
def _upsampling_matrix(size: int) -> np.ndarray:
  """[2 size, size]: each output is a weighted sum of two inputs; output i lies at input i (size - 1) / (2 size - 1)."""
  position = np.arange(2 * size) * (size - 1) / max(2 * size - 1, 1)
  return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size))).astype(np.float32)
