"""Sets that are begun, killed, damaged, resumed or asked for twice: no file is lost, and none is taken for another kind."""

import os

import numpy as np
import pytest

from retree_jax import generate
from retree_jax.data import formats, lease, manifest, sources, writing
from retree_jax.data.builders import generated
from retree_jax.inference import dataset_writer
from tests import stages
from tests.inference.conftest import ALL


def test_a_lost_file_of_a_finished_set_is_made_again(toys, tmp_path, capsys):
  dataset_writer.write(ALL, tmp_path / "set", num=6)
  whole = stages.files(tmp_path / "set")
  for lost in ("images/0000001.png", "masks/0000004.png", "fov/0000005.png"):
    (tmp_path / "set" / lost).unlink()
  capsys.readouterr()
  assert dataset_writer.write(ALL, tmp_path / "set", num=6)["made"] == 3
  text = capsys.readouterr().err
  assert "3 pairs of" in text and "lack a file and are made again" in text and "is finished" not in text
  assert stages.files(tmp_path / "set") == whole
  for lost in ("DATA_CARD.md", "contact_sheet.png", "metadata.json"):
    (tmp_path / "set" / lost).unlink()
    assert dataset_writer.write(ALL, tmp_path / "set", num=6)["made"] == 0
    assert stages.files(tmp_path / "set") == whole
  # Of an unfinished set too, and when it grows.
  (tmp_path / "set/masks/0000002.png").unlink()
  assert dataset_writer.write(ALL, tmp_path / "set", num=8)["made"] == 3
  dataset_writer.write(ALL, tmp_path / "eight", num=8)
  assert stages.files(tmp_path / "set") == stages.files(tmp_path / "eight")


def test_a_lost_shard_is_made_again(toys, tmp_path, monkeypatch):
  monkeypatch.setattr(generated, "SHARD", 4)
  dataset_writer.write(ALL, tmp_path / "set", num=6, form="tfds")
  whole = stages.files(tmp_path / "set")
  generated.shard_path(tmp_path / "set", 0).unlink()
  assert dataset_writer.write(ALL, tmp_path / "set", form="tfds")["made"] == 4
  assert stages.files(tmp_path / "set") == whole


def _interrupted(out, monkeypatch, num, at):
  """A set of `num` pairs that was killed after the pairs before `at`, with files of the next one written."""
  real = manifest.Journal.add

  def add(self, start, rows):
    if start >= at:
      raise KeyboardInterrupt
    real(self, start, rows)

  with monkeypatch.context() as m:
    m.setattr(manifest.Journal, "add", add)
    m.setattr(generate.Generator, "batch_size", 1)
    with pytest.raises(KeyboardInterrupt):
      dataset_writer.write(ALL, out, num=num)


def test_a_mistyped_number_can_be_lowered_and_no_pair_is_lost(toys, tmp_path, monkeypatch, capsys):
  out = tmp_path / "set"
  _interrupted(out, monkeypatch, 200_000, 5)
  assert len(list((out / "masks").iterdir())) > 5  # in flight when it was killed
  # Read as it lies, nothing of it is taken for an expert's.
  source = sources.open_source(f"folder:{out}", split="all", fields=("tree",))
  assert {source[i]["label"] for i in range(len(source))} == {"generated"}
  before = stages.files(out)
  sentence = r"was begun with 200000 pairs and holds some up to number 5, which --num=3 would leave out: use --num=5 or more"
  with pytest.raises(ValueError, match=sentence):
    dataset_writer.write(ALL, out, num=3)
  assert stages.files(out) == before
  capsys.readouterr()
  dataset_writer.write(ALL, out, num=5)  # as the sentence says
  assert "was begun with 200000 pairs and will now hold 5" in capsys.readouterr().err
  dataset_writer.write(ALL, tmp_path / "five", num=5)
  assert stages.files(out) == stages.files(tmp_path / "five")


def test_without_a_number_a_set_keeps_its_own(toys, tmp_path, monkeypatch):
  _interrupted(tmp_path / "set", monkeypatch, 20, 2)
  assert dataset_writer.write(ALL, tmp_path / "set")["pairs"] == 20


