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

from retree_jax.metrics.masks import as_mask, distance_to_background

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


def trace(mask, *, prune: bool = True, sigma: float = _PATH_SIGMA, free: bool = False) -> Skeleton:
  """Traces the centrelines of a vessel tree.

  Args:
    mask: [H, W] bool or {0, 1} or {0, 255}; may be empty, one pixel, or full.
    prune: remove branches shorter than 1.5 r + 1, where r is the radius of the disc inscribed at their
      junction: they exceed the vessel's wall by less than half its radius and are only its roughness.
    sigma: of the Gaussian that smooths the paths, in pixels along the path.
    free: return only the segments that have a free end, in the same order.

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
  radius = distance_to_background(mask) - 0.5
  pixels = morphology.skeletonize(mask)
  chains, node_of, node_radii = _chains(pixels, radius)
  for _ in range(3 if prune else 0):
    spurs = chains.spurs(node_radii, pixels.shape[1])
    if not spurs.any():
      break
    # A blob of which every branch is a spur keeps its nodes, so that it does not vanish.
    pixels.flat[chains.pixels[np.repeat(spurs, chains.sizes)]] = False
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
  if free:
    chains = chains.select(~chains.closed & ((chains.starts < 0) | (chains.ends < 0)))
  segments = _segments(chains, nodes, node_radii, mask, radius, sigma) if chains.sizes.size else []
  return Skeleton(pixels[2:-2, 2:-2], nodes - 2, node_radii, segments)


@dataclasses.dataclass(frozen=True)
class _Chains:
  """Chains of skeleton pixels between forks and ends, one after the other.

  Attributes:
    pixels: flat indices, those of each chain in order.
    sizes: [k] pixels of each chain.
    starts, ends: [k] node at either end, or -1.
    closed: [k] bool.
  """

  pixels: np.ndarray
  sizes: np.ndarray
  starts: np.ndarray
  ends: np.ndarray
  closed: np.ndarray

  def select(self, keep: np.ndarray) -> "_Chains":
    """Those of [k] bool."""
    rest = (column[keep] for column in (self.sizes, self.starts, self.ends, self.closed))
    return _Chains(self.pixels[np.repeat(keep, self.sizes)], *rest)

  def spurs(self, node_radii: np.ndarray, width: int) -> np.ndarray:
    """[k] bool: branches that end freely close to their node, see `trace`; `width` of the picture in pixels."""
    number, branch = np.repeat(np.arange(self.sizes.size), self.sizes), ~self.closed & ((self.starts < 0) != (self.ends < 0))
    step = np.abs(np.diff(self.pixels))
    diagonal = (number[1:] == number[:-1]) & (step != 1) & (step != width)
    length = self.sizes + 0.414 * np.bincount(number[1:][diagonal], minlength=self.sizes.size)
    limit = np.zeros(self.sizes.size)
    limit[branch] = 1.5 * node_radii[np.maximum(self.starts, self.ends)[branch]] + 1
    return branch & (length <= limit)


def _chains(pixels: np.ndarray, radius: np.ndarray) -> tuple[_Chains, np.ndarray, np.ndarray]:
  """Cuts a skeleton (with an empty margin) at its forks.

  Returns:
    chains: open ones by the number of their first pixel, the smaller of the two at their ends, then closed ones.
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
  number = np.full(on.size, -1, np.int32)
  number[fork_pixels] = np.arange(fork_pixels.size)
  pairs = [(np.arange(fork_pixels.size), number[fork_pixels + dy * width + dx]) for dy, dx in _STEPS[:4]]
  rows = np.concatenate([a[b >= 0] for a, b in pairs])
  columns = np.concatenate([b[b >= 0] for _, b in pairs])
  graph = coo_array((np.ones(rows.size, bool), (rows, columns)), shape=(fork_pixels.size,) * 2)
  num_nodes, label = connected_components(graph, directed=False) if fork_pixels.size else (0, number[:0])
  node_of = np.full(on.size, -1, np.int32)
  node_of[fork_pixels] = label
  node_radii = np.zeros(num_nodes)
  np.maximum.at(node_radii, label, radius.ravel()[fork_pixels])

  # Every other pixel has at most two links, to its like or to forks. A pixel is its place in `path_pixels` from here on.
  path_pixels = flat[~fork]
  offsets = np.array([dy * width + dx for dy, dx in _STEPS])
  place = np.full(on.size, -1, np.int32)
  place[path_pixels] = np.arange(path_pixels.size)
  order, direction = np.nonzero(linked[~fork])
  other = path_pixels[order] + offsets[direction]
  second = np.diff(order, prepend=-1) == 0
  links, beside = np.full((2, path_pixels.size), -1), np.full((2, path_pixels.size), -1)
  links[second.astype(int), order] = place[other]
  beside[second.astype(int), order] = node_of[other]
  joined, sizes, num_open = _follow(links)
  first, last = joined[np.cumsum(sizes) - sizes], joined[np.cumsum(sizes) - 1]
  # A single pixel between two forks has both beside it.
  starts = np.where(beside[0, first] >= 0, beside[0, first], beside[1, first])
  one, two = beside[:, last]
  ends = np.where(sizes == 1, np.where(one >= 0, two, -1), np.where(one >= 0, one, two))
  closed = np.arange(sizes.size) >= num_open
  return _Chains(path_pixels[joined], sizes, starts, ends, closed), node_of, node_radii


