"""The part of a task that is the same for all stages: initial state, optimizer step, moving average of the parameters."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from retree_jax import keys, models, state
from retree_jax.config.network import network_settings


class Task(abc.ABC):
  """A stage as the training loop sees it.

  A subclass defines `fields` (or `fields_of`), `init_parameters`, `prepare`, `loss`, `evaluate` and `preview`.

  Args:
    config: a whole config; `config.model`, `config.optimizer`, `config.train` and `config.data` are read.
    epoch_steps: steps per epoch, for tasks that count epochs.

  Attributes:
    fields: names of the example fields that the task reads, as `data.pipeline.train_iterator` takes them.
    network: the network that is trained (of a GAN, the generator).
  """

  fields: tuple[str, ...] = ()

  def __init__(self, config, epoch_steps: int = 1):
    self.config, self.epoch_steps = config, epoch_steps
    self.fields = self.fields_of(config)
    self.size = tuple(config.data.image_size)
    self.network = models.build(network_settings(config))
    self.optimizer = state.make_optimizer(config.optimizer)
    self._kept = {}

  @classmethod
  def fields_of(cls, config) -> tuple[str, ...]:
    """The attribute `fields`, before the task is constructed; ValueError for an unknown field in the config."""
    del config
    return cls.fields

  # --- what a subclass defines -----------------------------------------------------------------------------------------

  @abc.abstractmethod
  def init_parameters(self, key: jax.Array):
    """Initial parameters, a pytree."""

  @abc.abstractmethod
  def prepare(self, batch: dict, key: jax.Array) -> dict:
    """What one training step learns from: a pytree of arrays [n, ...], which gradient accumulation splits along the first axis.

    Args:
      batch: uint8 fields [B, H, W, C].
      key: all randomness of the step.
    """

  @abc.abstractmethod
  def evaluate(self, ema, batch: dict, index: jax.Array) -> dict:
    """Scores of held-out examples.

    Args:
      ema: averaged inference parameters.
      batch: uint8 fields [B, H, W, C].
      index: int [B], each example's number, from which its randomness follows.

    Returns:
      Float arrays [B], "loss" among them.
    """

  @abc.abstractmethod
  def preview(self, ema, batch: dict, mesh) -> dict[str, np.ndarray]:
    """Pictures for the log from held-out examples, uint8 [N, H, W, 1 or 3] by name; arguments as for `evaluate`."""

  def loss(self, params, prepared: dict) -> tuple[jax.Array, dict]:
    """(mean loss, scalar metrics) of (a part of) a prepared batch, where `train_step` is the one below."""
    raise NotImplementedError(f"{type(self).__name__} defines neither `loss` nor a `train_step` of its own")

  # --- shared ----------------------------------------------------------------------------------------------------------

  def once(self, mesh, make: Callable):
    """What `make(mesh)` returns, made once for each mesh: a sampler or jitted function of previews compiles once per run."""
    if mesh not in self._kept:
      self._kept[mesh] = make(mesh)
    return self._kept[mesh]

  def init(self, seed_key: jax.Array) -> state.TrainState:
    """The initial state.

    Args:
      seed_key: root key of the run.
    """
    params = self.init_parameters(keys.at_step(seed_key, 2**31 - 1))
    return state.TrainState(
      step=jnp.int32(0),
      params=params,
      ema=state.start_ema(self.inference_parameters(params), self.config.train.ema_decay),
      opt_state=self.init_optimizer(params),
      key=seed_key,
      extra=self.init_extra(),
    )

  def init_optimizer(self, params):
    """The initial optimizer state."""
    return self.optimizer.init(params)

  def init_extra(self) -> dict:
    """Initial value of what the task carries besides parameters and optimizer state."""
    return {}

  def inference_parameters(self, params):
    """The part of the parameters that is averaged and used for inference."""
    return params

  def train_step(self, current: state.TrainState, batch: dict) -> tuple[state.TrainState, dict]:
    """One optimizer step. A pure function, which the loop compiles for its mesh.

    Args:
      current: the state.
      batch: uint8 fields [B, H, W, C].

    Returns:
      The next state, and scalar metrics, among them "loss" and "gradient_norm", the L2 norm of all gradients before clipping.
    """
    prepared = self.prepare(batch, keys.at_step(current.key, current.step))
    params, opt_state, metrics = self.optimizer_step(self.optimizer, self.loss, current.params, current.opt_state, prepared)
    return self.next_state(current, params, opt_state), metrics

  def optimizer_step(
    self, optimizer: optax.GradientTransformation, loss: Callable, params, opt_state, prepared: dict, active=None
  ) -> tuple[object, object, dict]:
    """One step on a prepared batch, with gradient accumulation.

    Args:
      optimizer: an Optax optimizer.
      loss: as the method `loss`.
      params, opt_state: parameters and optimizer state before the step.
      prepared: what `prepare` returned.
      active: bool scalar; where False, the step is computed but changes nothing, and metrics are 0. None for True.

    Returns:
      (parameters, optimizer state, metrics).
    """
    value, metrics, grads = state.value_and_gradients(loss, params, prepared, self.config.train.accumulate)
    updates, new_state = optimizer.update(grads, opt_state, params)
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(grads), **metrics}
    if active is not None:
      updates, metrics = jax.tree.map(lambda x: jnp.where(active, x, 0.0), (updates, metrics))
      new_state = jax.tree.map(lambda new, old: jnp.where(active, new, old), new_state, opt_state)
    return optax.apply_updates(params, updates), new_state, metrics

  def next_state(self, current: state.TrainState, params, opt_state, **changes) -> state.TrainState:
    """The state after a step: new parameters, their updated average, and further changed fields."""
    ema = state.ema_update(current.ema, self.inference_parameters(params), current.step, self.config.train.ema_decay)
    return current.replace(step=current.step + 1, params=params, ema=ema, opt_state=opt_state, **changes)
