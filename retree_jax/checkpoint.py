"""Checkpoints (Orbax): saving, exact resume, and loading for inference on any number of devices.

A workdir holds `checkpoints/STEP/` with two items: `state` (parameters, optimizer, random key) and `ema` (the averaged
parameters, or the parameters themselves where no average is kept). JSON beside them holds the config and the position in the
data. Shipped weights are checkpoints with `ema` alone. Each item restores on its own, so that inference reads the average
without the optimizer, and on other devices than those that wrote it.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from retree_jax import models, sharding
from retree_jax.config import stored
from retree_jax.config.network import network_settings
from retree_jax.config.stored import to_json
from retree_jax.data import paths
from retree_jax.state import TrainState

SHIPPED = "shipped:"  # before the name of weights inside the package
_NOT_FINITE = "not_finite"  # folder of a workdir for checkpoints whose parameters give NaN


class Checkpoints:
  """The checkpoints of one training run.

  Args:
    workdir: folder of the run; `checkpoints/` is made inside.
    keep_latest: number of newest checkpoints to keep, at least 1.
    keep_best: number of checkpoints with the lowest held-out loss to keep in addition.
    first_scored_step: first step whose held-out loss counts (`config.stored.first_scored_step`).
  """

  def __init__(self, workdir, keep_latest: int = 2, keep_best: int = 1, first_scored_step: int = 0):
    from orbax.checkpoint import v1 as ocp

    if keep_latest < 1:
      raise ValueError(f"config.checkpoint.keep_latest={keep_latest} would delete the newest checkpoint: use 1 or more")
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(keep_latest), _Best(keep_best, first_scored_step)]
    self._first_scored_step, self._moved, self._closed, self._saving = first_scored_step, None, False, None
    self._writer = ocp.training.Checkpointer(
      paths.absolute(workdir) / "checkpoints",
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True,  # of a killed run: the lease keeps any other out
    )

  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint, or None."""
    steps = [info.step for info in self._writer.checkpoints if info.step != self._moved]
    return steps[-1] if steps else None

  def position(self) -> dict | None:
    """The position in the data of the newest checkpoint, or None."""
    step = self.latest_step()
    return None if step is None else _metadata(self._writer.directory / str(step)).custom_metadata["data"]

  def save(self, state: TrainState, data_position: dict, config: ml_collections.ConfigDict, loss: float | None = None) -> None:
    """Starts an asynchronous save; arrays are copied before this returns, so the state may be donated.

    Args:
      state: the run's state; its step names the checkpoint.
      data_position: JSON-able position of the data iterator.
      config: the run's config.
      loss: held-out loss, by which the best checkpoint is chosen; None if not evaluated at this step.
    """
    step = int(state.step)
    if self.latest_step() == step:
      return
    items = {"state": dataclasses.replace(state, ema=None).__dict__, "ema": state.averaged}
    self.wait()
    scored = loss is not None and math.isfinite(loss) and step >= self._first_scored_step
    self._saving = self._writer.save_checkpointables_async(
      step,
      items,
      metrics={"loss": float(loss)} if scored else None,
      custom_metadata={"config": to_json(config), "data": data_position},
    )

  def wait(self) -> None:
    """Waits for the save in flight."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()  # without which Orbax leaves the thread of each save behind

  def set_aside(self, step: int | None) -> str:
    """Moves the newest checkpoint to WORKDIR/not_finite if it is of this step, so that a rerun starts from the one before. No
    save may follow.

    Returns:
      Where it is now; "" if nothing was moved.
    """
    if step is None or self.latest_step() != step:
      return ""
    self.close()
    here = epath.Path(self._writer.directory)
    there = here.parent / _NOT_FINITE / str(step)
    if jax.process_index() == 0:
      there.parent.mkdir(exist_ok=True)
      if there.exists():
        there.rmtree()
      (here / str(step)).rename(there)
    self._moved = step
    return str(there)

  def restore(self, abstract: TrainState) -> TrainState | None:
    """The newest checkpoint, laid out like `abstract`; None if there is none.

    Args:
      abstract: state of `jax.ShapeDtypeStruct` with shardings, on whatever devices this run has.

    Raises:
      ValueError: the checkpoint is of another architecture, or damaged.
    """
    if self._writer.latest is None:
      return None
    path = self._writer.directory / str(self._writer.latest.step)
    want = {"state": dataclasses.replace(abstract, ema=None).__dict__}
    want |= {} if abstract.ema is None else {"ema": abstract.ema}
    _check_same_shapes(path, abstract.averaged)
    with _reading(path):
      items = self._writer.load_checkpointables(self._writer.latest, want)
    return TrainState(**{**items["state"], "ema": items.get("ema")})

  def close(self) -> None:
    """Waits for the save in flight, and ends the threads."""
    if self._closed:
      return
    self._closed = True
    try:
      self.wait()
    finally:
      self._writer.close()


@dataclasses.dataclass(frozen=True)
class _Best:
  """Orbax policy: preserves the checkpoints of lowest held-out loss among those that are scored at all."""

  num: int
  first: int

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    kept = [info.step for info in _by_loss(checkpoints, self.first)[: self.num]]
    return [info.step in kept for info in checkpoints]


def _by_loss(infos, first: int) -> list:
  """Checkpoints that have a held-out loss that counts, the best first; of equal ones the newer."""
  return sorted((i for i in infos if i.metrics and i.step >= first), key=lambda i: (i.metrics["loss"], -i.step))


def is_finite(state: TrainState) -> bool:
  """Whether training can resume from a state: all its numbers are finite, and so is the square of every parameter."""
  return bool(_is_finite((state.params, state.ema), state.opt_state))


@jax.jit
def _is_finite(params, others):
  floats = [[x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)] for tree in (params, others)]
  good = [jnp.isfinite(jnp.sum(jnp.square(x.astype(jnp.float32)))) for x in floats[0]]
  return jnp.all(jnp.stack(good + [jnp.all(jnp.isfinite(x)) for x in floats[1]]))


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained network, ready for inference.

  Attributes:
    config: the config it was trained with.
    params: averaged parameters (EMA), float32.
    network: the `retree_jax.models.Network`.
    step: training step of the checkpoint.
    path: where it was read.
  """

  config: ml_collections.ConfigDict
  params: Any
  network: Any
  step: int
  path: str

  @property
  def apply(self) -> Callable:
    """(params, x, t=None, cond=None) -> array: the network as a pure function."""
    return self.network.apply

  def identity(self) -> str:
    """First 16 hexadecimal digits of SHA-256 over the parameters and the network's settings; the same in any folder."""
    digest = hashlib.sha256(json.dumps(stored.counted_settings(self.config.model), sort_keys=True).encode())
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(self.params), key=lambda item: str(item[0])):
      digest.update(str(path).encode())
      digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def load(path_or_name, step: int | str = "best", mesh=None, stage: str | None = None) -> Loaded:
  """Restores averaged parameters and config on any number of devices, whatever number wrote them.

  Args:
    path_or_name: a workdir, one checkpoint folder, or shipped weights: "shipped:NAME" with a name of `shipped_names()`. NAME
      alone means these too, unless there is a folder of that name.
    step: "latest", a number, or "best": the lowest held-out loss; the latest for a GAN, and where no loss was measured.
    mesh: devices to hold the parameters, replicated; the first local device by default.
    stage: if given, the stage that the checkpoint must be of, such as "tree" (`config.stage`).

  Raises:
    ValueError: nothing there, no such step, a checkpoint of another stage, or a damaged one.
  """
  from orbax.checkpoint import v1 as ocp

  path = _find(path_or_name, step)
  metadata = _metadata(path)
  config = ml_collections.ConfigDict(stored.upgrade(metadata.custom_metadata["config"]))
  if stage is not None and config.stage != stage:
    raise ValueError(
      f"{path_or_name} is a checkpoint of the {config.stage} stage, not of the {stage} stage: give the workdir "
      f"of `python -m retree_jax.main --config configs/{stage}.py`"
    )
  where = SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else sharding.replicated(mesh)
  abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=where), metadata.metadata["ema"])
  with _reading(path):
    params = ocp.load_checkpointables(path, {"ema": abstract})["ema"]
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  digits = path.name if path.name.isdigit() else str(config.get("trained_steps", 0))
  if str(step).isdigit() and int(step) != int(digits):
    raise ValueError(f"{path_or_name} holds no step {step}, only {digits}: leave --step out")
  return Loaded(config, params, models.build(network_settings(config)), int(digits), str(path))


