"""What is a mask, what is none, what the refusal says, and distances within masks."""

import numpy as np
import pytest
from scipy import ndimage

from retree_jax.metrics.masks import as_mask, distance_to_background

TRUTH = np.array([[False, True, True], [False, False, True]])


@pytest.mark.parametrize("given", [TRUTH, TRUTH * 1, TRUTH * np.uint8(255), TRUTH * 1.0, TRUTH[..., None]])
def test_two_valued_maps_are_read(given):
  found = as_mask(given)
  assert found.dtype == bool
  np.testing.assert_array_equal(found, TRUTH)


def test_empty_and_full_maps_are_masks():
  assert not as_mask(np.zeros((4, 5), np.uint8)).any()
  assert as_mask(np.full((4, 5), 255, np.uint8)).all()


@pytest.mark.parametrize(
  ("given", "sentence"),
  [
    (np.zeros((2, 3, 3)), "one map"),
    (np.zeros((0, 3)), "one map"),
    (np.zeros(5), "one map"),
    (np.array([[0, 128], [255, 0]]), "between 0 and 255"),
    (np.array([[0.0, 0.5]]), "threshold it first"),
    (np.array([[0, 1], [255, 0]]), "only 0 and 1"),
    (np.array([[-1, 0]]), "only 0 and 1"),
    (np.array([[np.nan, 1.0]]), "only 0 and 1"),
    (np.array([[1.0, np.nan]]), "only 0 and 1"),
  ],
)
def test_others_are_refused_in_one_sentence(given, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    as_mask(given, "the tracing")
  assert str(caught.value).startswith("the tracing") and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (40, 30), (300, 200)])
def test_distances_to_the_background_are_scipys(shape):
  rng = np.random.default_rng(0)
  given = [rng.random(shape) < share for share in (0.02, 0.5, 0.9, 0.999)]
  given += [ndimage.binary_dilation(mask, iterations=2) for mask in given] + [np.zeros(shape, bool)]
  wide = np.zeros(shape, bool)
  wide[1:-1, 1:-1] = True  # 298 x 198: too wide for the quick way
  for mask in (*given, wide):
    if not mask.all():
      np.testing.assert_array_equal(distance_to_background(mask), ndimage.distance_transform_edt(mask))
