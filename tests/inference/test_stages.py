"""Which stages go together, and what they can be asked for."""

import numpy as np
import pytest

from retree_jax import checkpoint, generate
from retree_jax.inference import pairs
from tests.inference.test_generate import models


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
