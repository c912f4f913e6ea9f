"""Several trees for each pair, of which the one is taken that measures most like what is asked for."""

import numpy as np
import pytest

from retree_jax import generate
from retree_jax.inference import host_work, pairs
from tests.inference.test_generate import Draws, judge_by, loaded, mesh_of


class Deaf(Draws):
  """Draws trees whatever is asked for."""

  def apply(self, params, x, t, cond=None, attributes=None):
    return super().apply(params, x, t, cond)


def deaf():
  stage = loaded("tree", Deaf(), ("tree",))
  stage.config.data.attributes = ("density",)
  return generate.Models(stage)


def drawn(candidates, indices=range(6), ask=None, **options):
  generator = generate.Generator(deaf(), ask={"density": 0.3}, ask_guidance=1.0, candidates=candidates, **options)
  return generator.trees(np.array(indices), 0, ask)


def densities(fields):
  masks = np.uint8(255) * (fields["tree"] >= 128)
  return np.array([host_work.measure(mask, fov)["density"] for mask, fov in zip(masks, fields["fov"], strict=True)])


def test_the_candidate_nearest_to_what_is_asked_is_taken():
  first, records = drawn(1)
  assert "candidates" not in records[0] and "measured" not in records[0]
  np.testing.assert_array_equal(first["tree"], generate.Generator(deaf()).trees(np.arange(6), 0)[0]["tree"])
  fields, records = drawn(6)
  off = [np.abs(densities(found) - 0.3) for found in (first, drawn(2)[0], fields)]
  assert (off[1] <= off[0]).all() and (off[2] <= off[1]).all() and (off[2] < off[0]).any()
  assert [record["candidates"] for record in records] == [6] * 6
  np.testing.assert_allclose([record["measured"]["density"] for record in records], densities(fields), atol=1e-6)


def test_the_choice_depends_on_the_number_of_the_pair_alone():
  whole, records = drawn(4)
  some, of_some = drawn(4, [5, 2], mesh=mesh_of(8))
  for name, pixels in some.items():
    np.testing.assert_array_equal(pixels, whole[name][[5, 2]])
  assert of_some == [records[5], records[2]]


def test_a_tree_that_the_filter_refuses_is_not_chosen_for_its_measure():
  """Trees of more than a third vessel are refused, though more is asked for."""
  dense = judge_by(lambda tree: 1.0 - (tree >= 128).mean(), 2 / 3)
  models = generate.Models(deaf().tree, tree_filter=dense)
  one = generate.Generator(models, ask={"density": 0.9}, ask_guidance=1.0, candidates=1).trees(np.arange(8), 0)[1]
  six = generate.Generator(models, ask={"density": 0.9}, ask_guidance=1.0, candidates=6).trees(np.arange(8), 0)[1]
  accepted = [np.array([record["accepted"] for record in records]) for records in (one, six)]
  assert not accepted[0].all() and accepted[1][accepted[0]].all() and accepted[1].sum() > accepted[0].sum()


def test_every_tree_can_be_asked_for_something_of_its_own():
  asked = [{"density": value} for value in (0.05, 0.9, 0.05, 0.9, 0.05, 0.9)]
  found = densities(drawn(8, ask=asked)[0])
  assert found[::2].max() < found[1::2].min()


def test_tortuosity_alone_takes_several_by_default(tmp_path):
  models = deaf()
  models.tree.config.data.attributes = ("density", "tortuosity")
  counts = [generate.Generator(models, ask=ask).candidates for ask in ({}, {"density": 0.1}, {"tortuosity": 1.05})]
  assert counts == [1, 1, pairs.CANDIDATES]
  assert generate.Generator(models, ask={"tortuosity": 1.05}, candidates=2).candidates == 2


def test_candidates_without_a_wish_are_refused(capsys):
  with pytest.raises(ValueError, match="give --ask, or leave --ask_candidates out"):
    generate.main(["generate", "--ask_candidates=4", "--num=1", "--out=unused"])
