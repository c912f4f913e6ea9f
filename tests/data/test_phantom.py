"""Procedural retinas: the anatomy obeys Murray's law and spares the fovea, the pictures show it, a seed is an eye."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from retree_jax.data import field_of_view, phantom
from retree_jax.data.phantom import shape

SEEDS = (0, 1, 2, 3)


def both(seed):
  eye = phantom.anatomy(seed)
  return eye.arteries, eye.veins


@pytest.mark.parametrize("seed", SEEDS)
def test_murrays_law_at_every_bifurcation(seed):
  for vessels in both(seed):
    parent, large, small = vessels.radius[vessels.bifurcations.T]
    assert len(parent) >= 15
    np.testing.assert_allclose(parent**3, large**3 + small**3, rtol=1e-9)
    assert (large >= small).all()


def test_a_vessel_keeps_its_calibre_between_bifurcations():
  for vessels in both(0):
    for segment in np.unique(vessels.segment)[:50]:
      assert np.ptp(vessels.radius[vessels.segment == segment]) < 1e-9


def test_angles_of_least_work():
  """Murray 1926: equal children leave at 37.5 degrees each; a vanishing one at a right angle, and the other goes straight."""
  same = 2 ** (-1 / 3)
  np.testing.assert_allclose(np.degrees(shape.optimal_angles(1.0, same, same)), 37.47, atol=0.01)
  large, small = shape.optimal_angles(1.0, (1 - 1e-9) ** (1 / 3), 1e-3)
  assert np.degrees(large) < 0.1 and abs(np.degrees(small) - 90) < 0.2
  # They are the minimum of the work of the three vessels, volume for given flows, whatever the children's sizes.
  r1, r2 = 0.9, (1 - 0.9**3) ** (1 / 3)
  a, b = shape.optimal_angles(1.0, r1, r2)
  # Forces of the lengths' derivatives balance at the fork: r0^2 = r1^2 cos a + r2^2 cos b, r1^2 sin a = r2^2 sin b.
  np.testing.assert_allclose(r1**2 * np.cos(a) + r2**2 * np.cos(b), 1.0)
  np.testing.assert_allclose(r1**2 * np.sin(a), r2**2 * np.sin(b))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_forest_of_two_trees_rooted_in_the_disc(seed):
  eye = phantom.anatomy(seed)
  for vessels in both(seed):
    roots = np.flatnonzero(vessels.parent < 0)
    assert len(roots) == 2 and (np.hypot(*vessels.position[roots].T) < eye.disc_radius).all()
    ends = np.arange(len(vessels.parent))
    for _ in range(int(vessels.depth.max()) + 1):
      ends = np.where(vessels.parent[ends] >= 0, vessels.parent[ends], ends)
    assert set(ends) == set(roots)
    assert np.bincount(vessels.parent[vessels.parent >= 0]).max() == 2  # bifurcations, never more
    np.testing.assert_array_equal(vessels.depth[roots], 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_vessel_at_the_fovea_and_arcades_around_it(seed):
  eye = phantom.anatomy(seed)
  nearest = min(np.hypot(*(v.position - eye.fovea).T).min() for v in both(seed))
  assert nearest > eye.foveal_zone
  picture = phantom.eye(seed, (256, 256), view="macula")
  mirror = -1 if eye.side == "right" else 1
  seen = phantom._chosen_view(seed, "macula")[1]
  scale = phantom._pixels_per_degree(seen, 256, 256)
  y, x = np.mgrid[:256, :256] + 0.5
  away = (
    np.hypot(x - 128 - mirror * scale * (eye.fovea[0] - seen.centre[0]), y - 128 + scale * (eye.fovea[1] - seen.centre[1]))
    / scale
  )
  assert not picture["tree"][away < 0.9 * eye.foveal_zone].any()
  assert picture["tree"][(away > 6) & (away < 12)].mean() > 8  # of 255: the arcades
  # The fovea is the darkest spot of its surroundings, in green.
  green = ndimage.gaussian_filter(picture["image"][..., 1].astype(float), 2)
  assert green[away < 0.7].mean() < 0.95 * green[(away > 4) & (away < 5) & (picture["tree"][..., 0] == 0)].mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_picture_shows_the_tree(seed):
  eye = phantom.eye(seed, (256, 256))
  inside = eye["fov"][..., 0] > 0
  assert set(np.unique(eye["fov"])) == {0, 255} and 0.5 < inside.mean() < 0.79
  assert not eye["image"][~inside].any() and not eye["tree"][~inside].any()
  green = eye["image"][..., 1].astype(float)
  tree = eye["tree"][..., 0] >= 128
  assert 0.03 < tree[inside].mean() < 0.13  # public sets: 0.07 to 0.1
  around = ndimage.binary_dilation(tree, iterations=4) & ~ndimage.binary_dilation(tree, iterations=2) & inside
  assert green[tree].mean() < 0.9 * green[around].mean()
  # The same finder that reads real photographs finds the disc of light.
  found = field_of_view.find_fov(eye["image"])[..., 0] > 0
  assert (found & inside).sum() / (found | inside).sum() > 0.96


def test_the_disc_is_the_brightest_place():
  for seed in SEEDS:
    eye, anatomy = phantom.eye(seed, (256, 256), view="disc"), phantom.anatomy(seed)
    seen = phantom._chosen_view(seed, "disc")[1]
    y, x = phantom._degrees(anatomy.side, seen, 256, 256)[::-1]
    from_disc = np.hypot(x, y)
    free = eye["tree"][..., 0] == 0
    brightness = eye["image"][..., 1].astype(float)
    ring = (from_disc > 1.6 * anatomy.disc_radius) & (from_disc < 2.2 * anatomy.disc_radius) & free
    assert brightness[(from_disc < 0.8 * anatomy.disc_radius) & free].mean() > 1.3 * brightness[ring].mean()


def test_veins_are_wider_and_darker_than_arteries():
  ratios = [phantom.anatomy(s).arteries.radius.max() / phantom.anatomy(s).veins.radius.max() for s in range(6)]
  assert 0.6 < np.mean(ratios) < 0.8  # Hubbard et al. 1999: about 2/3 to 3/4


def test_a_seed_is_an_eye():
  a, b = phantom.eye(7, (64, 96)), phantom.eye(7, (64, 96))
  assert a["name"] == b["name"] == "phantom_00000007" and a["label"] == "phantom"
  for key in ("image", "tree", "fov"):
    np.testing.assert_array_equal(a[key], b[key])
    assert (phantom.eye(8, (64, 96))[key] != a[key]).any()
  np.testing.assert_array_equal(phantom.tree(7, (64, 96)), a["tree"])
  np.testing.assert_array_equal(phantom.tree(7, (64, 96), binary=True), (a["tree"] >= 128) * 255)
  digest = hashlib.sha256(a["image"].tobytes() + a["tree"].tobytes()).hexdigest()
  code = (
    "import hashlib; from retree_jax.data import phantom; a = phantom.eye(7, (64, 96)); "
    "print(hashlib.sha256(a['image'].tobytes() + a['tree'].tobytes()).hexdigest())"
  )
  again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
  assert again.stdout.strip() == digest


def test_the_same_eye_at_every_size():
  """Coverage averaged down is the smaller picture's coverage: nothing depends on pixels but the drawing."""
  small = phantom.tree(3, (128, 128))[..., 0].astype(float)
  large = phantom.tree(3, (512, 512))[..., 0].astype(float).reshape(128, 4, 128, 4).mean((1, 3))
  assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.97
  assert abs(small.mean() / large.mean() - 1) < 0.05


