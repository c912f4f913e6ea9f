"""Eight CPU devices for every test, absl flags parsed (Grain's workers read them), and where real eyes may lie."""

import os
import pathlib

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def _shared(part: str) -> pathlib.Path:
  path = SHARED / part
  if not path.exists():
    pytest.skip(f"needs {part}, which is not part of the project (looked in a folder 'shared' beside it)")
  return path


@pytest.fixture(scope="session")
def parity_dir() -> pathlib.Path:
  """Folder with arrays computed with the original PyTorch network; the test skips where it is absent."""
  return _shared("parity")


@pytest.fixture(scope="session")
def real_eyes() -> pathlib.Path:
  """Folder with CHASE_DB1, HRF and IDRiD photographs; the test skips where it is absent."""
  return _shared("data")
