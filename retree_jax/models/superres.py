"""Super-resolution of photograph and tree together, and the discriminator that judges such a pair.

One body of features draws both, so that the label moves with the pixels: two separate networks would each
invent their own thin vessels (at 64 pixels most of them are gone and have to be invented).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from retree_jax.models import layers

MAX_TOKENS = 64 * 64  # attention grows with the square: 4096 tokens are 64 MiB of scores per head and picture
TREE_GAIN = 4.0  # logit of a pixel that is all vessel before anything is learned: sigmoid(4) = 0.98


class VitBlock(nn.Module):
  """Transformer block with locality self-attention (Lee et al. 2021, "ViT for small-size datasets").

  A token does not attend to itself, and the temperature is learned. No position code, so any grid will do.
  """

  heads: int
  head_width: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Tokens [B, N, D] -> [B, N, D]."""
    b, n, d = x.shape
    y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
    qkv = nn.Dense(3 * self.heads * self.head_width, use_bias=False, dtype=self.dtype)(y)
    q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, self.head_width), 2, 0)
    temperature = self.param("temperature", nn.initializers.constant(-0.5 * math.log(self.head_width)), ())
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * jnp.exp(temperature)
    scores = jnp.where(jnp.eye(n, dtype=bool), jnp.finfo(jnp.float32).min, scores)
    y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores).astype(v.dtype), v)
    x = x + nn.Dense(d, dtype=self.dtype)(y.reshape(b, n, -1))
    y = nn.Dense(4 * d, dtype=self.dtype)(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x))
    return x + nn.Dense(d, dtype=self.dtype)(nn.gelu(y))


