"""Two real processes write one data set: a refused folder ends both, and the set is the one that a single process writes."""

import socket
import time

import pytest

from tests import small, stages


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  return stages.chain(tmp_path_factory.mktemp("models"))


def start_both(chain, out, num: int) -> list:
  """Two processes of one job that generate pairs into a folder."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  flags = [f"--{name}={path}" for name, path in chain.items()]
  flags += [f"--out={out}", f"--num={num}", f"--coordinator=localhost:{port}", "--num_processes=2"]
  return [small.start("-m", "retree_jax.generate", *flags, f"--process_id={rank}") for rank in range(2)]


def run_both(chain, out, num: int = 6) -> list[tuple[int, str]]:
  """(exit code, what it printed) of two processes of one job that generate pairs into a folder."""
  processes = start_both(chain, out, num)
  try:
    texts = [process.communicate(timeout=900)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]
  finally:
    small.stop(*processes)


def test_a_refused_folder_ends_both_processes(chain, tmp_path):
  """The second waits at no barrier for the first, which was refused: both say why, and the folder is as it was."""
  (tmp_path / "thesis.txt").write_text("not yours")
  for code, text in run_both(chain, tmp_path):
    assert code == 2 and f"error: {tmp_path} holds files that this command did not write" in text, text
  assert stages.files(tmp_path) == {"thesis.txt": b"not yours"}


def test_two_processes_write_the_set_of_one(chain, tmp_path):
  for code, text in run_both(chain, tmp_path / "both"):
    assert code == 0, text
  flags = [f"--{name}={path}" for name, path in chain.items()]
  small.finish(small.start("-m", "retree_jax.generate", *flags, f"--out={tmp_path / 'one'}", "--num=6"))
  assert stages.files(tmp_path / "both") == stages.files(tmp_path / "one")


def test_one_process_is_killed_and_both_start_again(chain, tmp_path):
  """A launcher ends the other one, too, and starts both anew: what is done is kept, and the set is that of one process."""
  out, num = tmp_path / "both", 60
  done = lambda: len(list(out.glob("images/[!.]*.png")))  # noqa: E731
  processes = start_both(chain, out, num)
  try:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and done() < 4 and all(p.poll() is None for p in processes):
      time.sleep(0.01)
    processes[1].kill()
    processes[0].kill()
  finally:
    small.stop(*processes)
  before = {path.name: path.stat().st_mtime_ns for path in out.glob("images/[!.]*.png")}
  assert 4 <= len(before) < num and not (out / "DATA_CARD.md").exists()
  for code, text in run_both(chain, out, num):
    assert code == 0, text
  kept = [name for name, changed in before.items() if (out / "images" / name).stat().st_mtime_ns == changed]
  assert len(kept) >= len(before) - 16  # but for pairs that were written and not yet recorded
  flags = [f"--{name}={path}" for name, path in chain.items()]
  small.finish(small.start("-m", "retree_jax.generate", *flags, f"--out={tmp_path / 'one'}", f"--num={num}"))
  assert stages.files(out) == stages.files(tmp_path / "one")
