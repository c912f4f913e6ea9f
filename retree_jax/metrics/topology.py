"""Connected pieces, loops, and the fractal dimension of a binary map."""

import numpy as np
from scipy import ndimage

from retree_jax.metrics.masks import as_mask

_EIGHT = np.ones((3, 3), bool)


def betti_numbers(mask) -> tuple[int, int]:
  """Betti numbers of a binary map: its numbers of connected pieces and of loops.

  b0 counts the 8-connected components of the foreground; b1 the 4-connected components of the background less
  the outer one (the frame counts as surrounded by background). These are the dual connectivities under which
  a closed curve separates the plane, and the ones segmentation papers use.

  Args:
    mask: [H, W] bool or {0, 1} or {0, 255}.

  Returns:
    (b0, b1). An empty map has (0, 0).

  Raises:
    ValueError: if `mask` is not a two-valued map.
  """
  mask = np.pad(as_mask(mask), 1)
  _, pieces = ndimage.label(mask, _EIGHT)
  _, holes = ndimage.label(~mask)
  return int(pieces), int(holes) - 1


def box_dimension(mask, *, smallest: int = 2, num_offsets: int = 4) -> dict[str, float]:
  """Box-counting (Minkowski-Bouligand) dimension of a binary map, with the quality of its fit.

  N(k) is the number of boxes of k x k pixels that hold at least one pixel of the map, averaged over
  `num_offsets`² grids shifted by equal parts of k, which makes it nearly independent of the position and
  orientation of the shape. The dimension is the slope of the least-squares line of log N over log 1/k, for k in steps of
  about sqrt(2) from `smallest` to a sixth of the longer side of the map's bounding box (beyond that, there are
  few boxes, and the outline of the shape flattens the line).

  A vessel of w pixels is an area for boxes smaller than w and a line for larger ones, so the dimension depends on
  calibre and resolution: compare only maps of one size.

  Args:
    mask: [H, W] bool or {0, 1} or {0, 255}.
    smallest: the smallest box, in pixels.
    num_offsets: shifts of the grid per axis.

  Returns:
    {"dimension": slope, "r2": coefficient of determination of the fit, "num_sizes": number of box sizes}.
    The first two are NaN if fewer than three box sizes fit (maps that are empty or shorter than about 12 *
    smallest).

  Raises:
    ValueError: if `mask` is not a two-valued map.
  """
  mask = as_mask(mask)
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  nothing = {"dimension": float("nan"), "r2": float("nan"), "num_sizes": 0}
  if not rows.size:
    return nothing
  mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  height, width = mask.shape
  largest = max(height, width) / 6
  if largest < 2 * smallest:
    return nothing
  num_sizes = int(np.floor(2 * np.log2(largest / smallest))) + 1
  sizes = np.unique(np.round(smallest * 2 ** (np.arange(num_sizes) / 2)).astype(int))
  if sizes.size < 3:
    return nothing
  # Padding by the largest box on every side lets every shifted grid cover the map; row 0 of `total` is the
  # zero row.
  pad = int(sizes[-1])
  total = np.zeros((height + 2 * pad + 1, width + 2 * pad + 1), np.int32)
  total[1:, 1:] = np.pad(mask, pad).astype(np.int32).cumsum(0).cumsum(1)
  counts = []
  for k in sizes:
    shifts = np.unique(np.arange(num_offsets) * k // num_offsets)
    occupied = []
    for top in pad - shifts:
      lines = total[top::k]
      for left in pad - shifts:
        corners = lines[:, left::k]
        # The last, incomplete row of boxes holds nothing but padding, since the pad is no smaller than a box.
        boxes = corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]
        occupied.append(np.count_nonzero(boxes))
    counts.append(np.mean(occupied))
  x, y = -np.log(sizes), np.log(counts)
  slope, intercept = np.polyfit(x, y, 1)
  spread = np.sum((y - y.mean()) ** 2)
  r2 = 1 - np.sum((y - slope * x - intercept) ** 2) / spread if spread > 1e-12 else float("nan")
  return {"dimension": float(slope), "r2": float(r2), "num_sizes": int(sizes.size)}
