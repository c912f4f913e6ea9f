"""Eight CPU devices for every test, parsed absl flags (Grain's workers read them), and fixtures for the original's arrays."""

import os
import pathlib
import signal

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile hundreds of small programs and run each for milliseconds: without LLVM's optimizations they take two thirds of
# the time. `XLA_FLAGS= pytest` compiles as users do; commands that tests start as processes always do (`tests.small.start`).
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import numpy as np
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()

# A shell starts what runs in the background with Ctrl-C ignored, and the commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


# Files that take minutes come first: with `-n`, no process is then left alone with one of them at the end.
_LONG = (
  "test_stopping", "tasks/test_superres", "test_processes", "test_base", "test_tree_filter", "report/test_evaluate",
  "test_resume", "test_command", "test_notebook", "test_refiner", "test_paper", "test_train", "test_denoiser",
)  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
  items.sort(key=lambda item: not item.path.with_suffix("").as_posix().endswith(_LONG))


def _shared(part: str) -> pathlib.Path:
  path = SHARED / part
  if not path.exists():
    pytest.skip(f"needs {part}, which is not part of the project (looked in a folder 'shared' beside it)")
  return path


@pytest.fixture(scope="session")
def parity_dir() -> pathlib.Path:
  """Folder with all arrays computed with the original PyTorch network; the test skips where it is absent."""
  return _shared("parity")


@pytest.fixture(scope="session", params=["shipped", "all"])
def original(request) -> dict[str, np.ndarray]:
  """Arrays computed with the original PyTorch network: the part that is in this repository (see tests/models/parity/README.md),
  and all of them where they are available."""
  if request.param == "shipped":
    path = pathlib.Path(__file__).parent / "models" / "parity" / "original.npz"
  else:
    path = _shared("parity") / "retree_network.npz"
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


@pytest.fixture(scope="session")
def real_eyes() -> pathlib.Path:
  """Folder with CHASE_DB1, HRF and IDRiD photographs; the test skips where it is absent."""
  return _shared("data")
