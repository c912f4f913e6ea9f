"""What is asked beside what is measured: closed forms."""

import numpy as np

from experiments import asking
from retree_jax.data import attributes, transforms
from retree_jax.inference import host_work
from tests.data.test_attributes import eye


def test_agreement_of_numbers_is_a_rank_correlation():
  assert asking.agreement("density", [1, 2, 3, 4], [1, 4, 9, 16]) == 1.0
  assert asking.agreement("density", [1, 2, 3, 4], [4, 3, 2, 1]) == -1.0


def test_agreement_of_words_is_the_share_of_right_ones():
  assert asking.agreement("side", [-1, 1, -1, 1], [-0.4, 0.9, 0.1, 0.2]) == 0.75
  assert asking.agreement("outline", [0, 1, 1, 0], [0, 1, 0, 0]) == 0.75


def test_values_spread_over_the_range():
  density = asking.asked_values("density", 5)
  np.testing.assert_allclose(density, [0.07, 0.08, 0.09, 0.1, 0.11])
  np.testing.assert_allclose(asking.asked_values("tortuosity", 3), [1.026, 1.046, 1.066])
  np.testing.assert_array_equal(asking.asked_values("side", 5), [-1, 1, -1, 1, -1])


def test_drawn_trees_are_measured_as_training_trees():
  tree, fov = eye(120)
  small = [transforms.area_resize(pixels, (256, 256)) for pixels in (tree, fov)]
  found, whole = host_work.measure(transforms.binarise(small[0]), small[1]), attributes.measure(tree, fov)
  assert found["side"] == whole["side"] == -1
  assert abs(found["density"] / whole["density"] - 1) < 0.15
