"""Growth of a procedural retina's vessels: the anatomy behind `retree_jax.data.phantom`.

Coordinates are degrees of visual angle (1 degree is about 0.3 mm of retina): x points from the optic disc to
the temporal side, y upwards (superior), the disc's centre is the origin. Nothing here knows of pixels, so the
same seed is the same eye at every picture size; laterality only mirrors the picture.

How the vessels come about, for arteries and veins each:

1. Four-quadrant trunks leave the disc: superior and inferior temporal arcades around the fovea, nasal
   branches.
2. Space colonisation (Runions et al., "Modeling and visualization of leaf venation patterns", SIGGRAPH 2005;
   "Modeling trees with a space colonization algorithm", 2007) fills the retina in three passes from coarse to
   fine: every attractor pulls its nearest vessel, and dies when a vessel of its kind is near, which keeps
   vessels of one kind apart; veins also avoid arteries' places, so that the two interleave, but they may
   cross.
3. Calibres follow Murray's law from the tips to the disc, r0^3 = r1^3 + r2^3 (Murray, "The physiological
   principle of minimum work", PNAS 12, 1926), scaled to the trunk's calibre. Space gives the asymmetry of
   every bifurcation.
4. Branching angles are turned to the optimum of the same principle (Murray, "The physiological principle of
   minimum work applied to the angle of branching of arteries", J. Gen. Physiol. 9, 1926), with a random
   spread.
5. Interpolating subdivision makes curves of the steps; a smooth random warp makes them tortuous.
"""

import dataclasses
import math

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist

STEP = 0.5  # length of one growth step, degrees
DISC_RADIUS = 2.75  # mean; 5.5 degrees is about 1.7 mm
FOVEA = (15.5, -1.6)  # mean position: 15.5 degrees temporal of the disc and a little below it
FOVEAL_ZONE = (
  1.2  # radius around the fovea that no vessel enters, degrees (growth keeps further away, see grow_kind)
)
DOMAIN = (10.5, 0.0, 26.5, 25.0)  # centre x, y and semi-axes of the ellipse that vessels grow in
PASSES = (
  (5.2, 3.6, 0.12),
  (3.3, 2.5, 0.20),
  (2.2, 1.75, 0.30),
)  # attractors' spacing, kill distance, share of sprouting nodes


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
    bifurcations: int [m, 3], rows (node before the fork, first node of the larger child, of the smaller
      child).
    angle: float64 [m, 2], the children's angles against the parent that were asked for at each fork, radians.
    coarse: int, the first `coarse` nodes are those that grew; the others were put between them by
      subdivision.
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


def optimal_angles(r0, r1, r2):
  """Angles of the two children against the parent's direction that cost the least work (Murray 1926, eq.
  5-6).

  Args:
    r0: radius of the parent, any array shape; r1, r2: of the children.

  Returns:
    (theta1, theta2) in radians, same shape: cos(theta1) = (r0^4 + r1^4 - r2^4) / (2 r0^2 r1^2), and likewise
    theta2.
  """
  c1 = (r0**4 + r1**4 - r2**4) / (2 * r0**2 * r1**2)
  c2 = (r0**4 + r2**4 - r1**4) / (2 * r0**2 * r2**2)
  return np.arccos(np.clip(c1, -1, 1)), np.arccos(np.clip(c2, -1, 1))


def _along(points, step=STEP):
  """Points every `step` degrees along a smooth curve through control points [k, 2]."""
  points = np.asarray(points, float)
  knots = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
  return CubicSpline(knots, points)(np.arange(0, knots[-1], step))


def _branch(rng, origin, heading, side, length):
  """A first-order branch that leaves a trunk at `origin` and ends up running along `heading` (radians, 90
  is up).
  """
  reach = np.linspace(0, 1, 5) ** 1.4 * length
  bend = heading + math.radians(rng.normal(0, 9)) * np.linspace(-1, 1, 5)
  x = origin[0] + np.cumsum(np.diff(reach, prepend=0) * np.cos(bend))
  y = origin[1] + side * np.cumsum(np.diff(reach, prepend=0) * np.sin(bend))
  return _along(np.stack([x, y], -1))[1:]