def test_a_folder_with_system_files_counts_as_empty(toys, tmp_path):
  out = tmp_path / "set"
  (out / "lost+found").mkdir(parents=True)
  for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._masks"):
    (out / name).write_text("")
  assert dataset_writer.write(ALL, out, num=2)["made"] == 2
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/.hidden_notes").write_text("no")
  with pytest.raises(ValueError, match="files that this command did not write"):
    dataset_writer.write(ALL, tmp_path / "mine", num=2)


def test_given_trees_are_known_by_their_contents(toys, tmp_path):
  for row in (20, 30):
    mask = np.zeros((48, 48, 1), np.uint8)
    mask[row : row + 4, 10:40] = 255
    writing.write_png(tmp_path / f"from_{row}/tree.png", mask)
  dataset_writer.write({"fundus": "f"}, tmp_path / "set", trees=tmp_path / "from_20")
  os.rename(tmp_path / "from_20", tmp_path / "moved")
  assert dataset_writer.write({"fundus": "f"}, tmp_path / "set", trees=tmp_path / "moved")["made"] == 0
  with pytest.raises(ValueError, match="holds another run .trees is 'given .* there and 'given"):
    dataset_writer.write({"fundus": "f"}, tmp_path / "set", trees=tmp_path / "from_30")


def test_a_second_process_is_refused_while_the_first_lives(toys, tmp_path, monkeypatch):
  """No half-written file of the first is deleted, and what it writes is what it would have written alone."""
  refused, real = [], formats.PngFolders.write

  def meanwhile(self, out, row, pixels):
    if row["name"] == "0000002":
      half = tmp_path / "set/masks/.0000009.png.0123456789ab.part"
      half.write_text("of the first")
      with pytest.raises(ValueError, match=r"set is in use: process \d+ on .* has been generating there since"):
        dataset_writer.write(ALL, tmp_path / "set", num=4)
      refused.append(half.read_text())
      half.unlink()
    real(self, out, row, pixels)

  with monkeypatch.context() as m:
    m.setattr(formats.PngFolders, "write", meanwhile)
    dataset_writer.write(ALL, tmp_path / "set", num=4)
  assert refused == ["of the first"]
  dataset_writer.write(ALL, tmp_path / "alone", num=4)
  assert stages.files(tmp_path / "set") == stages.files(tmp_path / "alone")


def test_a_folder_that_was_taken_over_is_written_no_more(toys, tmp_path, monkeypatch):
  def lost(self):
    raise lease.LostError("taken over")

  monkeypatch.setattr(lease.Lease, "check", lost)
  with pytest.raises(lease.LostError):
    dataset_writer.write(ALL, tmp_path / "set", num=2)
  assert not (tmp_path / "set/manifest.parts").exists()


def test_another_folder_is_never_touched(toys, tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/thesis.txt").write_text("no")
  (tmp_path / "file").write_text("no")
  with pytest.raises(ValueError, match="mine holds files that this command did not write, .*: use another --out"):
    dataset_writer.write(ALL, tmp_path / "mine", num=1)
  with pytest.raises(ValueError, match="is a file"):
    dataset_writer.write(ALL, tmp_path / "file", num=1)
  dataset_writer.write(ALL, tmp_path / "set", num=1)
  before = stages.files(tmp_path / "set")
  for change, words in (
    ({"seed": 1}, "seed is 0 there and 1 here"),
    ({"form": "tfds"}, "format is 'png' there"),
    ({"num_steps": 3}, "num_steps is 2 there and 3 here"),
  ):
    with pytest.raises(ValueError, match=f"holds another run .*{words}.*use another --out"):
      dataset_writer.write(ALL, tmp_path / "set", num=1, **change)
  with pytest.raises(ValueError, match="stages.filter"):
    dataset_writer.write({**ALL, "filter_path": None}, tmp_path / "set", num=1)
  assert stages.files(tmp_path / "set") == before
  (tmp_path / "set/run.json").write_text("{")
  with pytest.raises(ValueError, match="run.json is damaged"):
    dataset_writer.write(ALL, tmp_path / "set", num=1)