def shipped_names() -> list[str]:
  """Names of the weights inside the package."""
  root = _shipped_root()
  return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.exists() else []


def export(loaded: Loaded, path, dtype=jnp.bfloat16) -> None:
  """Writes averaged parameters in 16 bits, with their config, as a small checkpoint that `load` reads.

  Args:
    loaded: what `load` returned.
    path: new folder.
    dtype: storage type; `load` converts to float32.
  """
  from orbax.checkpoint import v1 as ocp

  config = to_json(loaded.config) | {"trained_steps": loaded.step}
  params = jax.tree.map(lambda x: x.astype(dtype), loaded.params)
  ocp.save_checkpointables(paths.absolute(path), {"ema": params}, overwrite=True, custom_metadata={"config": config})


def _shipped_root():
  return epath.Path(str(resources.files("retree_jax") / "weights"))


def _find(path_or_name, step) -> epath.Path:
  path, name = epath.Path(path_or_name), str(path_or_name)
  if name.removeprefix(SHIPPED) in shipped_names() and (name.startswith(SHIPPED) or not path.exists()):
    return _shipped_root() / name.removeprefix(SHIPPED)
  if not path.exists():
    raise ValueError(
      f"{path_or_name} does not exist: give a workdir, a checkpoint folder or one of the shipped weights "
      f"({', '.join(shipped_names()) or 'none in this installation'})"
    )
  path = paths.absolute(path)
  folder = path / "checkpoints"
  if not folder.exists():
    return path
  from orbax.checkpoint import v1 as ocp

  with ocp.training.Checkpointer(folder) as reader:
    infos = list(reader.checkpoints)
  if not infos:
    raise ValueError(f"{path_or_name} holds no finished checkpoint yet: train longer, or lower config.checkpoint.every")
  if step == "best":
    config = _metadata(folder / str(infos[-1].step)).custom_metadata["config"]
    # The held-out loss of a GAN leaves out the adversarial term, so it cannot rank states: the latest is taken.
    scored = [] if stored.first_scored_step(config) else _by_loss(infos, 0)
    chosen = (scored or infos[-1:])[0]
  elif step == "latest":
    chosen = infos[-1]
  else:
    found = [i for i in infos if i.step == int(step)]
    if not found:
      raise ValueError(f"{path_or_name} holds no step {step}: it has {', '.join(str(i.step) for i in infos)}")
    chosen = found[0]
  return folder / str(chosen.step)


