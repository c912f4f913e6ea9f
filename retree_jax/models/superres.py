"""Super-resolution of photograph and tree together, and the discriminator of such pairs.

Both are predicted from the same features, so that the label stays aligned with the pixels: two separate networks would each
invent their own thin vessels (at 64 pixels most of them are missing and have to be invented).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from retree_jax.models import layers, locality

MAX_TOKENS = 64 * 64  # memory grows with the square: the scores of 4096 tokens take 64 MiB per head and image
TREE_GAIN = 4.0  # initial logit of a pixel that is entirely vessel: sigmoid(4) = 0.98


class VitBlock(nn.Module):
  """One transformer block with locality self-attention, see `locality.transformer_block`."""

  heads: int
  head_width: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Tokens [B, T, C] -> [B, T, C], of the same dtype."""
    return locality.transformer_block(
      self, x, locality.BlockNames("temperature"), attention=locality.score_scaled_attention, gelu=nn.gelu
    )


def _check_tokens(height: int, width: int, patch: int, what: str, remedy: str) -> None:
  """Raises ValueError if attention over patches of `patch` pixels would exceed `MAX_TOKENS`."""
  if (height // patch) * (width // patch) > MAX_TOKENS:
    raise ValueError(
      f"{what} would attend over {height // patch}x{width // patch} tokens of "
      f"{height}x{width} pixels, more than {MAX_TOKENS}; {remedy}."
    )


class Superres(nn.Module):
  """Low-resolution photograph and tree [B, h, w, 4] -> [B, h * factor, w * factor, 4], float32.

  Input: RGB in [-1, 1] (channels 0-2) and tree coverage in [-1, 1] (channel 3). Output: RGB around [-1, 1] (channels 0-2, not
  clipped, so that the loss keeps its gradient; clip before writing) and tree logits (channel 3). The network predicts a
  residual to the bicubic enlargement of both, which is 0 at initialisation. Residual blocks without norm (EDSR, Lim et al.
  2017) and a transformer block for context at low resolution, then pixel shuffle (Shi et al. 2016); few channels at full size.

  Attributes:
    factor: 2, 4 or 8.
    width: channels at low resolution.
    depth: residual blocks at low resolution.
    up_widths: channels after each doubling, log2(factor) numbers; () halves them at each doubling, down to no fewer than 16.
    vit_blocks: transformer blocks; 0 for none.
    vit_patch: side of a token in low-resolution pixels.
    token_width: channels of a token.
    heads, head_width: attention heads, and channels per head.
    noise: add noise after each doubling, with a strength predicted from the features, for texture that the low-resolution pair
      does not determine (Karras et al. 2019, section 3.2). Without it, adversarial training yields a repeating pattern.
    dtype: of the computations; parameters and output are float32.
  """

  factor: int = 4
  width: int = 96
  depth: int = 12
  up_widths: tuple[int, ...] = ()
  vit_blocks: int = 1
  vit_patch: int = 4
  token_width: int = 256
  heads: int = 4
  head_width: int = 64
  noise: bool = False
  dtype: str = "float32"

  @property
  def doublings(self) -> int:
    """How many times height and width are doubled: log2(factor)."""
    return self.factor.bit_length() - 1

  @property
  def size_multiple(self) -> int:
    """Height and width of the input must be divisible by it."""
    return self.vit_patch if self.vit_blocks else 1

  def check_settings(self) -> None:
    """Raises ValueError for invalid settings."""
    if self.factor not in (2, 4, 8):
      raise ValueError(f"Setting 'factor' of superres is {self.factor}; use 2, 4 or 8.")
    if self.up_widths and len(self.up_widths) != self.doublings:
      raise ValueError(
        f"Setting 'up_widths' of superres is {self.up_widths}, but a factor of {self.factor} "
        f"doubles {self.doublings} times; give {self.doublings} widths, or () for the default ones."
      )
    numbers = (self.width, self.vit_patch, self.token_width, self.heads, self.head_width, *self.up_widths)
    if min(numbers) < 1 or min(self.depth, self.vit_blocks) < 0:
      raise ValueError(
        "The widths, heads and vit_patch of superres must be at least 1, depth and vit_blocks "
        "at least 0; leave a setting out to get its default."
      )

  def check_size(self, height: int, width: int) -> None:
    """Raises ValueError for sizes at which attention would need too much memory."""
    if self.vit_blocks:
      _check_tokens(height, width, self.vit_patch, "Super-resolution", "raise the network's vit_patch")

  @nn.compact
  def __call__(self, x: jax.Array, t=None, cond=None, train: bool = False, noise: jax.Array | None = None) -> jax.Array:
    """The enlarged pair, see the class.

    Args:
      x: [B, h, w, 4], RGB and tree coverage in [-1, 1].
      t: unused; part of the interface that all networks share.
      cond: must be None; part of the shared interface.
      train: unused; training and inference are the same.
      noise: standard normal [B, h * factor, w * factor, log2(factor)], a channel per doubling, used if the attribute `noise` is
        set; None for zeros.

    Raises:
      ValueError: x does not have four channels, or a condition is given.
    """
    del t, train
    if cond is not None:
      raise ValueError("Super-resolution takes no condition: photograph and tree are its input x; noise is passed as `noise`.")
    if x.shape[-1] != 4:
      raise ValueError(f"Super-resolution takes RGB and tree, 4 channels, not {x.shape[-1]}; join the two.")
    b, h, w, _ = x.shape
    base = jax.image.resize(x.astype(jnp.float32), (b, h * self.factor, w * self.factor, 4), "cubic")
    base = base * jnp.array([1.0, 1.0, 1.0, TREE_GAIN])

    def conv(x, width):
      return nn.Conv(width, (3, 3), dtype=self.dtype)(x)

    x = conv(x, self.width)
    first = x
    if self.vit_blocks:
      p = self.vit_patch
      tokens = nn.Dense(self.token_width, dtype=self.dtype)(layers.space_to_depth(x, p))
      tokens = rearrange(tokens, "b h w c -> b (h w) c")
      for _ in range(self.vit_blocks):
        tokens = VitBlock(self.heads, self.head_width, self.dtype)(tokens)
      tokens = rearrange(tokens, "b (h w) c -> b h w c", h=h // p)
      context = nn.Dense(self.width * p * p, dtype=self.dtype)(tokens)
      x = x + layers.depth_to_space(context, p)
    for _ in range(self.depth):
      x = x + conv(nn.relu(conv(x, self.width)), self.width)
    x = first + x
    if noise is None:
      noise = jnp.zeros((b, h * self.factor, w * self.factor, self.doublings))
    widths = self.up_widths or [max(16, self.width // 2 ** (i + 1)) for i in range(self.doublings)]
    for i, width in enumerate(widths):
      x = nn.relu(layers.depth_to_space(conv(x, 4 * width), 2))
      if self.noise:
        # Strength 0 at initialisation. The sum of s² values divided by s has variance 1 at every resolution.
        s = self.factor // 2 ** (i + 1)
        noise_i = layers.space_to_depth(noise[..., i : i + 1], s).sum(-1, keepdims=True) / s
        strength = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name=f"noise_{i}")
        x = x + noise_i.astype(x.dtype) * strength(x)
      x = x + nn.relu(conv(x, width))
    # 0 at initialisation, so that training starts from the bicubic enlargement.
    residual = nn.Conv(4, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")(x)
    return base + residual.astype(jnp.float32)


class SpectralConv(nn.Module):
  """Convolution whose kernel, as a matrix [kernel * kernel * C, width], is divided by its largest singular value.

  Miyato et al. 2018, eq. 8. They keep a running estimate of the singular vectors, which would be state besides the parameters;
  here every call runs ten power iterations from a fixed start, whose cost is negligible beside the convolution's.
  """

  width: int
  kernel: int
  stride: int
  dtype: str
  spectral_norm: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / stride, W / stride, width]."""
    shape = (self.kernel, self.kernel, x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
    if self.spectral_norm:
      kernel = kernel / largest_singular_value(rearrange(kernel, "h w c_in c_out -> (h w c_in) c_out"))
    x = jax.lax.conv_general_dilated(
      x.astype(self.dtype), kernel.astype(self.dtype), (self.stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x + bias.astype(self.dtype)


def largest_singular_value(matrix: jax.Array, iterations: int = 10) -> jax.Array:
  """Estimates the largest singular value of a matrix [m, n] from below, by power iterations.

  The gradient treats the singular vectors as constants, which is exact at convergence.
  """
  fixed = jax.lax.stop_gradient(matrix)
  # Drawn by NumPy: JAX's generator would be compiled again for the shape of every layer.
  start = np.random.default_rng(0).standard_normal(sum(matrix.shape)).astype(np.float32)

  def unit(x):
    return x / (jnp.linalg.norm(x) + 1e-12)

  def improve(_, vectors):
    u = unit(fixed @ vectors[1])
    return u, unit(u @ fixed)

  u, v = jnp.split(start, [matrix.shape[0]])
  u, v = jax.lax.fori_loop(0, iterations, improve, (u, v))
  return jnp.maximum(u @ matrix @ v, 1e-6)


class SuperresDiscriminator(nn.Module):
  """Patch discriminator of pairs [B, H, W, 4] (RGB and tree, both in [-1, 1]) -> logits [B, H / s, W / s, 1],
  s = 2^len(widths).

  Strided 4x4 convolutions (PatchGAN, Isola et al. 2017), transformer blocks on the coarsest map, so that each patch is judged
  in the context of the whole image, and one logit per position. Spectral norm instead of a norm over pixels, which would hide
  colour shifts. A real mask is binary and a generated one is not, which would make the task trivial: pass
  2 * sigmoid(logits) - 1 of a generated tree, and a coverage map or smoothed label of a real one.

  Attributes:
    widths: channels after each halving of height and width.
    vit_blocks: transformer blocks; 0 for none.
    heads, head_width: attention heads, and channels per head.
    spectral_norm: divide kernels by their spectral norm; may be False where an R1 or gradient penalty is used.
    detail: gain of three additional input channels, the photograph minus its 3x3 mean; 0 for none. The texture of a retina has
      an amplitude of one or two grey levels, colours differ by a hundred; without these channels, small discriminators learn
      the texture slowly.
    dtype: of the computations; parameters and output are float32.
  """

  widths: tuple[int, ...] = (64, 128, 256, 256)
  vit_blocks: int = 1
  heads: int = 4
  head_width: int = 64
  spectral_norm: bool = True
  detail: float = 0.0
  dtype: str = "float32"

  @property
  def size_multiple(self) -> int:
    """Height and width must be divisible by it."""
    return 2 ** len(self.widths)

  def check_settings(self) -> None:
    """Raises ValueError for invalid settings."""
    if not self.widths or min(*self.widths, self.heads, self.head_width) < 1 or self.vit_blocks < 0:
      raise ValueError(
        f"The discriminator's widths {self.widths}, heads and head_width must be at least 1 "
        "and vit_blocks at least 0; for instance widths (32, 64, 128)."
      )
    if not 0.0 <= self.detail < float("inf"):
      raise ValueError(f"The discriminator's detail={self.detail} must be 0 (none) or a gain above 0, for instance 16.")

  def check_size(self, height: int, width: int) -> None:
    """Raises ValueError for sizes at which attention would need too much memory."""
    if self.vit_blocks:
      _check_tokens(height, width, self.size_multiple, "The discriminator", "add another entry to its widths")

  @nn.compact
  def __call__(self, x: jax.Array, t=None, cond: jax.Array | None = None, train: bool = False) -> jax.Array:
    """Logits per patch, positive for real; `cond` (e.g. the enlarged low-resolution pair) is concatenated, `t` and `train` are
    unused."""
    del t, train
    if cond is not None:
      x = jnp.concatenate([x, cond.astype(x.dtype)], axis=-1)

    def conv(x, width, kernel, stride):
      return SpectralConv(width, kernel, stride, self.dtype, self.spectral_norm)(x)

    if self.detail:
      x = jnp.concatenate([x, self.detail * _minus_local_mean(x[..., :3])], axis=-1)
    for width in self.widths:
      x = nn.leaky_relu(conv(x, width, 4, 2), 0.2)
    height = x.shape[1]
    tokens = rearrange(x, "b h w c -> b (h w) c")
    for _ in range(self.vit_blocks):
      tokens = VitBlock(self.heads, self.head_width, self.dtype)(tokens)
    x = rearrange(tokens, "b (h w) c -> b h w c", h=height)
    return conv(x, 1, 3, 1).astype(jnp.float32)


def _minus_local_mean(x: jax.Array) -> jax.Array:
  """x minus its mean over 3x3 pixels, [B, H, W, C], with replicated edges; as sums of shifted slices, whose gradients are fast
  on every platform."""
  mean = x
  for axis in (1, 2):
    padded = jnp.pad(mean, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode="edge")
    size = x.shape[axis]
    mean = sum(jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(3)) / 3.0
  return x - mean