def test_views_and_sides():
  wide, narrow = (phantom.tree(1, (128, 128), view=view) for view in ("macula", "disc"))
  assert (wide != narrow).any()
  assert {phantom.anatomy(s).side for s in range(12)} == {"left", "right"}
  assert {phantom.anatomy(s).view.kind for s in range(12)} == {"disc", "macula"}
  right = next(s for s in range(12) if phantom.anatomy(s).side == "right")
  eye = phantom.eye(right, (128, 128), view="macula")
  bright = ndimage.gaussian_filter(eye["image"][..., 1].astype(float), 2) * (eye["fov"][..., 0] > 0)
  assert np.unravel_index(bright.argmax(), bright.shape)[1] > 64  # a right eye has its disc on the right


@pytest.mark.parametrize(
  "arguments, words",
  [
    ((-1,), "seed of a phantom eye must be a whole number from 0 up"),
    ((1.5,), "whole number"),
    ((True,), "whole number"),
    ((0, (16, 64)), "at least 32 each"),
    ((0, 64), "size of a phantom eye"),
    ((0, (64.5, 64)), "size of a phantom eye"),
  ],
)
def test_impossible_requests(arguments, words):
  for function in (phantom.eye, phantom.tree):
    with pytest.raises(ValueError, match=words):
      function(*arguments)


def test_unknown_view():
  with pytest.raises(ValueError, match="view of a phantom eye must be one of disc, macula"):
    phantom.eye(0, (64, 64), view="wide")
