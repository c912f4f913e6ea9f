"""The centrelines of a vessel mask as paths of points, which can be scaled and warped without breaking.

A mask that is warped or reduced pixel by pixel loses vessels thinner than a pixel. Paths do not: they are found
once, at the mask's native size, moved like any other coordinates, and drawn at whatever size is asked for
(`retree_jax.data.reduction`).
"""

import dataclasses

import numpy as np

from retree_jax.metrics import skeleton


@dataclasses.dataclass(frozen=True)
class Centreline:
  """Paths from fork to fork or end, lying one after another in one array.

  Attributes:
    points: [n, 2] float32 (row, column) in pixels, measured from the frame's upper left corner: the first
      pixel's centre is (0.5, 0.5). Paths that meet at a fork share its point; a closed path repeats its first.
    sizes: [k] int, points per path, at least 1.
  """

  points: np.ndarray
  sizes: np.ndarray

  @property
  def nbytes(self) -> int:
    """Memory that the arrays take, bytes."""
    return self.points.nbytes + self.sizes.nbytes

  def to_box(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> "Centreline":
    """The same paths in the pixels of a picture that shows `box` at `size`.

    Points closer than about half a pixel of that picture are left out; those outside the box are kept.

    Args:
      box: (y0, x0, y1, x1) in present pixels; may reach beyond the frame.
      size: (height, width) of the picture.
    """
    scale = np.array(size) / (box[2] - box[0], box[3] - box[1])
    every = max(1, int(0.5 / scale.max()))
    points, sizes = self.points, self.sizes
    if every > 1:
      last = np.cumsum(sizes) - 1
      place = np.arange(len(points)) - np.repeat(last + 1 - sizes, sizes)
      kept = place % every == 0
      kept[last] = True
      sizes = np.add.reduceat(kept, last + 1 - sizes, dtype=sizes.dtype) if sizes.size else sizes
      points = points[kept]
    return Centreline(((points - box[:2]) * scale).astype(np.float32), sizes)

  def mirrored(self, size: tuple[int, int], vertical: bool, horizontal: bool) -> "Centreline":
    """The same paths after the picture of `size` = (height, width) was turned upside down and left to right."""
    flip = np.array([vertical, horizontal])
    return Centreline(np.where(flip, np.array(size, np.float32) - self.points, self.points), self.sizes)

  def through_mesh(self, mesh, steps: int = 5) -> "Centreline":
    """Where the paths lie after Pillow's `Image.transform(..., MESH, mesh)`.

    A mesh says for each point of the output where it comes from. The opposite is found by iteration with the
    mean affine map: the error shrinks by the local departure from it (a fifth or less for `Augment`'s).

    Args:
      mesh: [((x0, y0, x1, y1), (source x and y of the upper left, lower left, lower right and upper right
        corner))], the cells of a regular grid, row by row.
      steps: of the iteration.
    """
    xs = np.unique([edge for box, _ in mesh for edge in box[::2]])
    ys = np.unique([edge for box, _ in mesh for edge in box[1::2]])
    corners = np.array([quad for _, quad in mesh], float).reshape(len(ys) - 1, len(xs) - 1, 4, 2)[..., ::-1]
    grid = np.empty((len(ys), len(xs), 2))
    for corner, (down, right) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
      grid[down : len(ys) - 1 + down, right : len(xs) - 1 + right] = corners[:, :, corner]
    place = np.stack(np.meshgrid(ys, xs, indexing="ij"), -1).reshape(-1, 2)
    source = grid.reshape(-1, 2)
    turn = np.linalg.lstsq(source - source.mean(0), place - place.mean(0), rcond=None)[0]
    found = (self.points - source.mean(0)) @ turn + place.mean(0)
    for _ in range(steps):
      # Beyond the outer cells these are continued.
      i = np.clip(np.searchsorted(ys, found[:, 0], "right") - 1, 0, len(ys) - 2)
      j = np.clip(np.searchsorted(xs, found[:, 1], "right") - 1, 0, len(xs) - 2)
      down = ((found[:, 0] - ys[i]) / (ys[i + 1] - ys[i]))[:, None]
      right = ((found[:, 1] - xs[j]) / (xs[j + 1] - xs[j]))[:, None]
      above = grid[i, j] * (1 - right) + grid[i, j + 1] * right
      below = grid[i + 1, j] * (1 - right) + grid[i + 1, j + 1] * right
      found = found + (self.points - above * (1 - down) - below * down) @ turn
    return Centreline(found.astype(np.float32), self.sizes)


def centreline(mask) -> Centreline:
  """Finds the centrelines of a vessel mask at its own size, without the spurs that rough walls cause.

  Dots, pieces that are less than three times as long as wide, have none: they are no vessels but slips of the pen
  or optic discs, and show at a lower resolution if they are large enough for it, and not otherwise.

  About a second for 2336x3504 pixels and 0.7 MB: keep the result where a mask is used more than once.

  Args:
    mask: [H, W] or [H, W, 1]; bool, {0, 1} or {0, 255}.

  Raises:
    ValueError: if `mask` is not a two-valued map.
  """
  found = skeleton.trace(mask)
  paths = [
    np.concatenate([s.points, s.points[:1]]) if s.closed else s.points
    for s in found.segments
    # A skeleton ends half a width before the wall, at both ends.
    if s.closed or max(s.start, s.end) >= 0 or s.length() > 4 * np.median(s.half_widths)
  ]
  points = np.concatenate(paths) + 0.5 if paths else np.zeros((0, 2))
  return Centreline(points.astype(np.float32), np.array([len(path) for path in paths], np.int32))


def draw(line: Centreline, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Draws every path as an 8-connected digital line, one pixel wide (`digital_lines`).

  Args:
    line: in pixels of the picture; parts outside it are cut off.
    size: (height, width).

  Returns:
    (pixels, ends), both [height, width] bool; `ends` are those of the first and last point of each path.
  """
  pixels, ends = np.zeros(size, bool), np.zeros(size, bool)
  cells, _, end, spare = digital_lines(line)
  inside = ((cells >= 0) & (cells < size)).all(1)
  pixels[tuple(cells[~spare & inside].T)] = True
  ends[tuple(cells[end & inside].T)] = True
  return pixels, ends


def digital_lines(line: Centreline) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """The pixels that paths pass, in order, each path by itself.

  Of every corner where the line can go on diagonally one pixel can be left out; otherwise lines would be up to twice as thick
  and parallel ones would touch too early.

  Args:
    line: k paths, in pixels.

  Returns:
    (pixels [m, 2] int, the path of each [m] in 0..k - 1, whether it is the first or last of its path [m], whether it can be
    left out [m]).
  """
  points, path = line.points, np.repeat(np.arange(line.sizes.size), line.sizes)
  if not path.size:
    return np.zeros((0, 2), int), path, np.zeros(0, bool), np.zeros(0, bool)
  # No step may be longer than a pixel in either direction.
  follows = np.append(path[1:] == path[:-1], False)
  step = np.diff(points, axis=0, append=points[-1:]) * follows[:, None]
  parts = np.maximum(1, np.ceil(np.abs(step).max(1))).astype(int)
  if (parts > 1).any():
    which = np.repeat(np.arange(parts.size), parts)
    place = np.arange(which.size) - np.repeat(np.cumsum(parts) - parts, parts)
    points, path = points[which] + step[which] * (place / parts[which])[:, None], path[which]

  cells = np.floor(points).astype(int)
  first = np.flatnonzero(np.append(True, (cells[1:] != cells[:-1]).any(1) | (path[1:] != path[:-1])))
  stay = np.diff(first, append=len(cells))  # how many points lie in the pixel
  cells, path = cells[first], path[first]

  corner = np.zeros(len(cells), bool)
  corner[1:-1] = (np.abs(cells[2:] - cells[:-2]).max(1) <= 1) & (path[2:] == path[:-2])
  begins = corner & ~np.append(False, corner[:-1])
  at = np.flatnonzero(corner)
  run = np.cumsum(begins)[at] - 1
  odd = (at - np.flatnonzero(begins)[run]) % 2
  # Every other pixel of a run of corners can go: the half in which the path stays for the shorter time.
  balance = np.bincount(run, stay[at] * (2 * odd - 1), minlength=int(begins.sum()))
  single = np.bincount(run, minlength=int(begins.sum())) == 1
  drop = np.where((balance < 0) & ~single, 1, 0)
  spare = np.zeros(len(cells), bool)
  spare[at[odd == drop[run]]] = True

  change = path[1:] != path[:-1]
  return cells, path, np.append(True, change) | np.append(change, True), spare
