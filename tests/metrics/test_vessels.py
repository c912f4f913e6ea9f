"""Biomarkers of drawn shapes at several rotations, against known answers; distances against SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from retree_jax.metrics import vessels
from retree_jax.metrics.skeleton import Segment
from tests.shapes import arc, circle, draw, fork, line, sinusoid, star

TURNS = [0, 17, 30, 45, 73]


def _sinusoid_truth(amplitude, wavelength):
  """Arc over chord of one period, and mean squared curvature along it."""
  x = np.linspace(0, wavelength, 100_001)[:-1]
  slope = amplitude * 2 * np.pi / wavelength * np.cos(2 * np.pi * x / wavelength)
  bend = -amplitude * (2 * np.pi / wavelength) ** 2 * np.sin(2 * np.pi * x / wavelength)
  speed = np.hypot(1, slope)
  return speed.mean(), np.sum(bend**2 / speed**5) / np.sum(speed)


@pytest.mark.parametrize("degrees", TURNS)
def test_line(degrees):
  # Round caps add a radius to either end of the centreline's 180 pixels.
  found = vessels.biomarkers(draw(line(180), 5, degrees))
  assert set(found) == set(vessels.BIOMARKERS)
  assert found["length"] == pytest.approx(185, rel=0.02)
  assert found["width"] == pytest.approx(5, abs=0.75)  # at 45 degrees whole rows of pixels stand 0.71 apart
  assert found["tortuosity"] == pytest.approx(1, abs=2e-3)
  assert found["tortuosity_curvature"] < 1e-4
  assert (found["endpoints"], found["junctions"], found["components"], found["loops"]) == (2, 0, 1, 0)
  assert math.isnan(found["branching_angle"])
  assert found["fractal_dimension_skeleton"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("degrees", TURNS)
def test_arc(degrees):
  found = vessels.biomarkers(draw(arc(80, 180), 4, degrees))
  assert found["length"] == pytest.approx(math.pi * 80 + 4, rel=0.015)
  assert found["width"] == pytest.approx(4, abs=0.1)
  assert found["tortuosity"] == pytest.approx(math.pi / 2, rel=0.01)
  assert found["tortuosity_curvature"] == pytest.approx(1 / 80**2, rel=0.08)


@pytest.mark.parametrize("degrees", TURNS)
def test_circle(degrees):
  found = vessels.biomarkers(draw(circle(80), 4, degrees))
  assert found["length"] == pytest.approx(2 * math.pi * 80, rel=0.01)
  assert found["tortuosity_curvature"] == pytest.approx(1 / 80**2, rel=0.08)
  assert (found["loops"], found["components"], found["endpoints"], found["junctions"]) == (1, 1, 0, 0)
  assert math.isnan(found["tortuosity"])


def test_a_loop_smaller_than_the_smoothing_leaves_the_curvature_finite():
  """A vessel with an eyelet of 11 pixels at its side, as in a drawn tree: unbounded, it counted 17,900 times the rest."""
  eyelet = np.array(
    [(102.0, 51.0), (101.1, 50.2), (100.3, 49.3), (99.7, 48.5), (99.4, 47.8), (99.3, 47.2), (99.5, 46.7), (99.9, 46.4)]
    + [(100.3, 46.4), (100.8, 46.7), (101.2, 47.2), (101.5, 47.9), (101.8, 48.8), (101.9, 49.9), (102.0, 51.0)]
  )
  small = Segment(eyelet, np.ones(15), 0, 0, 1.0, 1.0, False)
  assert small.length() > 10
  straight = Segment(np.stack([np.zeros(200), np.arange(200.0)], 1), np.ones(200), -1, -1, 1.0, 1.0, False)
  assert vessels._squared_curvature([small]) <= 1 / 36
  assert vessels._squared_curvature([small, straight]) < 1e-3


@pytest.mark.parametrize("degrees", TURNS)
@pytest.mark.parametrize(("amplitude", "wavelength"), [(12, 60), (5, 60)])
def test_sinusoid(degrees, amplitude, wavelength):
  ratio, curvature = _sinusoid_truth(amplitude, wavelength)
  found = vessels.biomarkers(draw(sinusoid(amplitude, wavelength, 3), 4, degrees))
  assert found["tortuosity"] == pytest.approx(ratio, rel=0.01)
  assert found["length"] == pytest.approx(3 * wavelength * ratio + 4, rel=0.02)
  assert found["tortuosity_curvature"] == pytest.approx(curvature, rel=0.12)


@pytest.mark.parametrize("degrees", TURNS)
@pytest.mark.parametrize("between", [50, 80, 110])
def test_fork(degrees, between):
  found = vessels.biomarkers(draw(fork(70, between), 4, degrees))
  assert found["branching_angle"] == pytest.approx(between, abs=2)
  assert (found["junctions"], found["endpoints"], found["components"], found["loops"]) == (1, 3, 1, 0)
  assert found["length"] == pytest.approx(3 * 70 + 6, rel=0.03)
  assert found["tortuosity"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("degrees", TURNS)
def test_crossing_is_one_junction_and_no_branching(degrees):
  cross = star([(0, 80), (180, 80), (60, 80), (240, 80)])
  found = vessels.biomarkers(draw(cross, 5, degrees))
  assert (found["junctions"], found["endpoints"]) == (1, 4)
  assert math.isnan(found["branching_angle"])


@pytest.mark.parametrize("width", [2, 4, 7, 11])
def test_width_in_a_curve(width):
  found = vessels.biomarkers(draw(arc(80, 180), width, 20))
  assert found["width"] == pytest.approx(width, abs=0.2)
  assert found["width_area"] == pytest.approx(width, rel=0.06)


def test_rotation_by_quarter_turns_and_mirroring_changes_little():
  tree = draw([*fork(70, 70), *arc(90, 60)], 4, 25)
  wanted = vessels.biomarkers(tree)
  for view in (np.rot90(tree), tree[:, ::-1], tree.T):
    found = vessels.biomarkers(view)
    for name, value in wanted.items():
      share = 0.1 if name == "tortuosity_curvature" else 0.03  # second derivatives feel every pixel
      assert found[name] == pytest.approx(value, rel=share, nan_ok=True), name


def test_density_counts_the_field_of_view():
  tree = np.zeros((40, 40), bool)
  tree[10:14] = True
  fov = np.zeros_like(tree)
  fov[:20] = True
  assert vessels.biomarkers(tree)["density"] == 160 / 1600
  assert vessels.biomarkers(tree, fov)["density"] == 160 / 800
  assert vessels.biomarkers(tree, ~fov)["density"] == 0


def test_empty_tree_has_counts_of_zero_and_no_shape():
  found = vessels.biomarkers(np.zeros((64, 64)))
  zero = {"density", "length", "junctions", "endpoints", "components", "loops"}
  assert all(found[name] == 0 for name in zero)
  assert all(math.isnan(found[name]) for name in set(found) - zero)


@pytest.mark.parametrize("tree", [np.ones((40, 40)), np.eye(1), np.eye(3)])
def test_odd_trees_are_measured(tree):
  found = vessels.biomarkers(tree)
  assert found["components"] == 1 and found["length"] > 0


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ((np.random.default_rng(0).random((9, 9)),), "threshold it first"),
    ((np.full((9, 9), np.nan),), "only 0 and 1"),
    ((np.eye(9), np.eye(8)), "resize"),
    ((np.eye(9), np.zeros((9, 9))), "fov=None"),
  ],
)
def test_bad_trees_are_refused_in_one_sentence(arguments, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    vessels.biomarkers(*arguments)
  assert "\n" not in str(caught.value)


def _rows(n, shift, seed):
  rng = np.random.default_rng(seed)
  return [{"length": x, "junctions": y} for x, y in zip(rng.normal(shift, 1, n), rng.poisson(5, n), strict=True)]


def test_distances_equal_scipy():
  a, b = _rows(40, 0.5, 0), _rows(60, 0, 1)
  found = vessels.distances(a, b)
  for name in ("length", "junctions"):
    x, y = ([row[name] for row in rows] for rows in (a, b))
    wasserstein = stats.wasserstein_distance(x, y)
    assert found[name]["wasserstein"] == pytest.approx(wasserstein)
    assert found[name]["wasserstein_normalised"] == pytest.approx(wasserstein / np.std(y, ddof=1))
    test = stats.ks_2samp(x, y)
    assert (found[name]["ks"], found[name]["ks_p"]) == pytest.approx((test.statistic, test.pvalue))
    assert found[name]["mean_a"] == pytest.approx(np.mean(x)) and found[name]["count_b"] == 60
    assert found[name]["low_a"] < found[name]["mean_a"] < found[name]["high_a"]


def test_distance_of_a_shifted_set_is_the_shift():
  b = _rows(50, 0, 0)
  a = [{"length": row["length"] + 3} for row in b]
  assert vessels.distances(a, b)["length"]["wasserstein"] == pytest.approx(3)
  same = vessels.distances(b, b)["length"]
  assert (same["wasserstein"], same["ks"], same["ks_p"]) == (0, 0, 1)


def test_trees_without_a_biomarker_are_left_out():
  a = [{"angle": v} for v in (1.0, math.nan, 3.0)]
  b = [{"angle": v} for v in (2.0, 4.0, 4.0)]
  found = vessels.distances(a, b)["angle"]
  assert found["count_a"] == 2 and found["wasserstein"] == pytest.approx(stats.wasserstein_distance([1, 3], [2, 4, 4]))
  none = vessels.distances([{"angle": math.nan}] * 3, b)["angle"]
  assert math.isnan(none["wasserstein"]) and none["count_a"] == 0
  with pytest.raises(ValueError, match="at least two trees"):
    vessels.distances(a[:1], b)
  with pytest.raises(ValueError, match="no biomarker"):
    vessels.distances([{"x": 1.0}] * 2, b)


def test_large_unequal_sets_give_a_p_value():
  found = vessels.distances(_rows(3000, 0.05, 0), _rows(700, 0, 1), 10)
  assert 0 <= found["length"]["ks_p"] <= 1
