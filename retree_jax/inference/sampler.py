"""From a trained denoiser and seeds to pixels: the one sampling path of previews, `--mode sample`, generate and notebooks.

Sample k is a function of (weights, seed, k, its condition) alone. Each device runs the same program on blocks of
`config.sampler.block` samples; the block, not the batch or the number of devices, is what the compiled network sees, so
neither changes a bit. On a CPU a sample's place in its block follows from its number, because rounding differs from place to
place; an accelerator fills blocks in order.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import PartitionSpec

from retree_jax import keys, sharding
from retree_jax.config import validate
from retree_jax.data import attributes
from retree_jax.data.fields import CHANNELS, num_channels, split_channels
from retree_jax.diffusion import guidance, process, samplers, schedules
from retree_jax.models import scaling

_SHIFTED_BELOW = 0.45  # sigma / alpha of the steps that `config.sampler.time_shift` changes


def make_schedule(config) -> schedules.Schedule:
  """The noise schedule that `config.diffusion` describes."""
  return schedules.make(config.schedule, config.num_steps, zero_terminal_snr=config.zero_terminal_snr, shift=config.shift)


class Sampler:
  """A compiled sampling loop over a mesh.

  Args:
    config: the config that the weights were trained with; `config.sampler` says how to sample.
    network: `retree_jax.models.Network`.
    mesh: devices; one local device by default.

  Raises:
    ValueError: a field of the config that cannot be, see `retree_jax.config.validate`.
  """

  def __init__(self, config, network, mesh=None):
    validate.check(config)
    self.config, self.network = config, network
    self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    self.target, self.condition = tuple(config.data.target), tuple(config.data.condition)
    self.size = tuple(config.data.image_size)
    self.attributes = tuple(config.data.get("attributes", ()))
    self._schedule = make_schedule(config.diffusion)
    options = config.sampler
    num_steps = None if options.spacing == "full" else options.num_steps
    self._grid = samplers.time_grid(self._schedule, num_steps, spacing=options.spacing)
    if options.guidance != 1.0 and not (("tree" in self.condition and config.diffusion.condition_dropout) or self.attributes):
      raise ValueError(
        f"config.sampler.guidance={options.guidance} needs a model trained with config.data.attributes, or with a tree as its "
        "condition and config.diffusion.condition_dropout above 0: use 1.0"
      )
    self._on_cpu = self.mesh.devices.flat[0].platform == "cpu"
    few = network.cpu_block(*self.size)
    self.block = options.block or (few if self._on_cpu else options.batch_size)
    self._blocks = max(1, options.batch_size // self.block) * self.mesh.size  # of one compiled call
    spec = PartitionSpec(("data", "fsdp"))
    self._run = jax.jit(
      jax.shard_map(
        self._on_device, mesh=self.mesh, in_specs=(PartitionSpec(), spec, spec, spec, spec), out_specs=spec, check_vma=False
      )
    )

  def __call__(
    self,
    params,
    indices,
    condition: dict | None = None,
    seed: int | None = None,
    stream: str = "samples",
    slots=None,
    ask: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
  ) -> dict[str, np.ndarray]:
    """Samples, in as many compiled batches as it takes.

    Args:
      params: the network's parameters.
      indices: [N] int, numbers of the samples.
      condition: uint8 arrays [N, H, W, C] for each field of `config.data.condition`.
      seed: root of the randomness; `config.sampler.seed` by default.
      stream: name of the randomness: another name gives other samples for the same seed.
      slots: [N] int, each a function of the sample's number: modulo the block, the sample's place in one on a CPU. The
        numbers themselves by default; numbers that leave the same rest in long runs would leave blocks half empty.
      ask: {attribute: value} (`retree_jax.data.attributes`) of all samples, or one for each; those not named are left open.

    Returns:
      uint8 arrays [N, H, W, C] for each field of `config.data.target`, on every host.

    Raises:
      ValueError: a condition that is missing or of another size, or an attribute that the model does not know.
    """
    ask = [ask or {}] * len(indices) if ask is None or isinstance(ask, Mapping) else ask
    for one in ask:
      self.check_asked(one)
    asked = np.array([attributes.encode(one, self.attributes) for one in ask], np.float32).reshape(len(indices), -1)
    indices = np.asarray(indices, np.int64)
    seed = self.config.sampler.seed if seed is None else seed
    n, size, condition = len(indices), self.size, condition or {}
    wanted = f"[{n}, {size[0]}, {size[1]}"
    for field in self.condition:
      if field not in condition:
        raise ValueError(f"sampling needs the condition {field!r} of shape {wanted}, {CHANNELS[field]}]")
      if (shape := condition[field].shape[:3]) != (n, *size):
        raise ValueError(f"the condition {field!r} has shape {shape} but the model takes {wanted}]: resize it")
    slots = np.asarray(indices if slots is None else slots) if self._on_cpu else np.arange(n)
    table = _blocks_of(slots, self.block)
    pixels = np.zeros((n, *size, num_channels(self.target)), np.uint8)
    for start in range(0, len(table), self._blocks):
      group = table[start : start + self._blocks]
      there = group >= 0
      pixels[group[there]] = self._batch(params, group, indices, condition, seed, stream, asked)[there]
    out = split_channels(pixels, self.target)
    if "image" in out and "fov" in self.condition:
      out["image"] = np.where(condition["fov"] >= 128, out["image"], 0).astype(np.uint8)
    return out

  def check_asked(self, ask) -> None:
    """Raises ValueError for an attribute in `ask` that the model does not know."""
    for name in ask:
      if name not in self.attributes:
        raise ValueError(
          f"this {self.config.stage} stage does not know the attribute {name!r}: ask for "
          f"{' or '.join(self.attributes) or 'none, or give a stage that was trained with config.data.attributes'}"
        )

  @property
  def batch_size(self) -> int:
    """Samples per compiled call, over all devices."""
    return self.block * self._blocks

  def _batch(self, params, group, indices, condition, seed, stream, asked) -> np.ndarray:
    """Samples the blocks of `group` (rows of `_blocks_of`, as many as one call takes or fewer): uint8 [*group.shape, H, W, C].
    Every call has the same shapes, so that one program serves any number of blocks: block i goes to device i modulo their
    number, and a device runs as many as it was dealt."""
    devices = self.mesh.size
    dealt = rearrange(
      np.arange(self._blocks), "(n device) -> (device n)", device=devices
    )  # the block at each place, device after device
    counts = np.array([len(range(d, len(group), devices)) for d in range(devices)], np.int32)
    filled = np.where(group >= 0, group, group.max(axis=1, keepdims=True))  # some sample of the same block where none is due
    rows = filled[np.minimum(dealt, len(group) - 1)].ravel()
    sample_keys = keys.per_sample(seed, indices[rows], f"{self.config.stage} {stream}")
    cond = [condition[f][rows] for f in self.condition] or [np.zeros((len(rows), *self.size, 0), np.uint8)]
    split = sharding.batch_sharding(self.mesh)
    given = (counts, np.asarray(jax.random.key_data(sample_keys)), np.concatenate(cond, axis=-1), asked[rows])
    x = self._run(params, *(jax.make_array_from_callback(a.shape, split, lambda i, a=a: a[i]) for a in given))
    blocks = rearrange(sharding.to_host(x), "(n block) ... -> n block ...", block=self.block)
    return blocks[np.argsort(dealt)[: len(group)]]

  def _on_device(self, params, count, key_data, cond, asked):
    """One device's share, blocks one after the other: count [1] of them, key_data [b, 2] uint32, cond [b, H, W, C] uint8, asked
    [b, A] → uint8 [b, H, W, C]."""

    def blocks(x):
      return rearrange(x, "(n block) ... -> n block ...", block=self.block)

    def one(i, out):
      return out.at[i].set(self._block(params, blocks(key_data)[i], blocks(cond)[i], blocks(asked)[i]))

    blank = jnp.zeros((*key_data.shape[:1], *self.size, num_channels(self.target)), jnp.uint8)
    return rearrange(jax.lax.fori_loop(0, count[0], one, blocks(blank)), "n block ... -> (n block) ...")

  def _as_condition(self, cond, sample_keys):
    """A block's condition as the network takes it: uint8 [b, H, W, C] and keys [b] → float32 [b, H, W, D]."""
    del sample_keys
    return scaling.to_signed(cond)

  def _finished(self, x, cond):
    """Pictures in [-1, 1] from what was sampled, given `_as_condition`'s condition."""
    del cond
    return x

  def _block(self, params, key_data, cond, asked):
    options, config = self.config.sampler, self.config.diffusion
    sample_keys = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    start_keys, step_keys = (jax.vmap(jax.random.fold_in, (0, None))(sample_keys, i) for i in range(2))
    x = keys.normal(start_keys, (*self.size, num_channels(self.target)))
    cond = self._as_condition(cond, sample_keys) if self.condition else None

    kw = {"attributes": attributes.told(asked)} if self.attributes else {}

    def predict_x0(x, t, cond=cond, kw=kw):
      alpha, sigma = self._schedule.alpha_sigma(t)
      prediction = self.network.apply(params, x, t, cond, **kw)
      return process.to_x0(prediction, x, alpha, sigma, config.prediction)

    predict = predict_x0
    if options.guidance != 1.0:
      blank = cond
      if self.condition:
        hidden = split_channels(cond, self.condition)
        hidden |= {"tree": jnp.zeros_like(hidden["tree"])} if "tree" in hidden else {}
        blank = jnp.concatenate(list(hidden.values()), axis=-1)
      predict = guidance.guided(predict_x0, lambda x, t: predict_x0(x, t, blank, {}), options.guidance)
    if (shift := options.get("time_shift", 1.0)) != 1.0:
      predict = guidance.shifted(predict, shift, float(self._schedule.time_of(_SHIFTED_BELOW)))
    # Ho et al. 2020, section 3.2: beta over every time step, as the paper has it; over a few long steps it adds too much noise.
    extra = {"ddim": {"eta": options.eta}, "ddpm": {"variance": "beta" if options.spacing == "full" else "posterior"}}.get(
      options.name, {}
    )
    x = samplers.sample(options.name, predict, x, self._grid, step_keys, clip=options.clip, **extra)
    return scaling.from_signed(self._finished(x, cond))


def _blocks_of(slots: np.ndarray, block: int) -> np.ndarray:
  """Puts samples into blocks, each at its slot modulo the block: [blocks, block] numbers of samples, -1 for an empty place.
  No block is empty, and a sample stands in the first block whose place is free."""
  slots = slots % block
  rank = np.zeros(len(slots), int)
  for slot in range(block):
    rank[slots == slot] = np.arange((slots == slot).sum())
  table = np.full((rank.max(initial=-1) + 1, block), -1)
  table[rank, slots] = np.arange(len(slots))
  return table
