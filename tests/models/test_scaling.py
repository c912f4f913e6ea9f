"""Conversions of 8-bit pixels: exact ends, exact round trips, with NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax.models import scaling

LEVELS = np.arange(256, dtype=np.uint8)


def test_both_ranges_have_exact_ends_and_exact_round_trips():
  for to, back, ends in ((scaling.to_signed, scaling.from_signed, [-1, 1]), (scaling.to_unit, scaling.from_unit, [0, 1])):
    for array in (LEVELS, jnp.asarray(LEVELS)):
      x = to(array)
      assert x.dtype == np.float32 and type(x) is type(array)
      np.testing.assert_array_equal(x[np.array([0, 255])], ends)
      assert back(x).dtype == np.uint8 and type(back(x)) is type(array)
      np.testing.assert_array_equal(back(x), LEVELS)
    np.testing.assert_allclose(to(LEVELS), to(jnp.asarray(LEVELS)), atol=1.2e-7)


def test_values_are_rounded_and_clipped():
  x = np.float32([-1.2, -1 + 0.9 / 127.5, 0.0, 1 - 1.1 / 127.5, 1.2])
  np.testing.assert_array_equal(scaling.from_signed(x), [0, 1, 128, 254, 255])
  np.testing.assert_array_equal(scaling.from_unit(x / 2 + 0.5), [0, 1, 128, 254, 255])
  np.testing.assert_allclose(scaling.to_levels(x), (x.astype(np.float64) + 1) * 127.5, rtol=1e-6)


def test_fields_are_stacked_in_the_order_of_their_names():
  batch = {"image": np.full((2, 3, 4, 3), 255, np.uint8), "tree": np.zeros((2, 3, 4, 1), np.uint8)}
  stacked = jax.jit(lambda batch: scaling.stack_signed(batch, ("tree", "image")))(batch)
  assert stacked.shape == (2, 3, 4, 4) and stacked.dtype == jnp.float32
  np.testing.assert_allclose(stacked[0, 0, 0], [-1, 1, 1, 1], atol=1.2e-7)
