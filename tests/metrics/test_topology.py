"""Betti numbers and box-counting dimensions of drawn shapes."""

import math

import numpy as np
import pytest
from skimage import measure

from retree_jax.metrics.topology import betti_numbers, box_dimension
from tests.shapes import circle, draw, koch, line


def test_betti_numbers_of_drawn_shapes():
  mask = np.zeros((40, 60), bool)
  assert betti_numbers(mask) == (0, 0)
  mask[5:15, 5:15] = True
  assert betti_numbers(mask) == (1, 0)
  mask[8:12, 8:12] = False
  assert betti_numbers(mask) == (1, 1)
  mask[5:25, 30:50] = True
  mask[8:10, 33:45] = mask[15:20, 33:45] = False
  assert betti_numbers(mask * 255) == (2, 3)
  assert betti_numbers(np.ones((5, 5))) == (1, 0)


def test_diagonals_join_the_foreground_and_part_the_background():
  diamond = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) == 3
  diamond |= np.abs(np.add.outer(np.arange(7), np.arange(7)) - 6) == 3
  assert betti_numbers(diamond) == (1, 1)
  # A ring that the frame cuts open is no loop.
  assert betti_numbers(diamond[:, 1:]) == (1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_less_loops_is_the_euler_number(seed):
  mask = np.random.default_rng(seed).random((50, 70)) < 0.45
  pieces, loops = betti_numbers(mask)
  assert pieces - loops == measure.euler_number(mask, connectivity=2)
  assert pieces == measure.label(mask, connectivity=2).max()


@pytest.mark.parametrize("degrees", [0, 30, 73])
def test_dimension_of_the_koch_curve(degrees):
  found = box_dimension(draw(koch(5, 900), 2, degrees, 1000))
  assert found["dimension"] == pytest.approx(math.log(4) / math.log(3), abs=0.03)
  assert found["r2"] > 0.999 and found["num_sizes"] >= 10


@pytest.mark.parametrize("degrees", [0, 17, 45])
def test_dimensions_of_line_disc_and_carpet(degrees):
  assert box_dimension(draw(line(900), 1.5, degrees, 1000))["dimension"] == pytest.approx(1, abs=0.07)
  y, x = np.mgrid[:600, :600] - 299.5
  assert box_dimension(np.hypot(y, x) < 290)["dimension"] == pytest.approx(2, abs=0.1)
  carpet = np.ones((1, 1), bool)
  for _ in range(6):
    carpet = np.block([[carpet, carpet, carpet], [carpet, 0 * carpet, carpet], [carpet, carpet, carpet]]) > 0
  assert box_dimension(carpet)["dimension"] == pytest.approx(math.log(8) / math.log(3), abs=0.06)


def test_dimension_knows_no_position():
  mask = draw(circle(90), 3)
  moved = np.roll(np.pad(mask, 20), (11, -7), (0, 1))
  assert box_dimension(moved)["dimension"] == pytest.approx(box_dimension(mask)["dimension"], abs=1e-12)


@pytest.mark.parametrize("mask", [np.zeros((50, 50)), np.eye(12), np.ones((1, 1))])
def test_small_maps_have_no_dimension(mask):
  found = box_dimension(mask)
  assert math.isnan(found["dimension"]) and math.isnan(found["r2"]) and found["num_sizes"] == 0


def test_grey_maps_are_refused():
  for function in (betti_numbers, box_dimension):
    with pytest.raises(ValueError, match="threshold it first"):
      function(np.linspace(0, 1, 16).reshape(4, 4))
