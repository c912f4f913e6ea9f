"""Distances between sets of features: SciPy's matrix root, closed forms, direct formulas, brute force."""

import math

import numpy as np
import pytest
from scipy import linalg

from retree_jax.metrics import images


def _sets(n=60, m=80, d=7, shift=0.5, seed=0):
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(d, d))
  return rng.normal(size=(n, d)) @ mix, rng.normal(size=(m, d)) * rng.uniform(0.5, 2, d) @ mix.T + shift


def _by_matrix_root(a, b):
  first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = linalg.sqrtm(first @ second)
  return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first + second - 2 * root.real)


@pytest.mark.parametrize("shape", [(60, 80, 7), (200, 30, 20), (50, 300, 40)])
def test_frechet_equals_matrix_square_root(shape):
  a, b = _sets(*shape)
  found = images.frechet_distance(a, b)
  assert found.value == pytest.approx(_by_matrix_root(a, b), rel=1e-8)
  assert (found.num_a, found.num_b, found.note) == (shape[0], shape[1], "")


def test_frechet_of_fewer_images_than_features_equals_the_regularised_root():
  a, b = _sets(15, 12, 30)
  found = images.frechet_distance(a, b)
  # The singular product has a root all the same: of its eigenvalues, which are real and not negative.
  values = np.linalg.eigvals(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
  traces = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
  wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * np.sqrt(np.maximum(values, 0)).sum()
  assert found.value == pytest.approx(wanted, rel=1e-5)
  assert "fewer than the 30 features" in found.note


def test_frechet_of_gaussians_nears_the_closed_form():
  rng = np.random.default_rng(0)
  deviation = np.array([0.5, 1.0, 2.0, 3.0]), np.array([1.5, 1.0, 0.5, 2.0])
  mean = np.array([1.0, 0.0, -1.0, 0.5])
  a = rng.normal(size=(20_000, 4)) * deviation[0] + mean
  b = rng.normal(size=(20_000, 4)) * deviation[1]
  exact = np.sum(mean**2) + np.sum((deviation[0] - deviation[1]) ** 2)
  found = images.frechet_distance(a, b)
  assert found.value == pytest.approx(exact, rel=0.03)
  assert found.low < exact < found.high


def test_frechet_of_a_set_with_itself_and_with_a_moved_copy():
  a, _ = _sets()
  assert images.frechet_distance(a, a).value == pytest.approx(0, abs=1e-8)
  assert images.frechet_distance(a, a + np.arange(7)).value == pytest.approx(np.sum(np.arange(7.0) ** 2))


def _by_double_sum(a, b):
  def kernel(x, y):
    return (x @ y / len(x) + 1) ** 3

  n, m = len(a), len(b)
  within = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
  within += sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
  return within - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def test_kernel_distance_is_the_unbiased_double_sum():
  a, b = _sets(23, 31)
  found = images.kernel_distance(a, b)
  assert found.value == pytest.approx(_by_double_sum(a, b), rel=1e-10)
  assert "Only 23 images" in found.note


@pytest.mark.parametrize("subset_size", [1000, 20])
def test_kernel_distance_does_not_depend_on_the_identity_of_objects(subset_size):
  a, _ = _sets(60)
  options = {"subset_size": subset_size, "num_subsets": 5}
  same, copied = (images.kernel_distance(a, other, **options) for other in (a, a.copy()))
  # Products of equal matrices may differ in the last digit with their memory's alignment.
  numbers = [[getattr(found, name) for name in ("value", "low", "high")] for found in (same, copied)]
  np.testing.assert_allclose(*numbers, rtol=1e-9, atol=1e-12)
  if subset_size == 1000:
    # Of a set with itself: the cross term holds the diagonal, which the unbiased terms within leave out.
    assert images.kernel_distance(a, a).value == pytest.approx(_by_double_sum(a, a), rel=1e-10)


def test_kernel_distance_leave_out_sums_are_right():
  a, b = _sets(20, 24)
  found = images.kernel_distance(a, b, groups=4)
  # The jackknife again, with every estimate computed afresh.
  rng = np.random.default_rng(0)
  group_a, group_b = (rng.permutation(len(x)) % 4 for x in (a, b))
  left = [_by_double_sum(a[group_a != g], b[group_b != g]) for g in range(4)]
  deviation = 1.96 * math.sqrt(3 * np.var(left))
  assert found.high - found.value == pytest.approx(deviation, rel=1e-8)


def test_kernel_distance_is_unbiased_and_its_interval_covers():
  # Two samples of one distribution: the mean over many draws is 0, and most intervals hold it.
  rng = np.random.default_rng(1)
  found = [images.kernel_distance(*rng.normal(size=(2, 60, 5))) for _ in range(200)]
  values = np.array([one.value for one in found])
  assert abs(values.mean()) < 4 * values.std() / math.sqrt(200)
  assert 0.85 < np.mean([one.low < 0 < one.high for one in found]) <= 1
  assert (values < 0).any()


def test_kernel_distance_over_subsets_has_the_same_expectation():
  a, b = _sets(150, 150)
  whole = images.kernel_distance(a, b).value
  parts = images.kernel_distance(a, b, subset_size=40, num_subsets=300).value
  assert parts == pytest.approx(whole, rel=0.15) and parts != whole


def _brute(real, fake, k):
  def radius(x):
    return [sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1] for i in range(len(x))]

  between = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
  balls_real, balls_fake = np.array(radius(real)), np.array(radius(fake))
  within = between <= balls_real[:, None]
  return {
    "precision": within.any(0).mean(),
    "recall": (between <= balls_fake).any(1).mean(),
    "density": within.sum(0).mean() / k,
    "coverage": within.any(1).mean(),
  }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_coverage_equal_brute_force(k, monkeypatch):
  monkeypatch.setattr(images, "_BLOCK", 16)  # so that several blocks are needed
  real, fake = _sets(40, 33, 3, 0.8)
  found = images.precision_recall_density_coverage(real, fake, k)
  for name, value in _brute(real, fake, k).items():
    assert found[name].value == pytest.approx(value, abs=1e-12), name
    assert found[name].low <= value <= found[name].high


