"""Growth of a procedural retina's vessels: the anatomy behind `retree_jax.data.phantom`.

Coordinates are degrees of visual angle (1 degree is about 0.3 mm of retina): x points from the optic disc to the temporal side,
y upwards (superior), the disc's centre is the origin. Nothing depends on pixels, so the same seed is the same eye at every
picture size; laterality only mirrors the picture.

Steps, for arteries and veins each:

1. Trunks leave the disc into four quadrants: superior and inferior temporal arcades around the fovea, nasal branches.
2. Space colonisation (Runions et al., "Modeling and visualization of leaf venation patterns", SIGGRAPH 2005; "Modeling trees
   with a space colonization algorithm", 2007) fills the retina in three passes from coarse to fine: every attractor pulls its
   nearest vessel, and is removed when a vessel of its kind is near, which keeps vessels of one kind apart. Veins also avoid the
   places of arteries, so that the two interleave, but they may cross.
3. Calibres follow Murray's law from the tips to the disc, r0^3 = r1^3 + r2^3 (Murray, "The physiological principle of minimum
   work", PNAS 12, 1926), scaled to the trunk's calibre. The asymmetry of a bifurcation follows from the space that each child
   fills.
4. Branching angles are turned to the optimum of the same principle (Murray, "The physiological principle of minimum work
   applied to the angle of branching of arteries", J. Gen. Physiol. 9, 1926), with a random spread.
5. Interpolating subdivision turns the steps into curves; a smooth random warp makes them tortuous.
"""

import dataclasses
import math

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist

from retree_jax.data.phantom import shape

STEP = 0.5  # length of one growth step, degrees
DISC_RADIUS = 2.75  # mean; 5.5 degrees is about 1.7 mm
FOVEA = (15.5, -1.6)  # mean position: 15.5 degrees temporal of the disc and a little below it
FOVEAL_ZONE = 1.2  # radius around the fovea that no vessel enters, degrees (growth keeps further away, see grow_kind)
DOMAIN = (10.5, 0.0, 26.5, 25.0)  # centre x, y and semi-axes of the ellipse that vessels grow in
PASSES = ((5.2, 3.6, 0.12), (3.3, 2.5, 0.20), (2.2, 1.75, 0.30))  # attractors' spacing, kill distance, share of sprouting nodes


@dataclasses.dataclass(frozen=True)
class Vessels:
  """One kind of vessels (all arteries, or all veins) of one eye, as a forest of two trees rooted in the disc.

  Attributes:
    kind: "artery" or "vein".
    position: float64 [n, 2], degrees.
    parent: int [n], index of the node towards the disc, -1 for a root.
    radius: float64 [n], half calibre of the vessel between `parent` and the node, degrees.
    segment: int [n], nodes of one unbranched vessel piece share a number.
    depth: int [n], number of steps from the root.
    bifurcations: int [m, 3], rows (node before the fork, first node of the larger child, of the smaller child).
    angle: float64 [m, 2], target angles of the children against the parent at each fork, radians.
    coarse: int, the first `coarse` nodes were grown; the others were inserted by subdivision.
  """

  kind: str
  position: np.ndarray
  parent: np.ndarray
  radius: np.ndarray
  segment: np.ndarray
  depth: np.ndarray
  bifurcations: np.ndarray
  angle: np.ndarray
  coarse: int


def _along(points, step=STEP):
  """Points every `step` degrees along a smooth curve through control points [k, 2]."""
  points = np.asarray(points, float)
  knots = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
  return CubicSpline(knots, points)(np.arange(0, knots[-1], step))


def _branch(rng, origin, heading, side, length):
  """A first-order branch from `origin` on a trunk, about along `heading` (radians; pi / 2 is up)."""
  reach = np.linspace(0, 1, 5) ** 1.4 * length
  bend = heading + math.radians(rng.normal(0, 9)) * np.linspace(-1, 1, 5)
  x = origin[0] + np.cumsum(np.diff(reach, prepend=0) * np.cos(bend))
  y = origin[1] + side * np.cumsum(np.diff(reach, prepend=0) * np.sin(bend))
  return _along(np.stack([x, y], -1))[1:]


