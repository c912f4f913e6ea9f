"""Eight CPU devices for every test, parsed absl flags (Grain's workers read them), and fixtures for the original's arrays."""

import os
import pathlib
import signal

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()

# A shell starts what runs in the background with Ctrl-C ignored, and the commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


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
