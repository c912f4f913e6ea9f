"""Tiles cover a picture once, fade into each other, and give back what a function that looks at single pixels gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.inference import tiling


@pytest.mark.parametrize(("length", "tile", "overlap"), [(64, 64, 0), (65, 64, 0), (640, 160, 32), (999, 192, 48), (17, 8, 7)])
def test_starts_cover_every_pixel_with_the_overlap_asked_for(length, tile, overlap):
  places = tiling.starts(length, tile, overlap)
  assert places[0] == 0 and places[-1] == length - tile
  steps = np.diff(places)
  assert (steps > 0).all() and (steps <= tile - overlap).all()
  # As few as will do: one tile fewer could not cover the length.
  assert (len(places) - 1) * (tile - overlap) < length - overlap


@pytest.mark.parametrize("size", [(16, 16), (23, 37), (40, 16), (9, 5)])
def test_a_pixelwise_function_comes_back_exactly_at_any_size(size):
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))

  def function(part):
    assert part.shape == (2, 16, 16, 3)
    return jnp.concatenate([part[..., :1] * 2 + part[..., 1:2], part[..., 2:] ** 2], -1)

  out = jax.jit(lambda x: tiling.tiled(function, x, (16, 16), 6))(x)
  want = jnp.concatenate([x[..., :1] * 2 + x[..., 1:2], x[..., 2:] ** 2], -1)
  assert out.shape == (2, *size, 2)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_overlap_hides_what_a_function_does_at_its_rim():
  # A mean over 5x5 pixels with zeros beyond the tile is wrong within 2 pixels of the rim.
  def blur(x):
    return jax.lax.conv_general_dilated(
      x, jnp.ones((5, 5, 1, 1)) / 25, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  x = jax.random.uniform(jax.random.key(1), (1, 48, 48, 1))
  whole = blur(x)[:, 2:-2, 2:-2]
  error = {o: float(jnp.abs(tiling.tiled(blur, x, (16, 16), o)[:, 2:-2, 2:-2] - whole).max()) for o in (0, 8)}
  assert error[0] > 0.2 and error[8] < error[0] / 2


def test_neighbours_fade_into_each_other_linearly():
  # Each tile answers with one number of its own; along the overlap the result must run straight from one to the other.
  x = jnp.zeros((1, 16, 24, 1)).at[:, :, 8:].set(1.0)  # the second tile starts at pixel 8 of 24

  def own_number(part):
    return jnp.broadcast_to(part[:, :1, :1], part.shape)

  out = np.asarray(tiling.tiled(own_number, x, (16, 16), 8))[0, 4, :, 0]
  np.testing.assert_allclose(out[:8], 0, atol=1e-6)
  np.testing.assert_allclose(out[16:], 1, atol=1e-6)
  np.testing.assert_allclose(out[8:16], (np.arange(8) + 0.5) / 8, atol=1e-6)


@pytest.mark.parametrize("flips", [1, 2, 4])
def test_flip_average_turns_results_back(flips):
  x = jax.random.normal(jax.random.key(2), (1, 6, 10, 2))
  np.testing.assert_allclose(tiling.flip_average(lambda v: v * 3, x, flips), x * 3, rtol=1e-6)
  # A function that favours the left is made even-handed by the left-right mirror.
  ramp = jnp.arange(10.0)[None, None, :, None]
  out = tiling.flip_average(lambda v: jnp.zeros_like(v) + ramp, x, flips)
  want = jnp.broadcast_to(ramp if flips == 1 else 4.5, out.shape)
  np.testing.assert_allclose(out, want, rtol=1e-6)


def test_impossible_numbers_are_refused_in_one_sentence():
  for bad in ((10, 8, 8), (10, 8, -1), (10, 0, 0)):
    with pytest.raises(ValueError, match="overlap from 0 to"):
      tiling.starts(*bad)
  with pytest.raises(ValueError, match="pad it first"):
    tiling.starts(7, 8, 2)
  with pytest.raises(ValueError, match="use 1 .none., 2"):
    tiling.flip_average(lambda v: v, jnp.zeros((1, 4, 4, 1)), 3)
