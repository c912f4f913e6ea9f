"""--mode evaluate: the run's own data unless others are named, every held-out example, and no change without effect."""

import json

import jax
import numpy as np
import pytest

from retree_jax import checkpoint, sharding, tasks, train
from retree_jax.cli import stages
from retree_jax.data import examples, pipeline, sources
from tests import small

SOURCE = "phantom:12+phantom:5"  # 2 and 1 test examples, of two "cameras"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("evaluate") / "run"
  config = small.config(data__source=SOURCE, data__image_size=(32, 32), train__num_steps=2, evaluate__num=1)
  train.train(config, workdir, devices=jax.devices()[:1])
  return workdir


def test_every_test_example_of_the_runs_own_source_counts(run, capsys):
  scores = stages.evaluate("tree", run)
  assert json.loads(capsys.readouterr().out)["source"] == SOURCE
  assert json.loads((run / "evaluation.json").read_text())["scores"] == scores
  loaded = checkpoint.load(run)
  task = tasks.make(loaded.config)
  source = sources.at_size(sources.open_source(SOURCE, split="test", fields=("tree",)), (32, 32))
  assert len(source) == 3
  batches = pipeline.evaluation_batches(
    examples.Rows(source, [0, 2, 1]), size=(32, 32), batch_size=3, fit=loaded.config.data.fit, fields=task.fields
  )
  batch = {k: v for k, v in next(iter(batches)).items() if k in task.fields}
  wanted = task.evaluate(jax.device_put(loaded.params, sharding.make_mesh().devices.flat[0]), batch, np.arange(3))["loss"]
  assert scores["heldout_loss"] == pytest.approx(float(np.mean(wanted)), rel=1e-4)


def test_another_source_can_be_named(run, capsys):
  own = stages.evaluate("tree", run)
  other = stages.evaluate("tree", run, overrides={"data.source": "phantom:40"})
  assert json.loads((run / "evaluation.json").read_text())["source"] == "phantom:40"
  assert own != other == stages.evaluate("tree", run, source="phantom:40")


def test_a_run_whose_data_are_not_here_says_so(tmp_path):
  with pytest.raises(
    ValueError, match=r"CHASE_DB1.*\(the data that tree was trained on; name others with --config.data.source\)"
  ):
    stages.evaluate("tree", "tree")
  with pytest.raises(ValueError, match="NOWHERE") as error:
    stages.evaluate("tree", "tree", overrides={"data.source": "folder:NOWHERE"})
  assert "was trained on" not in str(error.value)


@pytest.mark.parametrize(
  "name, value", [("train.num_steps", 9), ("evaluate.num", 100), ("model.remat", True), ("data.fit", "pad")]
)
def test_changes_without_effect_are_refused(run, name, value):
  for mode, free in ((stages.evaluate, "data.source"), (stages.sample, r"sampler.\*")):
    with pytest.raises(
      ValueError, match=rf"--config.{name}={value!r} has no effect with --mode .*leave it out, only --config.{free} can"
    ):
      mode("tree", run, overrides={name: value})


def test_sampler_fields_without_effect_are_refused(run, tmp_path):
  with pytest.raises(ValueError, match="sampler.num_steps=3 has no effect with --mode evaluate"):  # the loss draws no samples
    stages.evaluate("tree", run, overrides={"sampler.num_steps": 3})
  with pytest.raises(ValueError, match="cut_share is read by `generate` alone"):
    stages.sample("tree", run, out=tmp_path, overrides={"sampler.cut_share": 0.5})
  with pytest.raises(ValueError, match="num_steps has no effect where .*add --config.sampler.spacing=trailing"):
    stages.sample("tree", run, out=tmp_path, overrides={"sampler.num_steps": 3, "sampler.spacing": "full"})
  assert not list(tmp_path.iterdir())


def test_the_runs_own_values_may_be_repeated(run, tmp_path):
  """So that the training command with another mode works."""
  repeated = {"train.num_steps": 2, "data.image_size": (32, 32), "model.widths": (8,), "data.source": SOURCE}
  stages.evaluate("tree", run, overrides=repeated)
  stages.sample("tree", run, num=1, out=tmp_path, overrides=repeated | {"sampler.num_steps": 3})
  assert json.loads((tmp_path / "run.json").read_text())
  with pytest.raises(ValueError, match="config.sampler of this run has no field 'eta2'"):
    stages.sample("tree", run, out=tmp_path, overrides={"sampler.eta2": 1})


@pytest.mark.parametrize("sizes, wanted", [((3,), [0, 1, 2]), ((1, 3, 2), [0, 1, 4, 2, 5, 3])])
def test_joined_sources_take_turns(sizes, wanted):
  source = sources.open_source("+".join(f"phantom:{5 * n}" for n in sizes), split="test")
  assert [len(p) for p in getattr(source, "parts", [source])] == list(sizes)
  assert examples.interleaved(source) == wanted


def test_selection_during_training_looks_at_every_camera():
  config = small.config(data__source="phantom:40+phantom:30", data__image_size=(32, 32))
  data = examples.Examples(config, None, ("tree",))
  (batch,) = data.fixed("heldout", 4, 4)
  first, second = (
    sources.open_source(spec, split="validation", fields=("tree",), size=(32, 32)) for spec in ("phantom:40", "phantom:30")
  )
  wanted = [first[0], second[0], first[1], second[1]]
  np.testing.assert_array_equal(batch["tree"], [eye["tree"] for eye in wanted])
  # In pieces, the same ones.
  pieces = list(data.fixed("heldout", 4, 3))
  assert [len(p["tree"]) for p in pieces] == [3, 1]
  np.testing.assert_array_equal(np.concatenate([p["tree"] for p in pieces]), batch["tree"])
