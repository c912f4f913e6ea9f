"""Output folders: free, of this run, of another one, in use; refused on every process alike."""

import json

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from retree_jax import sharding
from retree_jax.data import claim


def test_a_folder_is_free_then_of_this_run_then_refused_to_others(tmp_path):
  out = tmp_path / "out"
  assert claim.check(out, {"seed": 1}) is None
  claim.record(out, {"seed": 1, "size": (4, 4)}, num=3)
  assert claim.check(out, {"seed": 1, "size": (4, 4)}) == {"num": 3}
  with pytest.raises(ValueError, match=r"out holds another run \(seed is 1 there and 2 here\): use another --out"):
    claim.check(out, {"seed": 2, "size": (4, 4)})
  (out / "run.json").write_text("[1")
  with pytest.raises(ValueError, match=r"run.json is damaged: use another --out, or remove the folder"):
    claim.check(out, {"seed": 1})


def test_only_the_subfolder_that_matters_has_to_be_empty(tmp_path):
  (tmp_path / "images").mkdir()
  (tmp_path / "images/eye.png").write_text("")
  assert claim.check(tmp_path, {}, "labels.json", "masks") is None
  (tmp_path / "masks").mkdir()
  assert claim.check(tmp_path, {}, "labels.json", "masks") is None
  (tmp_path / "masks/eye.png").write_text("")
  with pytest.raises(ValueError, match="masks holds files that this command did not write"):
    claim.check(tmp_path, {}, "labels.json", "masks")


def test_claims_of_earlier_versions_are_read(tmp_path):
  (tmp_path / "run.json").write_text(json.dumps({"stage": "tree", "seed": 3}))
  claim.check(tmp_path, {"stage": "tree", "seed": 3})
  with pytest.raises(ValueError, match="seed is 3 there"):
    claim.check(tmp_path, {"stage": "tree", "seed": 4})


def test_a_held_folder_is_refused_to_a_second_job_and_free_afterwards(tmp_path):
  with claim.hold(tmp_path / "out", "sampling") as lease:
    lease.check()
    assert claim.check(tmp_path / "out", {}) is None  # a lease is no content
    with pytest.raises(ValueError, match="has been sampling there"), claim.hold(tmp_path / "out", "sampling"):
      pass
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_what_process_0_refuses_is_refused_on_all(process, tmp_path, monkeypatch):
  """The messages between processes are kept in a list and played back to the other one."""
  (tmp_path / "out").write_text("a file")
  sent = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 0)
  monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: sent.append(np.array(x)) or x)
  with pytest.raises(ValueError, match="out is a file"), claim.hold(tmp_path / "out", "sampling"):
    pass
  if process:
    assert sent
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: sent.pop(0))
    with pytest.raises(ValueError, match="out is a file"), claim.hold(tmp_path / "out", "sampling"):
      pass
    assert not sent


def test_the_result_of_process_0(monkeypatch):
  assert sharding.on_first_process(lambda: 3) == 3
