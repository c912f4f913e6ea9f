"""Fields that lie side by side in one array come apart in the order they were given."""

import numpy as np
import pytest

from retree_jax.data import fields


@pytest.mark.parametrize("names", [("image", "tree", "fov"), ("fov", "image"), ("tree",)])
def test_split_fields_are_the_ones_that_were_joined(names):
  rng = np.random.default_rng(0)
  joined = {name: rng.integers(0, 256, (2, 5, 4, fields.CHANNELS[name]), np.uint8) for name in names}
  pixels = np.concatenate(list(joined.values()), -1)
  assert pixels.shape[-1] == fields.num_channels(names)
  found = fields.split_channels(pixels, names)
  assert list(found) == list(names)
  for name in names:
    np.testing.assert_array_equal(found[name], joined[name])
