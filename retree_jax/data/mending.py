"""Small repairs of drawn vessel trees: gaps are closed, holes filled, spurs and specks removed; each is counted."""

import collections
import itertools

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from retree_jax.data.centreline import Centreline, draw
from retree_jax.metrics import skeleton
from retree_jax.metrics.masks import as_mask

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
  ends = list(_free_ends(mask))
  if not ends:
    return 0
  pixels, piece = np.argwhere(mask), labels[mask]
  tree, found = KDTree(pixels), []
  tips, directions, widths = (np.array(column) for column in zip(*ends, strict=True))
  every_end, owners = KDTree(tips), piece[tree.query(tips)[1]]
  # A centreline ends half a width before the vessel does.
  around = tree.query_ball_point(tips, gap + widths / 2)
  for tip, direction, width, own, near in zip(tips, directions, widths, owners, around, strict=True):
    near = np.array(near, int)
    near = near[piece[near] != own]
    if not near.size:
      continue
    away = pixels[near] - tip
    distance = np.hypot(*away.T)
    ahead = away @ direction > 0.75 * distance
    if ahead.any():
      best = np.flatnonzero(ahead)[np.argmin(distance[ahead])]
      target = pixels[near[best]]
      from_end, end = every_end.query(target)
      beside = from_end > widths[end] / 2 + 1.5  # further from any tip than the round end of a vessel, and a pixel of slack
      if beside and distance[best] > SIDE_GAP * gap + width / 2:
        continue
      found.append((distance[best], own, piece[near[best]], tip, target, width))
  # The shortest first; two pieces are joined once.
  joined, group, closed = np.zeros_like(mask), np.arange(pieces + 1), 0
  for _, own, other, tip, target, width in sorted(found, key=lambda item: item[0]):
    if group[own] == group[other]:
      continue
    group[group == group[own]] = group[other]
    reach = int(np.ceil(width / 2)) + 1
    low = np.maximum(np.floor(np.minimum(tip, target)).astype(int) - reach, 0)
    high = np.minimum(np.ceil(np.maximum(tip, target)).astype(int) + reach + 1, mask.shape)
    path = Centreline((np.array([tip, target]) - low).astype(np.float32) + 0.5, np.array([2]))
    line = draw(path, tuple(high - low))[0]
    if width > 1.5:  # half of the vessel's width to either side
      line = ndimage.distance_transform_edt(~line) <= width / 2 - 0.5
    joined[low[0] : high[0], low[1] : high[1]] |= line
    closed += 1
  mask |= joined
  return closed


def _fill(mask: np.ndarray) -> int:
  """Fills, in place, holes smaller than the inscribed disc of a vessel beside them; returns how many."""
  labels, count = ndimage.label(~np.pad(mask, 1, constant_values=False))
  labels = labels[1:-1, 1:-1]  # label 1 is what reaches the margin
  radius = ndimage.distance_transform_edt(mask) - 0.5
  reach, filled = int(np.ceil(radius.max(initial=0))) + 1, 0
  for label, place in enumerate(ndimage.find_objects(labels), 1):
    if label == 1 or place is None:
      continue
    around = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in place)
    hole = labels[around] == label
    touching = mask[around] & (radius[around] + 1.5 > ndimage.distance_transform_edt(~hole))
    if hole.sum() <= np.pi * radius[around][touching].max(initial=0) ** 2:
      mask[around] |= hole
      filled += 1
  return filled


def _cut_spurs(mask: np.ndarray) -> int:
  """Removes spurs in place; returns how many."""
  found = skeleton.trace(mask)
  left = np.bincount([node for s in found.segments for node in (s.start, s.end) if node >= 0], minlength=len(found.nodes))
  free, leaving = [], collections.defaultdict(dict)  # node -> {segment: its direction from there}
  for number, segment in enumerate(found.segments):
    for node, path in ((segment.start, segment.points), (segment.end, segment.points[::-1])):
      along = path[min(len(path) - 1, _ALONG)] - path[0]
      leaving[node][number] = along / max(1e-6, np.hypot(*along))
    node = max(segment.start, segment.end)
    if node >= 0 > min(segment.start, segment.end) and segment.length() < SPUR * found.node_radii[node]:
      free.append((segment.length(), number, node))
  spurs = {}
  for _, number, node in sorted(free):
    others = [direction for other, direction in leaving[node].items() if other != number and other not in spurs]
    straight = any(a @ b <= -BEND for a, b in itertools.combinations(others, 2))
    if left[node] > 2 and straight:
      left[node] -= 1
      spurs[number] = node
  if not spurs:
    return 0
  pixels = np.argwhere(mask)
  owner = np.repeat(np.arange(len(found.segments)), [len(s.points) for s in found.segments])
  nearest = owner[KDTree(np.concatenate([s.points for s in found.segments])).query(pixels)[1]]
  for number, node in spurs.items():
    own = pixels[nearest == number]
    beyond = own[np.hypot(*(own - found.nodes[node]).T) > found.node_radii[node] + 0.5]
    mask[tuple(beyond.T)] = False
  return len(spurs)


def _free_ends(mask: np.ndarray):
  """(tip, unit direction outwards, width) of every free end of the tree's centrelines; [2] float, [2] float, pixels."""
  for segment in skeleton.trace(mask).segments:
    if segment.closed:
      continue
    points, half = segment.points, segment.half_widths
    for free, order in ((segment.start < 0, slice(None, None, -1)), (segment.end < 0, slice(None))):
      if not free:
        continue
      path, width = points[order], 2.0 * float(np.median(half[order][-4:]))
      back = path[max(0, len(path) - _ALONG)]
      along = path[-1] - back
      size = np.hypot(*along)
      if size > 0.5:
        yield path[-1], along / size, width
