"""The denoising stages: noise → tree (and field of view), and tree + noise → photograph."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from retree_jax import keys, losses, state
from retree_jax.data import attributes
from retree_jax.data.fields import CHANNELS, num_channels
from retree_jax.diffusion import process
from retree_jax.inference.sampler import Sampler, make_schedule
from retree_jax.models import scaling
from retree_jax.tasks import base

_EVALUATION_LEVELS = 8  # noise levels per held-out example, at the midpoints of eight equal intervals of time


class DiffusionTask(base.Task):
  """A denoising diffusion model (Ho et al. 2020) of `config.data.target`, given `config.data.condition`.

  The network's input is x_t (the target's channels with noise) and the condition's channels, concatenated, as in Alimanov &
  Islam 2023.

  Args:
    config: besides what `base.Task` reads, `config.diffusion`, `config.loss`, `config.sampler` and `config.preview`.
    epoch_steps: steps per epoch, which the repetitive training technique counts.

  Raises:
    ValueError: an unknown field, or an invalid setting of diffusion or sampler.
  """

  def __init__(self, config, epoch_steps: int = 1):
    super().__init__(config, epoch_steps)
    self.target, self.condition = tuple(config.data.target), tuple(config.data.condition)
    self.channels, self.condition_channels = num_channels(self.target), num_channels(self.condition)
    self.trained_size = self.size
    attributes.check(config.data.get("attributes", ()))
    self.network.check_size(*self.size, field="config.data.image_size")
    if config.diffusion.prediction == "eps" and config.diffusion.zero_terminal_snr:
      raise ValueError(
        "config.diffusion.prediction='eps' cannot start from pure noise, where the noise says nothing of the image: use 'v' or "
        "'x0', or config.diffusion.zero_terminal_snr=False"
      )
    if not (config.loss.mse or config.loss.l1):
      raise ValueError(
        "config.loss.mse and config.loss.l1 are both 0, so that nothing would be learnt: set config.loss.mse=1.0"
      )
    self.schedule = make_schedule(config.diffusion)
    if config.diffusion.prediction not in process.KINDS:
      raise ValueError(
        f"config.diffusion.prediction={config.diffusion.prediction!r} is unknown: use {', '.join(process.KINDS)}"
      )
    Sampler(config, self.network)  # raises ValueError before training for sampler settings that previews could not use

  @classmethod
  def fields_of(cls, config) -> tuple[str, ...]:
    names = dict.fromkeys((*config.data.target, *config.data.condition))
    unknown = [name for name in names if name not in CHANNELS]
    if unknown:
      raise ValueError(f"config.data names the unknown field {unknown[0]!r}: use {', '.join(CHANNELS)}")
    # With condition dropout, photographs without a tree are used for training too.
    optional = "tree" in config.data.condition and config.diffusion.condition_dropout > 0
    fields = tuple("tree?" if optional and name == "tree" else name for name in names)
    if config.loss.outside_fov != 1.0 and "fov" not in fields:
      fields = (*fields, "fov")
    return (*fields, "attributes") if config.data.get("attributes") else fields

  def init_parameters(self, key):
    shape, cond = (1, *self.trained_size), self.condition_channels
    return self.network.init(
      key, jnp.zeros((*shape, self.channels)), jnp.zeros((1,)), jnp.zeros((*shape, cond)) if cond else None
    )

  def init_extra(self) -> dict:
    if not self.config.train.rtt:
      return {}
    # The bar is +inf at first, so that the first epoch takes one step per batch.
    return {"bar": jnp.float32(jnp.inf), "epoch_sum": jnp.float32(0), "epoch_count": jnp.int32(0)}

  # --- training --------------------------------------------------------------------------------------------------------

  def train_step(self, current: state.TrainState, batch: dict) -> tuple[state.TrainState, dict]:
    """One batch, see `base.Task.train_step`; several optimizer steps with the repetitive training technique.

    Args:
      current: the state.
      batch: uint8 fields [B, H, W, C], and optionally "has_tree" [B] (False where the condition's tree is unknown).

    Returns:
      The next state and scalar metrics.
    """
    if not self.config.train.rtt:
      return super().train_step(current, batch)
    return self._repeated_steps(current, self.prepare(batch, keys.at_step(current.key, current.step)))

  def _repeated_steps(self, current, prepared):
    """The repetitive training technique (RTT): up to `config.train.rtt_repeats` optimizer steps on the same noised batch, until
    its loss is below the bar, the lowest epoch mean so far. The epoch mean is over the loss of each batch's last repetition."""
    bar = current.extra["bar"]

    def repeat_step(carry):
      params, opt_state, _, count = carry
      params, opt_state, metrics = self.optimizer_step(self.optimizer, self.loss, params, opt_state, prepared)
      return params, opt_state, metrics, count + 1

    def unsatisfied(carry):
      _, _, metrics, count = carry
      return (count < self.config.train.rtt_repeats) & (metrics["loss"] >= bar)

    def unrolled(carry):
      # On CPUs, XLA's gradients of convolutions are some 30 times slower inside a loop: compute every step, keep those due.
      for _ in range(self.config.train.rtt_repeats - 1):
        due, following = unsatisfied(carry), repeat_step(carry)
        carry = jax.tree.map(lambda new, old, due=due: jnp.where(due, new, old), following, carry)
      return carry

    def looped(carry):
      return jax.lax.while_loop(unsatisfied, repeat_step, carry)

    first = repeat_step((current.params, current.opt_state, None, jnp.int32(0)))
    params, opt_state, metrics, count = jax.lax.platform_dependent(first, cpu=unrolled, default=looped)
    total, seen = current.extra["epoch_sum"] + metrics["loss"], current.extra["epoch_count"] + 1
    ended = seen >= self.epoch_steps
    extra = {
      "bar": jnp.where(ended, jnp.minimum(bar, total / seen), bar),
      "epoch_sum": jnp.where(ended, 0.0, total),
      "epoch_count": jnp.where(ended, 0, seen),
    }
    metrics = {**metrics, "repetitions": count.astype(jnp.float32)}
    return self.next_state(current, params, opt_state, extra=extra), metrics

  def prepare(self, batch, key) -> dict:
    """Draws timesteps and noise for a batch, and dropout of its condition."""
    config = self.config.diffusion
    key_t, key_noise, key_given, key_net = jax.random.split(key, 4)
    given = self._given(batch, key_given)
    n = len(given["x0"])
    # Stratified over the batch: less variance in the loss than independent draws (Kingma et al. 2021, appendix I.1).
    if config.time_sampling == "stratified":
      u = (jax.random.uniform(key_t) + jnp.arange(n) / n) % 1.0
    else:
      u = jax.random.uniform(key_t, (n,))
    t = config.first_step + jnp.floor(u * (config.num_steps - config.first_step))
    return given | {
      "t": jnp.clip(t, config.first_step, config.num_steps - 1),
      "noise": jax.random.normal(key_noise, given["x0"].shape),
      "key": jax.random.split(key_net, n),
    }

  def _given(self, batch, key) -> dict:
    """The clean images "x0" of a batch; their condition "cond", with trees dropped at random; and pixel weights "weight", if
    the loss has any."""
    given = {"x0": self._clean(batch, None)}
    if self.config.data.get("attributes"):
      given["attributes"] = self._told(batch["attributes"], jax.random.fold_in(key, 1))
    if self.condition:
      keep = jax.random.uniform(key, given["x0"].shape[:1]) >= self.config.diffusion.condition_dropout
      given["cond"] = self._condition(batch, keep.astype(jnp.float32))
    if self.config.loss.outside_fov != 1.0:
      fov = scaling.to_unit(batch["fov"])
      given["weight"] = fov + self.config.loss.outside_fov * (1.0 - fov)
    return given

  def _clean(self, batch, cond):
    """What the network learns to draw, [B, H, W, C] in [-1, 1], given `cond`, its condition."""
    del cond
    return scaling.stack_signed(batch, self.target)

  def _told(self, values, key):
    """The attributes that the network is told, [B, 2A]: noisy values, some of them hidden (`attributes.told`)."""
    options = self.config.diffusion
    key_each, key_all, key_noise = jax.random.split(key, 3)
    values = values[:, np.array([list(attributes.ATTRIBUTES).index(name) for name in self.config.data.attributes])]
    hidden = jax.random.bernoulli(key_each, options.attribute_dropout, values.shape)
    hidden |= jax.random.bernoulli(key_all, options.attribute_dropout, (len(values), 1))
    noisy = values + options.attribute_noise * jax.random.normal(key_noise, values.shape)
    return attributes.told(jnp.where(hidden, jnp.nan, noisy))

  def _condition(self, batch, keep):
    """The condition's channels; trees are 0 (neither vessel nor background) where dropped (`keep` [B] is 0) or unknown."""
    cond = scaling.stack_signed(batch, self.condition)
    if "has_tree" in batch:
      keep = keep * batch["has_tree"].astype(jnp.float32)
    factors = [
      repeat(keep if name == "tree" else jnp.ones_like(keep), "b -> b 1 1 c", c=CHANNELS[name]) for name in self.condition
    ]
    return cond * jnp.concatenate(factors, axis=-1)

  def loss(self, params, prepared):
    key = prepared["key"][0] if self.config.model.get("dropout", 0.0) else None
    return jnp.mean(self._example_losses(params, prepared, key)), {}

  def _example_losses(self, params, prepared, key=None):
    """Weighted loss of each example, [B]: MSE + L1 (Alimanov & Islam 2023) with the weights of `config.loss`."""
    config = self.config
    alpha, sigma = self.schedule.alpha_sigma(prepared["t"])
    xt = process.corrupt(prepared["x0"], prepared["noise"], alpha, sigma)
    kw = {} if key is None else {"key": key}
    if "attributes" in prepared:
      kw["attributes"] = prepared["attributes"]
    prediction = self.network.apply(params, xt, prepared["t"], prepared.get("cond"), **kw)
    target = process.target(prepared["x0"], prepared["noise"], alpha, sigma, config.diffusion.prediction)
    loss = losses.noise_loss(prediction, target, config.loss.mse, config.loss.l1, mask=prepared.get("weight"))
    gamma = config.loss.min_snr_gamma or None
    return loss * process.loss_weight(alpha, sigma, config.diffusion.prediction, gamma)

  # --- evaluation ------------------------------------------------------------------------------------------------------

  def evaluate(self, ema, batch, index) -> dict:
    """Held-out loss of each example, {"loss": [B]}: the mean over fixed noise levels with fixed noise, so that only the
    parameters change it.

    Args:
      ema: averaged parameters.
      batch: as in `train_step`.
      index: [B] numbers of the examples in their source, which determine the noise.
    """
    cond = {"cond": self._condition(batch, jnp.ones(len(index)))} if self.condition else {}
    x0 = self._clean(batch, cond.get("cond"))
    steps = self.config.diffusion.num_steps
    levels = jnp.asarray((np.arange(_EVALUATION_LEVELS) + 0.5) / _EVALUATION_LEVELS * steps, jnp.float32)
    sample_keys = keys.per_sample(0, index, "evaluation noise")

    def at_level(level):
      noise = keys.normal(jax.vmap(jax.random.fold_in, (0, None))(sample_keys, level.astype(jnp.int32)), x0.shape[1:])
      prepared = {"x0": x0, "t": jnp.full(x0.shape[:1], jnp.floor(level)), "noise": noise, **cond}
      return self._example_losses(ema, prepared)

    return {"loss": jnp.mean(jax.lax.map(at_level, levels), axis=0)}

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Samples, with the conditions they were drawn for: {name: uint8 images [N, H, W, 1 or 3]}.

    Args:
      ema: averaged parameters.
      batch: held-out examples as uint8 NumPy arrays, whose conditions are used.
      mesh: devices to sample on; all hosts must take part.
    """
    sampler = self.once(mesh, lambda mesh: Sampler(self.config, self.network, mesh))
    cond = None
    count = self.config.preview.num
    if self.condition:
      # Eyes whose tree is unknown would be painted as eyes without vessels.
      known = np.flatnonzero(batch["has_tree"]) if "has_tree" in batch else np.arange(len(batch[self.condition[0]]))
      rows = known[:count]
      count, cond = len(rows), {f: batch[f][rows] for f in self.condition}
    if not count:
      return {}
    out = sampler(ema, np.arange(count), cond)
    images = {f"samples_{name}": pixels for name, pixels in out.items()}
    if self.condition:
      images |= {f"given_{f}": v for f, v in cond.items()} | {f"real_{f}": batch[f][rows] for f in self.target}
    return images