@contextlib.contextmanager
def _reading(path):
  """Turns the errors of a checkpoint with missing or truncated files into one sentence."""
  try:
    yield
  except (ValueError, KeyError, OSError) as error:
    raise ValueError(_damaged(path)) from error


def _damaged(path) -> str:
  return (
    f"{path} is damaged, some of its files are missing or truncated: copy the checkpoint again, or remove this folder to "
    "resume from the one before it"
  )


def _metadata(path):
  """Metadata of a checkpoint: config, position in the data, shapes.

  Raises:
    ValueError: the folder holds no checkpoint, or one of another program.
  """
  from orbax.checkpoint import v1 as ocp

  refusal = f"{path} holds no checkpoint of retree_jax: give a workdir of a training run"
  try:
    metadata = ocp.checkpointables_metadata(path)
  except (ValueError, KeyError, OSError) as error:  # Orbax's own error for a folder that is no checkpoint is a ValueError
    raise ValueError(refusal) from error
  if "config" not in (metadata.custom_metadata or {}):
    raise ValueError(refusal)
  if metadata.metadata.get("ema") is None:
    raise ValueError(_damaged(path))
  return metadata


def _check_same_shapes(path, abstract) -> None:
  def shapes(tree):
    return {jax.tree_util.keystr(k): tuple(v.shape) for k, v in jax.tree_util.tree_leaves_with_path(tree)}

  found, wanted = shapes(_metadata(path).metadata["ema"]), shapes(abstract)
  if found != wanted:
    name = next(k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k))
    raise ValueError(
      f"{path} is a checkpoint of another architecture: {name} has shape {found.get(name, 'none')} there and "
      f"{wanted.get(name, 'none')} in this config; use the config that wrote it, or another --workdir"
    )