def _trunks(rng, kind, fovea):
  """The vessels that every retina has: node positions [n, 2] and parents [n], two trees of several branches each."""
  position, parent = [], []
  artery = kind == "artery"
  start = rng.normal((-0.6 if artery else -0.1, 0.0), (0.25, 0.2))

  def attach(line, at):
    first = len(position)
    position.extend(line)
    parent.extend([at, *range(first, first + len(line) - 1)])
    return first

  for side in (1.0, -1.0):
    height = rng.normal(10.6 if artery else 9.8, 1.2)
    lean = rng.normal(-0.2 if artery else 0.4, 0.5)
    wide = rng.normal(1.0, 0.15)
    drop = rng.uniform(0.2, 2.5)
    controls = [
      (start[0], 0.1),
      (start[0] + 0.3 * lean, 1.3),
      (0.1 + lean, 2.9),
      (1.5 * wide + lean, 5.0),
      (4.6 * wide + lean, 0.84 * height),
      (10.0, height),
      (15.5, height - 0.25 * drop),
      (21.5, height - drop),
      (28.0, height - 2.2 * drop),
    ]
    controls = np.array([(x, start[1] + y * side + fovea[1] * max(x, 0) / fovea[0]) for x, y in controls])
    arcade = _along(controls)
    # Beyond a random point past its crest the arcade ends, and space colonisation continues it.
    arcade = arcade[arcade[:, 0] < rng.uniform(11, 24)]
    base = attach(arcade, -1)

    def at_height(degrees, arcade=arcade, base=base):
      return base + int(np.argmin(np.abs(np.abs(arcade[:16, 1]) - degrees)))

    nasal_fork = at_height(rng.uniform(1.3, 2.6))
    nasal = attach(_branch(rng, position[nasal_fork], math.radians(rng.normal(116, 8)), side, rng.uniform(9, 18)), nasal_fork)
    if rng.random() < 0.8:  # a second nasal branch, near the horizontal
      fork = nasal + int(rng.integers(1, 5))
      attach(_branch(rng, position[fork], math.radians(rng.normal(152, 9)), side, rng.uniform(8, 15)), fork)
    if rng.random() < 0.75:  # a branch straight up (or down) from the arcade's beginning
      fork = at_height(rng.uniform(4.2, 6.2))
      attach(_branch(rng, position[fork], math.radians(rng.normal(82, 9)), side, rng.uniform(8, 14)), fork)
    if rng.random() < 0.6:  # a macular branch
      fork = at_height(rng.uniform(3.2, 4.0))
      attach(_branch(rng, position[fork], math.radians(rng.normal(18, 8)), side, rng.uniform(5, 8)), fork)
  return np.array(position), np.array(parent)


def _attractors(rng, spacing, fovea, hollow):
  """Attractors: a jittered grid of points in the domain, none within `hollow` degrees of the fovea."""
  cx, cy, ax, ay = DOMAIN
  x, y = np.meshgrid(np.arange(cx - ax, cx + ax, spacing), np.arange(cy - ay, cy + ay, spacing * 0.866))
  x = x + (np.arange(len(x)) % 2)[:, None] * spacing / 2
  points = np.stack([x.ravel(), y.ravel()], -1) + rng.uniform(-0.45, 0.45, (x.size, 2)) * spacing
  inside = ((points[:, 0] - cx) / ax) ** 2 + ((points[:, 1] - cy) / ay) ** 2 < 1
  inside &= np.hypot(*(points - fovea).T) > hollow
  inside &= np.hypot(*points.T) > DISC_RADIUS * 1.15
  return points[inside]


