"""The training state, and the functions that update it: optimizer, moving average, gradient accumulation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a resumed run needs besides the position in the data.

  Attributes:
    step: int32 scalar, number of batches consumed.
    params: float32 parameters; of a GAN, {"generator": ..., "discriminator": ...}.
    ema: exponential moving average of the parameters that are used for inference (of a GAN, the generator's); None with a decay
      of 0.
    opt_state: optimizer state; of a GAN, a dict as `params`.
    key: typed PRNG key, the root of the run's randomness; step i uses fold_in(key, i).
    extra: further state of a task, e.g. the bar of the repetitive training technique; {} for most.
  """

  step: jax.Array
  params: Any
  ema: Any
  opt_state: Any
  key: jax.Array
  extra: Any

  @property
  def averaged(self):
    """Parameters for inference: the moving average, or without one the parameters themselves (of a GAN, the generator's)."""
    return self.params.get("generator", self.params) if self.ema is None else self.ema

  def replace(self, **changes) -> "TrainState":
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)


def with_parameters(state: TrainState, params) -> TrainState:
  """The state from which fine-tuning starts: parameters and average are those of another run.

  Args:
    state: an initial state.
    params: pytree with the structure of `state.averaged`; of a GAN, the generator's.

  Raises:
    ValueError: parameters of another architecture.
  """
  shapes = jax.tree.map(jnp.shape, state.averaged)
  if jax.tree.structure(state.averaged) != jax.tree.structure(params) or shapes != jax.tree.map(jnp.shape, params):
    raise ValueError(
      "config.train.start_from is of another architecture: use its config.model, data.target, .condition and .attributes"
    )
  own = {**state.params, "generator": params} if "generator" in state.params else params
  return state.replace(params=jax.tree.map(jnp.copy, own), ema=None if state.ema is None else params)


def make_schedule(config):
  """Learning rate as a function of the optimizer step: linear warm-up, then constant, or a cosine to zero.

  Args:
    config: `config.optimizer`.

  Raises:
    ValueError: unknown schedule, or a cosine that ends before the warm-up.
  """
  peak, warmup = config.learning_rate, config.warmup_steps
  if config.schedule == "constant":
    return optax.schedules.warmup_constant_schedule(0.0 if warmup else peak, peak, max(warmup, 1))
  if config.schedule == "cosine":
    if config.decay_steps <= warmup:
      raise ValueError(
        f"config.optimizer.decay_steps={config.decay_steps} must exceed warmup_steps={warmup} for schedule 'cosine'"
      )
    return optax.schedules.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, config.decay_steps)
  raise ValueError(f"config.optimizer.schedule={config.schedule!r} is unknown: use 'constant' or 'cosine'")


def check_decay(config) -> None:
  """Raises ValueError for a whole config whose learning rate is 0 before training ends."""
  for section in ("optimizer", "discriminator_optimizer"):
    end, steps = config.get(section, {}).get("decay_steps", 0), config.train.num_steps
    if section in config and config[section].schedule == "cosine" and end < steps:
      raise ValueError(
        f"config.{section}.decay_steps={end} ends before config.train.num_steps={steps}, and nothing would be learnt after it: "
        f"set --config.{section}.decay_steps={steps} too"
      )


def make_optimizer(config) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019) or Muon (Jordan et al. 2024), after clipping the gradients by their global norm.

  Muon orthogonalizes the momentum (decay 0.95) of every kernel, seen as a matrix of inputs by outputs, and scales it as large
  as AdamW's updates are, so that the same learning rates serve (Liu et al., arXiv 2502.16982). Biases and scales of norms keep
  Adam with Nesterov's momentum and decoupled weight decay, with b1 and b2. Muon's own normalisation takes `eps` too.

  Args:
    config: `config.optimizer` with name, learning_rate, warmup_steps, schedule, decay_steps, b1, b2, eps, weight_decay and
      clip_norm (0 = no clipping).

  Raises:
    ValueError: unknown name or schedule.
  """
  rate, name, decay = make_schedule(config), config.get("name", "adamw"), config.weight_decay
  if name == "adamw":
    made = optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=decay)
  elif name == "muon":
    made = optax.contrib.muon(
      rate,
      eps=config.eps,
      weight_decay=decay,
      adam_b1=config.b1,
      adam_b2=config.b2,
      adam_weight_decay=decay,
      muon_weight_dimension_numbers=_as_matrices,
      consistent_rms=0.2,
    )
  else:
    raise ValueError(f"config.optimizer.name={name!r} is unknown: use 'adamw' or 'muon'")
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), made) if config.clip_norm > 0 else made


def _as_matrices(params):
  """How Muon sees each parameter: all axes but the last are inputs; None leaves vectors to AdamW."""
  numbers = optax.contrib.MuonDimensionNumbers
  return jax.tree.map(lambda x: numbers(tuple(range(x.ndim - 1)), x.ndim - 1) if x.ndim > 1 else None, params)


def start_ema(params, decay: float):
  """The initial moving average: a copy of the parameters, or None if `decay` is 0."""
  return jax.tree.map(jnp.copy, params) if decay > 0 else None


def ema_update(ema, params, step, decay: float):
  """Exponential moving average with decay min(decay, (1 + step) / (10 + step)): the warm-up discounts early steps quickly.

  Args:
    ema, params: pytrees of the same structure.
    step: int scalar, steps taken before this update.
    decay: in [0, 1); with 0, no average is kept, and `ema` and the result are None.
  """
  if decay == 0:
    return None
  # Not `optax.incremental_update`, which computes rate * e + (1 - rate) * p: that rounds differently, and moves an average that
  # equals the parameters.
  rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + (1.0 - rate) * (p - e), ema, params)


def value_and_gradients(loss_fn, params, batch, accumulate: int = 1):
  """Mean loss, mean metrics and gradients of one batch, computed in `accumulate` equal parts to save memory.

  Args:
    loss_fn: (params, part of the batch) -> (scalar mean loss, dict of scalar metrics).
    params: pytree.
    batch: pytree of arrays with the same first axis B. Part k has rows k, k + accumulate, ..., so that each part is distributed
      over all devices.
    accumulate: number of parts; must divide B.

  Returns:
    (loss, metrics, gradients), float32 means over the whole batch, equal to those of a single part up to rounding.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if accumulate == 1:
    (loss, metrics), grads = grad_fn(params, batch)
    return loss, metrics, grads
  parts = jax.tree.map(lambda x: rearrange(x, "(rows parts) ... -> parts rows ...", parts=accumulate), batch)
  shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(total, part):
    return jax.tree.map(jnp.add, total, grad_fn(params, part)), None

  def summed(unroll):
    return lambda parts: jax.lax.scan(add, zero, parts, unroll=unroll)[0]

  # On CPUs, XLA's gradients of convolutions are some 30 times slower inside a loop, so the loop is unrolled there.
  total = jax.lax.platform_dependent(parts, cpu=summed(accumulate), default=summed(1))
  (loss, metrics), grads = jax.tree.map(lambda x: x / accumulate, total)
  return loss, metrics, grads
