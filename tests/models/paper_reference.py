"""The paper's networks in NumPy and float64, written from their formulas, independently of `retree_jax.models`.

Parameters have the original's names and PyTorch's axis order; images are [B, H, W, C].
"""

import numpy as np
from scipy.special import erf, expit


class Parameters(dict):
  """Parameters by name. A missing one is drawn at random, so that one forward pass creates them all.

  Args:
    known: parameters to start with.
    seed: of the random ones.
  """

  def __init__(self, known=(), seed: int = 0):
    super().__init__({name: np.asarray(value, np.float64) for name, value in dict(known).items()})
    self._rng = np.random.default_rng(seed)

  def get(self, name: str, *shape: int) -> np.ndarray:
    """The parameter `name`, whose shape must be `shape`."""
    if name not in self:
      scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
      # 1 on average where it multiplies, 0 elsewhere; rounded to float32, as checkpoints store it.
      offset = float(len(shape) == 1 and name.endswith("weight"))
      self[name] = (offset + scale * self._rng.standard_normal(shape)).astype(np.float32).astype(np.float64)
    assert self[name].shape == shape, name
    return self[name]


def _convolve(x, kernel, bias=0.0, stride=1):
  """Convolution without padding, kernel [out, in, h, w]."""
  windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
  return np.einsum("bhwcij,ocij->bhwo", windows, kernel, optimize=True) + bias


def _linear(p, name, x, features, bias=True):
  out = x @ p.get(f"{name}.weight", features, x.shape[-1]).T
  return out + p.get(f"{name}.bias", features) if bias else out


def _norm(p, name, x, axes):
  """Zero mean and unit variance over `axes`, then scale and offset per channel."""
  x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
  return x * p.get(f"{name}.weight", x.shape[-1]) + p.get(f"{name}.bias", x.shape[-1])


def _gelu(x):
  return x * (1 + erf(x / np.sqrt(2))) / 2


def _double_conv(p, name, x, width, middle=None, residual=False):
  h = x
  for conv, norm, channels in ((0, 1, middle or width), (3, 4, width)):
    kernel = p.get(f"{name}.double_conv.{conv}.weight", channels, h.shape[-1], 3, 3)
    h = _norm(p, f"{name}.double_conv.{norm}", _convolve(np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel), (1, 2, 3))
    h = _gelu(h) if conv == 0 else h
  return _gelu(x + h) if residual else h


def _transformer(p, name, x, heads, depth):
  b, height, width, channels = x.shape
  x = x.reshape(b, -1, channels)
  for i in range(depth):
    first, second = f"{name}.layers.{i}.0.fn", f"{name}.layers.{i}.1.fn"
    qkv = _linear(p, f"{first}.fn.to_qkv", _norm(p, f"{first}.norm", x, -1), 3 * heads * 64, bias=False)
    q, k, v = np.moveaxis(qkv.reshape(b, -1, 3, heads, 64), 2, 0)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * np.exp(p.get(f"{first}.fn.temperature"))
    scores[..., np.arange(x.shape[1]), np.arange(x.shape[1])] = -np.inf  # no token attends to itself
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    h = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v).reshape(b, -1, heads * 64)
    x = x + _linear(p, f"{first}.fn.to_out.0", h, channels)
    h = _gelu(_linear(p, f"{second}.fn.net.0", _norm(p, f"{second}.norm", x, -1), 4 * channels))
    x = x + _linear(p, f"{second}.fn.net.3", h, channels)
  return x.reshape(b, height, width, channels)


def _max_pool(x):
  b, h, w, c = x.shape
  return x.reshape(b, h // 4, 4, w // 4, 4, c).max((2, 4))


def _upsample(x):
  """Doubles height and width: bilinear, corners aligned."""
  for axis in (1, 2):
    size = x.shape[axis]
    position = np.linspace(0, size - 1, 2 * size)
    low = np.minimum(position.astype(int), max(size - 2, 0))
    share = (position - low).reshape([-1 if a == axis else 1 for a in range(4)])
    high = np.minimum(low + 1, size - 1)
    x = (1 - share) * x.take(low, axis) + share * x.take(high, axis)
  return x


def denoiser(p: Parameters, x, t, dim: int, time_dim: int, out_channels: int, heads: int = 4, depth: int = 1):
  """Predicted noise [B, H, W, out_channels] for x [B, H, W, C] at timesteps t [B]."""
  angles = np.asarray(t, np.float64)[:, None] * 10000.0 ** (-np.arange(0, time_dim, 2) / time_dim)
  time = np.concatenate([np.sin(angles), np.cos(angles)], -1)
  time = time * expit(time)

  def timed(name, x):
    return x + _linear(p, f"{name}.emb_layer.1", time, x.shape[-1])[:, None, None]

  c = {k: dim // k for k in (32, 16, 8, 4, 2)}
  kernel = p.get("initial.0.weight", c[32], x.shape[-1], 3, 3)
  x = _gelu(_norm(p, "initial.1", _convolve(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel), (1, 2, 3)))
  skips = {3: x}
  for i, width in enumerate((c[8], c[4])):
    name = f"down_blocks.{i}"
    x = _double_conv(p, f"{name}.maxpool_conv.1", _max_pool(x), x.shape[-1], residual=True)
    x = timed(name, _double_conv(p, f"{name}.maxpool_conv.2", x, width))
    x = _transformer(p, f"transformer_blocks.{i}", x, heads, depth)
    if i == 0:
      skips[1] = x
  for i, width in enumerate((c[2], c[2], c[4])):
    x = _double_conv(p, f"bottleneck_blocks.{i}", x, width)
  for i, width in enumerate((c[8], c[16], c[32], c[32])):
    name = f"up_blocks.{i}"
    x = _upsample(x)
    x = np.concatenate([skips[i], x], -1) if i in skips else x
    channels = x.shape[-1]
    x = _double_conv(p, f"{name}.conv.0", x, channels, residual=True)
    x = timed(name, _double_conv(p, f"{name}.conv.1", x, width, middle=channels // 2))
  return _convolve(x, p.get("last.conv.weight", out_channels, c[32], 1, 1), p.get("last.conv.bias", out_channels))


def discriminator(p: Parameters, x, width: int, heads: int = 4, depth: int = 1):
  """Scores [B, h, w, 1] in (0, 1) of the patches of x [B, H, W, C]."""

  def conv(name, x, channels, stride):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    kernel = p.get(f"{name}.weight", channels, x.shape[-1], 4, 4)
    return _convolve(x, kernel, p.get(f"{name}.bias", channels), stride)

  def leaky(x):
    return np.where(x > 0, x, 0.2 * x)

  x = leaky(conv("initial.0", x, width, 2))
  for i, stride in enumerate((1, 2, 2)):
    x = conv(f"down_blocks.{2 * i}.convolution.0", x, width * 2 ** (i + 1), stride)
    x = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    x = _transformer(p, f"down_blocks.{2 * i + 1}", leaky(x), heads, depth)
  return expit(conv("last", x, 1, 1))
