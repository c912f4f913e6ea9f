"""Gaps and holes close, spurs and specks go, all counted; what lies side by side stays apart."""

import numpy as np
import pytest

from retree_jax.data import mending
from retree_jax.metrics.topology import betti_numbers
from tests import shapes


def counted(**counts):
  return {"gaps": 0, "holes": 0, "spurs": 0, "specks": 0} | counts


def broken(gap, width=3.0, degrees=0.0):
  """A line in two parts with about so many empty pixels between them."""
  half = (gap + width) / 2  # round ends do not reach further than the path
  left, right = np.array([[0.0, -80.0], [0.0, -half]]), np.array([[0.0, half], [0.0, 80.0]])
  return shapes.draw([left, right], width - 1, degrees)


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 133])
@pytest.mark.parametrize("width", [2.0, 3.0, 6.0])
def test_a_gap_of_a_few_pixels_is_closed_at_the_vessels_width(width, degrees):
  mask = broken(2, width, degrees)
  assert betti_numbers(mask)[0] == 2
  mended, counts = mending.mend(mask, speck=0, gap=6)
  assert counts == counted(gaps=1) and betti_numbers(mended) == (1, 0)
  assert mended.dtype == np.uint8 and set(np.unique(mended)) == {0, 255}
  assert (mended[mask] == 255).all()
  added = int((mended > 0).sum() - mask.sum())
  assert 1 <= added <= 4.5 * width  # no wider than the vessel over the gap
  untouched, counts = mending.mend(broken(14, width, degrees), speck=0, gap=6)
  assert counts["gaps"] == 0 and betti_numbers(untouched)[0] == 2


def test_an_end_beside_another_vessel_stays_apart_and_one_that_points_at_it_is_joined():
  beside = shapes.draw([np.array([[0, -80.0], [0, 80.0]]), np.array([[6.0, -60.0], [6.0, 10.0]])], 2)
  same, counts = mending.mend(beside, speck=0, gap=6)
  assert counts["gaps"] == 0 and (same > 0).sum() == beside.sum()
  for start, closed in ((4.0, 1), (7.0, 0)):  # a side is reached over a third of the distance between two ends
    towards = shapes.draw([np.array([[0, -80.0], [0, 80.0]]), np.array([[start, 0.0], [60.0, 0.0]])], 2)
    mended, counts = mending.mend(towards, speck=0, gap=6)
    assert counts["gaps"] == closed and betti_numbers(mended) == (2 - closed, 0)
  assert mending.mend(broken(4), speck=0, gap=6)[1]["gaps"] == 1


def test_two_ends_that_face_each_other_are_one_gap_and_pieces_of_one_tree_make_no_loop():
  _, counts = mending.mend(broken(3), speck=0, gap=6)
  assert counts["gaps"] == 1
  hook = shapes.draw([np.array([[0, -40.0], [0, 40.0], [40.0, 40.0], [40.0, -40.0], [6.0, -40.0]])], 2)
  same, counts = mending.mend(hook, speck=0, gap=8)
  assert counts["gaps"] == 0 and betti_numbers(same) == (1, 0)


def test_pieces_below_the_given_size_are_removed_after_gaps_are_closed():
  mask = np.zeros((64, 64, 1), bool)
  mask[10, 5:40] = True
  mask[10, 42:45] = True  # three pixels, two from the vessel's end: a vessel's, and no speck
  mask[40:42, 20:23] = True  # six pixels
  mask[50, 50:57] = True  # seven
  mended, counts = mending.mend(mask, speck=7, gap=4)
  assert counts == counted(gaps=1, specks=1)
  assert mended.shape == (64, 64, 1) and (mended > 0).sum() == mask.sum() - 6 + 2
  assert not mended[40:42].any() and (mended[50, 50:57] == 255).all()


@pytest.mark.parametrize("degrees", [0, 30, 45])
def test_a_hole_smaller_than_the_vessel_is_filled_and_a_loop_is_not(degrees):
  vessel = shapes.draw([np.array([[0, -80.0], [0, 80.0]])], 9, degrees)
  middle = np.array(vessel.shape) // 2
  mask = vessel.copy()
  mask[middle[0] - 1 : middle[0] + 2, middle[1] - 1 : middle[1] + 2] = False  # 9 of some 60 pixels, and 3.5 left on either side
  mended, counts = mending.mend(mask, speck=0, gap=0)
  assert counts == counted(holes=1) and np.array_equal(mended > 0, vessel)
  loop = [np.array([[0, -80.0], [0, 0], [8.0, 8.0], [0, 16.0], [-8.0, 8.0], [0, 0]]), np.array([[0, 16.0], [0, 80.0]])]
  ring = shapes.draw(loop, 2, degrees)
  mended, counts = mending.mend(ring, speck=0, gap=0)
  assert counts == counted() and np.array_equal(mended > 0, ring)


@pytest.mark.parametrize("degrees", [0, 30, 45, 100])
@pytest.mark.parametrize("length, spurs", [(9.0, 1), (60.0, 0)])
def test_a_spur_goes_and_a_branch_stays(length, spurs, degrees):
  trunk = np.array([[0, -80.0], [0, 80.0]])
  straight = shapes.draw([trunk], 7, degrees)
  mask = straight | shapes.draw([np.array([[0, 0], [length, 0.0]])], 2, degrees)
  mended, counts = mending.mend(mask, speck=0, gap=0)
  assert counts == counted(spurs=spurs)
  if spurs:  # the wall is as before, to a few pixels
    assert ((mended > 0) & ~straight).sum() <= 6 and ((mended == 0) & straight).sum() <= 3
  else:
    assert np.array_equal(mended > 0, mask)


def test_a_short_branch_of_a_fork_is_no_spur():
  fork = shapes.draw([np.array([[0, -80.0], [0, 0], [40.0, 30.0]]), np.array([[0, 0], [-9.0, 7.0]])], 2)
  mended, counts = mending.mend(fork, speck=0, gap=0)
  assert counts == counted() and np.array_equal(mended > 0, fork)


def test_a_forked_end_keeps_its_longer_branch():
  mask = shapes.draw([np.array([[0, -80.0], [0, 0], [1.0, 16.0]]), np.array([[0, 0], [-8.0, 5.0]])], 4)
  mended, counts = mending.mend(mask, speck=0, gap=0)
  assert counts == counted(spurs=1) and betti_numbers(mended) == (1, 0)
  rows = np.argwhere(mended)[:, 0]
  middle = mask.shape[0] // 2
  assert rows.max() - middle <= 4 and middle - rows.min() <= 4


def test_nothing_in_nothing_out():
  for shape in ((8, 8), (1, 1), (8, 8, 1)):
    mended, counts = mending.mend(np.zeros(shape, np.uint8))
    assert mended.shape == shape and not mended.any() and counts == counted()
  full, counts = mending.mend(np.full((8, 8), 255, np.uint8))
  assert full.all() and counts == counted()
  with pytest.raises(ValueError, match="threshold it first"):
    mending.mend(np.arange(64, dtype=np.uint8).reshape(8, 8))