def test_blocks_do_not_change_the_kernel_distance(monkeypatch):
  a, b = _sets()
  whole = images.kernel_distance(a, b)
  monkeypatch.setattr(images, "_BLOCK", 16)
  assert images.kernel_distance(a, b).value == pytest.approx(whole.value, rel=1e-10)


def test_mode_collapse_shows_in_recall_and_invention_in_precision():
  rng = np.random.default_rng(0)
  real = rng.normal(size=(200, 4))
  collapsed = 0.05 * rng.normal(size=(200, 4))
  wild = 6 * rng.normal(size=(200, 4))
  few = images.precision_recall_density_coverage(real, collapsed)
  assert few["precision"].value > 0.95 and few["recall"].value < 0.1 and few["coverage"].value < 0.3
  assert images.precision_recall_density_coverage(real, wild)["precision"].value < 0.3


def test_floor_of_equal_halves():
  rng = np.random.default_rng(0)
  real = rng.normal(size=(200, 5))
  kernel = images.kernel_floor(real)
  assert kernel.low < kernel.value == 0 < kernel.high and (kernel.num_a, kernel.num_b) == (100, 100)
  # The same as split after split by the distance itself.
  rng = np.random.default_rng(3)
  splits = [images.kernel_distance(*np.split(rng.permutation(real), 2), groups=0).value for _ in range(400)]
  np.testing.assert_allclose([kernel.low, kernel.high], np.percentile(splits, [2.5, 97.5]), rtol=0.15)
  assert abs(np.mean(splits)) < 0.1 * kernel.high
  large, small = (images.floor(real, images.frechet_distance, 10, size=size) for size in (100, 20))
  # The Fréchet distance of equal distributions falls with the number of images; that is what the floor is for.
  assert 0 < large.value < small.value


def test_compare_gives_all_with_floors():
  a, b = _sets(60, 60, shift=6)
  found = images.compare(a, b)
  assert set(found) == {
    "frechet",
    "kernel",
    "frechet_matched",
    "frechet_floor",
    "kernel_floor",
    "precision",
    "recall",
    "density",
    "coverage",
  }
  assert found["frechet"].value > found["frechet_floor"].value
  assert found["kernel"].value > found["kernel_floor"].high
  assert found["frechet_matched"].num_a == found["frechet_floor"].num_a == 30
  few = images.compare(a[:3], b[:3])
  assert set(few) == {"frechet", "kernel"} and math.isnan(few["frechet"].low)


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda a: images.frechet_distance(a[:1], a), "at least 2"),
    (lambda a: images.kernel_distance(a, a[:1]), "at least 2"),
    (lambda a: images.frechet_distance(a, a[:, :3]), "same d"),
    (lambda a: images.kernel_distance(a, a, subset_size=1), "at least 2"),
    (lambda a: images.precision_recall_density_coverage(a, a[:5]), "at least 6"),
    (lambda a: images.floor(a[:3]), "at least 4"),
    (lambda a: images.kernel_floor(a[:3]), "at least 4"),
    (lambda a: images.floor(a, size=50), "cannot be split"),
    (lambda a: images.frechet_distance(a, np.where(a == a[3, 2], np.nan, a)), "first number 3"),
  ],
)
def test_too_few_or_broken_features_are_refused_in_one_sentence(call, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    call(_sets()[0])
  assert "\n" not in str(caught.value)
