"""A reader finds the old file or the new one, whatever happens in between."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from retree_jax.data import writing


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
