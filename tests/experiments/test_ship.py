"""Weights for the package carry no path of the machine that trained them, and load by their folder."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import ship
from experiments.benchmarks import superres
from retree_jax import checkpoint, models, train
from retree_jax.cli import info
from retree_jax.data import sources
from tests import small


def test_paths_are_cut_down_to_their_last_part():
  given = {"data": {"source": "folder:/a/b/CHASE_DB1*2+folder:c/HRF+phantom:20"}, "seed": 3, "loss": {"file": "/x/vgg.npz"}}
  assert ship.without_paths(given) == {
    "data": {"source": "folder:CHASE_DB1*2+folder:HRF+phantom:20"},
    "seed": 3,
    "loss": {"file": "vgg.npz"},
  }


def test_shipped_weights_are_the_last_average_at_16_bits(monkeypatch, tmp_path):
  monkeypatch.setattr(models, "build", small.Toy)
  config = small.config(train__num_steps=3, checkpoint__every=1)
  state = train.train(config, tmp_path / "run", arrays=small.arrays(), devices=jax.devices()[:1])
  card = {"data": "24 drawn trees", "licence": "none", "scores": []}
  assert ship.ship("tree", tmp_path / "run", folder=tmp_path / "weights", card=card) > 0
  loaded = checkpoint.load(tmp_path / "weights" / "tree", stage="tree")
  assert loaded.step == 3
  for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(state.ema), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2**-8)
  facts = info.model(tmp_path / "weights" / "tree")
  assert facts["data"] == "24 drawn trees" and facts["step"] == 3


def test_the_command_changes_the_sampler(monkeypatch, tmp_path):
  monkeypatch.setattr(models, "build", small.Toy)
  train.train(small.config(train__num_steps=1), tmp_path / "run", arrays=small.arrays(), devices=jax.devices()[:1])
  monkeypatch.setattr(ship, "WEIGHTS", tmp_path / "weights")
  command = ["ship", "a=" + str(tmp_path / "run"), "b=" + str(tmp_path / "run"), "--sampler", "a.num_steps=3", "b.eta=0.5"]
  monkeypatch.setattr("sys.argv", command)
  ship.main()
  samplers = [checkpoint.load(tmp_path / "weights" / name).config.sampler for name in "ab"]
  assert samplers[0].num_steps == 3 and samplers[1].eta == 0.5 and samplers[1].num_steps != 3
  monkeypatch.setattr("sys.argv", [*command, "a=b"])
  with pytest.raises(ValueError, match="--sampler takes NAME.FIELD=VALUE"):
    ship.main()


@pytest.mark.parametrize("own_cut", [0.5, 0.4])
def test_super_resolution_is_cut_where_thin_vessels_of_training_eyes_stay(monkeypatch, own_cut):
  """A stage that gives every vessel a probability of .33 and its surroundings .22: the best cut lies between."""
  size, spec = (128, 128), "phantom:4"
  eyes = list(superres.pairs(sources.open_source(spec, split="train", fields=("image", "tree"), size=size), size, 9))
  answers = iter(eyes)

  class Enlarger:
    scale = 2

    def __init__(self, config, network):
      self.size, self.cut = size, config.sampler.mask_threshold

    def __call__(self, params, small):
      real = next(answers)
      assert small["tree"].shape == (1, 64, 64, 1)
      odds = np.where(real["tree"] >= 128, 0.33 / 0.67, 0.22 / 0.78) * (1 - self.cut) / self.cut
      return {"tree": np.round(255 * odds / (1 + odds)).astype(np.uint8)}

  monkeypatch.setattr(superres, "Enlarger", Enlarger)
  loaded = checkpoint.Loaded(ConfigDict({"sampler": {"mask_threshold": own_cut}}), {}, None, 0, "")
  scores = superres.choose_cut(loaded, spec)
  assert loaded.config.sampler.mask_threshold == own_cut
  best = [cut for cut, score in scores.items() if score > 0.999]
  assert best == [cut for cut in superres.CUTS if 0.22 < cut < 0.33]
  assert scores[0.5] == 0 and 0 < scores[0.2] < 0.9
