"""Makes a vessel mask smaller without breaking its vessels.

A vessel thinner than a pixel vanishes from a mask that is averaged over areas and cut at one half: expert trees
of a few pieces fall into hundreds. The rule here (`RULE`) keeps the vessels' connections and length:

1. The centrelines, found at native size, are drawn as digital lines one pixel wide.
2. Pixels are added in falling order of coverage (the share of a pixel that is vessel) down to a threshold, as
   long as none of them joins two pieces, cuts off or closes a piece of background: vessels that run side by side
   stay apart unless their centrelines meet in one pixel or in neighbours. Only holes in which every pixel
   reaches the threshold are filled.
3. The threshold is one half, or as far above it, to 0.6 at most, as is needed for the mask to have the area of
   the native one: lines of vessels thinner than a pixel are too wide, and the rims of wide vessels make up for
   it, by 0.1 pixel on either side at most.

What the resolution does not hold cannot be kept: oblique vessels whose middles are less than about 2.2 pixels
apart touch, so that two thirds of a pixel are lost at every fork, and where vessels narrower than a pixel prevail
the mask is denser than the native one.
"""

import numpy as np
from scipy import ndimage

from retree_jax.data import field_of_view, transforms
from retree_jax.data.centreline import Centreline, centreline, draw
from retree_jax.metrics.masks import as_mask

RULE = "centreline-growth-1"  # reports name it; a change that moves pixels needs a new number
_LOWEST, _HIGHEST = 0.5, 0.6  # the threshold's range
_AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # once around a pixel
_LEVELS = (0.95, 0.9, 0.8, 0.7, 0.6)  # steps of coverage in which pixels are added
_EIGHT = np.ones((3, 3), bool)


def _simple_codes() -> np.ndarray:
  """[256] bool: neighbourhoods whose middle pixel can change without any change of topology.

  Those are the ones with Yokoi's connectivity number 1 (Yokoi et al., Computer Graphics and Image Processing
  1975), for 8-connected foreground and 4-connected background. Bit k stands for neighbour k of `_AROUND`.
  """
  off = ((np.arange(256)[:, None] >> np.arange(8)) & 1) == 0
  return sum(off[:, k] & ~(off[:, (k + 1) % 8] & off[:, (k + 2) % 8]) for k in range(0, 8, 2)) == np.ones(256)


_SIMPLE = _simple_codes()


def _change(pixels: np.ndarray, candidates: np.ndarray, width: int) -> None:
  """Adds (or removes) candidates, in place, wherever the topology stays, until none is left that can change.

  Args:
    pixels: [H * width] bool, flat, with an empty margin of one pixel.
    candidates: flat indices, all of them set or all of them not set.
  """
  offsets = np.array([dy * width + dx for dy, dx in _AROUND])
  bits = (1 << np.arange(8)).astype(np.uint8)
  row, column = np.divmod(candidates, width)
  # Pixels of one such class do not touch each other, so that all of them can be looked at at once.
  classes = [candidates[(row % 2 == i) & (column % 2 == j)] for i in (0, 1) for j in (0, 1)]
  changed = True
  while changed:
    changed = False
    for number, members in enumerate(classes):
      simple = _SIMPLE[(pixels[members[:, None] + offsets] * bits).sum(1, dtype=np.uint8)]
      if simple.any():
        pixels[members[simple]] ^= True
        classes[number] = members[~simple]
        changed = True


def threshold_coverage(coverage: np.ndarray, line: Centreline) -> np.ndarray:
  """Turns a coverage map into a mask that holds together, by `RULE`.

  Args:
    coverage: uint8 [H, W] or [H, W, 1], 0..255, the share of each pixel that is vessel.
    line: the vessels' centrelines in pixels of the map (`Centreline.to_box`, `Centreline.through_mesh`).

  Returns:
    uint8 0/255 of the same shape.

  Raises:
    ValueError: `coverage` is no such map.
  """
  if coverage.dtype != np.uint8 or coverage.shape[2:] not in ((), (1,)) or coverage.ndim < 2:
    raise ValueError(
      f"A coverage map is uint8 [height, width], but this is {coverage.dtype} {list(coverage.shape)}: pass one map from "
      "0 to 255."
    )
  size = coverage.shape[:2]
  shape = (size[0] + 2, size[1] + 2)
  share = np.pad(coverage.reshape(size).astype(np.float32) / 255, 1).ravel()
  pixels, ends = (np.pad(part, 1).ravel() for part in draw(line, size))
  # Lines may lie side by side near forks; what can go without a change of topology goes, least covered first.
  spare = np.flatnonzero(pixels & ~ends)
  fifth = (5 * share[spare]).astype(int)
  for level in range(6):
    _change(pixels, spare[fifth == level], shape[1])

  room = int(share.sum() - pixels.sum())
  rim = np.sort(share[(share >= _LOWEST) & (share < _HIGHEST) & ~pixels])[::-1]
  room -= int(((share >= _HIGHEST) & ~pixels).sum())
  threshold = _HIGHEST if room <= 0 else float(rim[room]) if room < rim.size else _LOWEST
  for level in (*(level for level in _LEVELS if level > threshold), threshold):
    _change(pixels, np.flatnonzero((share >= level) & ~pixels), shape[1])

  def full(regions, test):
    """Regions (labels [shape], background 0) whose pixels pass: test(sum of values) per label."""
    label, count = regions
    passed = test(label.ravel(), count + 1)
    passed[0] = False
    return passed[label.ravel()]

  covered = share >= threshold
  # Holes without an uncovered pixel.
  pixels |= full(ndimage.label(~pixels.reshape(shape)), lambda label, n: np.bincount(label, ~covered, n) == 0)
  # Dots, and vessels whose centreline lies outside the frame.
  pixels |= full(ndimage.label(covered.reshape(shape), _EIGHT), lambda label, n: np.bincount(label, pixels, n) == 0)
  return (pixels.reshape(shape)[1:-1, 1:-1] * np.uint8(255)).reshape(coverage.shape)