def _flow(points, fovea):
  """General direction of vessels, unit vectors [n, 2]: towards the fovea inside the arcades, else away from the disc."""
  inside = ((points[:, 0] - fovea[0] + 2) / 10.0) ** 2 + ((points[:, 1] - fovea[1]) / 7.0) ** 2 < 1
  flow = np.where(inside[:, None], np.asarray(fovea) - points, points - np.clip(points[:, :1] * [0.6, 0], 0, 7))
  return flow / np.maximum(np.hypot(*flow.T), 1e-9)[:, None]


class _Forest:
  """Arrays that hold one kind of vessels while they grow."""

  def __init__(self, position, parent, room=9000):
    n = len(position)
    self.n = n
    self.position = np.zeros((room, 2))
    self.parent = np.full(room, -1)
    self.children = np.zeros(room, int)
    self.heading = np.zeros((room, 2))
    self.position[:n], self.parent[:n] = position, parent
    np.add.at(self.children, parent[parent >= 0], 1)
    step = position - position[np.maximum(parent, 0)]
    self.heading[:n] = step / np.maximum(np.hypot(*step.T), 1e-9)[:, None]
    self.heading[:n][parent < 0] = (0, 1)

  def colonise(self, rng, goals, kill, share, fovea, hollow):
    """Grows towards the goals (attractors) until all are reached or no vessel can get nearer; one pass, in place."""
    sprout = rng.random(len(self.parent)) < share
    dead = np.zeros(len(self.parent), bool)
    first_new = self.n
    for _ in range(140):
      n = self.n
      if not len(goals) or n > len(self.parent) - 600:
        break
      # A vessel sprouts sideways only where it neither forks already nor forks one step up or down.
      parent = np.maximum(self.parent[:n], 0)
      crowded = (self.children[:n] > 1) | (self.children[parent] > 1)
      crowded[parent[self.children[:n] > 1]] = True
      crowded[parent[parent[self.children[:n] > 1]]] = True
      crowded |= self.children[parent[parent]] > 1
      root = np.hypot(*self.position[:n].T) < 0.45 * DISC_RADIUS
      ready = (self.children[:n] == 0) | (sprout[:n] & ~crowded & (self.children[:n] == 1) & ~root)
      nodes = np.flatnonzero(ready & ~dead[:n])
      if not len(nodes):
        break
      distance = cdist(goals, self.position[nodes])
      nearest = distance.argmin(1)
      pull = (goals - self.position[nodes[nearest]]) / np.maximum(distance.min(1), 1e-9)[:, None]
      # Ignore goals beside or behind a vessel: tips that turn back would curl.
      ahead = (pull * self.heading[nodes[nearest]]).sum(1)
      pull[ahead < np.where(self.children[nodes[nearest]] == 0, 0.35, 0.0)] = 0
      total = np.zeros((len(nodes), 2))
      np.add.at(total, nearest, pull)
      norm = np.hypot(*total.T)
      grows = norm > 1e-6
      if not grows.any():
        break
      nodes, total, norm = nodes[grows], total[grows], norm[grows]
      tip = self.children[nodes] == 0
      heading = total / norm[:, None] + np.where(tip, 1.5, 0.25)[:, None] * self.heading[nodes]
      heading += 0.8 * _flow(self.position[nodes], fovea) + rng.normal(0, 0.12, heading.shape)
      heading /= np.maximum(np.hypot(*heading.T), 1e-9)[:, None]
      new = self.position[nodes] + STEP * heading
      # A new piece that would enter the foveal zone, or touch another vessel of its kind, is not grown.
      clear = cdist(new, self.position[:n])
      old = cdist(self.position[nodes], self.position[:n])
      touching = (clear < 0.75) & (clear < old)
      rows = np.arange(len(nodes))
      touching[rows, nodes] = False
      touching[rows, np.maximum(self.parent[nodes], 0)] = False
      touching &= self.parent[:n][None, :] != nodes[:, None]
      bad = touching.any(1) | (np.hypot(*(new - fovea).T) < hollow)
      dead[nodes[bad]] = True
      keep = ~bad
      k = int(keep.sum())
      if k:
        here = slice(n, n + k)
        self.position[here], self.parent[here], self.heading[here] = new[keep], nodes[keep], heading[keep]
        np.add.at(self.children, nodes[keep], 1)
        self.n = n + k
        goals = goals[cdist(goals, new[keep]).min(1) > kill]
    return first_new