def _check_tokens(height: int, width: int, patch: int, what: str, remedy: str) -> None:
  if (height // patch) * (width // patch) > MAX_TOKENS:
    raise ValueError(
      f"{what} would attend over {height // patch}x{width // patch} tokens of "
      f"{height}x{width} pixels, more than {MAX_TOKENS}; {remedy}."
    )


class Superres(nn.Module):
  """Low-resolution photograph and tree [B, h, w, 4] -> [B, h * factor, w * factor, 4], float32.

  Channels 0-2 in: RGB in [-1, 1]; channel 3 in: tree coverage in [-1, 1]. Channels 0-2 out: RGB around [-1,
  1] (not clipped, so that the loss has a gradient; clip before writing); channel 3 out: tree LOGITS. The
  network adds to the bicubic enlargement of both, and adds nothing before it is trained. Residual blocks
  without norm (EDSR, Lim et al. 2017) and a transformer block for context at low resolution, pixel shuffle
  (Shi et al. 2016) up; few channels at full size.

  Attributes:
    factor: 2, 4 or 8.
    width: channels at low resolution.
    depth: residual blocks at low resolution.
    up_widths: channels after each doubling, log2(factor) of them; () halves at each doubling, down to 16 at
      least.
    vit_blocks: transformer blocks; 0 for none.
    vit_patch: pixels (low resolution) along the side of a token.
    token_width: features of a token.
    heads, head_width: of the attention.
    noise: add noise after each doubling, as much of it as the features there ask for: what texture is made of that the small
      pair does not determine (Karras et al. 2019, section 3.2). Without it a discriminator that asks for texture is given a
      pattern that repeats.
    dtype: of the computations; parameters and output stay float32.
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
    """How often height and width are doubled."""
    return self.factor.bit_length() - 1

  @property
  def size_multiple(self) -> int:
    """Height and width of the input must be divisible by it."""
    return self.vit_patch if self.vit_blocks else 1

  def check_settings(self) -> None:
    """Raises ValueError for settings that make no network."""
    if self.factor not in (2, 4, 8):
      raise ValueError(f"Setting 'factor' of superres is {self.factor}; use 2, 4 or 8.")
    if self.up_widths and len(self.up_widths) != self.doublings:
      raise ValueError(
        f"Setting 'up_widths' of superres is {self.up_widths}, but a factor of {self.factor} "
        f"doubles {self.doublings} times; give {self.doublings} widths, or () to have them chosen."
      )
    numbers = (self.width, self.vit_patch, self.token_width, self.heads, self.head_width, *self.up_widths)
    if min(numbers) < 1 or min(self.depth, self.vit_blocks) < 0:
      raise ValueError(
        "The widths, heads and vit_patch of superres must be at least 1, depth and vit_blocks "
        "at least 0; leave a setting out to get its default."
      )

  def check_size(self, height: int, width: int) -> None:
    """Raises ValueError where the attention would take too much memory."""
    if self.vit_blocks:
      _check_tokens(height, width, self.vit_patch, "Super-resolution", "raise the network's vit_patch")

  @nn.compact
  def __call__(self, x: jax.Array, t=None, cond=None, train: bool = False, noise: jax.Array | None = None) -> jax.Array:
    """The enlarged pair, see the class.

    Args:
      x: [B, h, w, 4], RGB and tree coverage in [-1, 1].
      t: not used; there so that all networks are called alike.
      cond: there for the same reason; must be None.
      train: not used; nothing here behaves differently in training.
      noise: standard normal [B, h * factor, w * factor, log2(factor)] for `noise`, a channel for each doubling; None for zeros.

    Raises:
      ValueError: x has not four channels, or there is a condition.
    """
    del t, train
    if cond is not None:
      raise ValueError("Super-resolution takes no condition: photograph and tree are its input, noise goes in as `noise`.")
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
      grid = tokens.shape
      tokens = tokens.reshape(b, -1, self.token_width)
      for _ in range(self.vit_blocks):
        tokens = VitBlock(self.heads, self.head_width, self.dtype)(tokens)
      context = nn.Dense(self.width * p * p, dtype=self.dtype)(tokens.reshape(grid))
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
        # None at first. Sums of s² values over s, so that the noise is as strong at every size.
        s = self.factor // 2 ** (i + 1)
        drawn = layers.space_to_depth(noise[..., i : i + 1], s).sum(-1, keepdims=True) / s
        strength = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name=f"noise_{i}")
        x = x + drawn.astype(x.dtype) * strength(x)
      x = x + nn.relu(conv(x, width))
    # Nothing but the enlargement at first: training starts from bicubic instead of from noise.
    detail = nn.Conv(4, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")(x)
    return base + detail.astype(jnp.float32)


class SpectralConv(nn.Module):
  """Convolution whose kernel, as a matrix [k * k * c_in, width], is divided by its largest singular value.

  Miyato et al. 2018, eq. 8. Their running estimate of the singular vectors would be a state beside the
  parameters; here ten power iterations from a fixed start are run at every call, which costs next to nothing
  beside the convolution.
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
      kernel = kernel / spectral_value(kernel.reshape(-1, self.width))
    x = jax.lax.conv_general_dilated(
      x.astype(self.dtype), kernel.astype(self.dtype), (self.stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x + bias.astype(self.dtype)


def spectral_value(matrix: jax.Array, iterations: int = 10) -> jax.Array:
  """Largest singular value of a matrix [m, n], a little too small; differentiable through the matrix
  alone."""
  fixed = jax.lax.stop_gradient(matrix)
  # A fixed start from NumPy: a draw of JAX's would be compiled anew for every layer.
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
  """Judges patches of a pair [B, H, W, 4] (RGB and tree, both in [-1, 1]) -> logits [B, H / s, W / s, 1], s =
  2^len(widths).

  Strided 4x4 convolutions (PatchGAN, Isola et al. 2017), a transformer block over the coarsest map, so that a
  patch is judged with the whole eye in view, and one logit per position. No norm over pixels, which would
  hide colour shifts; spectral norm instead. A real tree is black and white and a generated one is not: feed
  it 2 * sigmoid(logits) - 1 for the fake and a coverage map or a smoothed label for the real, or that is all
  it will learn.

  Attributes:
    widths: channels after each halving.
    vit_blocks: transformer blocks; 0 for none.
    heads, head_width: of the attention.
    spectral_norm: divide kernels by their spectral norm; False with an R1 or gradient penalty, if wanted.
    detail: gain of three channels more: the photograph less its mean over 3x3 pixels. A retina's texture is one or two grey
      levels high beside colours that differ by a hundred; without them small discriminators take long to see it. 0 for none.
    dtype: of the computations; parameters and output stay float32.
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
    """Raises ValueError for settings that make no network."""
    if not self.widths or min(*self.widths, self.heads, self.head_width) < 1 or self.vit_blocks < 0:
      raise ValueError(
        f"The discriminator's widths {self.widths}, heads and head_width must be at least 1 "
        "and vit_blocks at least 0; for instance widths (32, 64, 128)."
      )
    if not 0.0 <= self.detail < float("inf"):
      raise ValueError(f"The discriminator's detail={self.detail} must be 0 (none) or a gain above 0, for instance 16.")

  def check_size(self, height: int, width: int) -> None:
    """Raises ValueError where the attention would take too much memory."""
    if self.vit_blocks:
      _check_tokens(height, width, self.size_multiple, "The discriminator", "add another entry to its widths")

  @nn.compact
  def __call__(self, x: jax.Array, t=None, cond: jax.Array | None = None, train: bool = False) -> jax.Array:
    """Logits per patch, > 0 for real; `cond` (e.g. the low-resolution pair, enlarged) is concatenated, `t`
    unused."""
    del t, train
    if cond is not None:
      x = jnp.concatenate([x, cond.astype(x.dtype)], axis=-1)

    def conv(x, width, kernel, stride):
      return SpectralConv(width, kernel, stride, self.dtype, self.spectral_norm)(x)

    if self.detail:
      x = jnp.concatenate([x, self.detail * _above_mean(x[..., :3])], axis=-1)
    for width in self.widths:
      x = nn.leaky_relu(conv(x, width, 4, 2), 0.2)
    if self.vit_blocks:
      b, h, w, c = x.shape
      tokens = x.reshape(b, h * w, c)
      for _ in range(self.vit_blocks):
        tokens = VitBlock(self.heads, self.head_width, self.dtype)(tokens)
      x = tokens.reshape(b, h, w, c)
    return conv(x, 1, 3, 1).astype(jnp.float32)


def _above_mean(x: jax.Array) -> jax.Array:
  """x less its mean over 3x3 pixels, [B, H, W, C]; edges repeat. Shifted sums, whose gradients are cheap everywhere."""
  mean = x
  for axis in (1, 2):
    wide = jnp.pad(mean, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode="edge")
    size = x.shape[axis]
    mean = sum(jax.lax.slice_in_dim(wide, k, k + size, axis=axis) for k in range(3)) / 3.0
  return x - mean
