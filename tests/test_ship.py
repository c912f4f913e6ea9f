"""Weights for the package carry no path of the machine that trained them, and load by their folder."""

import jax
import numpy as np

from experiments import ship
from retree_jax import checkpoint, models, train
from tests import small


def test_paths_are_cut_down_to_their_last_part():
  given = {"data": {"source": "folder:/a/b/CHASE_DB1*2+folder:c/HRF+phantom:20"}, "seed": 3, "loss": {"file": "/x/vgg.npz"}}
  assert ship.without_paths(given) == {
      "data": {"source": "folder:CHASE_DB1*2+folder:HRF+phantom:20"}, "seed": 3, "loss": {"file": "vgg.npz"}}


def test_shipped_weights_are_the_last_average_at_16_bits(monkeypatch, tmp_path):
  monkeypatch.setattr(models, "build", small.Toy)
  config = small.config(train__num_steps=3, checkpoint__every=1)
  state = train.train(config, tmp_path / "run", arrays=small.arrays(), devices=jax.devices()[:1])
  assert ship.ship("tree", tmp_path / "run", folder=tmp_path / "weights") > 0
  loaded = checkpoint.load(tmp_path / "weights" / "tree", stage="tree")
  assert loaded.step == 3
  for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(state.ema), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2**-8)
