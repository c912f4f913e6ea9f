"""Refinement in the chain: what is judged, painted and labelled is the refined tree, the same in any batch on any devices."""

import json
import multiprocessing

import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import generate
from retree_jax.data import reduction, transforms
from retree_jax.inference import dataset_writer, tree_filter
from tests import stages
from tests.inference.test_generate import loaded, mesh_of, models


class Refines:
  """A refinement network whose x0 is its coverage, as mask and as coverage."""

  settings = {"name": "refines"}

  def cpu_block(self, height, width):
    return 1

  def check_size(self, height, width, field="", factor=1):
    if height % 4:
      raise ValueError(f"not {height}")

  def apply(self, params, x, t, cond=None):
    coverage = params["scale"] * cond[..., :1]
    vessels = jnp.where(coverage > 0, 1.0, -1.0)
    return jnp.concatenate([vessels, coverage], -1)


def refiner(size=(32, 32)):
  stage = loaded("refine", Refines(), ("vessels", "tree"), ("tree", "fov"), size)
  stage.config.diffusion.update(condition_blur=0.0, condition_noise=0.0)
  stage.config.sampler.condition_level = 0.0
  return stage


def refined(judge=None, stages_=1):
  base = models(judge)
  return generate.Models(base.tree, base.fundus, None, judge, (refiner(),) * stages_)


def test_refined_trees_are_judged_painted_and_are_the_labels():
  plain = generate.pairs(models(), num=4)
  seen = []

  def judge(tree, fov):
    seen.append((tree.shape[1:], fov.shape[1:]))
    return [tree_filter.Verdict(True, 1.0, "")] * len(tree)

  generator = generate.Generator(refined(judge, 2))
  assert list(generator.samplers) == ["tree", "refine_32", "refine_64", "fundus"]
  fields, records = generator.trees(np.arange(4), 0)
  assert seen == [((32, 32, 1), (32, 32, 1))]  # the filter sees what the first refinement made
  assert {name: pixels.shape for name, pixels in fields.items()} == {n: (4, 64, 64, 1) for n in ("tree", "fov", "vessels")}
  assert set(np.unique(fields["vessels"])) == {0, 255}
  inside = fields["fov"] >= 128
  assert not fields["vessels"][~inside].any() and not fields["tree"][~inside].any()
  for record in records:
    assert record["gaps"] >= 0 and record["specks"] >= 0 and "attempt" not in record
  out = generator.photographs(fields, np.arange(4), 0)
  assert (
    out["image"].shape == (4, 16, 16, 3) and set(np.unique(out["tree"])) == {0, 255} and set(out) == {"image", "tree", "fov"}
  )
  # Masks are painted, not coverage: this fundus network shows in red what it is given.
  given = np.stack([transforms.area_resize(mask, (16, 16)) for mask in fields["vessels"]])[..., 0]
  where = out["fov"][..., 0] > 0
  assert np.abs(out["image"][..., 0].astype(int) - given)[where].mean() < 2
  # The layouts are those drawn without refinement.
  where &= plain["fov"][..., 0] > 0
  apart = [np.abs(given.astype(int) - np.roll(plain["tree"][..., 0], k, 0))[where].mean() for k in range(4)]
  assert apart[0] < 0.75 * min(apart[1:]), apart
  whole = generate.pairs(refined(), num=5, seed=2)
  some = generate.pairs(refined(), seed=2, indices=[4, 1], mesh=mesh_of(8))
  for name in ("image", "tree", "fov"):
    np.testing.assert_array_equal(some[name], whole[name][[4, 1]])
  assert some["records"] == [whole["records"][4], whole["records"][1]]


def test_a_refined_tree_without_a_fundus_stage_keeps_its_mask_and_its_coverage():
  m = refined()
  out = generate.pairs(generate.Models(m.tree, refine=m.refine), num=2)
  assert out["vessels"].shape == out["tree"].shape == out["fov"].shape == (2, 32, 32, 1)
  assert set(np.unique(out["fov"])) == {0, 255} == set(np.unique(out["vessels"]))


def test_refinement_needs_drawn_trees():
  with pytest.raises(ValueError, match="no tree stage to draw them: give --tree"):
    generate.Generator(generate.Models(fundus=models().fundus, refine=(refiner(),)))


def test_the_command_writes_the_masks_and_says_how_they_were_made(tmp_path, monkeypatch):
  from retree_jax.inference import pairs

  monkeypatch.setattr(pairs, "load_models", lambda **options: refined())
  dataset_writer.write({"tree": "t", "refine": "r", "fundus": "f"}, out=tmp_path / "out", num=3)
  rows = stages.manifest(tmp_path / "out")
  assert len(rows) == 3 and all(row["gaps"] >= 0 and row["specks"] >= 0 for row in rows)
  assert rows[0]["steps"] == {"tree": 2, "refine_32": 2, "fundus": 2}
  identity = json.loads((tmp_path / "out" / "run.json").read_text())["identity"]
  assert identity["mask_rule"] == reduction.RULE and set(identity["stages"]) == {"tree", "refine_32", "fundus"}
  assert f"({reduction.RULE})" in (tmp_path / "out" / "DATA_CARD.md").read_text()
  monkeypatch.setattr(pairs, "load_models", lambda **options: models())
  dataset_writer.write({"tree": "t", "fundus": "f"}, out=tmp_path / "plain", num=1)
  assert "mask_rule" not in (tmp_path / "plain" / "run.json").read_text()


def test_worker_processes_change_no_byte(tmp_path, monkeypatch):
  from retree_jax.inference import pairs

  monkeypatch.setattr(pairs, "load_models", lambda **options: refined())
  contents = []
  for workers in (0, 2):
    out = tmp_path / str(workers)
    dataset_writer.write({"tree": "t", "refine": "r", "fundus": "f"}, out=out, num=9, workers=workers)
    contents.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.suffix in (".png", ".jsonl")})
  assert contents[0] == contents[1] and len(contents[0]) > 27
  assert [row["index"] for row in stages.manifest(tmp_path / "2")] == list(range(9))
  assert not multiprocessing.active_children()
