"""The training loop: one, for every stage. Read it from top to bottom.

Mesh, data, state, restore, then steps with evaluation, previews and checkpoints. Rerunning the same call resumes it. Resume is
exact: the state carries the root key, and data order, augmentation and noise are functions of (seed, position) alone.
"""

import contextlib
import math
import signal
import time
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from retree_jax import checkpoint, keys, sharding, tasks
from retree_jax.config import validate
from retree_jax.data import pipeline, sources, transforms
from retree_jax.report import plots
from retree_jax.report.metric_logging import MetricLogger
from retree_jax.state import TrainState, with_parameters


class NotFiniteError(RuntimeError):
  """The loss became NaN or infinite; the last good checkpoint is untouched."""


def train(config, workdir, *, arrays: Mapping[str, np.ndarray] | None = None, devices=None) -> TrainState:
  """Trains a stage to `config.train.num_steps`, resuming what is in `workdir`.

  Args:
    config: from `configs/STAGE.py`.
    workdir: folder for checkpoints, metrics and previews (local or bucket), shared by all hosts.
    arrays: {"train": {"tree": uint8 [N, H, W, 1], ...}, "heldout": {...}} already at `config.data.image_size`, instead of
      `config.data.source`; no files are read.
    devices: devices of the mesh; all by default.

  Returns:
    The final state, on the mesh.

  Raises:
    ValueError: a config, workdir or data set that cannot be used; the sentence says what to do.
    NotFiniteError: the loss is not finite.
  """
  # --- mesh, task, data -------------------------------------------------------------------------------------------------
  keys.stream(config.seed, config.stage)  # a seed that is none is refused here, in a sentence
  validate.check(config)
  mesh = sharding.make_mesh(config.mesh.fsdp, devices)
  sharding.check_batch(config.train.batch_size, mesh, config.train.accumulate)
  task = tasks.make(config)
  data = _Data(config, arrays, task.fields)
  task.epoch_steps = max(1, data.num_train // config.train.batch_size)
  checkpoint.check_workdir(workdir, config)
  iterator = data.train_iterator()

  # --- state: shapes, then shardings, then straight onto the devices ------------------------------------------------------
  init = lambda: task.init(keys.stream(config.seed, f"{config.stage} training"))  # noqa: E731
  abstract = jax.eval_shape(init)
  shardings = sharding.infer_shardings(abstract, mesh)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.keep_latest, config.checkpoint.keep_best)
  restored = checkpoints.restore(abstract)
  if restored is None:
    state = _start_from(config, jax.jit(init, out_shardings=shardings)(), shardings)
  else:
    state, position = restored
    iterator.set_state(position)
  step = int(state.step)
  checkpoint.claim_workdir(workdir, config)  # not before: a run that could not start leaves no trace
  writers = MetricLogger(workdir, step, config.log.tensorboard, config.train.num_steps)
  if restored is not None:
    writers.say(f"Resumed from step {step} of {workdir}")
  elif jax.process_index() == 0:
    _write_overview(workdir, state, writers)

  # --- compiled functions ------------------------------------------------------------------------------------------------
  train_step = jax.jit(
    task.train_step,
    donate_argnums=0,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  evaluator = _Evaluator(config, task, data, mesh)
  batches = pipeline.device_prefetch(iterator, sharding.batch_sharding(mesh), config.data.prefetch)
  pending: list[dict] = []  # metrics still on the devices
  profiler = _Profiler(config, workdir, step)
  started, started_step, losses = time.monotonic(), step, {}

  def flush() -> dict:
    """Waits for the devices; means of the metrics since the last flush. Raises NotFiniteError."""
    values = jax.device_get(pending)
    bad = [i for i, v in enumerate(values) if not math.isfinite(v["loss"])]
    if bad:
      first = step - len(values) + 1
      raise NotFiniteError(
        f"The loss is not finite between steps {first + bad[0]} and {first + bad[-1]}; the last good checkpoint is step "
        f"{checkpoints.latest_step()} in {workdir}. Lower config.optimizer.learning_rate, or use float32, and rerun"
      )
    pending.clear()
    return {k: float(np.mean([v[k] for v in values])) for k in (values[0] if values else {})}

  def save():
    flush()
    checkpoints.save(state, batches.get_state(), config, losses.get(int(step)))

  # --- steps -------------------------------------------------------------------------------------------------------------
  # The order is part of what resume relies on: step, then log, evaluate, preview, checkpoint, then look for a signal.
  with contextlib.ExitStack() as stack:
    stack.callback(writers.close)
    stack.callback(checkpoints.close)
    stack.callback(batches.close)
    stop = stack.enter_context(_Preemption())
    while step < config.train.num_steps:
      state, metrics = train_step(state, next(batches))
      pending.append(metrics)
      step += 1
      profiler.at(step)
      last = step == config.train.num_steps
      writers.progress(step)
      if step % config.log.every == 0 or last:
        values = flush()
        rate = (step - started_step) / (time.monotonic() - started)
        writers.scalars(step, {**values, "images_per_second": rate * config.train.batch_size})
        started, started_step = time.monotonic(), step
      if config.evaluate.every and (step % config.evaluate.every == 0 or last):
        scores = evaluator(state.averaged)
        if config.data.heldout != "test":
          losses[step] = scores["heldout_loss"]
        writers.scalars(step, scores)
        started, started_step = time.monotonic(), step
      if config.preview.every and (step % config.preview.every == 0 or last):
        for name, pixels in task.preview(state.averaged, evaluator.preview_batch(), mesh).items():
          writers.picture(step, name, plots.grid(pixels))
        started, started_step = time.monotonic(), step
      stopping = stop(step)
      if step % config.checkpoint.every == 0 or last or stopping:
        save()
      if stopping:
        writers.say(f"Stopped by a signal at step {step}; rerun the same command to go on")
        break
  return state


def evaluate(loaded: checkpoint.Loaded, source: str, devices=None) -> dict[str, float]:
  """The loop's evaluation of a finished stage on another source: means over its test and train splits.

  Args:
    loaded: from `checkpoint.load`.
    source: as `config.data.source`.
    devices: devices of the mesh; all by default.

  Returns:
    {"heldout_loss": ..., "training_loss": ..., and what else the task measures}.
  """
  mesh = sharding.make_mesh(devices=devices)
  config = loaded.config.copy_and_resolve_references()
  config.data.update(source=source, heldout="test")
  task = tasks.make(config)
  evaluator = _Evaluator(config, task, _Data(config, None, task.fields), mesh)
  return evaluator(jax.device_put(loaded.params, sharding.replicated(mesh)))


def _start_from(config, fresh: TrainState, shardings) -> TrainState:
  """A fresh state, with the averaged parameters of `config.train.start_from` if that names a run."""
  if not config.train.start_from:
    return fresh
  params = jax.device_get(checkpoint.load(config.train.start_from, stage=config.stage).params)
  return jax.jit(with_parameters, out_shardings=shardings, donate_argnums=0)(fresh, params)


class _Data:
  """Training and held-out examples of a run, from `config.data.source` or from arrays."""

  def __init__(self, config, arrays, fields):
    self.config, self.arrays, self.fields = config, arrays, fields
    if arrays is None:
      size, fields = tuple(config.data.image_size), tuple(f for f in fields if f != "fov")
      if config.data.heldout not in ("validation", "test"):
        raise ValueError(f"config.data.heldout={config.data.heldout!r} is unknown: use validation or test")
      splits = ("train", "test") if config.data.heldout == "test" else ("fit", "validation")
      self.train, self.heldout = (
        sources.open_source(config.data.source, split=split, fields=fields, seed=config.seed, size=size) for split in splits
      )
      self.num_train = len(self.train)
    else:
      self.num_train = len(next(iter(arrays["train"].values())))

  def train_iterator(self):
    """Endless shuffled, augmented batches."""
    c, fields = self.config, self.fields
    augment = transforms.Augment(**c.data.augment)
    common = dict(
      batch_size=c.train.batch_size,
      seed=c.seed,
      augment=augment,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    if self.arrays is not None:
      return pipeline.array_iterator({f: self.arrays["train"][f] for f in fields}, **common)
    return pipeline.train_iterator(
      self.train, size=tuple(c.data.image_size), fit=c.data.fit, fields=fields, num_threads=c.data.num_threads, **common
    )

  def examples(self, split: str, num: int) -> dict[str, np.ndarray]:
    """The first `num` examples of "train" or "heldout", unaugmented, as uint8 arrays [n, H, W, C]."""
    if self.arrays is not None:
      chosen = self.arrays.get(split) or self.arrays["train"]
      return {f: np.asarray(chosen[f][:num]) for f in self.fields}
    source, c = self.train if split == "train" else self.heldout, self.config
    batch = next(
      iter(
        pipeline.evaluation_batches(
          source, size=tuple(c.data.image_size), batch_size=min(num, len(source)), fit=c.data.fit, fields=self.fields
        )
      )
    )
    return {k: v for k, v in batch.items() if k not in ("valid", "index")}


class _Evaluator:
  """Losses of the averaged parameters on held-out examples, and on as many training examples: their gap is memorisation."""

  def __init__(self, config, task, data: _Data, mesh):
    self._config, self._task, self._data, self._mesh = config, task, data, mesh
    self._step = jax.jit(task.evaluate, out_shardings=sharding.replicated(mesh))
    self._cache = {}

  def __call__(self, ema) -> dict[str, float]:
    scores = {}
    for split, prefix in (("heldout", "heldout"), ("train", "training")):
      for name, value in self._run(ema, split).items():
        scores[f"{prefix}_{name}"] = value
    return scores

  def preview_batch(self) -> dict[str, np.ndarray]:
    """Held-out examples for the preview."""
    return self._examples("heldout")

  def _examples(self, split):
    if split not in self._cache:
      self._cache[split] = self._data.examples(split, self._config.evaluate.num)
    return self._cache[split]

  def _run(self, ema, split) -> dict[str, float]:
    from clu import metrics as clu_metrics

    arrays = self._examples(split)
    total = len(next(iter(arrays.values())))
    size = self._mesh.size * max(1, min(self._config.train.batch_size, 16) // self._mesh.size)
    averages = {}
    for start in range(0, total, size):
      index = np.arange(start, start + size)
      valid = index < total
      rows = np.minimum(index, total - 1)
      # Every host holds the same examples, so that each gives the rows of its own devices.
      local = np.array_split(rows, jax.process_count())[jax.process_index()]
      batch = sharding.to_global({f: a[local] for f, a in arrays.items()}, self._mesh)
      out = jax.device_get(self._step(ema, batch, rows.astype(np.int32)))
      for name, values in out.items():
        average = clu_metrics.Average.from_model_output(values=values, mask=valid)
        averages[name] = average if name not in averages else averages[name].merge(average)
    return {name: float(a.compute()) for name, a in averages.items()}


class _Preemption:
  """Context in which SIGTERM is noted instead of obeyed; call it with the step to ask whether to stop. All hosts agree."""

  def __enter__(self):
    self._noted = False
    self._old = None
    if jax.process_count() == 1:
      with contextlib.suppress(ValueError):  # only the main thread may set handlers: a notebook's worker does without
        self._old = signal.signal(signal.SIGTERM, self._note)
    return self._ask

  def _note(self, signum, frame):
    self._noted = True

  def _ask(self, step: int) -> bool:
    if jax.process_count() == 1:
      return self._noted
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)

  def __exit__(self, *unused):
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)


class _Profiler:
  """A trace of a window of steps into workdir/profile."""

  def __init__(self, config, workdir, first: int):
    self._start = first + config.log.profile_start if config.log.profile_steps else None
    self._stop = None if self._start is None else self._start + config.log.profile_steps
    self._path = str(epath.Path(workdir) / "profile")

  def at(self, step: int) -> None:
    if step == self._start:
      jax.profiler.start_trace(self._path)
    elif step == self._stop:
      jax.profiler.stop_trace()


def _write_overview(workdir, state, writers) -> None:
  """Names, shapes and counts of the parameters, into the log."""
  count = sum(x.size for x in jax.tree.leaves(state.params))
  writers.say(f"{count:,} parameters on {jax.device_count()} devices ({jax.devices()[0].device_kind})")
  from clu import parameter_overview

  from retree_jax.data import writing

  table = parameter_overview.get_parameter_overview(state.params, include_stats="sharding")
  writing.write_text(epath.Path(workdir) / "parameters.txt", table + "\n")
