"""Two real processes write one data set: a refused folder ends both, and the set is the one that a single process writes."""

import socket

import pytest

from tests import small, stages


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  return stages.chain(tmp_path_factory.mktemp("models"))


def run_both(chain, out) -> list[tuple[int, str]]:
  """(exit code, what it printed) of two processes of one job that generate 6 pairs into a folder."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  flags = [f"--{name}={path}" for name, path in chain.items()]
  flags += [f"--out={out}", "--num=6", f"--coordinator=localhost:{port}", "--num_processes=2"]
  processes = [small.start("-m", "retree_jax.generate", *flags, f"--process_id={rank}") for rank in range(2)]
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
