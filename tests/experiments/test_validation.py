"""The validation experiment: equal terms for all arms, tables that follow from the scores, and a small run from end to end."""

import functools
import importlib.util
import json
import pathlib
import time

import numpy as np
import pytest

from experiments import validation
from retree_jax.config import defaults
from retree_jax.data import phantom, sources, writing

ROOT = pathlib.Path(__file__).resolve().parents[2]


@functools.cache
def _module():
  spec = importlib.util.spec_from_file_location("segmentation_config", ROOT / "configs" / "segmentation.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def small():
  c = _module().get_config("tiny")
  c.data.update(image_size=(32, 32), num_threads=1)
  c.crop.update(size=16, num=1)
  c.model.update(widths=(4,), bottleneck=(4,), patch=1)
  c.train.update(batch_size=8, ema_decay=0.5)
  c.sampler.update(overlap=4, flips=1)
  c.log.update(every=1, tensorboard=False)
  c.checkpoint.every = 1000
  return c


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
  """Folders of pairs: "real" (3 + 2), "other" (1 + 2) and "generated" (4 + 2)."""
  root = tmp_path_factory.mktemp("sets")
  for start, (name, count) in enumerate({"real": 5, "other": 3, "generated": 6}.items()):
    stems = [f"eye_{k}" for k in range(count)]
    for k, stem in enumerate(stems):
      eye = phantom.eye(100 * start + k, (40, 40), binary=True)
      for kind, field in (("images", "image"), ("masks", "tree"), ("fov", "fov")):
        writing.write_png(root / name / kind / f"{stem}.png", eye[field])
    writing.write_json(root / name / "splits.json", {"train": stems[:-2], "test": stems[-2:]})
  return {p.name: f"folder:{p}" for p in root.iterdir()}


def plan_of(sets, **changes):
  tests = {"real": sets["real"], "other": sets["other"]}
  return validation.Plan(
    **{
      "name": "real",
      "real": sets["real"],
      "generated": sets["generated"],
      "tests": tests,
      "steps": 5,
      "seeds": (0,),
      "fidelity": 1,
      **changes,
    }
  )


def test_all_arms_take_the_same_number_of_steps(sets):
  config, plan = small(), plan_of(sets, steps=7)
  for arm in validation.ARMS:
    made = validation.phases(plan, arm, config)
    assert sum(c.train.num_steps for _, c in made) == 7
    for _, c in made:
      assert c.model == config.model and c.train.batch_size == config.train.batch_size and c.loss == config.loss
      assert c.optimizer.decay_steps == c.train.num_steps
      strong = c.data.augment == config.data.augment
      assert strong == (arm == "real_strong") and (strong or c.data.augment == defaults.augmentation())
  used = {arm: [c.data.source for _, c in validation.phases(plan, arm, config)] for arm in validation.ARMS}
  assert used["finetune"] == [sets["generated"], sets["real"]]
  assert used["real"] == used["real_strong"] == [sets["real"]] and used["generated"] == [sets["generated"]]


def test_the_mixture_draws_real_and_generated_pairs_equally_often(sets):
  for real in (sets["real"], f"{sets['real']}*3+{sets['other']}"):
    opened = sources.open_source(validation.even_mixture(real, sets["generated"]), split="train")
    drawn = {}
    for weight, part in zip(opened.weights, opened.parts, strict=True):
      drawn[part.title == "generated"] = drawn.get(part.title == "generated", 0) + weight * len(part)
    np.testing.assert_allclose(drawn[True], drawn[False], rtol=1e-5)
  with pytest.raises(ValueError, match="into one folder"):
    validation.even_mixture(sets["real"], f"{sets['generated']}*2")


def _write_scores(out, arm, seed, f1s):
  result = {}
  for test, values in f1s.items():
    mean = float(np.mean(list(values.values())))
    result[test] = {p: dict.fromkeys(("f1", "auc", "cldice", "mcc"), mean) for p in ("native", "paper")} | {"images": values}
  writing.write_json(out / "scores" / f"{arm}-{seed}.json", result)


def test_tables_follow_from_the_scores(sets, tmp_path):
  plan = plan_of(sets, seeds=(0, 1, 2), arms=("real", "both", "generated"))
  for seed, f1 in enumerate((0.70, 0.72)):
    _write_scores(tmp_path, "real", seed, {"real": {"a": f1 - 0.1, "b": f1 + 0.1}, "other": {"c": 0.5}})
  # Better by .02 on a and by .04 on b; the third seed has no partner in `real`.
  _write_scores(tmp_path, "both", 0, {"real": {"a": 0.62, "b": 0.84}, "other": {"c": 0.4}})
  _write_scores(tmp_path, "both", 2, {"real": {"a": 0.9, "b": 0.9}, "other": {"c": 0.9}})
  results = validation.collect(plan, tmp_path)
  f1 = results["scores"]["real"]["real"]["native"]["f1"]
  assert f1["mean"] == pytest.approx(0.71) and f1["std"] == pytest.approx(0.02 / 2**0.5)
  gain = results["gain"]["real"]["both"]
  assert gain["mean"] == pytest.approx(0.03) and gain["seeds"] == [0] and gain["count"] == 2
  assert 0.02 - 1e-9 <= gain["low"] <= gain["mean"] <= gain["high"] <= 0.04 + 1e-9
  assert results["gain"]["other"]["both"]["mean"] == pytest.approx(-0.1)
  assert results["gain"]["other"]["both"]["low"] is None  # one photograph has no interval
  assert "generated" not in results["scores"]["real"] and results["fidelity"] is None
  text = validation.markdown(json.loads(json.dumps(results, allow_nan=False)))
  assert "| real | 2 | 0.710 ± 0.014 |" in text and "+0.030 [+0.020, +0.040] |" in text and "-0.100 |" in text
  assert "Not finished: real (1 of 3 seeds), both (1 of 3 seeds), generated (3 of 3 seeds)" in text


def test_a_small_run_from_end_to_end_is_resumed_and_never_mixed(sets, tmp_path):
  plan = plan_of(sets, arms=("real", "finetune"), steps=4)
  early = validation.run(plan, small(), tmp_path, deadline=time.monotonic() - 1)
  assert early["seeds"] == {"real": [], "finetune": []}
  results = validation.run(plan, small(), tmp_path)
  folder = tmp_path / "real"
  assert results["seeds"] == {"real": [0], "finetune": [0]} and results["fidelity"]["photographs"] == 1
  for test in ("real", "other"):
    for arm in ("real", "finetune"):
      assert 0 <= results["scores"][test][arm]["native"]["f1"]["mean"] <= 1
  steps = {p.parent.parent.name: int(p.name) for p in folder.glob("runs/finetune-0/*/checkpoints/[0-9]*")}
  assert steps == {"pretrain": 2, "finetune": 2}
  stored = json.loads((folder / "runs/finetune-0/finetune/config.json").read_text())
  assert stored["train"]["start_from"].endswith("finetune-0/pretrain")
  # What is done stays done, whatever the time; results are the same.
  when = (folder / "scores" / "real-0.json").stat().st_mtime_ns
  assert validation.run(plan, small(), tmp_path, deadline=time.monotonic() - 1)["scores"] == results["scores"]
  assert (folder / "scores" / "real-0.json").stat().st_mtime_ns == when
  assert (folder / "RESULTS.md").read_text().startswith("# What generated pairs are worth: real")
  with pytest.raises(ValueError, match="another experiment .steps differ"):
    validation.run(plan_of(sets, steps=6), small(), tmp_path)
  facts = json.loads((folder / "experiment.json").read_text())["data"]
  assert set(facts) == {"real", "generated", "test real", "test other"}
  with pytest.raises(ValueError, match="another experiment .data differ"):  # new pairs in the same folder
    validation._claim(folder, plan, small(), facts | {"generated": "0"})


def test_sets_with_one_title_are_told_apart():
  assert validation._titled(["phantom:4", "phantom:5", "phantom:4"]) == {"phantom": "phantom:4", "phantom 2": "phantom:5"}


def test_impossible_plans_say_what_to_write(sets, tmp_path):
  with pytest.raises(ValueError, match="no arm 'magic': use some of real"):
    plan_of(sets, arms=("magic",))
  with pytest.raises(ValueError, match="2 or more"):
    plan_of(sets, steps=1)
  with pytest.raises(ValueError, match="1 or more"):
    plan_of(sets, seeds=())
  with pytest.raises(ValueError, match="does not exist"):
    validation.run(plan_of(sets, generated=f"folder:{tmp_path / 'none'}"), small(), tmp_path)
