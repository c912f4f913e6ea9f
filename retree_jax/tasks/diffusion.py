"""Both denoising stages: noise → tree (and field of view), and tree + noise → photograph."""

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax import keys, losses, models, state
from retree_jax.data.fields import CHANNELS, num_channels
from retree_jax.diffusion import process
from retree_jax.inference.sampler import Sampler, make_schedule
from retree_jax.tasks import batches

_EVALUATION_LEVELS = 8  # noise levels per held-out example, at the middles of eight equal spans of time


class DiffusionTask:
  """A denoising diffusion model (Ho et al. 2020) of `config.data.target`, given `config.data.condition`.

  The network sees x_t (the target's channels, noised) and the condition's channels side by side, as in Alimanov & Islam 2023.

  Args:
    config: `config.diffusion`, `config.loss`, `config.optimizer`, `config.model`, `config.data` and `config.train` are read.
  """

  def __init__(self, config):
    self.config = config
    self.target = tuple(config.data.target)
    self.condition = tuple(config.data.condition)
    unknown = [f for f in (*self.target, *self.condition) if f not in CHANNELS]
    if unknown:
      raise ValueError(f"config.data names the unknown field {unknown[0]!r}: use {', '.join(CHANNELS)}")
    # With condition dropout, photographs without a tree can be learnt from too.
    optional = "tree" in self.condition and config.diffusion.condition_dropout > 0
    self.fields = tuple("tree?" if optional and f == "tree" else f for f in dict.fromkeys((*self.target, *self.condition)))
    self.channels = num_channels(self.target)
    self.size = self.trained_size = tuple(config.data.image_size)
    self.condition_channels = num_channels(self.condition)
    self.network = models.build({**config.model, "out_channels": self.channels})
    self.network.check_size(*self.size)
    self.schedule = make_schedule(config.diffusion)
    if config.diffusion.prediction not in process.KINDS:
      raise ValueError(
        f"config.diffusion.prediction={config.diffusion.prediction!r} is unknown: use {', '.join(process.KINDS)}"
      )
    Sampler(config, self.network)  # what previews could not draw with is refused here, before training
    self.optimizer = state.make_optimizer(config.optimizer)
    self.epoch_steps = 1  # set by the loop, which knows the data: the repetitive training technique counts epochs

  # --- state -----------------------------------------------------------------------------------------------------------

  def init(self, seed_key) -> state.TrainState:
    """A fresh state; `seed_key` is the run's root key."""
    h, w = self.trained_size
    cond = self.condition_channels
    params = self.network.init(
      keys.at_step(seed_key, 2**31 - 1),
      jnp.zeros((1, h, w, self.channels)),
      jnp.zeros((1,)),
      jnp.zeros((1, h, w, cond)) if cond else None,
    )
    extra = {}
    if self.config.train.rtt:
      # The bar starts at +inf, so that the first epoch takes one step per batch.
      extra = {"bar": jnp.float32(jnp.inf), "epoch_sum": jnp.float32(0), "epoch_count": jnp.int32(0)}
    return state.TrainState(
      step=jnp.int32(0),
      params=params,
      ema=state.start_ema(params, self.config.train.ema_decay),
      opt_state=self.optimizer.init(params),
      key=seed_key,
      extra=extra,
    )

  # --- training --------------------------------------------------------------------------------------------------------

  def train_step(self, current: state.TrainState, batch) -> tuple[state.TrainState, dict]:
    """One batch: noise it, descend, average. A pure function, jitted over a mesh by the loop.

    Args:
      current: the state.
      batch: uint8 fields [B, H, W, C], and optionally "has_tree" [B] (False where the condition's tree is unknown).

    Returns:
      The next state and scalar metrics.
    """
    draw = self._noised(batch, keys.at_step(current.key, current.step))
    if self.config.train.rtt:
      return self._repeated_steps(current, draw)
    loss, metrics, grads = state.value_and_gradients(self._loss, current.params, draw, self.config.train.accumulate)
    params, opt_state = self._descend(current.params, current.opt_state, grads)
    metrics = {"loss": loss, "gradient_norm": _norm(grads), **metrics}
    return self._advance(current, params, opt_state, current.extra), metrics

  def _repeated_steps(self, current, draw):
    """The repetitive training technique (RTT): up to five optimizer steps on the same noised batch, until its loss is below
    the lowest epoch mean so far. The mean is over the last repetition's loss."""

    def repeat(carry):
      params, opt_state, _, count = carry
      loss, _, grads = state.value_and_gradients(self._loss, params, draw, self.config.train.accumulate)
      params, opt_state = self._descend(params, opt_state, grads)
      return params, opt_state, loss, count + 1

    def unsatisfied(carry):
      _, _, loss, count = carry
      return (count < self.config.train.rtt_repeats) & (loss >= current.extra["bar"])

    first = repeat((current.params, current.opt_state, jnp.float32(0), jnp.int32(0)))
    if jax.default_backend() == "cpu":
      # XLA's gradients of convolutions are some 30 times slower inside a loop on CPUs: take every step, keep what counts.
      carry = first
      for _ in range(self.config.train.rtt_repeats - 1):
        go_on, following = unsatisfied(carry), repeat(carry)
        carry = jax.tree.map(lambda new, old, go_on=go_on: jnp.where(go_on, new, old), following, carry)
    else:
      carry = jax.lax.while_loop(unsatisfied, repeat, first)
    params, opt_state, loss, count = carry
    total, seen = current.extra["epoch_sum"] + loss, current.extra["epoch_count"] + 1
    ended = seen >= self.epoch_steps
    extra = {
      "bar": jnp.where(ended, jnp.minimum(current.extra["bar"], total / seen), current.extra["bar"]),
      "epoch_sum": jnp.where(ended, 0.0, total),
      "epoch_count": jnp.where(ended, 0, seen),
    }
    return self._advance(current, params, opt_state, extra), {"loss": loss, "repetitions": count.astype(jnp.float32)}

  def _descend(self, params, opt_state, grads):
    updates, opt_state = self.optimizer.update(grads, opt_state, params)
    return jax.tree.map(jnp.add, params, updates), opt_state

  def _advance(self, current, params, opt_state, extra):
    ema = state.ema_update(current.ema, params, current.step, self.config.train.ema_decay)
    return current.replace(step=current.step + 1, params=params, ema=ema, opt_state=opt_state, extra=extra)

  def _noised(self, batch, key) -> dict:
    """Draws time and noise for a batch; everything [B, ...], so that it can be split into parts."""
    config = self.config.diffusion
    key_t, key_noise, key_given, key_net = jax.random.split(key, 4)
    given = self._given(batch, key_given)
    x0 = given["x0"]
    n = x0.shape[0]
    # Stratified over the batch: less variance in the loss than independent draws (Kingma et al. 2021, appendix I.1).
    if config.time_sampling == "stratified":
      u = (jax.random.uniform(key_t) + jnp.arange(n) / n) % 1.0
    else:
      u = jax.random.uniform(key_t, (n,))
    t = config.first_step + jnp.floor(u * (config.num_steps - config.first_step))
    return given | {
      "t": jnp.clip(t, config.first_step, config.num_steps - 1),
      "noise": jax.random.normal(key_noise, x0.shape),
      "key": jax.random.split(key_net, n),
    }

  def _given(self, batch, key) -> dict:
    """What is learnt of a batch before time and noise are drawn: {"x0"}, "cond" where there is one, with trees dropped at
    random, "weight" of the pixels where they do not all count alike."""
    given = {"x0": batches.stack_signed(batch, self.target)}
    if self.condition:
      keep = jax.random.uniform(key, given["x0"].shape[:1]) >= self.config.diffusion.condition_dropout
      given["cond"] = self._condition(batch, keep.astype(jnp.float32))
    if self.config.loss.outside_fov != 1.0:
      fov = batches.to_unit(batch["fov"])
      given["weight"] = fov + self.config.loss.outside_fov * (1.0 - fov)
    return given

  def _condition(self, batch, keep):
    """The condition's channels, with trees blanked to 0 (neither vessel nor background) where dropped or unknown."""
    cond = batches.stack_signed(batch, self.condition)
    if "has_tree" in batch:
      keep = keep * batch["has_tree"].astype(jnp.float32)
    kept = jnp.concatenate(
      [
        jnp.broadcast_to((keep if f == "tree" else jnp.ones_like(keep))[:, None], (keep.shape[0], CHANNELS[f]))
        for f in self.condition
      ],
      -1,
    )
    return cond * kept[:, None, None, :]

  def _loss(self, params, draw):
    """(mean loss, {}) of a noised batch."""
    key = draw["key"][0] if self.config.model.get("dropout", 0.0) else None
    return jnp.mean(self._example_losses(params, draw, key)), {}

  def _example_losses(self, params, draw, key=None):
    """Weighted noise loss of each example, [B]: MSE + L1 (Alimanov & Islam 2023) with the configured weights."""
    config = self.config
    alpha, sigma = self.schedule.alpha_sigma(draw["t"])
    xt = process.corrupt(draw["x0"], draw["noise"], alpha, sigma)
    kw = {} if key is None else {"key": key}
    prediction = self.network.apply(params, xt, draw["t"], draw.get("cond"), **kw)
    goal = process.target(draw["x0"], draw["noise"], alpha, sigma, config.diffusion.prediction)
    loss = losses.noise_loss(prediction, goal, config.loss.mse, config.loss.l1, mask=draw.get("weight"))
    gamma = config.loss.min_snr_gamma or None
    return loss * process.loss_weight(alpha, sigma, config.diffusion.prediction, gamma)

  # --- looking at it ---------------------------------------------------------------------------------------------------

  def evaluate(self, ema, batch, index) -> dict:
    """Held-out losses of each example, {"loss": [B]}: the mean over fixed noise levels and fixed noise, so that the number
    changes only with the parameters.

    Args:
      ema: averaged parameters.
      batch: as in `train_step`.
      index: [B] the examples' numbers in their source, which fix the noise.
    """
    x0 = batches.stack_signed(batch, self.target)
    steps = self.config.diffusion.num_steps
    levels = jnp.asarray((np.arange(_EVALUATION_LEVELS) + 0.5) / _EVALUATION_LEVELS * steps, jnp.float32)
    sample_keys = keys.per_sample(0, index, "evaluation noise")
    cond = {"cond": self._condition(batch, jnp.ones(x0.shape[0]))} if self.condition else {}

    def at_level(level):
      noise = keys.normal(jax.vmap(jax.random.fold_in, (0, None))(sample_keys, level.astype(jnp.int32)), x0.shape[1:])
      draw = {"x0": x0, "t": jnp.full(x0.shape[:1], jnp.floor(level)), "noise": noise, **cond}
      return self._example_losses(ema, draw)

    return {"loss": jnp.mean(jax.lax.map(at_level, levels), axis=0)}

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Pictures of samples: rows of uint8 images [N, H, W, 1 or 3], by name.

    Args:
      ema: averaged parameters.
      batch: held-out examples as uint8 numpy arrays, whose conditions are used.
      mesh: devices to sample on; all hosts take part.
    """
    sampler = Sampler(self.config, self.network, mesh)
    cond = None
    count = self.config.preview.num
    if self.condition:
      count = min(count, len(batch[self.condition[0]]))
      cond = {f: batch[f][:count] for f in self.condition}
    out = sampler(ema, np.arange(count), cond)
    pictures = {f"samples_{name}": pixels for name, pixels in out.items()}
    if self.condition:
      pictures |= {f"given_{f}": v for f, v in cond.items()} | {f"real_{f}": batch[f][:count] for f in self.target}
    return pictures


def _norm(tree):
  return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))
