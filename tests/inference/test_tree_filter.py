"""The tree filter: anatomy of drawn trees with known answers, bounds chosen and kept, a discriminator that learns."""

import importlib.util
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest

from retree_jax import checkpoint, models, tasks, train
from retree_jax.cli import stages as cli_stages
from retree_jax.data import generated_trees, image_io, transforms, writing
from retree_jax.inference import tree_filter
from tests import stages

SIZE = (48, 48)
DISC = (255 * (np.hypot(*(np.mgrid[:48, :48] - 23.5)) <= 24)).astype(np.uint8)[..., None]


def drawn(*boxes, size=SIZE):
  """A tree of filled boxes (top, bottom, left, right)."""
  tree = np.zeros((*size, 1), np.uint8)
  for top, bottom, left, right in boxes:
    tree[top:bottom, left:right] = 255
  return tree


# A root at the left where four vessels meet, and a trunk of 40 px to the right.
EYE = drawn((22, 26, 4, 12), (14, 34, 6, 9), (23, 25, 4, 44), (10, 38, 30, 31))


def get_config(variant):
  spec = importlib.util.spec_from_file_location("filter", pathlib.Path(__file__).parents[2] / "configs/filter.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def generated(folder, num=10, size=SIZE) -> str:
  """A folder of generated trees that no eye has: scattered dots."""
  rng = np.random.default_rng(0)
  for k in range(num):
    dots = (rng.random((*size, 1)) < 0.12) * np.uint8(255)
    writing.write_png(folder / f"coverage/{k:07d}.png", dots.astype(np.uint8))
  return str(folder)


def config(folder, **changes):
  c = get_config("tiny")
  c.data.update(source="phantom:6", image_size=SIZE, generated=str(folder))
  c.model.update(width=8, heads=1, head_width=4)
  c.train.update(batch_size=4, num_steps=25, ema_decay=0.5)
  c.optimizer.update(learning_rate=3e-3, warmup_steps=1)
  c.evaluate.update(every=25, num=2)
  c.preview.update(every=25, num=2)
  c.checkpoint.every = 25
  c.log.update(every=25, tensorboard=False)
  for name, value in changes.items():
    c.filter[name] = value
  return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A filter trained for a few seconds on phantom trees against dots."""
  root = tmp_path_factory.mktemp("filter")
  train.train(config(generated(root / "dots")), root / "run", devices=jax.devices()[:1])
  return root / "run"


def test_measures_of_drawn_trees():
  found = tree_filter.measures(EYE, DISC)
  inside = DISC[..., 0] > 0
  assert found["density"] == ((EYE[..., 0] > 0) & inside).sum() / inside.sum()
  assert found["components"] == 1 and found["largest"] == 1.0
  # The densest place is the root, 36 px from the trunk's right end; the disc is 48 px wide.
  assert found["trunk"] == pytest.approx(36 / 48, abs=0.06)
  # A second piece of 60 px; a gap of two pixels is bridged, one of three is not.
  apart = tree_filter.measures(drawn((22, 26, 10, 20), (36, 38, 10, 40)), DISC)
  assert apart["components"] == 2 and apart["largest"] == 60 / 100
  assert tree_filter.measures(drawn((20, 22, 8, 20), (20, 22, 22, 40)), DISC)["components"] == 1
  assert tree_filter.measures(drawn((20, 22, 8, 20), (20, 22, 23, 40)), DISC)["components"] == 2
  # Dots at the root and a long vessel elsewhere: the largest piece does not come from the root.
  crowd = [(y, y + 2, x, x + 2) for y in range(8, 24, 5) for x in range(18, 30, 5)]
  assert tree_filter.measures(drawn(*crowd, (40, 41, 6, 42)), DISC)["trunk"] == 0.0
  assert tree_filter.measures(drawn(), DISC) == {"density": 0.0, "components": 0, "largest": 0.0, "trunk": 0.0}
  # Vessels outside the disc do not count.
  assert tree_filter.measures(drawn((0, 3, 0, 3)), DISC)["density"] == 0.0


def test_ranges_reach_a_quarter_beyond_real_trees_and_say_why():
  real = [
    {"density": 0.10, "components": 2, "largest": 0.9, "trunk": 0.6},
    {"density": 0.14, "components": 6, "largest": 1.0, "trunk": 0.8},
  ]
  ranges = tree_filter.ranges_of(real)
  assert ranges == {"density": (0.09, 0.15), "components": (None, 7.0), "largest": (0.875, None), "trunk": (0.55, None)}
  assert tree_filter.outside(real[0], ranges) == "" == tree_filter.outside(real[1], ranges)
  assert tree_filter.outside(real[0] | {"density": 0.02}, ranges) == "density 0.02 is below 0.09"
  assert tree_filter.outside(real[0] | {"components": 12}, ranges) == "components 12 is above 7"
  assert tree_filter.outside(real[0] | {"trunk": 0.0}, ranges) == "trunk 0 is below 0.55"
  # However wide the range, there is a floor.
  wide = tree_filter.ranges_of([real[0] | {"density": 0.01, "trunk": 0.1}, real[1] | {"density": 0.2, "trunk": 0.9}])
  assert wide["density"] == (0.005, 0.2475) and wide["trunk"] == (0.05, None)


def test_it_learns_to_tell_trees_from_dots_and_the_threshold_is_chosen_on_held_out_ones(trained, caplog):
  lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
  scores = next(line for line in lines if "heldout_loss" in line)
  assert scores["heldout_real_score"] > scores["heldout_generated_score"] + 0.2
  assert len(list((trained / "previews").iterdir())) == 2
  with caplog.at_level(logging.INFO, logger="absl"):
    judge = tree_filter.load(trained)
  bounds = json.loads((trained / "threshold.json").read_text())
  assert f"score at least {bounds['threshold']:.4f}" in caplog.text  # never silent
  assert bounds["checkpoint"] == judge.loaded.identity() and "held-out real trees" in judge.bounds.how
  assert bounds["num_training"] == 6 and bounds["num_validation"] >= 1
  # The bounds are those of the real trees: all trained on lie in the ranges, the held-out ones reach the threshold.
  tree, fov = tree_filter._real(judge.loaded.config, "fit")
  assert not any(tree_filter.outside(tree_filter.measures(*pair), judge.bounds.ranges) for pair in zip(tree, fov, strict=True))
  held = judge(*tree_filter._real(judge.loaded.config, "validation"))
  assert min(v.score for v in held) == pytest.approx(judge.bounds.threshold) == bounds["threshold"]
  dots, rest = generated_trees.read(judge.loaded.config.data.generated, SIZE)
  assert len(dots) + len(rest) == 10 and len(rest) >= 1
  for verdict in judge(dots, np.full_like(dots, 255)):
    assert not verdict.accepted and verdict.reason
  assert bounds["generated_accepted"] == 0.0


def test_verdicts_do_not_depend_on_neighbours_and_any_size_will_do(trained):
  judge = tree_filter.load(trained, threshold=0.0)
  assert judge.bounds.how == "given by hand" and judge.bounds.threshold == 0.0
  tree, fov = tree_filter._real(judge.loaded.config, "fit")
  together = judge(tree, fov)
  assert together == [judge(tree[i : i + 1], fov[i : i + 1])[0] for i in range(len(tree))]
  assert all(v.accepted and v.reason == "" for v in together)
  large = np.repeat(np.repeat(tree, 2, 1), 2, 2)  # area averages bring it back exactly
  assert judge(large, np.repeat(np.repeat(fov, 2, 1), 2, 2)) == together
  impossible = tree_filter.load(trained, threshold=1.5)(tree[:1], fov[:1])[0]
  assert not impossible.accepted and impossible.reason == f"score {impossible.score:.4f} is below 1.5000"


def test_bounds_are_made_once_and_again_for_other_weights(trained, tmp_path):
  path = trained / "threshold.json"
  tree_filter.load(trained)
  bounds = json.loads(path.read_text())
  path.write_text(json.dumps(bounds | {"threshold": 0.123}))
  assert tree_filter.load(trained).bounds.threshold == 0.123  # read, not made again
  path.write_text(json.dumps(bounds | {"threshold": 0.123, "checkpoint": "another"}))
  assert tree_filter.load(trained).bounds.threshold == bounds["threshold"]
  path.write_text("{")
  with pytest.raises(ValueError, match="threshold.json is damaged"):
    tree_filter.load(trained)
  path.unlink()
  # Exported weights are rounded, so that their bounds are their own.
  tree_filter.export(trained, tmp_path / "small")
  small = tree_filter.load(tmp_path / "small")
  assert small.bounds.threshold == pytest.approx(tree_filter.load(trained).bounds.threshold, abs=0.02)
  assert json.loads((tmp_path / "small/threshold.json").read_text())["checkpoint"] == small.loaded.identity()


def test_without_its_data_it_asks_for_a_threshold(tmp_path, caplog):
  stages.tree_filter(tmp_path / "filter", 0.4, ranges={"density": (0.01, 0.5)})
  assert tree_filter.load(tmp_path / "filter").bounds.ranges == {"density": (0.01, 0.5)}
  (tmp_path / "filter/threshold.json").unlink()
  loaded = checkpoint.load(tmp_path / "filter")
  loaded.config.data.source = f"folder:{tmp_path / 'gone'}"
  checkpoint.export(loaded, tmp_path / "moved")
  with pytest.raises(ValueError, match="has no threshold yet, .*gone does not exist.*--filter_threshold"):
    tree_filter.load(tmp_path / "moved")
  judge = tree_filter.load(tmp_path / "moved", threshold=0.3)
  assert judge.bounds.threshold == 0.3 and judge.bounds.ranges == {} and "checks no anatomy" in caplog.text


def test_generated_trees_are_asked_for(tmp_path):
  with pytest.raises(ValueError, match="config.data.generated is empty.*retree_jax.generate --tree"):
    tasks.make(get_config("tiny"))
  with pytest.raises(ValueError, match="holds no trees in coverage/"):
    generated_trees.read(tmp_path, SIZE)
  generated(tmp_path / "dots", num=5, size=(96, 96))
  training, heldout = generated_trees.read(tmp_path / "dots", SIZE)
  assert len(training) + len(heldout) == 5 and training.shape[1:] == (*SIZE, 1)
  first = writing.epath.Path(tmp_path / "dots/coverage/0000000.png")
  whole = transforms.area_resize(np.asarray(image_io.decode(first.read_bytes(), "a"))[..., None], SIZE)
  assert any(np.array_equal(whole, tree) for tree in (*training, *heldout))


def test_what_a_step_draws_and_loses(tmp_path):
  t = tasks.make(config(generated(tmp_path / "dots")))
  state = t.init(jax.random.key(0))
  batch = {"tree": np.stack([EYE] * 4)}
  prepare = jax.jit(t.prepare)
  first, again, other = (prepare(batch, jax.random.fold_in(state.key, i)) for i in (0, 0, 1))
  np.testing.assert_array_equal(first["generated"], again["generated"])
  assert not np.array_equal(first["generated"], other["generated"])
  # The real trees are the batch's own, under noise of the configured strength.
  noise = np.asarray(first["real"]) - (batch["tree"] / 127.5 - 1.0)
  assert noise.std() == pytest.approx(0.1, rel=0.05) and abs(noise.mean()) < 0.01
  # Least squares of sigmoids that start near one half: (1/2)² + (1/2)².
  loss, metrics = jax.jit(t.loss)(state.params, first)
  assert float(loss) == pytest.approx(0.5, abs=0.15)
  assert float(loss) >= (1 - float(metrics["real_score"])) ** 2 + float(metrics["generated_score"]) ** 2 - 1e-6  # Jensen


@pytest.mark.parametrize("variant", ["", "tiny", "cpu", "paper"])
def test_every_variant_makes_a_network(variant):
  c = get_config(variant)
  network = models.build(c.model)
  network.check_size(*c.data.image_size)
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *c.data.image_size, 1), "float32")))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  if variant == "paper":
    assert c.filter.threshold == 0.8 and 6.43e6 < count < 6.45e6  # 6.44 million in the original
  else:
    assert 0 < c.filter.pass_rate < 1 and c.filter.threshold == 0


def test_a_finished_filter_is_scored_on_other_generated_trees(trained, tmp_path):
  """As where shipped weights name the folder of the machine that trained them."""
  fresh = generated(tmp_path / "moved", num=4)
  copy = tmp_path / "run"
  shutil.copytree(trained, copy)
  scores = cli_stages.evaluate("filter", copy, "phantom:6", overrides={"data.generated": fresh})
  assert scores["heldout_generated_score"] < scores["heldout_real_score"]
  with pytest.raises(ValueError, match="nowhere .*--config.data.generated"):
    cli_stages.evaluate("filter", copy, "phantom:6", overrides={"data.generated": str(tmp_path / "nowhere")})


def test_eyes_for_the_threshold_must_be_left(tmp_path):
  c = config(generated(tmp_path / "dots"))
  c.data.heldout = "test"
  with pytest.raises(ValueError, match="heldout='test' leaves no eyes .* use 'validation'"):
    tasks.make(c)
