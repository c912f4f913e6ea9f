"""From grown steps to vessels: calibres and branching angles after Murray, smooth curves, tortuosity (`vessel_tree`, 3 to 5).

Murray, "The physiological principle of minimum work", PNAS 12, 1926 (calibres), and "The physiological principle of minimum
work applied to the angle of branching of arteries", J. Gen. Physiol. 9, 1926 (angles). Positions are [n, 2] in degrees.
"""

import math

import numpy as np


def optimal_angles(r0, r1, r2):
  """Angles of the two children against the parent's direction that cost the least work (Murray 1926, eq. 5-6).

  Args:
    r0: radius of the parent, any array shape; r1, r2: of the children.

  Returns:
    (theta1, theta2) in radians, same shape: cos(theta1) = (r0^4 + r1^4 - r2^4) / (2 r0^2 r1^2), and likewise theta2.
  """
  c1 = (r0**4 + r1**4 - r2**4) / (2 * r0**2 * r1**2)
  c2 = (r0**4 + r2**4 - r1**4) / (2 * r0**2 * r2**2)
  return np.arccos(np.clip(c1, -1, 1)), np.arccos(np.clip(c2, -1, 1))


def murray(rng, parent, feeds_beyond, trunk_radius):
  """Radii [n] with r0^3 = r1^3 + r2^3 at every fork, each tree scaled so that its root has `trunk_radius`.

  Args:
    rng: numpy Generator, for the tips' calibres.
    parent: int [n], -1 for a root; parents come before children.
    feeds_beyond: bool [n]; such a tip is wider, as the vessel goes on beyond the domain that is grown.
    trunk_radius: [roots], in any unit.
  """
  n = len(parent)
  children = np.bincount(parent[parent >= 0], minlength=n)
  tip = np.exp(rng.normal(0, 0.4, n)) * np.where(feeds_beyond, 1.7, 1.0)
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


def forks(parent, radius):
  """Rows (node, first node of the larger child, first node of the smaller) [m, 3], and each node's larger child."""
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


def smooth(position, parent, main, rounds=4):
  """Smooths the steps; roots, tips and topology stay."""
  inner = np.flatnonzero((parent >= 0) & (main >= 0))
  for _ in range(rounds):
    middle = 0.5 * (position[parent[inner]] + position[main[inner]])
    position = position.copy()
    position[inner] += 0.5 * (middle - position[inner])
  return position


def turn_forks(rng, position, parent, radius, forks, reach=4, spread=0.18):
  """Turns the children of every fork to Murray's angles; the turn fades out over `reach` steps.

  Returns the new positions [n, 2] and the target angles [m, 2] (larger child, smaller child), radians.
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


def subdivide(position, parent, main, radius, segment, depth):
  """One round of the four-point interpolating scheme (Dyn, Levin, Gregory 1987) on a tree: a new node in every edge."""
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


def warp(rng, position, strength):
  """Smooth random displacement (sum of plane waves of 2.5 to 9 degrees), none at the disc's centre."""
  count = 28
  wavelength = np.exp(rng.uniform(math.log(2.4), math.log(9.0), count))
  direction = rng.uniform(0, 2 * np.pi, count)
  k = 2 * np.pi / wavelength * np.stack([np.cos(direction), np.sin(direction)])
  phase = rng.uniform(0, 2 * np.pi, count)
  push = rng.normal(0, 1, (count, 2)) * (strength * wavelength**0.8 * math.sqrt(2 / count))[:, None]
  fade = np.clip(np.hypot(*position.T) / 5.0, 0, 1)[:, None]
  return position + fade * (np.sin(position @ k + phase) @ push)
