"""The denoiser and the discriminator of Alimanov & Islam 2023 (arXiv 2308.08339) in plain PyTorch.

What our networks are measured against, in speed (`experiments/benchmarks`) and in numbers (`tests`). Written
from a description of the networks in words and formulas, with no line of ours or of the original's in it;
modules are named so that state dicts have the original's parameter names.

    network = Denoiser(dim=512, channels=4)
    noise = network(torch.cat([x, tree], dim=1), t)      # NCHW in [-1, 1], t [B] whole numbers
"""

import math

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
  """x + f(layer_norm(x)), for tokens [B, N, D]."""

  class Normed(nn.Module):
    """f(layer_norm(x))."""

    def __init__(self, width: int, fn: nn.Module):
      super().__init__()
      self.norm = nn.LayerNorm(width)
      self.fn = fn

    def forward(self, x):
      return self.fn(self.norm(x))

  def __init__(self, width: int, fn: nn.Module):
    super().__init__()
    self.fn = Residual.Normed(width, fn)

  def forward(self, x):
    return x + self.fn(x)


class LocalityAttention(nn.Module):
  """Self-attention in which no token sees itself and the temperature is learned (Lee et al. 2021)."""

  def __init__(self, width: int, heads: int, head_width: int):
    super().__init__()
    self.heads = heads
    self.temperature = nn.Parameter(torch.log(torch.tensor(head_width**-0.5)))
    self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
    self.to_out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(0.0))

  def forward(self, x):
    b, n, _ = x.shape
    q, k, v = (part.view(b, n, self.heads, -1).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
    scores = torch.matmul(q, k.transpose(2, 3)) * self.temperature.exp()
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    scores = scores.masked_fill(itself, -torch.finfo(x.dtype).max)
    mixed = torch.matmul(scores.softmax(dim=-1), v)
    return self.to_out(mixed.transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
  """Dense layers width -> 4 width -> width with a GELU between."""

  def __init__(self, width: int):
    super().__init__()
    self.net = nn.Sequential(
      nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width), nn.Dropout(0.0)
    )

  def forward(self, x):
    return self.net(x)


class Transformer(nn.Module):
  """`depth` blocks of attention and MLP over the pixels of [B, C, H, W]; no positions, no norm at the end."""

  def __init__(self, width: int, depth: int = 1, heads: int = 4, head_width: int = 64):
    super().__init__()
    self.layers = nn.ModuleList()
    for _ in range(depth):
      attention = LocalityAttention(width, heads, head_width)
      self.layers.append(nn.ModuleList([Residual(width, attention), Residual(width, Mlp(width))]))

  def forward(self, x):
    b, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    for attention, mlp in self.layers:
      tokens = mlp(attention(tokens))
    return tokens.transpose(1, 2).reshape(b, c, h, w)


class DoubleConv(nn.Module):
  """Convolution, group norm of one group, GELU, convolution, norm; with `residual` GELU(x + that)."""

  def __init__(self, c_in: int, c_out: int, middle: int | None = None, residual: bool = False):
    super().__init__()
    middle = middle or c_out
    self.residual = residual
    self.double_conv = nn.Sequential(
      nn.Conv2d(c_in, middle, 3, padding=1, bias=False),
      nn.GroupNorm(1, middle),
      nn.GELU(),
      nn.Conv2d(middle, c_out, 3, padding=1, bias=False),
      nn.GroupNorm(1, c_out),
    )

  def forward(self, x):
    y = self.double_conv(x)
    return functional.gelu(x + y) if self.residual else y


class Down(nn.Module):
  """Max-pooling by 4, two double convolutions, and the timestep added to every pixel."""

  def __init__(self, c_in: int, c_out: int, time_dim: int):
    super().__init__()
    self.maxpool_conv = nn.Sequential(nn.MaxPool2d(4), DoubleConv(c_in, c_in, residual=True), DoubleConv(c_in, c_out))
    self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, c_out))

  def forward(self, x, time):
    return self.maxpool_conv(x) + self.emb_layer(time)[:, :, None, None]


