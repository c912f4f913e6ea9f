"""A reader finds the old file or the new one, whatever happens in between."""

import io
import json
import os
import time

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from PIL import Image

from retree_jax.cli import errors
from retree_jax.data import lease, writing


def test_png_is_the_pixels(tmp_path):
  rng = np.random.default_rng(0)
  for shape in ((5, 7), (5, 7, 1), (5, 7, 3)):
    pixels = rng.integers(0, 256, shape, np.uint8)
    writing.write_png(tmp_path / "deep/er/a.png", pixels)
    read = np.asarray(Image.open(tmp_path / "deep/er/a.png"))
    np.testing.assert_array_equal(read, pixels.squeeze(-1) if shape[-1] == 1 else pixels)
    assert writing.png_bytes(pixels) == writing.png_bytes(pixels.copy())
  with Image.open(io.BytesIO(writing.png_bytes(np.zeros((2, 3, 1), np.uint8)))) as picture:
    assert picture.mode == "L"


@pytest.mark.parametrize("shape, kind", [((4, 4), np.float32), ((4, 4, 2), np.uint8), ((1, 4, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(shape, kind, tmp_path):
  pixels = np.zeros(shape, kind)
  with pytest.raises(ValueError, match="a picture must be uint8 of shape"):
    writing.write_png(tmp_path / "a.png", pixels)
  assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
  path = tmp_path / "state.json"
  writing.write_json(path, {"step": 1})

  def pieces():
    yield b"half of it"
    raise RuntimeError("the disk is gone")

  with pytest.raises(RuntimeError, match="disk is gone"):
    writing.write_stream(path, pieces())
  monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
  with pytest.raises(OSError, match="No space left"):
    writing.write_json(path, {"step": 2})
  assert json.loads(path.read_text()) == {"step": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_the_name_appears_only_with_the_whole_content(tmp_path):
  path = tmp_path / "big.bin"
  seen = []

  def pieces():
    for piece in (b"one ", b"two ", b"three"):
      seen.append(path.exists())
      yield piece

  writing.write_stream(path, pieces())
  assert seen == [False] * 3 and path.read_bytes() == b"one two three"


def test_json_values():
  value = {1: np.float32(0.5), "a": (float("nan"), [np.int64(2), float("-inf")]), "b": {"c": None, "d": True, "e": "text"}}
  assert writing.json_values(value) == {"1": 0.5, "a": [None, [2, None]], "b": {"c": None, "d": True, "e": "text"}}


def test_json_refuses_what_json_cannot_hold(tmp_path):
  path = tmp_path / "a.json"
  writing.write_json(path, {"a": 1.5})
  for value in (float("nan"), float("inf")):
    with pytest.raises(ValueError, match="not JSON compliant"):
      writing.write_json(path, {"a": value})
  assert json.loads(path.read_text()) == {"a": 1.5}


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path):
  (tmp_path / ".a.png.0123456789ab.part").write_bytes(b"half")
  (tmp_path / "mine.part").write_bytes(b"a user's file")
  (tmp_path / "a.png").write_bytes(b"whole")
  writing.remove_unfinished(tmp_path)
  assert {p.name for p in tmp_path.iterdir()} == {"mine.part", "a.png"}
  writing.remove_unfinished(tmp_path / "absent")


@pytest.fixture
def bucket(monkeypatch):
  """A bucket in memory, by the file-system library that stands behind gs:// paths."""
  memory = fsspec.filesystem("memory")
  monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: memory)
  yield epath.Path("gs://bucket/set")
  memory.store.clear()


def test_an_exception_leaves_the_old_object_in_a_bucket(bucket):
  """An upload that an exception ends still makes an object of what came before."""
  path = bucket / "manifest.jsonl"
  writing.write_bytes(path, b"old")

  def pieces():
    yield b"half of it"
    raise RuntimeError("the network is gone")

  with pytest.raises(RuntimeError):
    writing.write_stream(path, pieces())
  assert path.read_bytes() == b"old" and [p.name for p in bucket.iterdir()] == ["manifest.jsonl"]
  writing.write_stream(path, (b"n", b"ew"))
  assert path.read_bytes() == b"new" and [p.name for p in bucket.iterdir()] == ["manifest.jsonl"]


def test_what_a_kill_left_in_a_bucket_is_removed(bucket):
  writing.write_bytes(bucket / "a.png", b"whole")
  (bucket / ".b.png.0123456789ab.part").write_bytes(b"half")
  writing.remove_unfinished(bucket)
  writing.remove_unfinished(bucket / "none")
  assert [p.name for p in bucket.iterdir()] == ["a.png"]


def test_a_lease_keeps_a_second_process_out_of_a_bucket(bucket, monkeypatch):
  monkeypatch.setattr(lease, "_SETTLE", 0.0)
  monkeypatch.setattr(lease, "BEAT", 0.05)
  with lease.hold(bucket, "training") as held:
    with pytest.raises(ValueError, match="is in use"), lease.hold(bucket, "training"):
      pass
    time.sleep(0.2)
    held.check()
    assert json.loads((bucket / lease.NAME).read_text())["beats"] > 0
  assert not (bucket / lease.NAME).exists()


def test_a_folder_under_a_file_is_refused_before_the_work(tmp_path):
  writing.check_writable(tmp_path / "not" / "yet")
  assert not list(tmp_path.iterdir())
  (tmp_path / "file").write_text("x")
  with pytest.raises(NotADirectoryError) as found:
    writing.check_writable(tmp_path / "file" / "report")
  text, code = errors._sentence(found.value)
  assert code == 2 and text == f"{tmp_path / 'file'} lies under a file, not under a folder: use another folder"
