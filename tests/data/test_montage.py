"""Grids of pictures: places of pictures, gaps and empty cells; colours of overlays."""

import numpy as np

from retree_jax.data import montage


def pictures(n, h=3, w=5, channels=1):
  return np.stack([np.full((h, w, channels), 10 * (i + 1), np.uint8) for i in range(n)])


def test_grid_lays_pictures_out_in_rows():
  sheet = montage.grid(pictures(5), gap=2, background=255)
  assert sheet.shape == (2 * 5 - 2, 3 * 7 - 2, 3) and sheet.dtype == np.uint8  # three columns, the next above sqrt(5)
  for i in range(5):
    top, left = 5 * (i // 3), 7 * (i % 3)
    assert (sheet[top : top + 3, left : left + 5] == 10 * (i + 1)).all()
  assert (sheet[3:5] == 255).all() and (sheet[:, 5:7] == 255).all()  # gaps
  assert (sheet[5:, 14:] == 255).all()  # the empty cell
  assert montage.grid(pictures(4), columns=4, gap=0).shape == (3, 20, 3)


def test_rows_lays_sets_under_one_another():
  sheet = montage.rows(pictures(2), pictures(2, channels=3) + 100, gap=1)
  assert sheet.shape == (7, 11, 3)
  assert [sheet[0, 0, 0], sheet[0, 6, 0], sheet[4, 0, 0], sheet[4, 6, 0]] == [10, 20, 110, 120]


def test_overlay_blends_by_coverage():
  image = np.full((1, 3, 3), 100, np.uint8)
  tree = np.array([0, 255, 51], np.uint8).reshape(1, 3, 1)
  out = montage.overlay(image, tree, colour=(0, 200, 255), strength=0.5)
  np.testing.assert_array_equal(out[0], [[100, 100, 100], [50, 150, 178], [90, 110, 116]])


def test_errors_are_coloured_by_kind():
  image = np.full((1, 4, 3), 100, np.uint8)
  prediction, target = np.array([[1, 0, 1, 0]], bool), np.array([[1, 1, 0, 0]], bool)
  np.testing.assert_array_equal(
    montage.errors(image, prediction, target)[0], [[255] * 3, [255, 60, 60], [60, 120, 255], [40] * 3]
  )