class Up(nn.Module):
  """Bilinear doubling, the skip joined in front, two double convolutions, and the timestep added."""

  def __init__(self, c_in: int, c_out: int, time_dim: int):
    super().__init__()
    self.conv = nn.Sequential(DoubleConv(c_in, c_in, residual=True), DoubleConv(c_in, c_out, c_in // 2))
    self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, c_out))

  def forward(self, x, skip, time):
    x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    if skip is not None:
      x = torch.cat([skip, x], dim=1)
    return self.conv(x) + self.emb_layer(time)[:, :, None, None]


class Head(nn.Module):
  """1x1 convolution."""

  def __init__(self, c_in: int, c_out: int):
    super().__init__()
    self.conv = nn.Conv2d(c_in, c_out, 1)

  def forward(self, x):
    return self.conv(x)


class Denoiser(nn.Module):
  """Noise in a noisy picture [B, C, H, W], H and W multiples of 16, at timesteps t [B].

  Args:
    dim: the ladder's top; the widest convolution has dim/2 channels. 4096 in the paper.
    time_dim: sinusoids of the timestep.
    channels: of the input: 1 for trees, 4 (noisy photograph, tree) for photographs, which have 3 out.
    depth, heads, head_width: of the attention.
  """

  def __init__(
    self, dim: int = 4096, time_dim: int = 256, channels: int = 1, depth: int = 1, heads: int = 4, head_width: int = 64
  ):
    super().__init__()
    c0, c1, c2, c3, c4 = (dim // 2**k for k in (5, 4, 3, 2, 1))
    self.time_dim = time_dim
    self.initial = nn.Sequential(nn.Conv2d(channels, c0, 3, padding=1, bias=False), nn.GroupNorm(1, c0), nn.GELU())
    self.down_blocks = nn.ModuleList([Down(c0, c2, time_dim), Down(c2, c3, time_dim)])
    self.transformer_blocks = nn.ModuleList(Transformer(width, depth, heads, head_width) for width in (c2, c3))
    self.bottleneck_blocks = nn.ModuleList([DoubleConv(c3, c4), DoubleConv(c4, c4), DoubleConv(c4, c3)])
    self.up_blocks = nn.ModuleList(
      [Up(c3, c2, time_dim), Up(2 * c2, c1, time_dim), Up(c1, c0, time_dim), Up(2 * c0, c0, time_dim)]
    )
    self.last = Head(c0, 3 if channels > 1 else 1)

  def forward(self, x, t):
    even = torch.arange(0, self.time_dim, 2, device=x.device)
    angles = t.to(x.dtype)[:, None] * torch.exp(even * (-math.log(1e4) / self.time_dim))
    time = torch.cat([angles.sin(), angles.cos()], dim=-1)
    full = self.initial(x)
    quarter = self.transformer_blocks[0](self.down_blocks[0](full, time))
    x = self.transformer_blocks[1](self.down_blocks[1](quarter, time))
    for block in self.bottleneck_blocks:
      x = block(x)
    for block, skip in zip(self.up_blocks, (None, quarter, None, full), strict=True):
      x = block(x, skip, time)
    return self.last(x)


class ConvBlock(nn.Module):
  """4x4 convolution after reflecting one pixel, instance norm without parameters, leaky ReLU."""

  def __init__(self, c_in: int, c_out: int, stride: int):
    super().__init__()
    self.convolution = nn.Sequential(
      nn.Conv2d(c_in, c_out, 4, stride, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(c_out), nn.LeakyReLU(0.2)
    )

  def forward(self, x):
    return self.convolution(x)


class Discriminator(nn.Module):
  """Patch scores in (0, 1) of pictures [B, C, H, W]; 6x6 for 64x64 pixels."""

  def __init__(self, channels: int = 1, width: int = 64, depth: int = 1, heads: int = 4, head_width: int = 64):
    super().__init__()
    conv = {"kernel_size": 4, "padding": 1, "padding_mode": "reflect"}
    self.initial = nn.Sequential(nn.Conv2d(channels, width, stride=2, **conv), nn.LeakyReLU(0.2))
    blocks = []
    for stride in (1, 2, 2):
      blocks += [ConvBlock(width, 2 * width, stride), Transformer(2 * width, depth, heads, head_width)]
      width *= 2
    self.down_blocks = nn.Sequential(*blocks)
    self.last = nn.Conv2d(width, 1, stride=1, **conv)

  def forward(self, x):
    return torch.sigmoid(self.last(self.down_blocks(self.initial(x))))
