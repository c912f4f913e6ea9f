"""How a run ends before its time: by NaN, by a signal, by another run in its folder; and that what it says then works."""

import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import checkpoint, models, train
from retree_jax.data import lease
from retree_jax.report import metric_logging
from retree_jax.tasks import diffusion
from retree_jax.train import NotFiniteError
from tests import small


@pytest.fixture
def toy(monkeypatch):
  monkeypatch.setattr(models, "build", small.Toy)


@pytest.fixture(autouse=True)
def listening():
  """Signals as in a terminal: a shell starts background jobs with some of them ignored."""
  before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
  before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def run(workdir, **changes):
  return train.train(small.config(**changes), workdir, arrays=small.arrays(), devices=jax.devices()[:1])


def logged(workdir) -> list[int]:
  return [json.loads(text)["step"] for text in (workdir / "metrics.jsonl").read_text().splitlines()]


def read(path) -> str:
  return path.read_text() if path.exists() else ""


def break_from(monkeypatch, step: int, what: str):
  """Makes NaN of one thing in every training step after `step`; returns a function that mends it."""
  honest = diffusion.DiffusionTask.train_step

  def broken(self, current, batch):
    new, metrics = honest(self, current, batch)
    bad = jnp.where(current.step >= step, jnp.nan, 1.0)
    if what == "parameters":
      return new.replace(params=jax.tree.map(lambda x: x * bad, new.params)), metrics
    if what == "optimizer":
      spoilt = jax.tree.map(lambda x: x * bad if jnp.issubdtype(x.dtype, jnp.floating) else x, new.opt_state)
      return new.replace(opt_state=spoilt), metrics
    return new, {**metrics, what: metrics[what] * bad}

  monkeypatch.setattr(diffusion.DiffusionTask, "train_step", broken)
  return lambda: monkeypatch.setattr(diffusion.DiffusionTask, "train_step", honest)


@pytest.mark.parametrize("what", ["loss", "gradient_norm"])
def test_nan_stops_the_run_and_spares_the_last_good_checkpoint(toy, tmp_path, monkeypatch, what):
  settings = dict(train__num_steps=12, checkpoint__every=4, log__every=4)
  whole = run(tmp_path / "whole", **settings)
  mend = break_from(monkeypatch, 5, what)  # the sixth step and all after it
  with pytest.raises(NotFiniteError, match=r"between steps 6 and 8; the last good checkpoint is step 4 in .*rerun"):
    run(tmp_path / "broken", **settings)
  loaded = checkpoint.load(tmp_path / "broken", step="latest")
  assert loaded.step == 4 and all(np.isfinite(x).all() for x in jax.tree.leaves(loaded.params))
  assert logged(tmp_path / "broken") == [4]
  mend()
  small.assert_same(run(tmp_path / "broken", **settings), whole)


@pytest.mark.parametrize("what", ["parameters", "optimizer"])
def test_a_state_with_nan_is_not_saved(toy, tmp_path, monkeypatch, what):
  """The update after a finite loss may still overflow."""
  settings = dict(train__num_steps=4, checkpoint__every=2, log__every=2)
  mend = break_from(monkeypatch, 3, what)  # the fourth step: its loss is a number, its result is none
  with pytest.raises(NotFiniteError, match=r"A parameter is not finite at step 4; the last good checkpoint is step 2"):
    run(tmp_path, **settings)
  assert checkpoint.load(tmp_path, step="latest").step == 2
  mend()
  assert int(run(tmp_path, **settings).step) == 4


def test_a_checkpoint_whose_parameters_give_nan_is_set_aside(toy, tmp_path, monkeypatch):
  """However low the learning rate of the rerun, its first step would give NaN again."""
  settings = dict(train__num_steps=6, checkpoint__every=2)
  whole = run(tmp_path / "whole", **settings)
  mend = break_from(monkeypatch, 4, "loss")  # the step after the checkpoint of step 4
  with pytest.raises(NotFiniteError, match=r"at step 5; the last good checkpoint is step 2 in .*step 4, .*not_finite/4\)"):
    run(tmp_path / "run", **settings)
  assert (tmp_path / "run/not_finite/4/ema").is_dir() and not (tmp_path / "run/checkpoints/4").exists()
  with pytest.raises(NotFiniteError, match=r"last good checkpoint is step 2 in .*step 4"):  # twice is no more harm than once
    run(tmp_path / "run", **settings)
  mend()
  small.assert_same(run(tmp_path / "run", **settings), whole)


def test_without_a_good_checkpoint_the_rerun_starts_anew(toy, tmp_path, monkeypatch):
  mend = break_from(monkeypatch, 1, "loss")
  with pytest.raises(NotFiniteError, match=r"holds no good checkpoint yet \(step 1, .*it starts anew"):
    run(tmp_path / "run", checkpoint__every=1)
  mend()
  small.assert_same(run(tmp_path / "run"), run(tmp_path / "whole"))


