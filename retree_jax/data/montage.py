"""Pictures made of pictures: grids, overlays and maps of errors, as uint8 RGB arrays."""

import numpy as np


def to_rgb(pixels: np.ndarray) -> np.ndarray:
  """uint8 [..., H, W, 1 or 3] as [..., H, W, 3]; grey levels are repeated."""
  return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def grid(pixels: np.ndarray, columns: int | None = None, gap: int = 2, background: int = 255) -> np.ndarray:
  """Arranges N pictures in rows.

  Args:
    pixels: uint8 [N, H, W, 1 or 3].
    columns: pictures per row; by default the next integer above √N.
    gap: pixels between pictures.
    background: grey level of the gaps and of empty cells.

  Returns:
    uint8 [rows·(H + gap) − gap, columns·(W + gap) − gap, 3].
  """
  pixels = to_rgb(np.asarray(pixels))
  n, h, w, _ = pixels.shape
  columns = columns or int(np.ceil(np.sqrt(n)))
  rows = -(-n // columns)
  sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), background, np.uint8)
  for i, picture in enumerate(pixels):
    top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
    sheet[top : top + h, left : left + w] = picture
  return sheet


def rows(*pictures: np.ndarray, gap: int = 2) -> np.ndarray:
  """Arranges several sets of N pictures, one row for each set.

  Args:
    *pictures: uint8 [N, H, W, 1 or 3] each, all of one size.
    gap: pixels between pictures.

  Returns:
    uint8 [sets·(H + gap) − gap, N·(W + gap) − gap, 3].
  """
  return grid(np.concatenate([to_rgb(np.asarray(p)) for p in pictures]), columns=len(pictures[0]), gap=gap)


def overlay(image: np.ndarray, tree: np.ndarray, colour=(0, 255, 255), strength: float = 0.6) -> np.ndarray:
  """Draws a tree over its photograph.

  Args:
    image: uint8 [H, W, 3].
    tree: uint8 [H, W, 1], coverage 0..255.
    colour: RGB of the tree, 0..255.
    strength: opacity of the tree in [0, 1].

  Returns:
    uint8 [H, W, 3].
  """
  share = strength * tree.astype(np.float32) / 255.0
  return np.round(image * (1 - share) + np.asarray(colour, np.float32) * share).astype(np.uint8)


def errors(image: np.ndarray, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Agreement of two trees over a darkened photograph: white both, red missed, blue falsely predicted.

  Args:
    image: uint8 [H, W, 3].
    prediction, target: bool [H, W].

  Returns:
    uint8 [H, W, 3].
  """
  out = (image * 0.4).astype(np.uint8)
  out[prediction & target] = (255, 255, 255)
  out[target & ~prediction] = (255, 60, 60)
  out[prediction & ~target] = (60, 120, 255)
  return out
