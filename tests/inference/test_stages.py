"""Which stages go together, and what they can be asked for."""

import numpy as np
import pytest

from retree_jax import checkpoint, generate
from retree_jax.inference import pairs
from tests.inference.test_generate import Paints, loaded, models


def test_outlines_are_drawn_in_the_share_that_is_asked_for():
  shipped = generate.Models(checkpoint.load("tree"))
  drawn = {
    share: [generate.Generator(shipped, cut_share=share)._asked(k, 0)["outline"] for k in range(400)] for share in (0.3, 0.8)
  }
  for share, outlines in drawn.items():
    assert abs(np.mean(outlines) - share) < 3 * np.sqrt(share * (1 - share) / 400)
  assert all(few <= many for few, many in zip(*drawn.values(), strict=True))  # the eyes that were cut still are
  for wanted, options in (
    ("no share: give a number from 0", {"cut_share": 1.5}),
    ("contradict each other", {"cut_share": 0.5, "ask": {"outline": 1.0}}),
  ):
    with pytest.raises(ValueError, match=wanted):
      generate.Generator(shipped, **options)
  with pytest.raises(ValueError, match="knows outlines: leave it out"):
    generate.Generator(models(), cut_share=0.5)


def test_what_else_is_asked_for_chooses_the_outline_unless_a_share_is_given():
  shipped = generate.Models(checkpoint.load("tree"))
  assert "outline" in generate.Generator(shipped)._asked(0, 0)
  assert generate.Generator(shipped, ask={"width": 3.0})._asked(0, 0) == {"width": 3.0}
  assert set(generate.Generator(shipped, ask={"width": 3.0}, cut_share=0.5)._asked(0, 0)) == {"width", "outline"}


def test_measures_that_are_asked_for_are_exaggerated_by_default():
  shipped = generate.Models(checkpoint.load("tree"))
  for options, scale in (
    ({}, 1.0),
    ({"ask": {"side": 1.0, "outline": 0.0}}, 1.0),
    ({"ask": {"tortuosity": 1.06}}, 1.0),  # chosen among candidates: the network does not follow it
    ({"ask": {"side": 1.0, "density": 0.1}}, pairs.ASK_GUIDANCE),
    ({"ask": {"density": 0.1}, "ask_guidance": 1.5}, 1.5),
  ):
    assert generate.Generator(shipped, **options).samplers["tree"].config.sampler.guidance == scale


def test_stages_of_other_shapes_are_refused():
  tall = generate.Models(models().tree, loaded("fundus", Paints(), ("image",), ("tree", "fov"), size=(32, 16)))
  with pytest.raises(ValueError, match="tree stage works on 16x16 pixels and the fundus stage on 32x16, .* same ratio"):
    generate.Generator(tall)
  wide = generate.Models(models().tree, loaded("fundus", Paints(), ("image",), ("tree", "fov"), size=(32, 32)))
  assert generate.Generator(wide).samplers["fundus"].size == (32, 32)


def test_a_number_of_steps_is_for_samplers_that_do_not_take_all():
  full, mixed = models(spacing="full"), models()
  mixed.tree.config.sampler.spacing = "full"
  with pytest.raises(ValueError, match="--steps has no effect .* leave it out"):
    generate.Generator(full, num_steps=3)
  before = mixed.tree.config.sampler.num_steps
  samplers = generate.Generator(mixed, num_steps=before + 1).samplers
  assert samplers["tree"].config.sampler.num_steps == before and samplers["fundus"].config.sampler.num_steps == before + 1


def test_the_batch_size_changes_the_calls_and_not_the_pairs():
  one, many = (generate.Generator(models(), batch_size=n) for n in (1, 5))
  assert one.batch_size < many.batch_size
  for a, b in zip(one.trees(np.arange(5), 0)[0].values(), many.trees(np.arange(5), 0)[0].values(), strict=True):
    np.testing.assert_array_equal(a, b)
