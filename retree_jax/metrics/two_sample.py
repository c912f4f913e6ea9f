"""Permutation test of whether two sets of features come from one distribution, valid for any number of images."""

import math

import numpy as np

_MOST = 1000  # images per set in the test: the distance matrix grows with their square


def energy_test(a: np.ndarray, b: np.ndarray, permutations: int = 999, seed: int = 0) -> dict[str, float]:
  """Energy distance with a permutation test (Székely and Rizzo 2004, eqs. 5 and 6).

  Each feature is divided by its standard deviation over both sets, so that its unit does not matter. If both sets
  come from one distribution, exchanging images between them changes nothing: so the p-value is exact even for few
  images, where the intervals of distances are unreliable. It says whether a difference was detected, not how
  large it is.

  Args:
    a: [n, d] features, n at least 2.   b: [m, d] likewise. With more than 1000 rows, 1000 random ones are used.
    permutations: random exchanges; the smallest p-value is 1 / (permutations + 1).
    seed: of the exchanges.

  Returns:
    {"energy": the distance between the sets over the mean distance between their images, 0 (same) to 1; "p";
    "count_a", "count_b": rows used}. p is 1 if all images have the same features.

  Raises:
    ValueError: fewer than 2 rows on a side, different d, not finite.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(f"features of both sets must be [images, d] with the same d, not {a.shape} and {b.shape}")
  if min(len(a), len(b)) < 2:
    raise ValueError(f"{min(len(a), len(b))} image(s) are too few for a test: give at least 2 in each set")
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError("some features are not finite: remove these images")
  rng = np.random.default_rng(seed)
  a, b = (x if len(x) <= _MOST else x[rng.choice(len(x), _MOST, replace=False)] for x in (a, b))
  both = np.concatenate([a, b])
  spread = both.std(0)
  both = (both[:, spread > 0] - both[:, spread > 0].mean(0)) / spread[spread > 0]
  squared = (both**2).sum(1)
  distances = np.sqrt(np.maximum(0, squared[:, None] - 2 * both @ both.T + squared))
  np.fill_diagonal(distances, 0)
  n, m = len(a), len(b)
  total, rows = distances.sum(), distances.sum(1)

  def energy(members):  # [N, k], 1 where a row stands for the first set
    within_a = np.einsum("ik,ik->k", members, distances @ members)
    across = rows @ members - within_a
    within_b = total - within_a - 2 * across
    between = across / (n * m)
    return 2 * between - within_a / n**2 - within_b / m**2, between

  first = (np.arange(n + m) < n).astype(np.float64)
  value, between = (float(v[0]) for v in energy(first[:, None]))
  if between <= 0:
    return {"energy": 0.0, "p": 1.0, "count_a": n, "count_b": m}
  larger = 0
  for start in range(0, permutations, 100):
    count = min(100, permutations - start)
    exchanged = np.stack([rng.permutation(first) for _ in range(count)], 1)
    # Equal up to rounding counts as equal, as for repeated images.
    larger += int(np.sum(energy(exchanged)[0] >= value * (1 - 1e-9)))
  share = math.sqrt(max(0.0, value / (2 * between)))
  return {"energy": min(1.0, share), "p": (larger + 1) / (permutations + 1), "count_a": n, "count_b": m}