def _trunks(rng, kind, fovea):
  """The vessels that every retina has: node positions [n, 2] and parents [n], two trees of several branches
  each.
  """
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
    # Beyond a random point past its crest the arcade has no course of its own: it divides as space asks.
    arcade = arcade[arcade[:, 0] < rng.uniform(11, 24)]
    base = attach(arcade, -1)

    def at_height(degrees, arcade=arcade, base=base):
      return base + int(np.argmin(np.abs(np.abs(arcade[:16, 1]) - degrees)))

    nasal_fork = at_height(rng.uniform(1.3, 2.6))
    nasal = attach(
      _branch(rng, position[nasal_fork], math.radians(rng.normal(116, 8)), side, rng.uniform(9, 18)),
      nasal_fork,
    )
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
  """Jittered grid of points in the domain that ask for blood, none within `hollow` degrees of the fovea."""
  cx, cy, ax, ay = DOMAIN
  x, y = np.meshgrid(np.arange(cx - ax, cx + ax, spacing), np.arange(cy - ay, cy + ay, spacing * 0.866))
  x = x + (np.arange(len(x)) % 2)[:, None] * spacing / 2
  points = np.stack([x.ravel(), y.ravel()], -1) + rng.uniform(-0.45, 0.45, (x.size, 2)) * spacing
  inside = ((points[:, 0] - cx) / ax) ** 2 + ((points[:, 1] - cy) / ay) ** 2 < 1
  inside &= np.hypot(*(points - fovea).T) > hollow
  inside &= np.hypot(*points.T) > DISC_RADIUS * 1.15
  return points[inside]


def _flow(points, fovea):
  """Where vessels run on the whole, unit vectors [n, 2]: towards the fovea inside the arcades, else away
  from the disc.
  """
  inside = ((points[:, 0] - fovea[0] + 2) / 10.0) ** 2 + ((points[:, 1] - fovea[1]) / 7.0) ** 2 < 1
  flow = np.where(
    inside[:, None], np.asarray(fovea) - points, points - np.clip(points[:, :1] * [0.6, 0], 0, 7)
  )
  return flow / np.maximum(np.hypot(*flow.T), 1e-9)[:, None]


class _Forest:
  """Growing arrays of one kind of vessels."""

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
    """Grow towards the goals until all are reached or no vessel can get nearer; one pass, in place."""
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
      # A goal beside or behind a vessel is none: tips that turn back would curl.
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
  """Without twigs of fewer than `shortest` steps, which are buds and not vessels."""
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


def _murray(rng, position, parent, trunk_radius):
  """Radii [n] with r0^3 = r1^3 + r2^3 at every fork, each tree scaled so that its root has `trunk_radius`."""
  n = len(parent)
  children = np.bincount(parent[parent >= 0], minlength=n)
  cx, cy, ax, ay = DOMAIN
  edge = ((position[:, 0] - cx) / ax) ** 2 + ((position[:, 1] - cy) / ay) ** 2 > 0.8
  # A tip at the edge of the domain is no tip: it feeds retina beyond, so it is wider.
  tip = np.exp(rng.normal(0, 0.4, n)) * np.where(edge, 1.7, 1.0)
  cube = np.where(children == 0, tip**3, 0.0).tolist()
  up = parent.tolist()
  for i in range(n - 1, -1, -1):
    if up[i] >= 0:
      cube[up[i]] += cube[i]
  root = np.arange(n)
  for i in range(n):
    if up[i] >= 0:
      root[i] = root[up[i]]
  cube = np.array(cube)
  return np.cbrt(cube / cube[root]) * trunk_radius[np.searchsorted(np.flatnonzero(parent < 0), root)]


def _forks(parent, radius):
  """Rows (node, first node of the larger child, first node of the smaller) [m, 3], and each node's larger
  child.
  """
  n = len(parent)
  order = np.argsort(-radius, kind="stable")
  main = np.full(n, -1)
  second = np.full(n, -1)
  for i in order.tolist():
    p = parent[i]
    if p >= 0:
      if main[p] < 0:
        main[p] = i
      else:
        second[p] = i
  at = np.flatnonzero(second >= 0)
  return np.stack([at, main[at], second[at]], -1), main


def _smooth(position, parent, main, rounds=4):
  """Take the kinks out of the steps; roots, forks' topology and tips stay."""
  inner = np.flatnonzero((parent >= 0) & (main >= 0))
  for _ in range(rounds):
    middle = 0.5 * (position[parent[inner]] + position[main[inner]])
    position = position.copy()
    position[inner] += 0.5 * (middle - position[inner])
  return position


