"""The field of view of trees that a model drew: cleaned, cut out, and turned upright in the finished pair."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from retree_jax.data import pictures


def with_fov(fields: dict[str, np.ndarray], framed: bool = True) -> tuple[dict[str, np.ndarray], list[int]]:
  """Trees with a clean field of view, and no vessel outside it.

  Args:
    fields: "tree", and "fov" where the stage draws one, uint8 [N, H, W, 1].
    framed: the stage learnt from eyes cropped to their discs.

  Returns:
    "tree", and "fov" uint8 0..255 (coverage): the disc that the drawn one means. Where none was drawn, the disc
    that the frame inscribes, or the whole frame if eyes were not framed so. And the tilt of each disc, in degrees.
  """
  tree = fields["tree"]
  guess = inscribed(tree.shape[1:3], min(tree.shape[1:3])) if framed else np.full(tree.shape[1:], 255, np.uint8)
  clean, tilts = np.empty_like(tree), [0] * len(tree)
  for i in range(len(tree)):
    clean[i] = guess
    if "fov" in fields:
      disc, tilt = pictures.as_disc(fields["fov"][i, ..., 0] >= 128)
      if (disc >= 128).mean() >= 0.3:  # else no disc to speak of: an untrained model
        clean[i, ..., 0], tilts[i] = disc, tilt
  return {"tree": np.where(clean >= 128, tree, 0).astype(np.uint8), "fov": clean}, tilts


def soft_rim(images: np.ndarray, fovs: np.ndarray) -> np.ndarray:
  """Photographs whose rim fades as that of a shrunk photograph does, so that enlarging them gives a smooth one.

  Pixels along the edge of the frame count as a rim too: few training eyes reach there, so that a small network leaves
  noise in them.

  Args:
    images: uint8 [N, H, W, 3], black where less than half of a pixel is seen.
    fovs: coverage, uint8 [N, H, W, 1].

  Returns:
    uint8 [N, H, W, 3]: where a pixel is seen in part or has no neighbour, the colour of the nearest one that is seen whole
    with all of its neighbours, by its own share.
  """
  out = np.empty_like(images)
  for i, (image, fov) in enumerate(zip(images, fovs[..., 0], strict=True)):
    inside = ndimage.binary_erosion(fov >= 250)
    rows, columns = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    whole = image[rows, columns] if inside.any() else image
    out[i] = np.round(whole * (fov[..., None] / 255.0))
  return out


def upright(fields: dict[str, np.ndarray], tilts: Sequence[float]) -> dict[str, np.ndarray]:
  """Finished pairs turned clockwise about their middle, by the tilt of each one's eye, so that it stands upright.

  Args:
    fields: uint8 [N, H, W, C] each, among them "fov".
    tilts: degrees, N of them; whole pairs stay as they are where it is 0.

  Returns:
    The same fields, 0 outside the field of view. Where the frame cut the disc, the cut runs along the frame again.
  """
  out = {name: pixels.copy() for name, pixels in fields.items()}
  for i in np.flatnonzero(tilts):
    turned = {name: pictures.turned(pixels[i], -tilts[i]) for name, pixels in fields.items()}
    frame = pictures.turned(np.full_like(turned["fov"], 255), -tilts[i])[..., 0] >= 128
    turned["fov"] = _without_ragged_rows(_cut_by_frame(_smoothed(turned["fov"]), frame))
    for name, pixels in turned.items():
      out[name][i] = np.where(turned["fov"] > 0, pixels, 0)
  return out


def _smoothed(fov: np.ndarray) -> np.ndarray:
  """A field of view, uint8 [H, W, 1], 0 or 255, without the steps, a pixel or two high, that enlarging a slanted cut leaves.

  One pixel smaller all around, so that it holds nothing but what was in sight before.
  """
  share = ndimage.gaussian_filter(fov[..., 0].astype(np.float32), min(fov.shape[:2]) / 128, mode="nearest")
  return np.uint8(255) * ndimage.binary_erosion(share >= 127.5, border_value=1)[..., None]


def _without_ragged_rows(fov: np.ndarray) -> np.ndarray:
  """A field of view [H, W, 1] without outermost rows and columns that hold only pieces of a straight cut.

  A cut that stays a fraction of a degree aslant ends in rows of dashes or of half its length. Beside the full length of a
  straight cut each is short; where a disc is round, its outermost rows are short too, and stay.
  """
  fov = fov.copy()
  for _ in range(4):
    fov = np.rot90(fov)  # a view: each side is on top once
    lengths = np.count_nonzero(fov[..., 0], axis=1)
    top = int(np.argmax(lengths > 0))
    deepest = min(top + math.ceil(len(fov) / 128), len(fov) - 1)
    while top < deepest and lengths[top + 1] > fov.shape[1] / 2 and (
        lengths[top] < lengths[top + 1] - max(6, 0.02 * lengths[top + 1])):
      fov[top] = 0
      top += 1
  return fov


def _cut_by_frame(fov: np.ndarray, frame: np.ndarray) -> np.ndarray:
  """A field of view [H, W, 1] without the rows and columns in which the turned `frame`, bool [H, W], cuts it aslant."""
  height, width = frame.shape
  row, column = np.nonzero(ndimage.binary_dilation(~frame, iterations=2) & (fov[..., 0] > 0))
  nearest = np.argmin([row, height - 1 - row, column, width - 1 - column], axis=0) if len(row) else np.zeros(0, int)
  top, left = max(row[nearest == 0], default=-1) + 1, max(column[nearest == 2], default=-1) + 1
  bottom, right = min(row[nearest == 1], default=height), min(column[nearest == 3], default=width)
  kept = np.zeros_like(fov)
  kept[top:bottom, left:right] = fov[top:bottom, left:right]
  return kept


def inscribed(size: tuple[int, int], diameter: float) -> np.ndarray:
  """Coverage of a disc about the middle of a frame, uint8 0..255 [H, W, 1]."""
  return pictures.disc_coverage(size, ((size[0] - 1) / 2, (size[1] - 1) / 2), diameter / 2)[..., None]
