"""What is a mask, what is none, and what the refusal says."""

import numpy as np
import pytest

from retree_jax.metrics.masks import as_mask

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
