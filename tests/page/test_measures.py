"""The measures of an eye beside real ones: the numbers of the evaluation, and places on the axis that tell the truth."""

import json
import math

import numpy as np
import pytest

from retree_jax.data import phantom, reduction
from retree_jax.metrics import vessels
from retree_jax.page import measures
from retree_jax.report import measure, sets


def test_the_values_are_those_of_the_evaluation():
  eye = phantom.eye(3, (300, 260))
  shown = measures.table(eye["image"], eye["tree"], eye["fov"])
  side = shown["size"]
  assert side in measure.SIZES and side < 300
  source = sets.ArraySource({k: eye[k][None] for k in ("image", "tree", "fov")}, "eye")
  (evaluated,) = measure.pairs(source, [0], (side, side), {}).biomarkers
  assert [row["name"] for row in shown["rows"]] == list(measures.MEASURES) and len(measures.MEASURES) == 12
  for row in shown["rows"]:
    value = float(row["value"].replace("−", "-"))
    assert math.isclose(value, evaluated[row["name"]], rel_tol=0.006)
    known = measures.ranges()["sizes"][str(side)][row["name"]]
    assert row["inside"] == (known["low"] <= evaluated[row["name"]] <= known["high"])
    assert row["inside"] == (row["low"] <= row["at"] <= row["high"]) or row["at"] in (0, 1)


def test_places_on_the_axis():
  known = {"low": 10.0, "median": 16.0, "high": 20.0}
  row = measures._row("width", 15.0, known)
  assert (row["low"], row["at"], row["median"], row["high"]) == (0.25, 0.5, 0.55, 0.75)
  assert row["inside"] and row["unit"] == "px" and row["range"] == "10.0 to 20.0"
  far = measures._row("width", 99.0, known)
  assert far["at"] == 1.0 and not far["inside"]
  missing = measures._row("branching_angle", math.nan, known)
  assert missing["at"] is None and not missing["inside"] and missing["value"] == "–" and missing["unit"] == ""
  same = measures._row("components", 1, {"low": 1.0, "median": 1.0, "high": 1.0})
  assert same["inside"] and same["value"] == "1"


def test_the_shipped_ranges_are_whole_and_of_the_rule_in_use():
  found = measures.ranges()
  assert found["mask_rule"] == reduction.RULE and found["split"] == "train"
  assert found["command"].startswith("python -m experiments.real_ranges --real ")
  assert set(found["sizes"]) == {str(side) for side in measure.SIZES}
  for table in found["sizes"].values():
    assert set(table) == set(measures.MEASURES) <= set(vessels.BIOMARKERS)
    for known in table.values():
      assert known["low"] <= known["median"] <= known["high"]


def test_ranges_of_another_rule_are_refused(tmp_path, monkeypatch):
  (tmp_path / "real_ranges.json").write_text(json.dumps(measures.ranges() | {"mask_rule": "old"}))
  monkeypatch.setattr(measures, "_FILE", tmp_path / "real_ranges.json")
  with pytest.raises(ValueError, match="made with the rule old: make it again with `python -m experiments.real_ranges"):
    measures.ranges.__wrapped__()


def test_the_spread_of_eyes_is_that_of_their_measures():
  eyes = [phantom.eye(seed, (128, 128)) for seed in range(4)]
  source = sets.ArraySource({k: np.stack([eye[k] for eye in eyes]) for k in ("image", "tree", "fov")}, "eyes")
  found = measures.spread(source, (128, 128))
  trees = measure.pairs(source, range(4), (128, 128), {}).biomarkers
  for name in ("density", "length", "components"):
    values = [tree[name] for tree in trees]
    assert math.isclose(found[name]["median"], np.median(values), rel_tol=1e-3)
    assert min(values) * 0.999 <= found[name]["low"] < found[name]["high"] <= max(values) * 1.001