def _turn_forks(rng, position, parent, radius, forks, reach=4, spread=0.18):
  """Turn the children of every fork to Murray's angles; the turn fades out over `reach` steps.

  Returns the new positions [n, 2] and the angles asked for [m, 2] (larger child, smaller child), radians.
  """
  at, large, small = forks.T
  before = position[at] - position[np.maximum(parent[at], 0)]
  angles = np.stack(optimal_angles(radius[at], radius[large], radius[small]), -1)
  angles *= np.exp(rng.normal(0, spread, angles.shape))
  incoming = np.arctan2(before[:, 1], before[:, 0])

  def turned(child):
    out = position[child] - position[at]
    return (np.arctan2(out[:, 1], out[:, 0]) - incoming + np.pi) % (2 * np.pi) - np.pi

  now_large, now_small = turned(large), turned(small)
  side = np.where(now_large > now_small, 1.0, -1.0)
  delta = np.zeros(len(parent))
  delta[large] = np.clip(side * angles[:, 0] - now_large, -1.2, 1.2)
  delta[small] = np.clip(-side * angles[:, 1] - now_small, -1.2, 1.2)
  delta[large[parent[at] < 0]] = delta[small[parent[at] < 0]] = 0
  moved = np.zeros_like(position)
  child, centre = np.arange(len(parent)), parent.copy()
  for k in range(reach):
    live = (centre >= 0) & (delta[child] != 0)
    nodes = np.flatnonzero(live)
    turn = delta[child[nodes]] * (1 - k / reach)
    arm = position[nodes] - position[centre[nodes]]
    c, s = np.cos(turn), np.sin(turn)
    moved[nodes] += np.stack([c * arm[:, 0] - s * arm[:, 1], s * arm[:, 0] + c * arm[:, 1]], -1) - arm
    child = np.where(centre >= 0, np.maximum(centre, 0), child)
    centre = np.where(centre >= 0, parent[child], -1)
  return position + moved, angles


def _subdivide(position, parent, main, radius, segment, depth):
  """One round of the four-point interpolating scheme (Dyn, Levin, Gregory 1987) on a tree: a node in every
  edge.
  """
  n = len(parent)
  low = np.flatnonzero(parent >= 0)
  up = parent[low]
  before = np.where(parent[up][:, None] >= 0, position[parent[up]], 2 * position[up] - position[low])
  after = np.where(main[low][:, None] >= 0, position[main[low]], 2 * position[low] - position[up])
  middle = (9 * (position[up] + position[low]) - before - after) / 16
  number = np.full(n, -1)
  number[low] = n + np.arange(len(low))
  new_parent = np.concatenate([np.where(parent >= 0, number, -1), up])
  new_main = np.concatenate([np.where(main >= 0, number[np.maximum(main, 0)], -1), low])
  return (
    np.concatenate([position, middle]),
    new_parent,
    new_main,
    np.concatenate([radius, radius[low]]),
    np.concatenate([segment, segment[low]]),
    np.concatenate([2 * depth, 2 * depth[low] - 1]),
  )


def _warp(rng, position, strength):
  """Smooth random displacement (sum of plane waves of 2.5 to 9 degrees), none at the disc's centre."""
  count = 28
  wavelength = np.exp(rng.uniform(math.log(2.4), math.log(9.0), count))
  direction = rng.uniform(0, 2 * np.pi, count)
  k = 2 * np.pi / wavelength * np.stack([np.cos(direction), np.sin(direction)])
  phase = rng.uniform(0, 2 * np.pi, count)
  push = rng.normal(0, 1, (count, 2)) * (strength * wavelength**0.8 * math.sqrt(2 / count))[:, None]
  fade = np.clip(np.hypot(*position.T) / 5.0, 0, 1)[:, None]
  return position + fade * (np.sin(position @ k + phase) @ push)


def grow_kind(rng, kind, fovea, occupied=None, tortuosity=0.035, trunk_radius=(0.3, 0.3)):
  """Grow all arteries or all veins of one eye.

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
  radius = _murray(rng, position, parent, np.asarray(trunk_radius, float))
  forks, main = _forks(parent, radius)
  position = _smooth(position, parent, main)
  position, angle = _turn_forks(rng, position, parent, radius, forks)
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
    state = _subdivide(*state)
  position, fine_parent, _, radius, segment, depth = state
  return Vessels(kind, _warp(rng, position, tortuosity), fine_parent, radius, segment, depth, forks, angle, n)
