"""Killed at any moment and rerun, a run ends as if nothing had happened: parameters, optimizer, order of the data."""

import json
import random
import signal
import time

import jax
from orbax.checkpoint import v1 as ocp

from retree_jax import checkpoint, keys, tasks
from tests import small

STEPS, EVERY = 120, 5
COMMAND = (
  "-m",
  "retree_jax.main",
  "--config",
  "configs/tree.py:tiny",
  *small.FLAGS,
  f"--config.train.num_steps={STEPS}",
  f"--config.checkpoint.every={EVERY}",
)


def start(workdir):
  return small.start(*COMMAND, f"--workdir={workdir}")


def everything(workdir):
  """The last checkpoint's state and average, the position in the data, and the losses of every step."""
  path = workdir / "checkpoints" / str(STEPS)
  config = checkpoint.load(workdir, step=STEPS).config
  state = jax.eval_shape(lambda: tasks.make(config).init(keys.stream(config.seed, "tree training")))
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)
  items = ocp.load_checkpointables(path, {"state": want.replace(ema=None).__dict__, "ema": want.averaged})
  position = ocp.checkpointables_metadata(path).custom_metadata["data"]
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return items, position, {line["step"]: line["loss"] for line in lines}


def test_killed_twice_and_rerun_is_the_same_run(tmp_path):
  whole, killed = start(tmp_path / "whole"), None
  try:
    small.finish(whole)
    # Once at any moment of the loop, once in the middle of a save.
    checkpoints = tmp_path / "killed" / "checkpoints"
    seed = random.randrange(2**32)
    print(f"moment of the first kill drawn with seed {seed}")
    done = 0
    for kill in ("anywhere", "saving"):
      killed, deadline = start(tmp_path / "killed"), time.monotonic() + 1500
      while time.monotonic() < deadline and killed.poll() is None:
        names = [path.name for path in checkpoints.glob("*")]
        if kill == "anywhere" and any(name.isdigit() for name in names):
          time.sleep(random.Random(seed).uniform(0, 0.3))
          break
        if kill == "saving" and any("tmp" in name for name in names) and steps_done(tmp_path / "killed") > done:
          break
      killed.send_signal(signal.SIGKILL)
      text, _ = killed.communicate()
      assert killed.returncode == -signal.SIGKILL, text
      done = steps_done(tmp_path / "killed")
      assert 0 < done < STEPS
    killed = start(tmp_path / "killed")
    assert "Resumed from step" in small.finish(killed)
  finally:
    small.stop(whole, killed)

  (a, a_position, a_losses), (b, b_position, b_losses) = everything(tmp_path / "whole"), everything(tmp_path / "killed")
  small.assert_same(a, b)
  assert a_position == b_position
  assert list(a_losses) == list(range(1, STEPS + 1)) and a_losses == b_losses
  assert not [p for p in checkpoints.iterdir() if not p.name.isdigit()]  # nothing half-written is left


def steps_done(workdir) -> int:
  path = workdir / "metrics.jsonl"
  return len(path.read_text().splitlines()) if path.exists() else 0
