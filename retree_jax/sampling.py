"""From a trained denoiser and seeds to pixels: the one sampling path of previews, `--mode sample`, generate and notebooks.

Sample k is a function of (weights, seed, k, its condition) alone. Each device runs the same program on blocks of
`config.sampler.block` samples; the block, not the batch or the number of devices, is what the compiled network sees, so
neither changes a bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from retree_jax import keys, limits, sharding
from retree_jax.data.fields import CHANNELS, num_channels, split_channels
from retree_jax.diffusion import process, samplers, schedules


def make_schedule(config) -> schedules.Schedule:
  """The noise schedule that `config.diffusion` describes."""
  return schedules.make(
      config.schedule, config.num_steps, zero_terminal_snr=config.zero_terminal_snr, shift=config.shift)


class Sampler:
  """A compiled sampling loop over a mesh.

  Args:
    config: the config that the weights were trained with; `config.sampler` says how to sample.
    network: `retree_jax.models.Network`.
    mesh: devices; one local device by default.

  Raises:
    ValueError: a field of the config that cannot be, see `retree_jax.limits`.
  """

  def __init__(self, config, network, mesh=None):
    limits.check(config)
    self.config, self.network = config, network
    self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    self.target, self.condition = tuple(config.data.target), tuple(config.data.condition)
    self.size = tuple(config.data.image_size)
    self._schedule = make_schedule(config.diffusion)
    options = config.sampler
    num_steps = None if options.spacing == "full" else options.num_steps
    self._grid = samplers.time_grid(self._schedule, num_steps, spacing=options.spacing)
    if options.guidance != 1.0 and not config.diffusion.condition_dropout:
      raise ValueError(f"config.sampler.guidance={options.guidance} needs a model trained with "
                       "config.diffusion.condition_dropout above 0: use 1.0")
    on_cpu = self.mesh.devices.flat[0].platform == "cpu"
    # One sample at a time on a CPU: as quick there, and the same bits whatever the batch.
    self.block = options.block or (1 if on_cpu else options.batch_size)
    spec = PartitionSpec(("data", "fsdp"))
    self._run = jax.jit(jax.shard_map(
        self._on_device, mesh=self.mesh, in_specs=(PartitionSpec(), spec, spec, spec), out_specs=spec, check_vma=False))

  def __call__(self, params, indices, condition: dict | None = None, seed: int | None = None,
               stream: str = "samples") -> dict[str, np.ndarray]:
    """Samples, in as many compiled batches as it takes.

    Args:
      params: the network's parameters.
      indices: [N] int, numbers of the samples.
      condition: uint8 arrays [N, H, W, C] for each field of `config.data.condition`.
      seed: root of the randomness; `config.sampler.seed` by default.
      stream: name of the randomness: another name gives other samples for the same seed.

    Returns:
      uint8 arrays [N, H, W, C] for each field of `config.data.target`, on every host.
    """
    indices = np.asarray(indices, np.int64)
    seed = self.config.sampler.seed if seed is None else seed
    total, step = len(indices), self.batch_size
    parts = []
    for start in range(0, total, step):
      rows = slice(start, min(start + step, total))
      parts.append(self._batch(params, indices[rows], {k: v[rows] for k, v in (condition or {}).items()}, seed, stream))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

  @property
  def batch_size(self) -> int:
    """Samples per compiled call, over all devices."""
    blocks = max(1, self.config.sampler.batch_size // self.block)
    return self.block * blocks * self.mesh.size

  def _batch(self, params, indices, condition, seed, stream):
    n, h, w = len(indices), *self.size
    cond = np.zeros((n, h, w, 0), np.uint8)
    if self.condition:
      missing = [f for f in self.condition if f not in condition]
      if missing:
        raise ValueError(f"sampling needs the condition {missing[0]!r} of shape [{n}, {h}, {w}, {CHANNELS[missing[0]]}]")
      cond = np.concatenate([condition[f] for f in self.condition], axis=-1)
      if cond.shape[:3] != (n, h, w):
        raise ValueError(f"the condition has shape {cond.shape[:3]} but the model takes [{n}, {h}, {w}]: resize it")
    rows, counts, places = self._spread(n)
    sample_keys = keys.per_sample(seed, indices[rows], f"{self.config.stage} {stream}")
    split = sharding.batch_sharding(self.mesh)
    given = (counts, np.asarray(jax.random.key_data(sample_keys)), cond[rows])
    x = self._run(params, *(jax.make_array_from_callback(a.shape, split, lambda i, a=a: a[i]) for a in given))
    pixels = sharding.to_host(x)[places]
    out = split_channels(pixels, self.target)
    if "image" in out and "fov" in self.condition:
      out["image"] = np.where(condition["fov"] >= 128, out["image"], 0).astype(np.uint8)
    return out

  def _spread(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deals n <= batch_size samples to the devices, block by block. Every call has the same shapes, so that one program
    serves all n: a device runs as many of its blocks as it was dealt.

    Returns:
      rows: [batch_size] the sample at each place; the last one again where none is left.
      counts: [devices] int32, blocks dealt to each device.
      places: [n] where each sample lies.
    """
    devices, blocks = self.mesh.size, -(-n // self.block)
    dealt = np.arange(self.batch_size).reshape(-1, devices, self.block).swapaxes(0, 1).ravel()
    counts = np.array([len(range(d, blocks, devices)) for d in range(devices)], np.int32)
    return np.minimum(dealt, n - 1), counts, np.argsort(dealt)[:n]

  def _on_device(self, params, count, key_data, cond):
    """One device's share, blocks one after the other: count [1] of them, key_data [b, 2] uint32, cond [b, H, W, C] uint8 →
    uint8 [b, H, W, C]."""
    def blocks(x):
      return x.reshape(x.shape[0] // self.block, self.block, *x.shape[1:])

    def one(i, out):
      return out.at[i].set(self._block(params, blocks(key_data)[i], blocks(cond)[i]))

    blank = jnp.zeros((*key_data.shape[:1], *self.size, num_channels(self.target)), jnp.uint8)
    out = jax.lax.fori_loop(0, count[0], one, blocks(blank))
    return out.reshape(blank.shape)

  def _block(self, params, key_data, cond):
    options, config = self.config.sampler, self.config.diffusion
    sample_keys = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    start_keys, step_keys = (jax.vmap(jax.random.fold_in, (0, None))(sample_keys, i) for i in range(2))
    x = keys.normal(start_keys, (*self.size, num_channels(self.target)))
    cond = cond.astype(jnp.float32) / 127.5 - 1.0 if self.condition else None

    def predict_x0(x, t, cond=cond):
      alpha, sigma = self._schedule.alpha_sigma(t)
      prediction = self.network.apply(params, x, t, cond)
      return process.to_x0(prediction, x, alpha, sigma, config.prediction)

    predict = predict_x0
    if options.guidance != 1.0:
      blank = jnp.concatenate([
          (jnp.zeros_like if f == "tree" else lambda c: c)(cond[..., i:i + 1]) for i, f in enumerate(self.condition)], -1)
      predict = samplers.guided(predict_x0, lambda x, t: predict_x0(x, t, blank), options.guidance)
    # Ho et al. 2020, section 3.2: beta over every time step, as the paper has it; over a few long steps it adds too much noise.
    extra = {"ddim": {"eta": options.eta}, "ddpm": {"variance": "beta" if options.spacing == "full" else "posterior"}}.get(
        options.name, {})
    x = samplers.sample(options.name, predict, x, self._grid, step_keys, clip=options.clip, **extra)
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