def _pruned(position, parent, shortest=4):
  """Removes twigs of fewer than `shortest` steps."""
  while True:
    n = len(parent)
    children = np.bincount(parent[parent >= 0], minlength=n)
    run = np.zeros(n, int)  # steps since the last fork; parents come before children
    up = parent.tolist()
    forks = (children > 1).tolist()
    steps = run.tolist()
    for i in range(n):
      p = up[i]
      steps[i] = 1 if p < 0 or forks[p] else steps[p] + 1
    drop = np.zeros(n, bool)
    for leaf in np.flatnonzero((children == 0) & (np.array(steps) < shortest)):
      i = leaf
      siblings = []
      while True:
        siblings.append(i)
        if up[i] < 0 or forks[up[i]]:
          break
        i = up[i]
      if up[i] >= 0 and not drop[np.flatnonzero(parent == up[i])].any():  # never both children of one fork
        drop[siblings] = True
    if not drop.any():
      return position, parent
    number = np.cumsum(~drop) - 1
    position, parent = position[~drop], parent[~drop]
    parent = np.where(parent >= 0, number[np.maximum(parent, 0)], -1)


def grow_kind(rng, kind, fovea, occupied=None, tortuosity=0.035, trunk_radius=(0.3, 0.3)):
  """Grows all arteries or all veins of one eye.

  Args:
    rng: numpy Generator.
    kind: "artery" or "vein"; decides where the trunks run.
    fovea: (x, y) of the fovea, degrees.
    occupied: None or [n, 2], positions of the other kind's vessels, where no goals are set.
    tortuosity: strength of the warp, 0 (straight) to about 0.07 (very tortuous).
    trunk_radius: half calibres of the superior and the inferior trunk, degrees.

  Returns:
    `Vessels`.
  """
  fovea = np.asarray(fovea, float)
  hollow = FOVEAL_ZONE + 0.75
  forest = _Forest(*_trunks(rng, kind, fovea))
  for spacing, kill, share in PASSES:
    goals = _attractors(rng, spacing, fovea, hollow)
    goals = goals[cdist(goals, forest.position[: forest.n]).min(1) > kill]
    if occupied is not None and len(goals):
      goals = goals[cdist(goals, occupied).min(1) > 0.35 * kill]
    forest.colonise(rng, goals, kill, share, fovea, hollow)
  position, parent = _pruned(forest.position[: forest.n], forest.parent[: forest.n])
  cx, cy, ax, ay = DOMAIN
  edge = ((position[:, 0] - cx) / ax) ** 2 + ((position[:, 1] - cy) / ay) ** 2 > 0.8
  radius = shape.murray(rng, parent, edge, np.asarray(trunk_radius, float))
  forks, main = shape.forks(parent, radius)
  position = shape.smooth(position, parent, main)
  position, angle = shape.turn_forks(rng, position, parent, radius, forks)
  n = len(parent)
  segment, depth = np.zeros(n, int), np.zeros(n, int)
  forked = np.zeros(n, bool)
  forked[forks[:, 0]] = True
  count = 0
  for i, p in enumerate(parent.tolist()):
    if p < 0 or forked[p]:
      segment[i], count = count, count + 1
    else:
      segment[i] = segment[p]
    depth[i] = 0 if p < 0 else depth[p] + 1
  state = position, parent, main, radius, segment, depth
  for _ in range(2):
    state = shape.subdivide(*state)
  position, fine_parent, _, radius, segment, depth = state
  return Vessels(kind, shape.warp(rng, position, tortuosity), fine_parent, radius, segment, depth, forks, angle, n)
