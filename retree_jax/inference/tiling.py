"""Applies networks trained on patches to whole pictures: overlapping blended tiles, optionally averaged over mirror images.

A network whose normalisation layers compute statistics of their input should be given windows of the size it was trained on.
Tiles overlap, and each pixel's result is the weighted mean of the tiles that contain it. The weights fall towards the rim of a
tile, so that no seams are visible (the overlap-tile strategy of Ronneberger et al. 2015, with weights).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def starts(length: int, tile: int, overlap: int) -> list[int]:
  """Starts of tiles along one axis: evenly spaced, first 0, last length - tile, neighbours overlapping by `overlap` or more.

  Args:
    length: pixels along the axis, at least `tile`.
    tile: pixels of a tile.
    overlap: least overlap of neighbours in pixels, 0 .. tile - 1.

  Returns:
    Ascending integers, as few as possible.

  Raises:
    ValueError: impossible numbers.
  """
  if tile < 1 or not 0 <= overlap < tile:
    raise ValueError(f"tiles of {tile} pixels cannot overlap by {overlap}: use an overlap from 0 to {max(tile - 1, 0)}")
  if length < tile:
    raise ValueError(f"a side of {length} pixels is smaller than a tile of {tile}: pad it first")
  number = 1 + -(-(length - tile) // (tile - overlap))
  return [round(i * (length - tile) / max(number - 1, 1)) for i in range(number)]


def window(tile: tuple[int, int], overlap: int) -> np.ndarray:
  """Weights of a tile's pixels, [h, w] float32 in (0, 1]: 1 inside, falling linearly over the outer `overlap` pixels."""
  sides = []
  for length in tile:
    rim = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    sides.append(np.minimum(rim / max(overlap, 0.5), 1.0))
  return np.outer(*sides).astype(np.float32)


def tiled(function, x, tile: tuple[int, int], overlap: int):
  """Applies `function` to pictures of any size in overlapping tiles. Pure and jittable: one scan, whose carry is the result.

  Args:
    function: [B, h, w, C] -> [B, h, w, K] for (h, w) = tile.
    x: pictures [B, H, W, C]. Sides shorter than the tile are padded with -1 (black), and the result is cropped.
    tile: (height, width) that the function takes.
    overlap: least overlap of neighbouring tiles in pixels.

  Returns:
    [B, H, W, K] float32.

  Raises:
    ValueError: as `starts`.
  """
  b, height, width, channels = x.shape
  h, w = max(height, tile[0]), max(width, tile[1])
  x = jnp.pad(x, ((0, 0), (0, h - height), (0, w - width), (0, 0)), constant_values=-1.0)
  places = np.array([(i, j) for i in starts(h, tile[0], overlap) for j in starts(w, tile[1], overlap)], np.int32)
  weight = jnp.asarray(window(tile, overlap))[None, ..., None]
  one = jax.ShapeDtypeStruct((b, *tile, channels), x.dtype)
  outputs = jax.eval_shape(function, one).shape[-1]

  def add(carry, place):
    total, weights = carry
    at = (0, place[0], place[1], 0)
    out = function(jax.lax.dynamic_slice(x, at, one.shape)).astype(jnp.float32) * weight
    total = jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, at, out.shape) + out, at)
    weights = jax.lax.dynamic_update_slice(weights, jax.lax.dynamic_slice(weights, at, weight.shape) + weight, at)
    return (total, weights), None

  blank = jnp.zeros((b, h, w, outputs), jnp.float32), jnp.zeros((1, h, w, 1), jnp.float32)
  (total, weights), _ = jax.lax.scan(add, blank, places)
  return (total / weights)[:, :height, :width]


def flip_average(function, x, flips: int):
  """Mean of a function's results over mirror images, each mirrored back.

  Args:
    function: [B, H, W, C] -> [B, H, W, K], returning probabilities, not logits, whose mean would favour the most confident.
    x: [B, H, W, C].
    flips: 1 (none), 2 (left-right) or 4 (also up-down and both).

  Returns:
    [B, H, W, K].

  Raises:
    ValueError: another number.
  """
  axes = {1: [()], 2: [(), (2,)], 4: [(), (2,), (1,), (1, 2)]}
  if flips not in axes:
    raise ValueError(f"flips={flips} is unknown: use 1 (none), 2 (left-right) or 4 (left-right and up-down)")
  results = [jnp.flip(function(jnp.flip(x, a)), a) for a in axes[flips]]
  return functools.reduce(jnp.add, results) / flips