def _follow(links: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
  """Puts the members of chains in order.

  Args:
    links: [2, n], the neighbours of each of n members in its chain, -1 for none.

  Returns:
    The members of all chains one after the other, the sizes of these, and how many of them are open. Those come first: each
    begins at its end with the smaller number, by which they are sorted; closed ones begin with their smallest number.
  """
  count = links.shape[1]
  # An arc is a member and the link by which it is left: number + n * link. Jumps along arcs double until all ends are reached.
  source = np.tile(np.arange(count), 2)
  target = links.ravel()
  inner = target >= 0
  back = links[0, target] == source  # the target is entered by its link 0, and left by link 1
  onward = np.where(inner, target + count * back, np.arange(2 * count))
  steps = np.where(inner, 1, 0)
  while True:
    further = onward[onward]
    if (further == onward).all() or steps.max(initial=0) > count:
      break
    steps, onward = steps + steps[onward], further
  ends, far = (x.reshape(2, count) for x in (source[onward], steps))
  loop = inner[onward].reshape(2, count).any(axis=0)
  first = ends.min(axis=0)
  rank = np.where(ends[0] <= ends[1], far[0], far[1])
  members = np.flatnonzero(~loop)
  members = members[np.lexsort((rank[members], first[members]))]
  sizes = np.bincount(first[members], minlength=count)
  sizes = sizes[sizes > 0]
  loops, left = [], set(np.flatnonzero(loop).tolist())
  for start in sorted(left):
    if start not in left:
      continue
    chain, member = [], start
    while member is not None:
      chain.append(member)
      left.discard(member)
      member = next((int(m) for m in links[:, member] if m in left), None)
    loops.append(chain)
  members = np.concatenate([members, *(np.array(chain) for chain in loops)])
  return members, np.concatenate([sizes, np.array([len(chain) for chain in loops], int)]), len(sizes)


def _segments(chains: _Chains, nodes, node_radii, mask, radius, sigma) -> list[Segment]:
  """Converts pixel chains into smooth centred paths, all at once: concatenated in one array."""
  width = mask.shape[1]
  closed, from_node, to_node = chains.closed, chains.starts >= 0, chains.ends >= 0
  sizes = chains.sizes + from_node + to_node
  ends = np.cumsum(sizes)
  points = np.empty((ends[-1], 2))
  own = np.ones(len(points), bool)
  own[(ends - sizes)[from_node]] = own[(ends - 1)[to_node]] = False
  points[own] = np.stack(np.divmod(chains.pixels, width), 1)
  points[(ends - sizes)[from_node]], points[(ends - 1)[to_node]] = nodes[chains.starts[from_node]], nodes[chains.ends[to_node]]
  points = smooth(points, sizes, closed, sigma)
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
  points = points - 2
  lasts = np.cumsum(chains.sizes) - 1
  tips = []
  for known, node, pixel in ((from_node, chains.starts, lasts + 1 - chains.sizes), (to_node, chains.ends, lasts)):
    tip = radius.flat[chains.pixels[pixel]]
    tip[known] = node_radii[node[known]]
    tips.append(tip.tolist())
  columns = (ends.tolist(), sizes.tolist(), chains.starts.tolist(), chains.ends.tolist(), *tips, closed.tolist())
  return [
    Segment(points[last - size : last], half[last - size : last], start, end, start_radius, end_radius, loop)
    for last, size, start, end, start_radius, end_radius, loop in zip(*columns, strict=True)
  ]


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
