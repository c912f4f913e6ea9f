"""Small repairs of drawn vessel trees: gaps are closed, holes filled, spurs and specks removed; each is counted."""

import collections
import itertools
import statistics

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from retree_jax.data.centreline import Centreline, digital_lines
from retree_jax.metrics import skeleton
from retree_jax.metrics.masks import as_mask, distance_to_background

SPECK = 0.0002  # of the picture's area: 13 pixels of 256x256, 52 of 512x512
GAP = 0.014  # between two ends, of the picture's height: 3.6 pixels of 256, 7 of 512
# Between an end and the side of another vessel, as a share of `gap`. Wider ones made forks and joined pieces that are apart in
# real trees (docs/refinement.md).
SIDE_GAP = 0.36
# Radii of the vessel that it leaves, from the middle of their junction. Drawn trees have two to ten times as many free branches
# of 4 to 8 radii as real ones.
SPUR = 12.0
# Cosine of the sharpest bend, 26°, of the vessel that a spur leaves. Where it bends more, the branch belongs to a fork, and
# a kink would stay.
BEND = 0.9
_ALONG = 6  # points of a centreline, a pixel apart, over which its direction is taken
_EIGHT = np.ones((3, 3), bool)


def mend(mask, speck: int | None = None, gap: float | None = None) -> tuple[np.ndarray, dict[str, int]]:
  """Closes gaps in vessels, fills holes in them, and removes spurs and pieces that are too small for a vessel.

  A gap is closed from a vessel's free end to the nearest pixel of another piece within `gap`, if that lies ahead: less than 40°
  off the vessel's direction there. To the side of another vessel only `SIDE_GAP` of that is bridged. The bridge is as wide as
  the vessel's end. Ends that lie beside another vessel stay apart. A hole is filled if it is no larger than a disc inscribed in
  one of the vessels around it. A spur is a branch that ends freely within `SPUR` radii of its junction, where two other
  branches run straight on.

  Args:
    mask: [H, W] or [H, W, 1]; bool, {0, 1} or {0, 255}.
    speck: pieces of fewer pixels are removed; `SPECK` of the picture's area by default.
    gap: the widest gap between two ends that is closed, pixels between the pixels' middles; `GAP` of the height by default.

  Returns:
    uint8 0/255 of the mask's shape, and {"gaps": closed, "holes": filled, "spurs": removed, "specks": removed}.

  Raises:
    ValueError: if `mask` is not a two-valued map.
  """
  shape, mask = np.shape(mask), as_mask(mask).copy()
  speck = round(SPECK * mask.size) if speck is None else speck
  gap = GAP * mask.shape[0] if gap is None else gap
  counts = {"gaps": _bridge(mask, gap), "holes": _fill(mask), "spurs": _cut_spurs(mask)}
  labels, count = ndimage.label(mask, _EIGHT)
  small = np.bincount(labels.ravel(), minlength=count + 1) < speck
  small[0] = False
  mask &= ~small[labels]
  return (mask * np.uint8(255)).reshape(shape), {**counts, "specks": int(small.sum())}


def _bridge(mask: np.ndarray, gap: float) -> int:
  """Closes gaps in place; returns how many."""
  labels, pieces = ndimage.label(mask, _EIGHT)
  if pieces < 2:
    return 0
  tips, directions, widths = _free_ends(mask)
  if not widths.size:
    return 0
  pixels, piece = np.argwhere(mask), labels[mask]
  tree = KDTree(pixels)
  owners = piece[tree.query(tips)[1]]
  # A centreline ends half a width before the vessel does.
  around = tree.query_ball_point(tips, gap + widths / 2)
  tip, near = np.repeat(np.arange(len(tips)), [len(found) for found in around]), np.concatenate(around).astype(int)
  other = piece[near] != owners[tip]
  tip, near = tip[other], near[other]
  away = pixels[near] - tips[tip]
  distance = np.hypot(*away.T)
  ahead = (away * directions[tip]).sum(axis=1) > 0.75 * distance
  tip, near, distance = tip[ahead], near[ahead], distance[ahead]
  # The nearest pixel ahead of each tip.
  order = np.lexsort((distance, tip))
  nearest = order[np.diff(tip[order], prepend=-1) > 0]
  tip, near, distance = tip[nearest], near[nearest], distance[nearest]
  targets = pixels[near]
  from_end, end = KDTree(tips).query(targets)
  beside = from_end > widths[end] / 2 + 1.5  # further from any tip than the round end of a vessel, and a pixel of slack
  bridged = ~(beside & (distance > SIDE_GAP * gap + widths[tip] / 2))
  group, chosen = np.arange(pieces + 1), []
  # The shortest first; two pieces are joined once.
  for i in np.flatnonzero(bridged)[np.argsort(distance[bridged], kind="stable")]:
    own, other = group[owners[tip[i]]], group[piece[near[i]]]
    if own != other:
      group[group == own] = other
      chosen.append(i)
  _draw_bridges(mask, tips[tip[chosen]], targets[chosen], widths[tip[chosen]])
  return len(chosen)


