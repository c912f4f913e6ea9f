"""Work in other processes: the same results in the same order, errors that arrive, no process left over."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from retree_jax.data import mending
from retree_jax.data.workers import Workers, spare_cores
from tests import shapes, small


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order_and_errors_arrive(count):
  lines = [shapes.draw([np.array([[0.0, -30.0], [0.0, 30.0]])], width) for width in range(1, 6)]
  with Workers(count) as workers:
    for (mask, counts), line in zip(workers.map(mending.mend, lines), lines, strict=True):
      assert np.array_equal(mask > 0, line) and not any(counts.values())
    assert workers.submit(divmod, 7, 3).result() == (2, 1)
    with pytest.raises(ValueError, match="threshold it first"):
      workers.submit(mending.mend, np.arange(64, dtype=np.uint8).reshape(8, 8)).result()
    assert len(multiprocessing.active_children()) <= count
  assert not multiprocessing.active_children()


def test_processes_leave_ctrl_c_to_the_command_and_start_without_jax():
  with Workers(1) as workers:
    assert workers.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
  code = "import retree_jax.inference.host_work, retree_jax.metrics.vessels, sys; print('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=small.ROOT, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_processes_end_with_a_command_that_is_killed(tmp_path):
  script = tmp_path / "command.py"
  script.write_text(
    "import os, time\nfrom retree_jax.data.workers import Workers\n"
    "if __name__ == '__main__':\n  with Workers(1) as workers:\n"
    "    print(workers.submit(os.getpid).result(), flush=True)\n    time.sleep(600)\n"
  )
  environment = os.environ | {"PYTHONPATH": str(small.ROOT)}
  with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as command:
    worker = int(command.stdout.readline())
    os.kill(worker, 0)  # it is there
    command.kill()
  small.wait_for(lambda: not alive(worker), 30)


def alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # Where nobody collects it, a dead process keeps its entry.
  state = pathlib.Path(f"/proc/{pid}/stat")
  return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_one_core_is_left_to_the_command():
  assert 0 <= spare_cores() < os.cpu_count()
