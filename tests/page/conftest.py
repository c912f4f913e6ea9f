"""The page on tiny stages with random weights, in a server of its own."""

import contextlib
import http.client
import json
import threading
import time
import types

import pytest

from retree_jax import checkpoint
from retree_jax.data import phantom, writing
from retree_jax.page import jobs, studio
from tests import stages
from tests.inference import test_segmentation

SIDE = 64  # pixels of the training eyes


@pytest.fixture(scope="session")
def paths(tmp_path_factory) -> dict:
  """Folders of the stages: "tree", "fundus", "filter_path", "segmenter", and "train", eyes with a split."""
  root = tmp_path_factory.mktemp("page")
  made = stages.chain(root)
  checkpoint.export(test_segmentation.untrained(test_segmentation.small()), root / "segmenter")
  for seed in range(7):
    eye = phantom.eye(seed, (SIDE, SIDE))
    writing.write_png(root / f"eyes/images/{seed}.png", eye["image"])
  writing.write_json(root / "eyes/splits.json", {"train": list("0123"), "test": list("456")})
  return {
    "tree": made["tree"],
    "fundus": made["fundus"],
    "filter_path": made["filter"],
    "segmenter": str(root / "segmenter"),
    "train": str(root / "eyes"),
  }


def stage_paths(paths: dict) -> dict:
  """What `dataset_writer.write` takes."""
  return {name: paths[name] for name in ("tree", "fundus", "filter_path")}


@pytest.fixture(scope="session")
def loaded(paths) -> studio.Studio:
  return studio.Studio(stage_paths(paths), paths["segmenter"], paths["train"])


def silent(text: str, share: float) -> None:
  """Progress that nobody reads."""


@contextlib.contextmanager
def running(loaded):
  """A server with a queue of its own; `url`, `port` and `ask(method, path, body, headers)` -> (code, headers, bytes)."""
  pytest.importorskip("uvicorn", reason="needs the extra `demo`")
  from retree_jax.page import server

  listening = server.listen("127.0.0.1", 0)
  port = listening.getsockname()[1]
  with contextlib.closing(jobs.Queue()) as queue:
    prepared = server.prepare(loaded, queue, listening)
    thread = threading.Thread(target=prepared.run, kwargs={"sockets": [listening]})
    thread.start()

    def ask(method, path, body=None, **headers):
      with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()

    try:
      yield types.SimpleNamespace(url=f"http://127.0.0.1:{port}/", port=port, ask=ask, queue=queue)
    finally:
      prepared.should_exit = True
      thread.join(20)


@pytest.fixture(scope="session")
def site(loaded):
  with running(loaded) as found:
    yield found


def finished(site, path: str, body=None) -> tuple[str, dict]:
  """Starts a job and waits for it: (its name, its last status)."""
  code, _, said = site.ask("POST", path, body)
  assert code == 202, said
  name = json.loads(said)["job"]
  end = time.monotonic() + 300
  while time.monotonic() < end:
    told = json.loads(site.ask("GET", f"/jobs/{name}")[2])
    if told["state"] in ("done", "failed"):
      return name, told
    time.sleep(0.05)
  raise AssertionError(f"it does not end: {told}")
