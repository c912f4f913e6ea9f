"""Centrelines of drawn shapes: where they lie, how they hang together, what is pruned."""

import numpy as np
import pytest

from retree_jax.metrics import skeleton
from tests.shapes import arc, circle, draw, fork, line, star

TURNS = [0, 17, 45, 73]


def _middle(size=256):
  return (size - 1) / 2 + np.array([0.3, 0.2])


@pytest.mark.parametrize("degrees", TURNS)
def test_centreline_of_a_line_lies_on_it(degrees):
  found = skeleton.trace(draw(line(180), 5, degrees))
  assert len(found.segments) == 1 and len(found.nodes) == 0
  segment, angle = found.segments[0], np.radians(degrees)
  normal = np.array([np.cos(angle), np.sin(angle)])
  off = (segment.points - _middle()) @ normal
  assert np.abs(off[5:-5]).max() < 0.4
  assert (segment.start, segment.end, segment.closed) == (-1, -1, False)


@pytest.mark.parametrize("degrees", TURNS)
def test_centreline_of_a_circle_is_closed_and_keeps_its_radius(degrees):
  found = skeleton.trace(draw(circle(80), 6, degrees))
  assert len(found.segments) == 1 and found.segments[0].closed
  radius = np.linalg.norm(found.segments[0].points - _middle(), axis=1)
  assert radius.mean() == pytest.approx(80, abs=0.1) and np.abs(radius - 80).max() < 0.5
  assert found.segments[0].length() == pytest.approx(2 * np.pi * 80, rel=0.01)
  assert 2 * found.segments[0].half_widths.mean() == pytest.approx(6, abs=0.15)


@pytest.mark.parametrize("degrees", TURNS)
def test_fork_has_one_node_where_its_arms_meet(degrees):
  found = skeleton.trace(draw(fork(80, 90), 5, degrees))
  assert len(found.nodes) == 1 and len(found.segments) == 3
  assert np.linalg.norm(found.nodes[0] - _middle()) < 3
  assert all((segment.start < 0) != (segment.end < 0) for segment in found.segments)


@pytest.mark.parametrize("degrees", TURNS)
def test_bumps_are_pruned_and_branches_stay(degrees):
  smooth = line(180)[0]
  bump = np.array([[0, 0], [6, 0]])  # leaves the wall of a vessel of 9 px by 1.5 + half its own 3 px
  mask = draw([smooth], 9, degrees) | draw([bump], 3, degrees)
  assert len(skeleton.trace(mask).segments) == 1
  branch = draw([smooth], 9, degrees) | draw([np.array([[0, 0], [30, 0]])], 3, degrees)
  assert len(skeleton.trace(branch).segments) == 3


def test_pieces_are_counted_apart():
  arms = draw([np.array([[-60, -50], [-60, 50]]), np.array([[60, -50], [60, 50]])], 4)
  found = skeleton.trace(arms | draw(star([(30, 20), (150, 20), (270, 20)]), 3))
  assert len(found.segments) == 5 and len(found.nodes) == 1


def test_smoothing_keeps_lines_and_parabolas_and_end_points():
  t = np.arange(60.0)
  straight = np.stack([t, 0.3 * t], 1)
  bent = np.stack([t, 0.01 * t**2], 1)
  both = np.concatenate([straight, bent])
  found = skeleton.smooth(both, np.array([60, 60]), np.array([False, False]), 3.0)
  np.testing.assert_allclose(found[:60], straight, atol=1e-9)
  np.testing.assert_allclose(found[60 + 16 : -16], bent[16:-16], atol=1e-3)
  np.testing.assert_allclose(found[[60, -1]], bent[[0, -1]], atol=1e-9)
  noisy = straight + np.random.default_rng(0).normal(size=straight.shape)
  calm = skeleton.smooth(noisy, np.array([60]), np.array([False]), 3.0)
  assert np.std((calm - straight)[16:-16]) < 0.6


@pytest.mark.parametrize("mask", [np.zeros((20, 20)), np.ones((20, 20)), np.ones((1, 1)), np.eye(2)])
def test_odd_maps_have_a_skeleton_all_the_same(mask):
  found = skeleton.trace(mask)
  assert found.pixels.shape == mask.shape
  assert bool(found.segments or len(found.nodes)) == bool(mask.any())


def test_mask_at_the_frame_is_traced_to_the_frame():
  mask = np.zeros((60, 60), bool)
  mask[28:33] = True
  found = skeleton.trace(mask)
  assert len(found.segments) == 1
  points = found.segments[0].points
  assert points[:, 1].min() < 3 and points[:, 1].max() > 56
  # Thinning ends in one of the square end's corners: half the vessel's width is its own affair.
  np.testing.assert_allclose(points[3:-3, 0], 30, atol=0.3)


def test_pruned_pixels_are_a_subset_of_the_thinning():
  mask = draw(arc(80, 200), 7, 20)
  assert not (skeleton.trace(mask).pixels & ~skeleton.skeletonize(mask)).any()
  assert not skeleton.skeletonize(np.zeros((5, 5))).any()