def reduce_mask(
  mask, size: tuple[int, int], box: tuple[int, int, int, int] | None = None, line: Centreline | None = None
) -> np.ndarray:
  """A vessel mask at another size, by `RULE`.

  Args:
    mask: [H, W] or [H, W, 1]; bool, {0, 1} or {0, 255}; as large as it is to be had.
    size: (height, width) of the result, at any ratio, enlargement included.
    box: (y0, x0, y1, x1), the part that is shown; may reach beyond the mask. All of it if left out.
    line: `centreline(mask)`, where it is at hand; finding it takes most of the time.

  Returns:
    uint8 0/255 [height, width]. A box that has the result's size already is cut out unchanged.

  Raises:
    ValueError: if `mask` is not a two-valued map, or box or size are empty.
  """
  mask = as_mask(mask)
  box = (0, 0, *mask.shape) if box is None else tuple(int(edge) for edge in box)
  size = tuple(int(side) for side in size)
  if min(size) < 1 or box[2] <= box[0] or box[3] <= box[1]:
    raise ValueError(
      f"Cannot show the part {box} of a mask at {size} pixels: give a box (y0, x0, y1, x1) with y0 < y1 and x0 < x1 "
      "and a size (height, width) of at least 1x1."
    )
  shown = transforms.crop(mask[..., None] * np.uint8(255), box)
  if shown.shape[:2] == size:
    return np.ascontiguousarray(shown[..., 0])
  line = centreline(mask) if line is None else line
  return threshold_coverage(transforms.area_resize(shown, size)[..., 0], line.to_box(box, size))


def render(mask, coverage: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A refined tree at another size: its mask says where vessels run, its coverage how wide they are.

  Enlarging the mask alone would make every vessel at least as wide as one of its pixels, and draw those pixels' corners.

  Args:
    mask: [H, W] or [H, W, 1]; bool, {0, 1} or {0, 255}.
    coverage: of the same tree, uint8 [H, W, 1], 0..255.
    size: (height, width) of the result, at any ratio.

  Returns:
    uint8 0/255 [height, width]; the mask itself where it has that size.

  Raises:
    ValueError: if `mask` is not a two-valued map, or `coverage` no such map.
  """
  mask = as_mask(mask)
  if mask.shape == tuple(size):
    return mask * np.uint8(255)
  line = centreline(mask).to_box((0, 0, *mask.shape), size)
  return threshold_coverage(transforms.area_resize(coverage, size)[..., 0], line)


def turn_mask(mask, degrees: float, turned: np.ndarray | None = None) -> np.ndarray:
  """A vessel mask turned counter-clockwise about its middle, by `RULE`.

  Args:
    mask: [H, W] or [H, W, 1]; bool, {0, 1} or {0, 255}.
    degrees: how far.
    turned: coverage of the same tree, turned already, uint8 [H, W, 1], 0..255, where there is one: vessels narrower than a
      pixel, which a mask shows too wide, do not grow wider still. By default the turned mask.

  Returns:
    uint8 0/255 of the mask's shape; 0 where nothing comes from.

  Raises:
    ValueError: if `mask` is not a two-valued map, or `turned` is of another size.
  """
  shape, mask = np.shape(mask), as_mask(mask)
  line = centreline(mask)
  middle, angle = np.array(mask.shape) / 2, np.deg2rad(degrees)
  # Rows grow downwards: a counter-clockwise turn takes (row, column) to (cos row - sin column, sin row + cos column).
  turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
  points = ((line.points - middle) @ turn + middle).astype(np.float32)
  turned = field_of_view.turned(mask[..., None] * np.uint8(255), degrees) if turned is None else turned
  if turned.shape[:2] != mask.shape:
    raise ValueError(f"a coverage of {turned.shape[:2]} pixels is not of a mask of {mask.shape}: give both at one size")
  return threshold_coverage(turned, Centreline(points, line.sizes)).reshape(shape)
