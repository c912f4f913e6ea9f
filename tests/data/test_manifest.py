"""The progress journal: what is missing, what is done, and the manifest, whatever a kill leaves behind."""

import numpy as np
import pytest

from retree_jax.data import claim, manifest, writing
from tests import stages


def test_journal(tmp_path):
  journal = manifest.Journal(tmp_path / "set")
  assert journal.claim({"a": 1}, 10, 16) == (10, None)
  assert list(journal.missing(0, 10, 4)) == [(0, 4), (4, 8), (8, 10)]
  row = [{"k": k} for k in range(10)]
  journal.add(4, row[4:8])
  journal.add(1, row[1:3])
  assert list(journal.missing(0, 10, 4)) == [(0, 1), (3, 4), (8, 10)] and list(journal.missing(5, 9, 100)) == [(8, 9)]
  with pytest.raises(ValueError, match="does not follow"):
    journal.merge()
  assert not (tmp_path / "set/manifest.jsonl").exists() and len(stages.files(tmp_path / "set")) == 3
  for start, stop in [(0, 1), (3, 4), (8, 10)]:
    journal.add(start, row[start:stop])
  parts = stages.files(tmp_path / "set/manifest.parts")
  journal.merge()
  assert list(journal.rows()) == row and journal.finished() and not list(journal.missing(0, 10, 4))
  # Killed after the merge, before the parts were gone: they are not merged twice.
  for name, content in parts.items():
    writing.write_bytes(tmp_path / "set/manifest.parts" / name, content)
  assert not journal.finished()
  journal.merge()
  assert list(journal.rows()) == row and journal.finished()
  # Half-written files of a killed process go when the folder is claimed again.
  (tmp_path / "set/images").mkdir()
  (tmp_path / "set/images/.0000001.png.0123456789ab.part").write_text("half")
  assert journal.claim({"a": 1}, None, 16) == (10, 10)
  assert set(stages.files(tmp_path / "set")) == {"run.json", "manifest.jsonl"}
  assert claim.difference({"a": {"b": [1]}}, {"a": {"b": [2]}}) == "a.b is [1] there and [2] here"


def test_missing_pieces_and_lost_pairs(tmp_path):
  journal = manifest.Journal(tmp_path / "set")
  journal.claim({}, 20, 16)
  journal.add(0, [{"k": k} for k in range(6)])
  lost = np.zeros(20, bool)
  lost[[1, 2, 5]] = True
  assert list(journal.missing(0, 12, 4, lost)) == [(1, 3), (5, 8), (8, 12)]
  assert list(journal.missing(0, 6, 4)) == []
  assert list(journal.missing(7, 9, 100)) == [(7, 9)]
  # What was made again over a boundary of recorded parts is merged once.
  journal.add(5, [{"k": k} for k in range(5, 20)])
  journal.merge()
  assert [row["k"] for row in journal.rows()] == list(range(20))


def test_fewer_pairs_than_before(tmp_path):
  journal = manifest.Journal(tmp_path / "set")
  assert journal.claim({}, None, 16) == (16, None)
  assert journal.claim({}, 4, 16) == (4, 16) and journal.num() == 4
  journal.add(0, [{"k": k} for k in range(3)])
  assert journal.claim({}, 3, 16) == (3, 4)
  journal.merge()
  assert journal.claim({}, 2, 16) == (3, 3) and journal.finished()  # finished: kept as it is
  assert journal.claim({}, 9, 16) == (9, 3)
  with pytest.raises(ValueError, match="holds some up to number 3, which --num=1 would leave out: use --num=3 or more"):
    journal.claim({}, 1, 16)
  assert journal.claim({}, 3, 16) == (3, 9)
