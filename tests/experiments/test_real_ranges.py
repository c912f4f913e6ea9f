"""The ranges of real eyes: what the command writes is what the page reads, from the train split alone."""

import json

import numpy as np
import pytest

from experiments import real_ranges
from retree_jax.data import phantom, reduction, writing
from retree_jax.page import measures
from retree_jax.report import measure


def test_the_command_writes_the_ranges_of_the_training_eyes(tmp_path, monkeypatch):
  for seed in range(4):
    eye = phantom.eye(seed, (256, 256))
    writing.write_png(tmp_path / f"eyes/images/{seed}.png", eye["image"])
    writing.write_png(tmp_path / f"eyes/masks/{seed}.png", np.where(eye["tree"] >= 128, 255, 0).astype(np.uint8))
  writing.write_json(tmp_path / "eyes/splits.json", {"train": list("023"), "test": ["1"]})
  spec, out = f"folder:{tmp_path / 'eyes'}", tmp_path / "ranges.json"
  monkeypatch.setattr(measure, "SIZES", (256, 128))
  monkeypatch.setattr("sys.argv", ["real_ranges", f"--real={spec}", f"--out={out}"])
  real_ranges.main()
  found = json.loads(out.read_text())
  assert set(found) == set(measures.ranges())
  assert found["eyes"] == "3 of eyes" and found["split"] == "train" and found["mask_rule"] == reduction.RULE
  assert found["command"] == f"python -m experiments.real_ranges --real {spec} --out {out}"
  assert set(found["sizes"]) == {"256", "128"} and set(found["sizes"]["256"]) == set(measures.MEASURES)
  # A vessel is twice as long in pixels of half the size.
  assert 1.7 < found["sizes"]["256"]["length"]["median"] / found["sizes"]["128"]["length"]["median"] < 2.3


def test_a_measure_that_no_eye_has_is_told(tmp_path):
  eye = phantom.eye(0, (64, 64))
  writing.write_png(tmp_path / "images/a.png", eye["image"])
  writing.write_png(tmp_path / "masks/a.png", np.where(eye["tree"] >= 255, 255, 0).astype(np.uint8))
  writing.write_json(tmp_path / "splits.json", {"train": ["a"], "test": []})
  with pytest.raises(ValueError, match="no eye of .* has a branching angle at 512 pixels: give more eyes"):
    real_ranges.collect(f"folder:{tmp_path}")
