"""Field-of-view geometry of finished pairs: rims, straight cuts, turning upright. Finding a field of view: test_image_io.py."""

import numpy as np
import pytest

from retree_jax.data import field_of_view, transforms
from retree_jax.inference import superres


def test_a_blackened_rim_fades_like_that_of_a_shrunk_photograph():
  y, x = np.mgrid[:256, :256] - 127.5
  seen = np.hypot(x, y) < 121.3
  large = np.where(seen[..., None], [200, 110, 40], 0).astype(np.uint8)
  small, fov = (transforms.area_resize(p, (64, 64)) for p in (large, np.uint8(255) * seen[..., None]))
  blackened = np.where(fov >= 128, [200, 110, 40], 0).astype(np.uint8)
  assert np.abs(blackened.astype(int) - small).max() > 60
  assert np.abs(field_of_view.soft_rim(blackened[None], fov[None])[0].astype(int) - small).max() <= 2
  nothing = np.zeros_like(fov)
  assert not field_of_view.soft_rim(blackened[None], nothing[None]).any()


def test_noise_along_the_edge_of_the_frame_gives_way_to_the_colours_beside_it():
  image = np.full((1, 40, 40, 3), [200, 110, 40], np.uint8)
  inner = np.zeros((40, 40), bool)
  inner[1:-1, 1:-1] = True
  image[:, ~inner] = np.random.default_rng(0).integers(0, 256, (1, (~inner).sum(), 3))
  assert (field_of_view.soft_rim(image, np.full((1, 40, 40, 1), 255, np.uint8)) == [200, 110, 40]).all()


def test_texture_goes_on_in_a_cut_rim_without_stripes_across_it():
  fov = np.zeros((1, 64, 64, 1), np.uint8)
  fov[:, 16:48] = 255
  fov[:, 15] = 128
  image = np.where(fov >= 128, np.random.default_rng(0).integers(100, 200, (1, 64, 64, 3)), 0).astype(np.uint8)
  soft = field_of_view.soft_rim(image, fov)[0]
  inner = np.s_[17:47, 1:-1]
  np.testing.assert_array_equal(soft[inner], image[0][inner])
  # The two rows of the rim mirror the two beneath row 17, the first that is seen whole, one of them by its share.
  np.testing.assert_array_equal(soft[16, 1:-1], image[0, 18, 1:-1])
  np.testing.assert_array_equal(soft[15, 1:-1], np.round(image[0, 19, 1:-1] * (128 / 255)))
  assert not soft[:15].any()


def test_detail_fades_out_at_the_rim_where_it_cannot_make_up_for_the_black_around_the_eye():
  fov = np.zeros((1, 256, 256, 1), np.uint8)
  fov[:, 40:216] = 255
  painted, detailed = np.full((1, 256, 256, 3), 100, np.uint8), np.full((1, 256, 256, 3), 180, np.uint8)
  out = field_of_view.fade_at_rim(painted, detailed, fov)[0, :, 128, 0]
  assert out[38:48].tolist() == [100, 100, 100, 100, 120, 140, 160, 180, 180, 180]
  np.testing.assert_array_equal(out[40:128], out[128:216][::-1])
  np.testing.assert_array_equal(field_of_view.fade_at_rim(painted, painted, fov), painted)


@pytest.mark.parametrize("degrees", [9, -14])
def test_a_disc_that_the_frame_cut_is_cut_along_it_again(degrees):
  y, x = np.mgrid[:128, :128] - 63.5
  along = y * np.cos(np.deg2rad(degrees)) + x * np.sin(np.deg2rad(degrees))
  fov = np.uint8(255) * ((np.hypot(x, y) < 74) & (np.abs(along) < 40))
  found = field_of_view.upright({"fov": fov[None, ..., None], "tree": fov[None, ..., None]}, [degrees])
  inside = found["fov"][0, ..., 0] > 0
  assert 0.8 < inside.sum() / (fov > 0).sum() < 1
  for edge in (inside[44:84], inside[44:84, ::-1]):  # rows between the two cuts: both ends are straight
    assert np.ptp(np.argmax(edge, axis=1)) == 0 and np.argmax(edge, axis=1)[0] < 20
  np.testing.assert_array_equal(found["tree"] > 0, found["fov"] > 0)


def _cut_disc(size: int, slope: float) -> np.ndarray:
  """A field of view [size, size, 1] cut above and below, along lines that rise by `slope`."""
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  return np.uint8(255) * ((np.hypot(x, y) < 0.47 * size) & (np.abs(y + slope * x) < 0.33 * size))[..., None]


@pytest.mark.parametrize("side", range(4))
def test_outermost_rows_that_hold_pieces_of_a_cut_go(side):
  straight = _cut_disc(256, 0.0)
  dashes = straight.copy()
  dashes[np.argmax(straight[:, 128, 0] > 0) - 1, 100:160:7] = 255
  found = field_of_view._without_ragged_rows(np.rot90(dashes, side))
  np.testing.assert_array_equal(np.rot90(found, -side), straight)
  aslant = field_of_view._without_ragged_rows(np.rot90(_cut_disc(256, 0.005), side))
  lengths = np.rot90(aslant, -side)[..., 0].astype(bool).sum(1)
  outer = lengths[np.flatnonzero(lengths)[[0, 1, -2, -1]]]
  assert outer[0] >= 0.98 * outer[1] and outer[3] >= 0.98 * outer[2]


@pytest.mark.parametrize("size", [16, 64, 512])
def test_round_and_straight_outlines_stay_as_they_are(size):
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  disc = np.uint8(255) * (np.hypot(x, y) < 0.49 * size)[..., None]
  for whole in (disc, _cut_disc(size, 0.0), np.full_like(disc, 255), np.zeros_like(disc)):
    np.testing.assert_array_equal(field_of_view._without_ragged_rows(whole), whole)


@pytest.mark.parametrize("degrees", [4, 11])
def test_a_slanted_cut_is_straight_after_enlarging_and_turning(degrees):
  y, x = np.mgrid[:512, :512] - 255.5
  along = y * np.cos(np.deg2rad(degrees)) + x * np.sin(np.deg2rad(degrees))
  seen = (np.hypot(x, y) < 240) & (np.abs(along) < 170)
  small = transforms.area_resize(np.uint8(255) * seen[..., None], (128, 128))
  large = np.asarray(superres.enlarged_fov(small[None], 4))
  upright = field_of_view.upright({"fov": large}, [degrees])["fov"][0, ..., 0] > 0
  tops = np.argmax(upright[:, 150:360], axis=0)
  assert abs(np.median(tops) - 86) <= 2 and np.ptp(tops) == 0
  bare = field_of_view.turned(large[0], -degrees)[..., 0] >= 128
  assert (np.diff(np.argmax(bare[:, 150:360], axis=0)) != 0).sum() > 20
  assert not (upright & ~bare).any()