def test_the_advice_after_nan_works_to_the_letter(tmp_path):
  """The message names fields to lower; the same command with them goes on."""
  command = ["-m", "retree_jax.main", "--config", "configs/tree.py:tiny", *small.FLAGS, f"--workdir={tmp_path / 'run'}"]
  command += ["--config.train.num_steps=4", "--config.checkpoint.every=1", "--config.model.dtype=bfloat16"]
  command = [flag for flag in command if "warmup_steps" not in flag] + ["--config.optimizer.warmup_steps=0"]
  first = small.start(*command, "--config.optimizer.learning_rate=1e17")
  said = first.communicate()[0].splitlines()[-1]
  assert first.returncode == 1 and said.startswith("error: ") and "not finite" in said
  field = re.search(r"Lower (config[\w.]+)", said)[1]
  dtype = re.search(r"or set (config\.model\.dtype=\w+)", said)[1]
  text = small.finish(small.start(*command, f"--{field}=1e-4"))
  assert "step 4: " in text
  # Each advice alone, on a run that went well so far.
  # What a full memory asks for, too.
  memory = ("--config.train.batch_size=2", "--config.train.accumulate=2", "--config.model.remat=True")
  text = small.finish(small.start(*command, f"--{field}=1e-5", f"--{dtype}", *memory, "--config.train.num_steps=5"))
  assert "config.model.dtype is now 'float32', it was 'bfloat16'" in text and "step 5: " in text
  assert "config.train.batch_size is now 2, it was 4" in text and "config.model.remat is now True, it was False" in text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_saves_and_ends_with_its_own_exit_code(toy, tmp_path, monkeypatch, capfd, name):
  number = getattr(signal, name)
  whole = run(tmp_path / "whole", train__num_steps=6, log__every=2)
  progress = metric_logging.MetricLogger.progress
  monkeypatch.setattr(metric_logging.MetricLogger, "progress", lambda self, step: step == 3 and os.kill(os.getpid(), number))
  before = signal.getsignal(number)
  with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit) as stopped:
    run(tmp_path / "stopped", train__num_steps=6, log__every=2)
  assert name == "SIGINT" or stopped.value.code == 128 + number
  assert checkpoint.load(tmp_path / "stopped", step="latest").step == 3
  assert "Stopped by a signal at step 3; rerun the same command to go on" in capfd.readouterr().err
  assert logged(tmp_path / "stopped") == [2, 3]  # no metrics are lost
  assert signal.getsignal(number) == before
  monkeypatch.setattr(metric_logging.MetricLogger, "progress", progress)
  small.assert_same(run(tmp_path / "stopped", train__num_steps=6, log__every=2), whole)
  assert "Resumed from step 3" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once_and_says_where_a_rerun_goes_on(toy, tmp_path, monkeypatch, capfd):
  def interrupt(self, step):
    for _ in range(2 if step == 5 else 0):
      os.kill(os.getpid(), signal.SIGINT)

  monkeypatch.setattr(metric_logging.MetricLogger, "progress", interrupt)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, train__num_steps=6, checkpoint__every=2)
  assert "Stopped at step 5 without saving; the same command goes on from step 4" in capfd.readouterr().err
  assert checkpoint.load(tmp_path, step="latest").step == 4


def test_a_signal_at_the_last_step_ends_a_finished_run(toy, tmp_path, monkeypatch):
  monkeypatch.setattr(
    metric_logging.MetricLogger, "progress", lambda self, step: step == 4 and os.kill(os.getpid(), signal.SIGTERM)
  )
  assert int(run(tmp_path, train__num_steps=4).step) == 4


def test_under_nohup_a_run_outlives_its_terminal(toy, tmp_path, monkeypatch):
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    monkeypatch.setattr(metric_logging.MetricLogger, "progress", lambda self, step: os.kill(os.getpid(), signal.SIGHUP))
    assert int(run(tmp_path, train__num_steps=4).step) == 4
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_has_gone_does_not_keep_a_run_from_saving(toy, tmp_path, monkeypatch):
  class Gone:
    def isatty(self):
      return False

    def write(self, text):
      raise OSError(5, "Input/output error")

    flush = write

  monkeypatch.setattr("sys.stderr", Gone())
  assert int(run(tmp_path, train__num_steps=4).step) == 4


def test_a_second_run_in_a_workdir_is_refused_while_the_first_lives(toy, tmp_path):
  with lease.hold(tmp_path / "run", "training"):
    with pytest.raises(ValueError, match=r"run is in use: process \d+ on .* has been training there since"):
      run(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [lease.NAME]
  run(tmp_path / "run")
  assert not (tmp_path / "run" / lease.NAME).exists()


def test_two_trainings_started_together_and_one_killed(tmp_path):
  """As by a requeued job or a second terminal. The one that is refused exits with 2; a killed one's folder is taken over."""
  command = ["-m", "retree_jax.main", "--config", "configs/tree.py:tiny", *small.FLAGS, f"--workdir={tmp_path / 'run'}"]
  first = second = None
  try:
    first = small.start(*command, "--config.train.num_steps=100000", "--config.checkpoint.every=5")
    small.wait_for(lambda: (tmp_path / "run/checkpoints/5").exists() or first.poll() is not None)
    second = small.start(*command, "--config.train.num_steps=100000")
    text, _ = second.communicate()
    assert second.returncode == 2 and f"run is in use: process {first.pid} on" in text and "Traceback" not in text
    first.kill()
    first.communicate()
    assert "Resumed from step" in small.finish(small.start(*command, "--config.train.num_steps=6"))
  finally:
    small.stop(first, second)


def test_sigterm_ends_the_command_with_143(tmp_path):
  command = ["-m", "retree_jax.main", "--config", "configs/tree.py:tiny", *small.FLAGS, f"--workdir={tmp_path / 'run'}"]
  process = small.start(*command, "--config.train.num_steps=100000")
  try:
    small.wait_for(lambda: process.poll() is not None or "step" in read(tmp_path / "run/metrics.jsonl"))
    process.terminate()
    text, _ = process.communicate()
    assert process.returncode == 143 and "Stopped by a signal at step" in text and "Traceback" not in text
  finally:
    small.stop(process)
