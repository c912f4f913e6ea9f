"""Stages whose answers are known, in place of trained ones."""

import pytest

from retree_jax import generate
from retree_jax.inference import tree_filter
from tests.inference import test_generate

ALL = {"tree": "t", "fundus": "f", "superres": None, "filter_path": "d"}


class Judge:
  """A filter with the real one's face: keeps trees that are dark enough."""

  bounds = tree_filter.Bounds(0.5, {"density": (0.1, None)}, "by hand, for a test")
  loaded = test_generate.loaded("filter", test_generate.Draws(), ("tree",))

  def __call__(self, tree, fov):
    return test_generate.judge_by(lambda t: 1 - t.mean() / 255.0, 0.62)(tree, fov)


@pytest.fixture
def toys(monkeypatch):
  """Stages whose answers are known, in place of checkpoints."""

  def load(tree=None, fundus=None, superres=None, filter_path=None, threshold=None, mesh=None, refine=None, detail=None):
    every = test_generate.models(Judge())
    return generate.Models(
      *(
        model if path else None
        for path, model in zip(
          (tree, fundus, superres, filter_path), (every.tree, every.fundus, None, every.tree_filter), strict=True
        )
      )
    )

  monkeypatch.setattr("retree_jax.inference.pairs.load_models", load)
