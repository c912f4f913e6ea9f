"""The permutation test: its level on one distribution, its power on two, SciPy's energy distance in one dimension."""

import numpy as np
import pytest
from scipy import stats

from retree_jax.metrics import two_sample


def test_level_on_one_distribution():
  rng = np.random.default_rng(0)
  p = [two_sample.energy_test(rng.standard_normal((12, 5)), rng.standard_normal((9, 5)), 99, seed)["p"] for seed in range(300)]
  # A valid test: p uniform, so about 5 % and 50 % lie below 0.05 and 0.5 (binomial deviations 1.3 and 2.9 %).
  assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.04)
  assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.09)


def test_power():
  rng = np.random.default_rng(1)
  a = rng.standard_normal((20, 50))
  assert two_sample.energy_test(a, rng.standard_normal((20, 50)) + 0.6)["p"] == 0.001
  assert two_sample.energy_test(a, 2 * rng.standard_normal((20, 50)))["p"] == 0.001


def test_equals_scipy_in_one_dimension():
  rng = np.random.default_rng(2)
  a, b = rng.standard_normal((30, 1)), rng.standard_normal((25, 1)) + 1
  scale = np.concatenate([a, b]).std()
  between = np.abs(a - b.T).mean() / scale
  # SciPy's energy distance is the root of the squared one.
  squared = stats.energy_distance(a[:, 0], b[:, 0]) ** 2 / scale
  assert two_sample.energy_test(a, b, 9)["energy"] == pytest.approx(np.sqrt(squared / (2 * between)))


def test_units_do_not_matter_and_constants_are_left_out():
  rng = np.random.default_rng(3)
  a, b = rng.standard_normal((10, 4)), rng.standard_normal((12, 4)) + 0.5
  scale = np.array([1e-3, 1.0, 50.0, 1e6])
  found = two_sample.energy_test(a, b)
  padded = [np.concatenate([x * scale, np.ones((len(x), 1))], 1) for x in (a, b)]
  assert two_sample.energy_test(*padded) == pytest.approx(found)


def test_degenerate_and_bad_input():
  same = np.ones((5, 3))
  assert two_sample.energy_test(same, same)["p"] == 1 and two_sample.energy_test(same, same)["energy"] == 0
  with pytest.raises(ValueError, match="too few"):
    two_sample.energy_test(same[:1], same)
  with pytest.raises(ValueError, match="same d"):
    two_sample.energy_test(same[:, :2], same)
  with pytest.raises(ValueError, match="finite"):
    two_sample.energy_test(same * np.nan, same)


def test_many_images_are_bounded():
  rng = np.random.default_rng(4)
  found = two_sample.energy_test(rng.standard_normal((1500, 3)), rng.standard_normal((40, 3)), 19)
  assert found["count_a"] == 1000 and found["count_b"] == 40
