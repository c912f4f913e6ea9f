"""Clinical biomarkers of vessel trees, and distances between sets of trees in each biomarker.

Published tools disagree on drawn shapes with known values, and many of their numbers change when the shape is
rotated. So every number here is defined (`BIOMARKERS`), all lengths are measured on smooth sub-pixel centrelines
(`skeleton.trace`), and the tests compare with lines, arcs, sinusoids, forks and fractals at several rotations.
Lengths are in pixels: compare only trees of one resolution.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retree_jax.metrics import topology
from retree_jax.metrics.intervals import mean_with_interval
from retree_jax.metrics.masks import as_mask
from retree_jax.metrics.skeleton import Segment, Skeleton, smooth, trace

# name -> (unit, definition). The order is that of reports.
BIOMARKERS: dict[str, tuple[str, str]] = {
  "density": ("share", "vessel pixels over pixels of the field of view (of the frame, where none is given)"),
  "length": (
    "px",
    "length of all centrelines from tip to tip, forks' centres included; free ends are prolonged by the "
    "vessel's radius, which thinning takes from them",
  ),
  "width": (
    "px",
    "mean over the centrelines' length of the distance between the walls, measured across the vessel at "
    "sub-pixel accuracy; stretches inside the disc inscribed at a fork are left out",
  ),
  "width_area": ("px", "vessel pixels over length"),
  "junctions": ("count", "forks and crossings, where three or more vessels meet; those whose inscribed discs touch count once"),
  "endpoints": ("count", "free ends of vessels"),
  "branching_angle": (
    "degrees",
    "mean over forks of three vessels of the angle between the two children: the smallest "
    "of the three angles between the vessels' directions, each taken over 3 radii (at least 15 px) "
    "of centreline that begin 1.5 radii + 4 px from the fork",
  ),
  "branching_angle_median": ("degrees", "median of the same angles"),
  "tortuosity": (
    "ratio",
    "arc length over chord of the stretches between forks and ends that are longer than 10 px, "
    "mean weighted by length; 1 is straight; loops without chord are left out",
  ),
  "tortuosity_median": ("ratio", "median of the same ratios"),
  "tortuosity_curvature": (
    "1/px²",
    "integral of squared curvature along the same stretches (loops included) over "
    "their length, on paths smoothed with 6 px, which bounds curvature by 1/6 px; 1/R² on a circle",
  ),
  "fractal_dimension": ("", "box-counting dimension of the tree (topology.box_dimension)"),
  "fractal_fit": ("R²", "how well a power law fits the box counts of fractal_dimension"),
  "fractal_dimension_skeleton": ("", "box-counting dimension of the centrelines, which does not know the calibre"),
  "components": ("count", "8-connected pieces of the tree (Betti number 0)"),
  "loops": ("count", "closed meshes of the tree (Betti number 1)"),
}

_SHORTEST = 10.0  # pixels; the tortuosity of shorter pieces is mostly that of the pixel grid (as in PVBM)
_CURVATURE_SIGMA = 6.0
_FORK_BLUR = 4.0  # pixels from a fork within which the smoothing of the paths, anchored there, may bend them
_BRIDGE = 2.0  # pixels between the discs of two forks that still count as one crossing: allows for the pixel grid


def biomarkers(tree, fov=None) -> dict[str, float]:
  """Measures one vessel tree.

  Args:
    tree: [H, W] or [H, W, 1] mask (bool, {0, 1} or {0, 255}). May be empty, one pixel, or full.
    fov: mask of the same size, the visible disc; vessel pixels outside it are ignored. None for the whole
      frame.

  Returns:
    {name: value} for the names in BIOMARKERS, which gives units and definitions. Undefined values are NaN: an empty
    tree has density, length and counts 0 and all others NaN, a tree without forks has no branching angle, and one
    smaller than about 24 px has no fractal dimension.

  Raises:
    ValueError: if the tree or the field of view is not a mask, their sizes differ, or the field of view is empty.
  """
  tree = as_mask(tree, "the tree")
  if fov is not None:
    fov = as_mask(fov, "the field of view")
    if fov.shape != tree.shape:
      raise ValueError(f"the field of view is {fov.shape} pixels (height, width) and the tree {tree.shape}; resize one of them")
    if not fov.any():
      raise ValueError("the field of view is empty; pass fov=None to measure the whole frame")
    tree = tree & fov
  area = int(np.count_nonzero(tree))
  visible = tree.size if fov is None else int(np.count_nonzero(fov))
  skeleton = trace(tree)
  length = _length(skeleton)
  pieces, loops = topology.betti_numbers(tree)
  node_of, bridges, degree = _merge_nodes(skeleton)
  angles = _branching_angles(skeleton, node_of, bridges, degree)
  ratios, weights = _arc_over_chord(skeleton.segments)
  fractal = topology.box_dimension(tree)
  nan = float("nan")
  return {
    "density": area / visible,
    "length": length,
    "width": _width(skeleton.segments),
    "width_area": area / length if length else nan,
    "junctions": int(np.count_nonzero(degree >= 3)),
    "endpoints": sum((s.start < 0) + (s.end < 0) for s in skeleton.segments if not s.closed and len(s.points) > 1),
    "branching_angle": float(np.mean(angles)) if angles else nan,
    "branching_angle_median": float(np.median(angles)) if angles else nan,
    "tortuosity": float(np.average(ratios, weights=weights)) if ratios else nan,
    "tortuosity_median": float(np.median(ratios)) if ratios else nan,
    "tortuosity_curvature": _squared_curvature(skeleton.segments),
    "fractal_dimension": fractal["dimension"],
    "fractal_fit": fractal["r2"],
    "fractal_dimension_skeleton": topology.box_dimension(skeleton.pixels)["dimension"],
    "components": pieces,
    "loops": loops,
  }


def distances(
  a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]], num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, dict[str, float]]:
  """Distances between the biomarkers of one set of trees (generated) and those of another (real).

  Args:
    a: biomarkers of the generated trees, one dict per tree.
    b: biomarkers of the real trees.
    num_bootstrap: resamples for the 95 % intervals of the means.
    seed: of the resampling.

  Returns:
    For each name that both sets have:
      wasserstein: Wasserstein-1 distance of the two samples, in the biomarker's unit;
      wasserstein_normalised: the same over the standard deviation of b (NaN where that is 0 and the distance
        is not);
      ks, ks_p: the two-sample Kolmogorov-Smirnov statistic and its p-value;
      mean_a, std_a, low_a, high_a, count_a and the same for b: mean, standard deviation, bootstrap interval
        of the mean, and number of trees that have the biomarker.
    Trees whose value is NaN are excluded from that biomarker; if fewer than two remain on a side, its distances
    are NaN.

  Raises:
    ValueError: if a set has fewer than two trees, or the trees have no biomarker in common.
  """
  a, b = list(a), list(b)
  if len(a) < 2 or len(b) < 2:
    raise ValueError(
      f"a distance between distributions needs at least two trees on each side, but there are {len(a)} "
      f"and {len(b)}; add trees (with fewer than about 20 a side the numbers are rough)"
    )
  names = [name for name in a[0] if all(name in tree for tree in (*a, *b))]
  if not names:
    raise ValueError("the trees share no biomarker; measure both sets with vessels.biomarkers")
  result = {}
  for name in names:
    x, y = (np.array([tree[name] for tree in trees], float) for trees in (a, b))
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    entry = dict.fromkeys(("wasserstein", "wasserstein_normalised", "ks", "ks_p"), float("nan"))
    if x.size >= 2 and y.size >= 2:
      entry["wasserstein"] = float(stats.wasserstein_distance(x, y))
      spread = float(y.std(ddof=1))
      if spread > 1e-12 * abs(y.mean()):
        entry["wasserstein_normalised"] = entry["wasserstein"] / spread
      elif not entry["wasserstein"]:
        entry["wasserstein_normalised"] = 0.0
      # SciPy's exact p-value can overflow and warn for large unequal samples; there the asymptotic one is as accurate.
      test = stats.ks_2samp(x, y, method="exact" if max(x.size, y.size) <= 500 else "asymp")
      entry["ks"], entry["ks_p"] = float(test.statistic), float(test.pvalue)
    for side, values in (("a", x), ("b", y)):
      entry |= {f"{key}_{side}": value for key, value in mean_with_interval(values, num_bootstrap, seed).items()}
    result[name] = entry
  return result


def _length(skeleton: Skeleton) -> float:
  total = 0.0
  for segment in skeleton.segments:
    total += segment.length()
    if not segment.closed:
      total += (segment.start < 0) * segment.start_radius + (segment.end < 0) * segment.end_radius
  if skeleton.segments or not skeleton.nodes.size:
    return total
  # Only forks of which all branches were spurs: blobs, as long as they are wide.
  return float(2 * skeleton.node_radii.sum())


def _width(segments: Sequence[Segment]) -> float:
  widths, weights = [], []
  for segment in segments:
    if len(segment.points) < 2:
      widths.append(2 * segment.half_widths)
      weights.append(np.ones(1))
      continue
    steps = segment.steps()
    if segment.closed:
      share = (steps + np.roll(steps, 1)) / 2
    else:
      share = (np.append(steps, 0) + np.insert(steps, 0, 0)) / 2
      along = np.insert(np.cumsum(steps), 0, 0)
      near_start = along < (segment.start_radius if segment.start >= 0 else 0)
      near_end = along[-1] - along < (segment.end_radius if segment.end >= 0 else 0)
      share = np.where(near_start | near_end, 0, share)
    widths.append(2 * segment.half_widths)
    weights.append(share)
  if not widths:
    return float("nan")
  widths, weights = np.concatenate(widths), np.concatenate(weights)
  return float(np.average(widths, weights=weights)) if weights.sum() > 0 else float(widths.mean())


def _merge_nodes(skeleton: Skeleton) -> tuple[np.ndarray, set[int], np.ndarray]:
  """Merges forks whose inscribed discs touch along the centreline, because thinning turns a crossing into two forks.

  Returns:
    node_of: [m] the junction that each node belongs to.
    bridges: indices of the segments inside a junction.
    degree: [m] number of vessels at each junction.
  """
  bridges = {
    i
    for i, segment in enumerate(skeleton.segments)
    if segment.start >= 0 and segment.end >= 0 and segment.length() <= segment.start_radius + segment.end_radius + _BRIDGE
  }
  size = len(skeleton.nodes)
  ends = np.array([(skeleton.segments[i].start, skeleton.segments[i].end) for i in bridges], int).reshape(-1, 2)
  graph = coo_array((np.ones(len(ends), bool), ends.T), shape=(size, size))
  node_of = connected_components(graph, directed=False)[1] if size else np.zeros(0, int)
  degree = np.zeros(len(node_of), int)
  for i, segment in enumerate(skeleton.segments):
    for node in (segment.start, segment.end):
      if node >= 0 and i not in bridges:
        degree[node_of[node]] += 1
  return node_of, bridges, degree


def _branching_angles(skeleton: Skeleton, node_of, bridges, degree) -> list[float]:
  leaving = {}
  for i, segment in enumerate(skeleton.segments):
    if i in bridges:
      continue
    for node, points in ((segment.start, segment.points), (segment.end, segment.points[::-1])):
      if node >= 0 and degree[node_of[node]] == 3:
        direction = _direction(points, skeleton.node_radii[node])
        leaving.setdefault(node_of[node], []).append(direction)
  angles = []
  for directions in leaving.values():
    if any(direction is None for direction in directions):
      continue
    cosines = [float(directions[i] @ directions[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    angles.append(math.degrees(math.acos(min(max(*cosines, -1.0), 1.0))))
  return angles


def _direction(points: np.ndarray, radius: float) -> np.ndarray | None:
  """Unit direction of a vessel where it leaves the disc of a fork; None if it is too short."""
  along = np.insert(np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)), 0, 0)
  near = 1.5 * radius + _FORK_BLUR
  far = min(near + max(15.0, 3 * radius), along[-1])
  if far - near < 5:
    return None
  first, last = (np.array([np.interp(s, along, points[:, axis]) for axis in (0, 1)]) for s in (near, far))
  step = last - first
  size = np.linalg.norm(step)
  return step / size if size > 1e-6 else None


def _arc_over_chord(segments: Sequence[Segment]) -> tuple[list[float], list[float]]:
  ratios, weights = [], []
  for segment in segments:
    arc = segment.length()
    chord = float(np.linalg.norm(segment.points[0] - segment.points[-1]))
    if arc > _SHORTEST and not segment.closed and chord > 1:
      ratios.append(max(arc / chord, 1.0))
      weights.append(arc)
  return ratios, weights


def _squared_curvature(segments: Sequence[Segment]) -> float:
  chosen = [s for s in segments if s.length() > _SHORTEST]
  if not chosen:
    return float("nan")
  sizes, closed = np.array([len(s.points) for s in chosen]), np.array([s.closed for s in chosen])
  smoothed = smooth(np.concatenate([s.points for s in chosen]), sizes, closed, _CURVATURE_SIGMA)
  bend, length = 0.0, 0.0
  for points, loop in zip(np.split(smoothed, np.cumsum(sizes)[:-1]), closed, strict=True):
    if loop:
      points = np.concatenate([points[-4:], points, points[:4]])
    first = np.gradient(points, axis=0)
    second = np.gradient(first, axis=0)
    # Point reflection beyond the ends straightens open paths there; only the inner part is measured.
    inner = (
      slice(4, -4) if loop or len(points) <= 4 * _CURVATURE_SIGMA else slice(int(_CURVATURE_SIGMA), -int(_CURVATURE_SIGMA))
    )
    first, second = first[inner], second[inner]
    speed = np.maximum(np.linalg.norm(first, axis=1), 1e-6)
    curvature = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / speed**3
    # Smoothing shrinks a loop that is smaller than itself to a point, around which curvature has no bound.
    curvature = np.clip(curvature, -1 / _CURVATURE_SIGMA, 1 / _CURVATURE_SIGMA)
    bend += float(np.sum(curvature**2 * speed))
    length += float(speed.sum())
  return bend / length if length else float("nan")
