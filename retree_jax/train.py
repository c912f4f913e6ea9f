"""The training loop: one, for every stage. Read it from top to bottom.

Mesh, data, state, restore, then steps with evaluation, previews and checkpoints. Running the same call again resumes it. Resume
is exact: the state carries the root key, and data order, augmentation and noise are functions of (seed, position) alone.
"""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from retree_jax import checkpoint, keys, sharding, tasks
from retree_jax.config import run_folder, stored, validate
from retree_jax.data import claim, examples, montage, pipeline, writing
from retree_jax.report.metric_logging import MetricLogger
from retree_jax.report.profiling import Profiler
from retree_jax.state import TrainState, check_decay, with_parameters
from retree_jax.tasks.evaluator import Evaluator


class NotFiniteError(RuntimeError):
  """The loss, a gradient or the parameters became NaN or infinite; no such state is left to resume from."""


def train(config, workdir, *, arrays: Mapping[str, np.ndarray] | None = None, devices=None) -> TrainState:
  """Trains a stage to `config.train.num_steps`, resuming what is in `workdir`.

  Args:
    config: from `configs/STAGE.py`.
    workdir: folder for checkpoints, metrics and previews (local or bucket), shared by all hosts. One run at a time uses it.
    arrays: {"train": {"tree": uint8 [N, H, W, 1], ...}, "heldout": {...}} already at `config.data.image_size`, instead of
      `config.data.source`; no files are read.
    devices: devices of the mesh; all by default.

  Returns:
    The final state, on the mesh.

  Raises:
    ValueError: a config, workdir or data set that cannot be used; the sentence says what to do.
    NotFiniteError: the loss, a gradient norm or the parameters are not finite.
    SystemExit, KeyboardInterrupt: SIGTERM or SIGHUP (exit code 128 + number), or Ctrl-C, after a checkpoint was saved.
  """
  with contextlib.ExitStack() as stack:
    # --- mesh, data, task, folder -----------------------------------------------------------------------------------------
    keys.stream(config.seed, config.stage)  # an invalid seed is refused here, in a sentence
    validate.check(config)
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    sharding.check_batch(config.train.batch_size, mesh, config.train.accumulate)
    data = examples.Examples(config, arrays, tasks.fields(config))
    task = tasks.make(config, epoch_steps=max(1, data.num_train // config.train.batch_size))
    check_decay(config)
    held = stack.enter_context(claim.hold(workdir, "training"))
    iterator = stack.enter_context(data.train_iterator())
    fingerprints = data.fingerprints()
    checkpoints = checkpoint.Checkpoints(
      workdir, config.checkpoint.keep_latest, config.checkpoint.keep_best, stored.first_scored_step(config)
    )
    stack.callback(checkpoints.close)
    position = checkpoints.position()
    same_names = position is not None and position.get("source") == iterator.get_state()["source"]
    notes = sharding.on_first_process(lambda: run_folder.check(workdir, config, fingerprints, same_names))

    # --- state: shapes, then shardings, then straight onto the devices ------------------------------------------------------
    init = lambda: task.init(keys.stream(config.seed, f"{config.stage} training"))  # noqa: E731
    abstract = jax.eval_shape(init)
    shardings = sharding.infer_shardings(abstract, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    restored = checkpoints.restore(abstract)
    if restored is None:
      state = _start_from(config, jax.jit(init, out_shardings=shardings)(), shardings)
    else:
      state = restored
      if fingerprints and fingerprints["data.source"] == run_folder.fingerprints(workdir).get("data.source"):
        position = {**position, "source": iterator.get_state()["source"]}  # the same eyes, whatever their folder is called
      iterator.set_state(position)
    step = int(state.step)
    # Not before: a run that could not start leaves no trace.
    sharding.on_first_process(lambda: run_folder.claim(workdir, config, fingerprints))
    writers = MetricLogger(workdir, step, config.log.tensorboard, config.train.num_steps)
    stack.callback(writers.close)
    for note in notes or ():
      writers.say(note)
    if restored is not None:
      writers.say(f"Resumed from step {step} of {workdir}")
    elif jax.process_index() == 0:
      _write_overview(workdir, state, writers)

    # --- compiled functions -----------------------------------------------------------------------------------------------
    train_step = jax.jit(
      task.train_step,
      donate_argnums=0,
      in_shardings=(shardings, sharding.batch_sharding(mesh)),
      out_shardings=(shardings, sharding.replicated(mesh)),
    )
    evaluator = Evaluator(task, data, mesh, config.train.batch_size, config.evaluate.num)
    batches = pipeline.device_prefetch(iterator, sharding.batch_sharding(mesh), config.data.prefetch)
    stack.callback(batches.close)
    profiler = Profiler(workdir, step, config.log.profile_start, config.log.profile_steps)
    stack.callback(profiler.close)
    on_device: list[dict] = []  # metrics that are still on the devices
    unlogged: list[dict] = []  # metrics since the last line of the log
    started, started_step, losses = time.monotonic(), step, {}

    def fetch():
      """Waits for the devices, and checks what they have computed. Raises NotFiniteError."""
      values = jax.device_get(on_device)
      on_device.clear()
      first = step - len(values) + 1
      bad = [first + i for i, v in enumerate(values) if not _finite(v)]
      if bad:
        # The parameters that gave a bad loss were made one step before.
        raise NotFiniteError(_not_finite("The loss or a gradient", bad, checkpoints, bad[0] - 1, workdir, config))
      unlogged.extend(values)

    def log():
      nonlocal started, started_step
      fetch()
      rate = (step - started_step) / (time.monotonic() - started) * config.train.batch_size
      means = {k: float(np.mean([v[k] for v in unlogged])) for k in (unlogged[0] if unlogged else {})}
      unlogged.clear()
      writers.scalars(step, {**means, "images_per_second": rate})
      started, started_step = time.monotonic(), step

    def save():
      fetch()
      if not checkpoint.is_finite(state):
        raise NotFiniteError(_not_finite("A parameter", [step], checkpoints, None, workdir, config))
      if held is not None:
        held.check()
      checkpoints.save(state, batches.get_state(), config, losses.get(step))

    # --- steps ------------------------------------------------------------------------------------------------------------
    # The order is part of what resume relies on: step, look for a signal, then log, evaluate, preview, checkpoint.
    signals = stack.enter_context(_Signals())
    stopping = False
    try:
      while step < config.train.num_steps and not stopping:
        state, metrics = train_step(state, next(batches))
        on_device.append(metrics)
        step += 1
        profiler.at(step, state)
        writers.progress(step)
        last = step == config.train.num_steps
        stopping = signals.stop(step) and not last
        if step % config.log.every == 0 or last or stopping:
          log()
        if config.evaluate.every and (step % config.evaluate.every == 0 or last):
          scores = evaluator(state.averaged)
          if config.data.heldout != "test":
            losses[step] = scores["heldout_loss"]
          writers.scalars(step, scores)
          started, started_step = time.monotonic(), step
        if config.preview.every and (step % config.preview.every == 0 or last):
          for name, pixels in task.preview(state.averaged, evaluator.preview_batch(), mesh).items():
            writers.picture(step, name, montage.grid(pixels))
          started, started_step = time.monotonic(), step
        if step % config.checkpoint.every == 0 or last or stopping:
          save()
    except KeyboardInterrupt:
      writers.say(f"Stopped at step {step} without saving; the same command goes on from step {checkpoints.latest_step() or 0}")
      raise
    checkpoints.wait()
    if stopping:
      writers.say(f"Stopped by a signal at step {step}; rerun the same command to go on")
  sharding.wait_for_all("training ended")  # a launcher that sees one host leave may kill the others
  if stopping:
    signals.leave()
  return state


def evaluate(loaded: checkpoint.Loaded, source: str | None = None, devices=None) -> dict[str, float]:
  """The loop's evaluation of a finished stage on all test examples of a source, and as many of its training examples.

  Args:
    loaded: from `checkpoint.load`.
    source: as `config.data.source`; the run's own by default.
    devices: devices of the mesh; all by default.

  Returns:
    {"heldout_loss": ..., "training_loss": ..., and what else the task measures}, means over the examples.
  """
  mesh = sharding.make_mesh(devices=devices)
  config = loaded.config.copy_and_resolve_references()
  config.data.update(source=source or config.data.source, heldout="validation")
  task = tasks.make(config)
  config.data.heldout = "test"  # only now: a task may refuse to be trained with it
  data = examples.Examples(config, None, task.fields)
  evaluator = Evaluator(task, data, mesh, config.train.batch_size, num=None)
  return evaluator(sharding.replicate(loaded.params, mesh))


def _start_from(config, fresh: TrainState, shardings) -> TrainState:
  """A fresh state, with the averaged parameters of `config.train.start_from` if that names a run."""
  if not config.train.start_from:
    return fresh
  params = jax.device_get(checkpoint.load(config.train.start_from, stage=config.stage).params)
  return jax.jit(with_parameters, out_shardings=shardings, donate_argnums=0)(fresh, params)


def _finite(metrics: Mapping) -> bool:
  """Whether the loss and the gradient norms of a step are numbers."""
  return all(math.isfinite(v) for k, v in metrics.items() if k == "loss" or k.endswith("gradient_norm"))


def _not_finite(what: str, steps: list[int], checkpoints, cause: int | None, workdir, config) -> str:
  """The sentence for NotFiniteError. A checkpoint of the step `cause`, which would give the same again, is set aside."""
  moved = checkpoints.set_aside(cause)
  good = checkpoints.latest_step()
  where = "at step" if len(steps) == 1 else "between steps"
  text = f"{what} is not finite {where} {steps[0]}{f' and {steps[-1]}' if len(steps) > 1 else ''}; "
  text += f"the last good checkpoint is step {good} in {workdir}" if good else f"{workdir} holds no good checkpoint yet"
  text += f" (step {cause}, whose parameters gave it, is now in {moved})" if moved else ""
  rates = [f"config.{s}.learning_rate" for s in ("optimizer", "discriminator_optimizer") if s in config]
  dtype = ", or set config.model.dtype=float32," if config.model.get("dtype") == "bfloat16" else ""
  return f"{text}. Lower {' and '.join(rates)}{dtype} and rerun: {'it goes on from there' if good else 'it starts anew'}"


class _Signals:
  """Context in which SIGTERM, SIGHUP and Ctrl-C are noted, so that the run can be saved. All hosts agree on the step."""

  def __enter__(self):
    self._noted, self._old = None, {}
    alone = jax.process_count() == 1  # otherwise JAX itself listens for SIGTERM
    for name in (("SIGTERM",) if alone else ()) + ("SIGHUP", "SIGINT"):
      number = getattr(signal, name, None)
      if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):  # under nohup the run outlives its terminal
        continue
      with contextlib.suppress(ValueError):  # only the main thread may set handlers: a notebook's worker does without
        self._old[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    if number == signal.SIGINT and self._noted == signal.SIGINT:
      raise KeyboardInterrupt
    self._noted = number
    if number == signal.SIGINT:
      print("\nStopping after this step to save it; Ctrl-C again stops at once", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def stop(self, step: int) -> bool:
    """Whether to stop after `step`."""
    if jax.process_count() == 1:
      return self._noted is not None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)

  def leave(self):
    """Ends the process as the signal would have: a scheduler must see that the run is not finished."""
    if self._noted == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + (self._noted or signal.SIGTERM))

  def __exit__(self, *unused):
    for number, handler in self._old.items():
      signal.signal(number, handler)


def _write_overview(workdir, state, writers) -> None:
  """Names, shapes and counts of the parameters, into the log."""
  count = sum(x.size for x in jax.tree.leaves(state.params))
  writers.say(f"{count:,} parameters on {jax.device_count()} devices ({jax.devices()[0].device_kind})")
  table = parameter_overview.get_parameter_overview(state.params, include_stats="sharding")
  writing.write_text(epath.Path(workdir) / "parameters.txt", table + "\n")
