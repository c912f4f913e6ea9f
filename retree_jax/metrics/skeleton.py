"""Centrelines of a vessel tree: a pruned skeleton, cut at its junctions into smooth, sub-pixel paths.

scikit-image thins the mask (Zhang and Suen, CACM 1984). The rest is done here, because values computed from raw
pixel chains depend on how the shape lies on the pixel grid (chain-code lengths change by up to 8 % under
rotation):

1. Pixels are linked by mixed adjacency (a diagonal link is dropped where two orthogonal links make the same
   connection), so that only true forks have three neighbours; touching fork pixels form one node.
2. Spurs, which are branches that barely leave the disc inscribed at their junction, are pruned.
3. Every path is smoothed, centred between the two walls (located at sub-pixel accuracy along the normal), and
   smoothed again. The smoothing kernel 2g - g*g, with g a Gaussian, does not move parabolas, so curves keep
   their radius while the steps of the pixel grid vanish.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage import morphology

from retree_jax.metrics.masks import as_mask

# (row, column) steps to the eight neighbours; step i and step 7 - i are opposite.
_STEPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_PATH_SIGMA = 3.0  # pixels along the path: longer than most steps of the grid, shorter than bends of vessels


@dataclasses.dataclass(frozen=True)
class Segment:
  """A piece of centreline between two nodes or free ends, or (closed) around a loop without a node.

  Attributes:
    points: [n, 2] float (row, column), smooth, in order; a closed path does not repeat its first point.
    half_widths: [n] distance from the path to the wall, mean of both sides, pixels.
    start, end: index of the node at either end, or -1 for a free end (and for closed paths).
    start_radius, end_radius: radius of the inscribed disc at either end, pixels.
    closed: whether it is a loop without a node.
  """

  points: np.ndarray
  half_widths: np.ndarray
  start: int
  end: int
  start_radius: float
  end_radius: float
  closed: bool

  def steps(self) -> np.ndarray:
    """Lengths between consecutive points, [n - 1] (closed: [n], the last leads back to the start)."""
    points = np.concatenate([self.points, self.points[:1]]) if self.closed else self.points
    return np.sqrt(np.sum(np.diff(points, axis=0) ** 2, axis=1))

  def length(self) -> float:
    """Arc length of the path, pixels."""
    return float(self.steps().sum())


@dataclasses.dataclass(frozen=True)
class Skeleton:
  """The centrelines of a tree.

  Attributes:
    pixels: [H, W] bool, the pruned skeleton.
    nodes: [m, 2] float, centres of the forks.
    node_radii: [m] radius of the inscribed disc at each fork, pixels.
    segments: the paths between them.
  """

  pixels: np.ndarray
  nodes: np.ndarray
  node_radii: np.ndarray
  segments: list[Segment]


def skeletonize(mask) -> np.ndarray:
  """One-pixel-wide skeleton [H, W] bool of a binary map (scikit-image's Zhang-Suen thinning, unpruned).

  Raises:
    ValueError: if `mask` is not a two-valued map.
  """
  mask = as_mask(mask)
  return morphology.skeletonize(mask) if mask.any() else np.zeros_like(mask)


def trace(mask, *, prune: bool = True, sigma: float = _PATH_SIGMA) -> Skeleton:
  """Traces the centrelines of a vessel tree.

  Args:
    mask: [H, W] bool or {0, 1} or {0, 255}; may be empty, one pixel, or full.
    prune: remove branches shorter than 1.5 r + 1, where r is the radius of the disc inscribed at their
      junction: they exceed the vessel's wall by less than half its radius and are only its roughness.
    sigma: of the Gaussian that smooths the paths, in pixels along the path.

  Returns:
    The Skeleton.

  Raises:
    ValueError: if `mask` is not a two-valued map.
  """
  mask = np.pad(as_mask(mask), 2)
  if not mask.any():
    nothing = np.zeros((0, 2))
    return Skeleton(mask[2:-2, 2:-2], nothing, nothing[:, 0], [])
  # Distance to the wall, which lies half a pixel before the nearest background pixel's centre.
  radius = ndimage.distance_transform_edt(mask) - 0.5
  pixels = morphology.skeletonize(mask)
  chains, node_of, node_radii = _chains(pixels, radius)
  for _ in range(3 if prune else 0):
    spurs = [chain for chain in chains if _is_spur(chain, node_radii, pixels.shape[1])]
    if not spurs:
      break
    # A blob of which every branch is a spur keeps its nodes, so that it does not vanish.
    pixels.flat[np.concatenate([chain[0] for chain in spurs])] = False
    chains, node_of, node_radii = _chains(pixels, radius)
  flat = np.flatnonzero(node_of >= 0)
  which = node_of[flat]
  members = np.bincount(which, minlength=node_radii.size)
  nodes = np.stack(
    [
      np.bincount(which, place, minlength=node_radii.size) / np.maximum(members, 1)
      for place in np.divmod(flat, pixels.shape[1])
    ],
    1,
  )
  segments = _segments(chains, nodes, node_radii, mask, radius, sigma)
  return Skeleton(pixels[2:-2, 2:-2], nodes - 2, node_radii, segments)


def _chains(pixels: np.ndarray, radius: np.ndarray):
  """Cuts a skeleton (with an empty margin) at its forks.

  Returns:
    chains: list of (flat pixel indices in order, start node or -1, end node or -1, closed).
    node_of: [H * W] int, the node that a fork pixel belongs to, -1 elsewhere.
    node_radii: [m], the largest radius among each node's pixels.
  """
  width = pixels.shape[1]
  flat = np.flatnonzero(pixels)
  on = pixels.ravel()
  linked = np.empty((flat.size, 8), bool)
  for i, (dy, dx) in enumerate(_STEPS):
    there = on[flat + dy * width + dx]
    if dy and dx:
      there = there & ~on[flat + dy * width] & ~on[flat + dx]
    linked[:, i] = there
  degree = linked.sum(1)
  fork = degree >= 3

  # Touching fork pixels (in the full 8-neighbourhood) are one node.
  fork_pixels = flat[fork]
  number = np.full(on.size, -1)
  number[fork_pixels] = np.arange(fork_pixels.size)
  pairs = [(np.arange(fork_pixels.size), number[fork_pixels + dy * width + dx]) for dy, dx in _STEPS[:4]]
  rows = np.concatenate([a[b >= 0] for a, b in pairs])
  columns = np.concatenate([b[b >= 0] for _, b in pairs])
  graph = coo_array((np.ones(rows.size, bool), (rows, columns)), shape=(fork_pixels.size,) * 2)
  num_nodes, label = connected_components(graph, directed=False) if fork_pixels.size else (0, number[:0])
  node_of = np.full(on.size, -1)
  node_of[fork_pixels] = label
  node_radii = np.zeros(num_nodes)
  np.maximum.at(node_radii, label, radius.ravel()[fork_pixels])

  # Every other pixel has at most two links, to its like or to forks. The chains are followed in plain Python, a pixel being its
  # place in `path_pixels`: a tree has a few thousand.
  path_pixels = flat[~fork]
  offsets = np.array([dy * width + dx for dy, dx in _STEPS])
  place = np.full(on.size, -1)
  place[path_pixels] = np.arange(path_pixels.size)
  order, direction = np.nonzero(linked[~fork])
  other = path_pixels[order] + offsets[direction]
  second = np.diff(order, prepend=-1) == 0
  links, beside = np.full((2, path_pixels.size), -1), np.full((2, path_pixels.size), -1)
  links[second.astype(int), order] = place[other]
  beside[second.astype(int), order] = node_of[other]
  is_end = (degree[~fork] < 2) | (beside >= 0).any(0)
  (one, two), (node_one, node_two) = links.tolist(), beside.tolist()
  visited = bytearray(path_pixels.size)
  chains = []

  def walk(pixel):
    chain = []
    while True:
      chain.append(pixel)
      visited[pixel] = 1
      if (following := one[pixel]) < 0 or visited[following]:
        following = two[pixel]
        if following < 0 or visited[following]:
          return chain
      pixel = following

  def forks_beside(pixel):
    return [node for node in (node_one[pixel], node_two[pixel]) if node >= 0]

  for first in np.flatnonzero(is_end).tolist():
    if visited[first]:
      continue
    chain = walk(first)
    # A single pixel between two forks has both of them beside it.
    beside_ends = forks_beside(first), forks_beside(chain[-1])[len(chain) == 1 :]
    start, end = (found[0] if found else -1 for found in beside_ends)
    chains.append((path_pixels[chain], start, end, False))
  for first in np.flatnonzero(~is_end).tolist():
    if not visited[first]:
      chains.append((path_pixels[walk(first)], -1, -1, True))
  return chains, node_of, node_radii


def _is_spur(chain, node_radii: np.ndarray, width: int) -> bool:
  pixels, start, end, closed = chain
  if closed or (start < 0) == (end < 0):
    return False
  limit = 1.5 * node_radii[max(start, end)] + 1
  if pixels.size > limit:
    return False
  diagonal = ~np.isin(np.abs(np.diff(pixels)), (1, width))
  return pixels.size + 0.414 * diagonal.sum() <= limit


def _segments(chains, nodes, node_radii, mask, radius, sigma) -> list[Segment]:
  """Converts pixel chains into smooth centred paths, all at once: concatenated in one array."""
  width = mask.shape[1]
  paths = []
  for pixels, start, end, _ in chains:
    path = np.stack(np.divmod(pixels, width), 1).astype(float)
    paths.append(
      np.concatenate(
        [nodes[start : start + 1] if start >= 0 else path[:0], path, nodes[end : end + 1] if end >= 0 else path[:0]]
      )
    )
  closed = np.array([chain[3] for chain in chains], bool)
  sizes = np.array([len(path) for path in paths])
  ends = np.cumsum(sizes)
  points = smooth(np.concatenate(paths), sizes, closed, sigma)
  whole = np.round(points).astype(int)
  at_radius = radius[whole[:, 0], whole[:, 1]]
  normal = _normals(points, sizes, closed)
  left = _to_wall(mask, points, normal, at_radius)
  right = _to_wall(mask, points, -normal, at_radius)
  # Near a fork the walls belong to several vessels: there, and at ends, the path is not moved.
  shift = np.clip((left - right) / 2, -1, 1)
  shift *= np.abs(left - right) <= 2
  shift[ends - sizes] *= closed
  shift[ends - 1] *= closed
  points = smooth(points + shift[:, None] * normal, sizes, closed, sigma)
  # A path of one pixel has no direction to look across.
  half = np.where(np.repeat(sizes, sizes) > 1, (left + right) / 2, at_radius)
  result = []
  for (pixels, start, end, loop), last, size in zip(chains, ends, sizes, strict=True):
    inside = slice(last - size, last)
    tips = [float(node_radii[node]) if node >= 0 else float(radius.flat[pixels[i]]) for node, i in ((start, 0), (end, -1))]
    result.append(Segment(points[inside] - 2, half[inside], start, end, *tips, loop))
  return result


def smooth(points: np.ndarray, sizes: np.ndarray, closed: np.ndarray, sigma: float) -> np.ndarray:
  """Smooths paths that are concatenated in one array, with the kernel 2g - g*g (g: Gaussian of `sigma` samples).

  The kernel's second moment is zero: straight lines and parabolas pass unchanged, so a curve does not shrink.
  Open paths keep their end points (they are extended by point reflection); closed paths are extended periodically.

  Args:
    points: [sum(sizes), d].
    sizes: [num_paths] points per path.
    closed: [num_paths] bool.
    sigma: in samples; 0 returns the points unchanged.

  Returns:
    [sum(sizes), d].
  """
  if not sigma or not len(points):
    return points
  reach = int(np.ceil(3.5 * np.sqrt(2) * sigma))
  position = np.arange(-reach, reach + 1)

  def gaussian(s):
    kernel = np.exp(-0.5 * (position / s) ** 2)
    return kernel / kernel.sum()

  kernel = 2 * gaussian(sigma) - gaussian(np.sqrt(2) * sigma)
  begin = np.cumsum(sizes) - sizes
  padded = sizes + 2 * reach
  path = np.repeat(np.arange(sizes.size), padded)
  place = np.arange(padded.sum()) - np.repeat(np.cumsum(padded) - padded, padded) - reach
  last = sizes[path] - 1
  # Reflection at the ends: x(-i) = 2 x(0) - x(i); on paths shorter than the pad it stops at the other end.
  mirrored = np.clip(np.where(place < 0, -place, np.where(place > last, 2 * last - place, place)), 0, last)
  index = np.where(closed[path], place % (last + 1), mirrored) + begin[path]
  outside = ((place < 0) | (place > last)) & ~closed[path]
  pivot = begin[path] + np.where(place < 0, 0, last)
  value = points[index]
  value = np.where(outside[:, None], 2 * points[pivot] - value, value)
  value = ndimage.convolve1d(value, kernel, axis=0, mode="nearest")
  return value[(place >= 0) & (place <= last)]


def _normals(points, sizes, closed) -> np.ndarray:
  """Unit normals of concatenated paths; (0, 0) for a path of one point."""
  ends = np.cumsum(sizes)
  after, before = np.arange(len(points)) + 1, np.arange(len(points)) - 1
  after[ends - 1] = np.where(closed, ends - sizes, ends - 1)
  before[ends - sizes] = np.where(closed, ends - 1, ends - sizes)
  tangent = points[after] - points[before]
  tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
  return np.stack([-tangent[:, 1], tangent[:, 0]], 1)


def _to_wall(mask, points, direction, radius, step: float = 0.5) -> np.ndarray:
  """Distance [n] from each point along its direction to where the mask ends.

  There the bilinearly interpolated mask falls below 1/2. The search stops at 1.5 times the inscribed radius + 1:
  a wall beyond belongs to another vessel, and the inscribed radius is returned instead.
  """
  limit = 1.5 * np.maximum(radius, 0.5) + 1
  distance = np.full(len(points), np.nan)
  values = mask.astype(np.float32)
  active = np.arange(len(points))
  before = ndimage.map_coordinates(values, points.T, order=1, mode="constant", prefilter=False)
  distance[before < 0.5] = 0
  active = active[before >= 0.5]
  before = before[before >= 0.5]
  reach = 0.0
  while active.size:
    reach += step
    now = ndimage.map_coordinates(
      values, (points[active] + reach * direction[active]).T, order=1, mode="constant", prefilter=False
    )
    out = now < 0.5
    distance[active[out]] = reach - step * (0.5 - now[out]) / (before[out] - now[out])
    stop = ~out & (reach >= limit[active])
    distance[active[stop]] = radius[active[stop]]
    stay = ~out & ~stop
    active, before = active[stay], now[stay]
  return distance
