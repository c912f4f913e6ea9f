"""The ranges of real eyes: what the command writes is what the page reads, from the train split alone."""

import json

import numpy as np

from retree_jax.data import phantom, reduction, writing
from retree_jax.page import measures
from retree_jax.report import measure
from tests import small


def test_the_command_writes_the_ranges_of_the_training_eyes(tmp_path):
  for seed in range(5):
    eye = phantom.eye(seed, (256, 256))
    writing.write_png(tmp_path / f"eyes/images/{seed}.png", eye["image"])
    writing.write_png(tmp_path / f"eyes/masks/{seed}.png", np.where(eye["tree"] >= 128, 255, 0).astype(np.uint8))
  writing.write_json(tmp_path / "eyes/splits.json", {"train": list("0234"), "test": ["1"]})
  out = tmp_path / "ranges.json"
  spec = f"folder:{tmp_path / 'eyes'}"
  small.finish(small.start("-m", "experiments.real_ranges", f"--real={spec}", f"--out={out}"))
  found = json.loads(out.read_text())
  assert set(found) == set(measures.ranges())
  assert found["eyes"] == "4 of eyes" and found["mask_rule"] == reduction.RULE
  assert found["command"] == f"python -m experiments.real_ranges --real {spec} --out {out}"
  assert set(found["sizes"]) == {str(side) for side in measure.SIZES}
  assert set(found["sizes"]["64"]) == set(measures.MEASURES)
