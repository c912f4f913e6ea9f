"""Runs and generated trees in a bucket: a Cloud Storage server on this machine stands in for Google's."""

import os
import socket
import subprocess
import sys

import pytest

from tests import small

pytest.importorskip("gcsfs", reason="needs gcsfs: pip install '.[gcs]'")
pytest.importorskip("gcp_storage_emulator", reason="needs a stand-in for Cloud Storage: pip install gcp-storage-emulator")

# It answers what it lacks (moving an object) with 501, which clients repeat for minutes; with 400 they copy and delete at once.
SERVER = """
import http, http.server, sys, types
from gcp_storage_emulator import server as emulator
emulator.server = types.SimpleNamespace(HTTPServer=http.server.ThreadingHTTPServer)
emulator.HTTPStatus = types.SimpleNamespace(**http.HTTPStatus.__members__ | {"NOT_IMPLEMENTED": http.HTTPStatus.BAD_REQUEST})
server = emulator.create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="retree-test")
server.start()
print("ready", flush=True)
sys.stdin.read()
"""
TRAIN = """
import sys
import jax
from retree_jax import train
from tests import small
steps = int(sys.argv[1])
config = small.config(train__num_steps=steps, preview__every=steps, evaluate__every=steps)
train.train(config, "gs://retree-test/run", arrays=small.arrays())
"""
FLAGS = ("--tree", "gs://retree-test/run", "--num", "5", "--out", "gs://retree-test/trees")


@pytest.fixture
def bucket():
  """Environment of a process that takes the stand-in for Cloud Storage."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  server = subprocess.Popen(
    [sys.executable, "-c", SERVER, str(port)],
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  try:
    assert server.stdout.readline() == "ready\n"
    yield {
      "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
      "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{port}",
      # Without these, gcsfs and Google's client wait for services that only Google's machines have.
      "NO_GCE_CHECK": "true",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
  finally:
    server.kill()
    server.communicate()


def test_a_run_is_saved_resumed_and_sampled_in_a_bucket(bucket):
  first = small.finish(small.start("-c", TRAIN, "2", **bucket))
  second = small.finish(small.start("-c", TRAIN, "3", **bucket))
  assert "step 2" in first and "Resumed from step 2 of gs://retree-test/run" in second
  look = "import sys; from etils import epath; p = epath.Path('gs://retree-test'); "
  small.finish(small.start("-m", "retree_jax.generate", *FLAGS, **bucket))
  small.finish(small.start("-m", "retree_jax.generate", *FLAGS, **bucket))  # is complete: changes nothing
  text = small.finish(
    small.start("-c", look + "print(len(list((p / 'trees/masks').iterdir())), (p / 'trees/manifest.jsonl').exists())", **bucket)
  )
  assert text.splitlines()[-1] == "5 True"
  assert not os.path.exists(small.ROOT / "gs:")  # what a URL taken for a relative path leaves
