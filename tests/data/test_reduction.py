"""Reduced masks keep what was drawn: pieces, loops, length and area, at any angle, place and ratio."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import morphology

from retree_jax.data import field_of_view, reduction, transforms
from retree_jax.data.centreline import Centreline, centreline, draw
from retree_jax.metrics import skeleton
from retree_jax.metrics.topology import betti_numbers

RATIO = 8  # pixels of a drawn shape per pixel of the reduced one


def strokes(lines, width, side=128):
  """Mask of straight lines [(row, column), (row, column)] with round ends; all in pixels of the reduced picture."""
  grid = (np.stack(np.mgrid[: side * RATIO, : side * RATIO], -1) + 0.5) / RATIO
  mask = np.zeros(grid.shape[:2], bool)
  for a, b in lines:
    a, b = np.asarray(a, float), np.asarray(b, float)
    along = np.clip((grid - a) @ (b - a) / max(np.sum((b - a) ** 2), 1e-9), 0, 1)[..., None]
    mask |= np.sum((grid - a - along * (b - a)) ** 2, -1) <= (width / 2) ** 2
  return mask


def direction(degrees):
  return np.array([np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])


def skeleton_pixels(mask):
  return int(morphology.skeletonize(np.asarray(mask) > 0).sum())


def traced(mask):
  return sum(segment.length() for segment in skeleton.trace(mask).segments)


@pytest.mark.parametrize("width", [0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_line_stays_one_line_of_its_length_and_width(width, seed):
  rng = np.random.default_rng([seed, int(10 * width)])
  middle, reach = 64 + rng.uniform(-1, 1, 2), 50 * direction(rng.uniform(0, 180))
  mask = strokes([(middle - reach, middle + reach)], width)
  small = reduction.reduce_mask(mask, (128, 128))
  assert small.dtype == np.uint8 and set(np.unique(small)) == {0, 255}
  assert betti_numbers(small) == (1, 0)
  assert skeleton_pixels(small) * RATIO == pytest.approx(skeleton_pixels(mask), rel=0.03)
  assert traced(small) * RATIO == pytest.approx(traced(mask), rel=0.03)
  area = (small > 0).sum()
  if width >= 1:
    assert area == pytest.approx(mask.sum() / RATIO**2, rel=0.06)
  else:
    # Never wider than a line of one pixel, which has a pixel for each step along its main axis.
    steps = np.abs(2 * reach).max()
    assert area <= max(steps + 2, 1.04 * mask.sum() / RATIO**2)


@pytest.mark.parametrize("gap, share", [(1.25, 0.15), (2.0, 0.08)])
@pytest.mark.parametrize("seed", range(8))
def test_parallel_lines_stay_apart(seed, gap, share):
  rng = np.random.default_rng(seed)
  # Oblique lines on a pixel grid need about 3 pixels from middle to middle, or they touch at corners.
  width, turn = rng.uniform(3 - gap, 2.2), rng.uniform(0, 180)
  apart = (width + gap) / 2 * direction(turn + 90)
  middle, reach = 64 + rng.uniform(-1, 1, 2), 50 * direction(turn)
  mask = strokes([(middle - reach + s * apart, middle + reach + s * apart) for s in (-1, 1)], width)
  small = reduction.reduce_mask(mask, (128, 128))
  assert betti_numbers(small) == (2, 0)
  assert skeleton_pixels(small) * RATIO == pytest.approx(skeleton_pixels(mask), rel=0.03)
  # A gap of 1.25 pixels must take up two pixels in places.
  assert (small > 0).sum() == pytest.approx(mask.sum() / RATIO**2, rel=share)


@pytest.mark.parametrize("width", [0.3, 0.8, 1.6, 3.0])
@pytest.mark.parametrize("arms", [(180, 35, -35), (170, 70, -20), (10, 100, 190, 280), (45, 150, 225, 330)])
def test_forks_and_crossings_stay_whole(arms, width):
  middle = np.array([63.7, 64.2])
  mask = strokes([(middle, middle + 55 * direction(arm)) for arm in arms], width)
  small = reduction.reduce_mask(mask, (128, 128))
  assert betti_numbers(small) == (1, 0)
  assert skeleton_pixels(small) * RATIO == pytest.approx(skeleton_pixels(mask), rel=0.03)
  ends = lambda on: int((skeleton.trace(on).pixels & (_neighbours(skeleton.trace(on).pixels) == 1)).sum())  # noqa: E731
  assert ends(small) == ends(mask) == len(arms)


def _neighbours(on):
  around = np.pad(on, 1).astype(int)
  height, width = on.shape
  return sum(around[i : i + height, j : j + width] for i in range(3) for j in range(3)) - on


def test_a_loop_stays_a_loop_and_a_pinhole_does_not():
  corners = [np.array([64.3, 64.4]) + 20 * direction(angle) for angle in range(0, 361, 30)]
  ring = strokes(list(zip(corners[:-1], corners[1:], strict=True)), 0.5)
  assert betti_numbers(reduction.reduce_mask(ring, (128, 128))) == (1, 1)
  thick = strokes([((64, 20), (64, 100))], 4)
  thick[64 * RATIO, 60 * RATIO : 60 * RATIO + 2] = False
  assert betti_numbers(thick) == (1, 1)
  assert betti_numbers(reduction.reduce_mask(thick, (128, 128))) == (1, 0)


@pytest.mark.parametrize("diameter", [2.5, 6, 20])
def test_a_disc_keeps_its_area(diameter):
  mask = strokes([((61.3, 66.6), (61.3, 66.6))], diameter)
  small = reduction.reduce_mask(mask, (128, 128))
  assert betti_numbers(small) == (1, 0)
  assert (small > 0).sum() == pytest.approx(mask.sum() / RATIO**2, rel=0.04, abs=2)


def test_slips_of_the_pen_do_not_grow_into_specks():
  mask = strokes([((64, 20), (64, 100))], 2)
  mask[100, 100] = mask[200, 300:303] = True
  assert betti_numbers(mask)[0] == 3
  small = reduction.reduce_mask(mask, (128, 128))
  assert betti_numbers(small)[0] == 1 and not small[:40].any()


@pytest.mark.parametrize("size", [(128, 128), (100, 117), (57, 93), (3, 2), (1, 1)])
def test_any_ratio_and_any_box(size):
  mask = strokes([((20, 10), (100, 118)), ((30, 110), (90, 20))], 0.6)
  whole = reduction.reduce_mask(mask, size)
  assert whole.shape == size and betti_numbers(whole)[0] == 1
  # The box reaches beyond the mask on one side and cuts the vessels on the other.
  part = reduction.reduce_mask(mask, size, (100, -300, 700, 900), centreline(mask))
  assert part.shape == size and betti_numbers(part)[0] == 1
  if size[1] == 117:
    assert not part[:, : 300 * 117 // 1200].any()


def test_the_same_size_changes_nothing_and_enlarging_keeps_the_shape():
  mask = strokes([((4, 3), (12, 13))], 0.3, side=16)
  np.testing.assert_array_equal(reduction.reduce_mask(mask[..., None], mask.shape), mask * np.uint8(255))
  np.testing.assert_array_equal(reduction.reduce_mask(mask, (60, 50), (20, 30, 80, 80)), mask[20:80, 30:80] * np.uint8(255))
  large = reduction.reduce_mask(mask, (300, 333))
  assert betti_numbers(large) == betti_numbers(mask)
  assert (large > 0).mean() == pytest.approx(mask.mean(), rel=0.1)
  assert not reduction.reduce_mask(np.zeros((40, 50), bool), (20, 20)).any()
  assert reduction.reduce_mask(np.ones((40, 50), bool), (20, 20)).all()


def test_the_half_of_a_vessel_that_a_box_shows_is_kept():
  mask = strokes([((64, 5), (64, 120))], 6)
  small = reduction.reduce_mask(mask, (64, 128), (65 * RATIO, 0, 129 * RATIO, 128 * RATIO))
  assert (small[:2, 10:110] == 255).all() and not small[3:].any()


def test_what_is_no_mask_is_refused_in_a_sentence():
  with pytest.raises(ValueError, match="must hold only 0 and 1"):
    reduction.reduce_mask(np.arange(16).reshape(4, 4), (2, 2))
  with pytest.raises(ValueError, match="Cannot show the part"):
    reduction.reduce_mask(np.ones((4, 4), bool), (2, 2), (3, 0, 3, 4))
  with pytest.raises(ValueError, match="Cannot show the part"):
    reduction.reduce_mask(np.ones((4, 4), bool), (0, 2))
  line = centreline(np.ones((4, 9), bool))
  for wrong in (np.ones((4, 4)), np.ones((4, 4, 3), np.uint8), np.ones(4, np.uint8)):
    with pytest.raises(ValueError, match="A coverage map is uint8"):
      reduction.threshold_coverage(wrong, line)


def test_drawn_paths_are_connected_and_one_pixel_wide():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    line = Centreline((20 + np.cumsum(rng.normal(0, [1.5, 3], (12, 2)), 0)).astype(np.float32), np.array([12]))
    line = line.to_box((0, 0, 60, 60), (200, 200))
    pixels, ends = draw(line, (200, 200))
    inside = ((line.points >= 0) & (line.points < 200)).all(1).all()
    assert not inside or (betti_numbers(pixels)[0] == 1 and ends.sum() in (1, 2) and (pixels | ~ends).all())
  straight = Centreline(np.float32([[3.4, 2.3], [41.2, 29.9]]), np.array([2]))
  assert draw(straight, (60, 60))[0].sum() == 39  # rows 3 to 41, one pixel each


def test_paths_follow_the_warp_of_the_pixels():
  mask = strokes([((30, 20), (100, 60)), ((80, 20), (40, 110)), ((60, 64), (110, 100))], 2.0)
  moves = {"horizontal_flip": 0.5, "rotation": 30.0, "scale": 0.1, "shift": 0.03, "elastic": 0.02}
  augment = dataclasses.replace(transforms.Augment.none(), **moves)
  prepared = transforms.area_resize(mask[..., None] * np.uint8(255), (256, 256))
  example = {"tree": prepared, "fov": np.full((256, 256, 1), 255, np.uint8)}
  line = centreline(mask).to_box((0, 0, *mask.shape), (256, 256))
  for seed in range(6):
    rng = np.random.default_rng(seed)
    flips = rng.random(2) < (augment.horizontal_flip, augment.vertical_flip)
    mesh = augment._mesh((256, 256), flips, rng)
    moved = line.through_mesh(mesh)
    coverage = augment(example, np.random.default_rng(seed), (128, 128))["tree"]
    pixels, _ = draw(moved.to_box((0, 0, 256, 256), (128, 128)), (128, 128))
    # A vessel two pixels wide covers at least half of every pixel that its centreline passes through the middle of.
    assert (coverage[..., 0][pixels] >= 100).mean() > 0.97
    assert coverage[..., 0][pixels].mean() > 210
    small = reduction.threshold_coverage(coverage, moved.to_box((0, 0, 256, 256), (128, 128)))
    assert small.shape == (128, 128, 1)
    assert betti_numbers(small)[0] == betti_numbers(mask)[0] == 1


def test_thin_vessels_survive_rotation_and_elastic_warps():
  mask = strokes([((30, 20), (100, 60)), ((80, 20), (40, 110)), ((60, 64), (110, 100))], 0.4)
  augment = dataclasses.replace(transforms.Augment.none(), rotation=20.0, elastic=0.01)
  line = centreline(mask).to_box((0, 0, *mask.shape), (256, 256))
  example = {
    "tree": transforms.area_resize(mask[..., None] * np.uint8(255), (256, 256)),
    "fov": np.full((256, 256, 1), 255, np.uint8),
  }
  for seed in range(6):
    rng = np.random.default_rng(seed)
    moved = line.through_mesh(augment._mesh((256, 256), rng.random(2) < 0, rng)).to_box((0, 0, 256, 256), (128, 128))
    coverage = augment(example, np.random.default_rng(seed), (128, 128))["tree"]
    small = reduction.threshold_coverage(coverage, moved)
    assert skeleton_pixels(transforms.binarise(coverage)) < 0.5 * skeleton_pixels(small)  # without the centreline
    assert betti_numbers(small)[0] == 1
    assert traced(small) * RATIO == pytest.approx(traced(mask), rel=0.05)  # warps stretch a little


def _real(folder, name):
  read = lambda kind: np.asarray(Image.open(folder / kind / f"{name}.png").convert("L")) >= 128  # noqa: E731
  mask, fov = read("masks"), read("fov")
  return mask, transforms.fit_box(fov[..., None], (512, 512))


@pytest.mark.parametrize("name", ["07_g", "10_dr", "08_h", "13_dr"])
def test_trees_of_hrf_hold_together(real_eyes, name):
  folder = real_eyes / "HRF_native"
  if not folder.exists():
    pytest.skip(f"needs {folder}, HRF at its native size")
  assert name in json.loads((folder / "splits.json").read_text())["test"]
  mask, box = _real(folder, name)
  line = centreline(mask)
  assert line.nbytes < 2**20
  native = {"pieces": betti_numbers(mask)[0], "pixels": skeleton_pixels(mask), "traced": traced(mask)}
  for side, share in ((512, 0.03), (256, 0.06)):
    scale = (box[2] - box[0]) / side
    small = reduction.reduce_mask(mask, (side, side), box, line)
    assert betti_numbers(small)[0] <= 1.5 * native["pieces"]
    assert skeleton_pixels(small) * scale == pytest.approx(native["pixels"], rel=share)
    assert traced(small) * scale == pytest.approx(native["traced"], rel=share)
  # Density: vessels thinner than a pixel must be drawn too wide, the rest makes up for it in part.
  small = reduction.reduce_mask(mask, (512, 512), box, line)
  assert (small > 0).sum() * ((box[2] - box[0]) / 512) ** 2 == pytest.approx(mask.sum(), rel=0.15)


@pytest.mark.parametrize("degrees", [0, 7, -12, 90, 180])
def test_a_turned_mask_is_where_a_turned_picture_is_and_as_whole(degrees):
  tips = 64 + 50 * np.array([direction(a) for a in (10, 80, 150, 222, 295)])
  mask = reduction.reduce_mask(strokes([((64, 64), tip) for tip in tips], 1.0), (128, 128))
  turned = reduction.turn_mask(mask, degrees)
  assert turned.shape == mask.shape and set(np.unique(turned)) == {0, 255}
  assert betti_numbers(turned)[0] == 1
  assert traced(turned) == pytest.approx(traced(mask), rel=0.05)  # a centreline ends half a width before each of the five tips
  picture = np.asarray(Image.fromarray(mask).rotate(degrees, Image.Resampling.BICUBIC)) >= 128
  near = ndimage.binary_dilation(turned > 0, np.ones((3, 3)))
  assert (picture & ~near).sum() <= 3 and ((turned > 0) & ~ndimage.binary_dilation(picture, np.ones((5, 5)))).sum() <= 3


def test_thin_vessels_keep_their_width_when_a_mask_is_turned_with_its_coverage():
  large = strokes([((20, 30), (105, 90))], 1.0)
  mask, coverage = reduction.reduce_mask(large, (64, 64)), transforms.area_resize(large[..., None] * np.uint8(255), (64, 64))
  plain, told = (reduction.turn_mask(mask, 30, given) for given in (None, field_of_view.turned(coverage, 30)))
  assert betti_numbers(told) == betti_numbers(plain) == (1, 0)
  assert traced(told) == pytest.approx(traced(mask), rel=0.05)
  # Half a pixel wide: the digital line alone. Turned as a mask it is a pixel wide, and pixels on its steps are added.
  assert (told > 0).sum() == skeleton_pixels(told) < (plain > 0).sum()
  with pytest.raises(ValueError, match="give both at one size"):
    reduction.turn_mask(mask, 30, coverage[:32])


@pytest.mark.parametrize("width", [0.5, 1.0, 2.5])
def test_a_rendered_tree_has_the_mask_s_vessels_at_the_coverage_s_width(width):
  large = strokes([((10, 8), (100, 117))], width)
  coverage = transforms.area_resize(large[..., None] * np.uint8(255), (128, 128))
  mask = reduction.reduce_mask(large, (128, 128))
  rendered = reduction.render(mask, coverage, (256, 256))
  assert rendered.shape == (256, 256) and betti_numbers(rendered) == (1, 0)
  assert traced(rendered) == pytest.approx(2 * traced(mask), rel=0.03)
  # A line of one pixel is the least there is: two steps along the longer axis for each of the coarse one's.
  area, least = 4 * large.sum() / RATIO**2, 2 * 109
  assert min(0.9 * area, least) <= (rendered > 0).sum() <= 1.12 * max(area, least)
  assert (reduction.reduce_mask(mask, (256, 256)) > 0).sum() > 1.15 * (rendered > 0).sum() or width > 1
  np.testing.assert_array_equal(reduction.render(mask, coverage, (128, 128)), mask)
