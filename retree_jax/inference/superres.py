"""Super-resolution in use: uint8 pairs in, enlarged uint8 pairs out.

The enlarged pair k is a function of (weights, pair k) alone: each device runs the same program on blocks of
`config.sampler.block` pairs, so neither the batch nor the number of devices changes a bit. Where the network takes noise as the
raw material of texture, it is derived from the small pair's own pixels.
"""

import math

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from retree_jax import keys, sharding
from retree_jax.config import validate
from retree_jax.data.fields import CHANNELS, split_channels
from retree_jax.models import scaling

_FIELDS = ("image", "tree", "fov")


class Enlarger:
  """A compiled super-resolution over a mesh.

  Args:
    config: the superres stage's config.
    network: `retree_jax.models.Network`.
    mesh: devices; one local device by default.

  Attributes:
    scale: factor by which each side is enlarged.
    size, input_size: (height, width) in pixels of the output and the input.
    block: pairs that the network sees at once.
    mask_threshold: vessel probability that becomes a coverage of one half, at which masks are thresholded.

  Raises:
    ValueError: an invalid field of the config, see `retree_jax.config.validate`.
  """

  def __init__(self, config, network, mesh=None):
    validate.check(config)
    self._network = network
    self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    options = config.sampler
    self.scale = int(network.settings["factor"])
    self.size = tuple(config.data.image_size)
    self.input_size = tuple(s // self.scale for s in self.size)
    self.mask_threshold = float(options.get("mask_threshold", 0.5))
    on_cpu = self.mesh.devices.flat[0].platform == "cpu"
    # On a CPU one pair at a time is as fast, and gives the same bits for any batch.
    self.block = options.block or (1 if on_cpu else options.batch_size)
    blocks = max(1, options.batch_size // self.block)
    self.batch_size = self.block * blocks * self.mesh.size
    spec = PartitionSpec(("data", "fsdp"))
    self._run = jax.jit(
      jax.shard_map(self._on_device, mesh=self.mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)
    )

  def __call__(self, params, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Enlarges pairs, in as many compiled batches as it takes.

    Args:
      params: the generator's parameters.
      fields: "image" uint8 [N, h, w, 3], "tree" uint8 [N, h, w, 1] (coverage) and, if there is one, "fov"
        uint8 [N, h, w, 1], with (h, w) = `input_size`.

    Returns:
      The same fields, uint8 [N, H, W, C] with (H, W) = `size`, on every host. The field of view is 0 or 255,
      and photograph and tree are 0 outside it.

    Raises:
      ValueError: a field is missing, has another size than the stage was trained for, or another type.
    """
    self._check(fields)
    names = [name for name in _FIELDS if name in fields]
    pixels = np.concatenate([fields[name] for name in names], axis=-1)
    params = sharding.replicate(params, self.mesh)
    parts = [self._batch(params, pixels[i : i + self.batch_size]) for i in range(0, len(pixels), self.batch_size)]
    whole = np.concatenate(parts) if parts else np.zeros((0, *self.size, pixels.shape[-1]), np.uint8)
    return split_channels(whole, names)

  def _check(self, fields) -> None:
    h, w = self.input_size
    for name in ("image", "tree", *(["fov"] if "fov" in fields else [])):
      if name not in fields:
        raise ValueError(
          f"super-resolution enlarges photograph and tree together, but there is no {name!r}: give both, or leave out this "
          "stage"
        )
      shape, kind = np.shape(fields[name]), np.asarray(fields[name]).dtype
      if kind != np.uint8 or shape != (len(fields["image"]), h, w, CHANNELS[name]):
        raise ValueError(
          f"this super-resolution enlarges {h}x{w} to {self.size[0]}x{self.size[1]} pixels and needs {name!r} as uint8 "
          f"[N, {h}, {w}, {CHANNELS[name]}], not {kind} {list(shape)}: resize it, or use a stage trained for that size"
        )

  def _batch(self, params, pixels):
    n = len(pixels)
    # Padded to whole blocks on every device, so that only a few sizes are ever compiled.
    pad = -n % (self.block * self.mesh.size)
    pixels = np.pad(pixels, ((0, pad), (0, 0), (0, 0), (0, 0)), mode="edge")
    split = sharding.batch_sharding(self.mesh)
    return sharding.to_host(self._run(params, jax.make_array_from_callback(pixels.shape, split, lambda i: pixels[i])))[:n]

  def _on_device(self, params, pixels):
    """One device's share, blocks one after the other: uint8 [b, h, w, 4 or 5] -> uint8 [b, H, W, 4 or 5]."""
    blocks = einops.rearrange(pixels, "(n block) h w c -> n block h w c", block=self.block)
    out = jax.lax.map(lambda x: self._block(params, x), blocks)
    return einops.rearrange(out, "n block h w c -> (n block) h w c")

  def _block(self, params, pixels):
    low = scaling.to_signed(pixels[..., :4])
    high = to_pixels(self._network.apply(params, low, noise=own_noise(pixels[..., :4], self.scale)), self.mask_threshold)
    if pixels.shape[-1] == 4:
      return high
    return blackened(high, enlarged_fov(pixels[..., 4:], self.scale))


def own_noise(pixels: jax.Array, scale: int) -> jax.Array:
  """The noise that `models.superres.Superres` takes, derived from the pair: the same for the same pair, different for another.

  Args:
    pixels: the small pairs, uint8 [B, h, w, 4].
    scale: factor by which each side is enlarged.

  Returns:
    Standard normal [B, h * scale, w * scale, log2(scale)], float32.
  """
  b, h, w, c = pixels.shape
  # Sum of products modulo 2³²: exact in any order. The factors are odd (Fibonacci hashing of the position), so that no change
  # of a pixel is lost.
  place = jnp.arange(h * w * c, dtype=jnp.uint32) * jnp.uint32(2654435769) | jnp.uint32(1)
  numbers = jnp.sum(einops.rearrange(pixels, "b h w c -> b (h w c)").astype(jnp.uint32) * place, axis=1, dtype=jnp.uint32)
  root = keys.stream(0, "texture")
  return jax.vmap(lambda number: noise(keys.at_step(root, number), (h, w), scale))(numbers)


def noise(key: jax.Array, size: tuple[int, int], scale: int) -> jax.Array:
  """Standard normal [h * scale, w * scale, log2(scale)], float32, for a small pair of `size` = (h, w): one channel for each
  doubling of the side, as `models.superres.Superres` takes it."""
  return jax.random.normal(key, (size[0] * scale, size[1] * scale, scale.bit_length() - 1))


def to_pixels(output: jax.Array, mask_threshold: float = 0.5) -> jax.Array:
  """The network's output as uint8 photograph and coverage.

  Where a vessel is thinner than a small pixel, its position at the large size is uncertain, and its probability is spread over
  more pixels than it covers: a threshold of one half would lose it. A lower `mask_threshold` keeps it.

  Args:
    output: RGB around [-1, 1] and tree logits, [B, H, W, 4].
    mask_threshold: probability that becomes 128 of 255. The others follow smoothly: their odds are divided by the threshold's.
  """
  logits = output[..., 3:] - math.log(mask_threshold / (1.0 - mask_threshold))
  unit = jnp.concatenate([(output[..., :3] + 1.0) / 2.0, jax.nn.sigmoid(logits)], axis=-1)
  return scaling.from_unit(unit)


def bicubic(pixels: jax.Array, scale: int) -> jax.Array:
  """Bicubic enlargement, the baseline of super-resolution: uint8 [B, h, w, C] -> [B, H, W, C]."""
  b, h, w, c = pixels.shape
  large = jax.image.resize(pixels.astype(jnp.float32), (b, h * scale, w * scale, c), "cubic")
  return jnp.clip(jnp.round(large), 0, 255).astype(jnp.uint8)


def enlarged_fov(fov: jax.Array, scale: int) -> jax.Array:
  """Enlarges a field of view uint8 [B, h, w, 1], with a smooth edge; 0 or 255."""
  return jnp.where(bicubic(fov, scale) >= 128, 255, 0).astype(jnp.uint8)


def blackened(pair: jax.Array, fov: jax.Array) -> jax.Array:
  """Blackens a pair uint8 [B, H, W, 4] outside its field of view [B, H, W, 1], which is appended: [B, H, W, 5]."""
  return jnp.concatenate([jnp.where(fov > 0, pair, 0).astype(jnp.uint8), fov], axis=-1)