def _draw_bridges(mask: np.ndarray, starts: np.ndarray, stops: np.ndarray, widths: np.ndarray) -> None:
  """Draws n lines in place, from starts [n, 2] to stops [n, 2], widths [n] in pixels."""
  reach = np.ceil(widths / 2).astype(int)[:, None] + 1
  low = np.maximum(np.floor(np.minimum(starts, stops)).astype(int) - reach, 0)
  high = np.minimum(np.ceil(np.maximum(starts, stops)).astype(int) + reach + 1, mask.shape)
  points = (np.stack([starts, stops], 1) - low[:, None]).astype(np.float32) + 0.5
  cells, path, _, spare = digital_lines(Centreline(points.reshape(-1, 2), np.full(len(points), 2)))
  cells, path = cells[~spare], path[~spare]
  inside = ((cells >= 0) & (cells < (high - low)[path])).all(1)
  cells, path = cells[inside] + low[path[inside]], path[inside]
  mask[tuple(cells.T)] = True
  for i in np.flatnonzero(widths > 1.5):  # half of the vessel's width to either side
    rows, columns = np.ogrid[low[i, 0] : high[i, 0], low[i, 1] : high[i, 1]]
    line = cells[path == i]
    near = np.min([(rows - y) ** 2 + (columns - x) ** 2 for y, x in line], axis=0) <= (widths[i] / 2 - 0.5) ** 2
    mask[low[i, 0] : high[i, 0], low[i, 1] : high[i, 1]] |= near


def _fill(mask: np.ndarray) -> int:
  """Fills, in place, holes smaller than the inscribed disc of a vessel beside them; returns how many."""
  labels, count = ndimage.label(~np.pad(mask, 1, constant_values=False))
  labels = labels[1:-1, 1:-1]  # label 1 is what reaches the margin
  radius = distance_to_background(mask) - 0.5
  reach, filled = int(np.ceil(radius.max(initial=0))) + 1, 0
  sizes = np.bincount(labels.ravel(), minlength=2)
  small = sizes <= np.pi * max(0.0, radius.max(initial=0)) ** 2  # no other can be filled
  places = ndimage.find_objects(labels)
  for label in np.flatnonzero(small[2:] & (sizes[2:] > 0)) + 2:
    place = places[label - 1]
    around = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in place)
    hole = labels[around] == label
    touching = mask[around] & (radius[around] + 1.5 > ndimage.distance_transform_edt(~hole))
    if sizes[label] <= np.pi * radius[around][touching].max(initial=0) ** 2:
      mask[around] |= hole
      filled += 1
  return filled


def _cut_spurs(mask: np.ndarray) -> int:
  """Removes spurs in place; returns how many."""
  found = skeleton.trace(mask)
  left = np.bincount([node for s in found.segments for node in (s.start, s.end) if node >= 0], minlength=len(found.nodes))
  free = []
  for number, segment in enumerate(found.segments):
    node = max(segment.start, segment.end)
    if node >= 0 > min(segment.start, segment.end) and (length := segment.length()) < SPUR * found.node_radii[node]:
      free.append((length, number, node))
  nodes, leaving = {node for _, _, node in free}, collections.defaultdict(dict)  # node -> {segment: its direction from there}
  for number, segment in enumerate(found.segments):
    for node, order in ((segment.start, 1), (segment.end, -1)):
      if node in nodes:
        path = segment.points[::order]
        along = path[min(len(path) - 1, _ALONG)] - path[0]
        leaving[node][number] = along / max(1e-6, np.hypot(*along))
  spurs = {}
  for _, number, node in sorted(free):
    others = [direction for other, direction in leaving[node].items() if other != number and other not in spurs]
    straight = any(a @ b <= -BEND for a, b in itertools.combinations(others, 2))
    if left[node] > 2 and straight:
      left[node] -= 1
      spurs[number] = node
  if not spurs:
    return 0
  # No pixel is further from its path than a branch that was pruned there is long, and half as wide again.
  reach = 3 * max(found.node_radii.max(), np.concatenate([s.half_widths for s in found.segments]).max()) + 2
  around = np.zeros_like(mask)
  for number in spurs:
    low, high = found.segments[number].points.min(0) - reach, found.segments[number].points.max(0) + reach
    around[max(0, int(low[0])) : int(high[0]) + 2, max(0, int(low[1])) : int(high[1]) + 2] = True
  pixels = np.argwhere(mask & around)
  owner = np.repeat(np.arange(len(found.segments)), [len(s.points) for s in found.segments])
  nearest = owner[KDTree(np.concatenate([s.points for s in found.segments])).query(pixels)[1]]
  for number, node in spurs.items():
    own = pixels[nearest == number]
    beyond = own[np.hypot(*(own - found.nodes[node]).T) > found.node_radii[node] + 0.5]
    mask[tuple(beyond.T)] = False
  return len(spurs)


def _free_ends(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Every free end of the tree's centrelines: (tips [n, 2], unit directions outwards [n, 2], widths [n] in pixels)."""
  tips, backs, widths = [], [], []
  for segment in skeleton.trace(mask, free=True).segments:
    points = segment.points
    far = min(len(points), _ALONG) - 1
    if segment.start < 0:
      tips.append(points[0])
      backs.append(points[far])
      widths.append(statistics.median(segment.half_widths[:4].tolist()))
    if segment.end < 0:
      tips.append(points[-1])
      backs.append(points[-1 - far])
      widths.append(statistics.median(segment.half_widths[-4:].tolist()))
  tips, backs, widths = (np.array(column).reshape(-1, *shape) for column, shape in ((tips, (2,)), (backs, (2,)), (widths, ())))
  along = tips - backs
  length = np.hypot(*along.T)
  known = length > 0.5
  return tips[known], along[known] / length[known, None], 2.0 * widths[known]
