"""Distances between sets of pictures: Fréchet, kernel, precision, recall, density, coverage.

To interpret a distance one must know its features, the number of images on each side, and the distance between
two halves of the real images. `compare` returns all of these; the parts are functions of their own.

Features are rows of numbers of any kind; `metrics.features` computes some.

Intervals are 95 %: delete-a-group jackknife (Efron and Stein, 1981) for the two distances, because a bootstrap
repeats images, and a repeated image is its own nearest neighbour, which increases both distances; binomial
(Wilson, 1927) for the proportions, given the other set.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from retree_jax.metrics.features import check_finite
from retree_jax.metrics.intervals import wilson

_FLOOR_IMAGES = 4000  # whose kernel matrix takes 128 MB
_BLOCK = 2048  # rows of a kernel or distance matrix held at once


@dataclasses.dataclass(frozen=True)
class Measurement:
  """One number with what is needed to interpret it.

  Attributes:
    value: the estimate.
    low, high: 95 % interval; NaN where there are too few images for one.
    num_a, num_b: number of images on each side.
    note: empty, or a sentence of caution.
  """

  value: float
  low: float
  high: float
  num_a: int
  num_b: int
  note: str = ""


def frechet_distance(a: np.ndarray, b: np.ndarray, groups: int = 10, seed: int = 0) -> Measurement:
  """Squared Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

  |mean_a - mean_b|² + tr(A + B - 2 (A B)^½), with unbiased covariances A and B as in the reference
  implementation. Computed from the nuclear norm of X_a X_bᵀ (X: centred features divided by √(n-1)), whose
  singular values are the square roots of the eigenvalues of A B. This avoids the square root of a nearly
  singular matrix, so no value becomes complex, and it is cheap for few images with many features.

  Args:
    a: [n, d] features.   b: [m, d].
    groups: number of jackknife groups; 0 omits the interval (d = 2048 takes seconds per group).
    seed: of the assignment of images to groups.

  Raises:
    ValueError: fewer than 2 images on a side, different d, not finite.
  """
  a, b = _pair(a, b, 2)

  def value(rows_a, rows_b):
    x, y = a[rows_a], b[rows_b]
    mean = x.mean(0) - y.mean(0)
    x, y = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    traces = np.sum(x * x) + np.sum(y * y)
    # A = XᵀX = RᵀR: more images than features shrink to a d × d triangle first.
    x, y = (np.linalg.qr(z, mode="r") if len(z) > z.shape[1] else z for z in (x, y))
    return float(mean @ mean + traces - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum())

  note = ""
  if min(len(a), len(b)) <= a.shape[1]:
    note = (
      f"{min(len(a), len(b))} images are fewer than the {a.shape[1]} features: the Fréchet distance is "
      "biased upwards, so compare it only at equal counts and trust the kernel distance."
    )
  return _with_interval(value, len(a), len(b), groups, seed, note)


def kernel_distance(
  a: np.ndarray, b: np.ndarray, subset_size: int = 1000, num_subsets: int = 100, seed: int = 0, groups: int = 10
) -> Measurement:
  """Kernel inception distance: unbiased squared MMD with the kernel (x·y / d + 1)³.

  Bińkowski et al. 2018, eq. 4. With more than subset_size images on both sides the value is the mean over
  random subsets, as is usual; with fewer it is the estimate over all images, which has the same
  expectation. It can be slightly negative. It is not multiplied by 100 or 1000.

  Args:
    a: [n, d] features.   b: [m, d].
    subset_size, num_subsets, seed: of the subsets.
    groups: number of jackknife groups, over all images; 0 omits the interval.

  Raises:
    ValueError: fewer than 2 images on a side, different d, not finite, subset_size below 2.
  """
  a, b = _pair(a, b, 2)
  if subset_size < 2 or num_subsets < 1:
    raise ValueError(f"subset_size {subset_size} and num_subsets {num_subsets} must be at least 2 and 1.")
  rng = np.random.default_rng(seed)
  group_a, group_b = (rng.permutation(len(x)) % max(1, min(groups, len(a) // 2, len(b) // 2)) for x in (a, b))
  # Sums of the kernel between groups: they give every leave-one-group-out estimate without another product.
  within_a, within_b = _kernel_sums(a, a, group_a, group_a, within=True), _kernel_sums(b, b, group_b, group_b, within=True)
  between = _kernel_sums(a, b, group_a, group_b, within=False)
  sizes_a, sizes_b = np.bincount(group_a), np.bincount(group_b)

  def without(g):
    keep = np.arange(len(sizes_a)) != g
    n, m = sizes_a[keep].sum(), sizes_b[keep].sum()
    return (
      within_a[np.ix_(keep, keep)].sum() / (n * (n - 1))
      + within_b[np.ix_(keep, keep)].sum() / (m * (m - 1))
      - 2 * between[np.ix_(keep, keep)].sum() / (n * m)
    )

  value, note = without(-1), ""
  if subset_size < min(len(a), len(b)):
    value = float(
      np.mean(
        [
          _mmd(a[rng.choice(len(a), subset_size, replace=False)], b[rng.choice(len(b), subset_size, replace=False)])
          for _ in range(num_subsets)
        ]
      )
    )
  elif min(len(a), len(b)) < 50:
    note = f"Only {min(len(a), len(b))} images on one side: read the interval, not the value."
  enough = len(sizes_a) > 2
  deviation = 1.96 * _jackknife([without(g) for g in range(len(sizes_a))]) if enough else math.nan
  return Measurement(float(value), float(value - deviation), float(value + deviation), len(a), len(b), note)


def precision_recall_density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> dict[str, Measurement]:
  """Quality and diversity, measured separately with k-nearest-neighbour balls.

  precision: proportion of fakes inside the ball of any real; recall: proportion of reals inside the ball of any
  fake (Kynkäänniemi et al. 2019, eq. 1-2). density: mean number of reals whose ball contains a fake, over k;
  coverage: proportion of reals whose ball contains a fake (Naeem et al. 2020, eq. 3-4); single outliers cannot
  inflate these. The radius of a ball is the distance to the k-th nearest other member of the same set, border
  included.

  Args:
    real: [n, d] features.   fake: [m, d].
    k: neighbours; 3 in the first paper, 5 in the second.

  Returns:
    {"precision", "recall", "density", "coverage"}; num_a is the number of reals.

  Raises:
    ValueError: a set has k images or fewer, different d, not finite, k below 1.
  """
  real, fake = _pair(real, fake, 2)
  if k < 1 or min(len(real), len(fake)) <= k:
    raise ValueError(
      f"{len(real)} real and {len(fake)} generated images are too few for {k} nearest neighbours: "
      f"give at least {k + 1} of each or a smaller k (k at least 1)."
    )
  radius_real, radius_fake = _radii(real, k), _radii(fake, k)
  inside = np.zeros(len(fake))  # number of reals whose ball contains each fake
  covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
  for rows in _blocks(len(real)):
    squared = _squared_distances(real[rows], fake)
    within = squared <= radius_real[rows, None]
    inside += within.sum(0)
    covered[rows] = within.any(1)
    recalled[rows] = (squared <= radius_fake).any(1)
  note = f"Fewer than 50 images on one side make these shares coarse (k = {k})." if min(len(real), len(fake)) < 50 else ""

  def share(hits):
    low, high = wilson(int(np.sum(hits)), len(hits))
    return Measurement(float(np.mean(hits)), low, high, len(real), len(fake), note)

  density = inside / k
  deviation = 1.96 * float(density.std(ddof=1)) / math.sqrt(len(fake))
  mean = float(density.mean())
  return {
    "precision": share(inside > 0),
    "recall": share(recalled),
    "coverage": share(covered),
    "density": Measurement(mean, max(0.0, mean - deviation), mean + deviation, len(real), len(fake), note),
  }


def kernel_floor(real: np.ndarray, repeats: int = 1000, seed: int = 0) -> Measurement:
  """How far random halves of real images lie from each other by chance, in the kernel distance.

  Over all splits of one set the unbiased distance is 0 on average, so that the value is 0: what says something is the range.

  Args:
    real: [n, d] features of real images, at least 4; of more than 4000, a random 4000 are taken.
    repeats: random splits; low and high are the 2.5th and 97.5th percentile over them.
    seed: of the splits.

  Raises:
    ValueError: fewer than 4 images.
  """
  real, _ = _pair(real, real, 4)
  rng = np.random.default_rng(seed)
  if len(real) > _FLOOR_IMAGES:
    real = real[rng.choice(len(real), _FLOOR_IMAGES, replace=False)]
  n, half, values = len(real), len(real) // 2, []
  kernel = (real @ real.T / real.shape[1] + 1) ** 3
  np.fill_diagonal(kernel, 0)
  for start in range(0, repeats, 100):
    ranks = rng.random((min(100, repeats - start), n)).argsort(1)
    first, second = (ranks < half).astype(float), ((ranks >= half) & (ranks < 2 * half)).astype(float)
    to_first, to_second = first @ kernel, second @ kernel
    within = np.sum(to_first * first, 1) + np.sum(to_second * second, 1)
    values += list(within / (half * (half - 1)) - 2 * np.sum(to_first * second, 1) / half**2)
  low, high = np.percentile(values, [2.5, 97.5])
  return Measurement(0.0, float(low), float(high), half, half, f"Range over {repeats} random splits of {n} real images.")


def floor(
  real: np.ndarray,
  distance: Callable[..., Measurement] = frechet_distance,
  repeats: int = 5,
  seed: int = 0,
  size: int | None = None,
) -> Measurement:
  """A biased distance of real images to real images: the mean over random splits into two halves.

  Args:
    real: [n, d] features of real images, at least 4.
    distance: such as `frechet_distance`; for the kernel distance, which is unbiased, see `kernel_floor`.
    repeats: random splits; low and high are the 2.5th and 97.5th percentile over them.
    seed: of the splits.
    size: images per half; default n // 2. The Fréchet distance depends on it: compare at the same count.

  Raises:
    ValueError: fewer than 4 images, or halves larger than n // 2.
  """
  real, _ = _pair(real, real, 4)
  size = size or len(real) // 2
  if not 2 <= size <= len(real) // 2:
    raise ValueError(f"Halves of {size} images cannot be split off {len(real)}: write 2 to {len(real) // 2}.")
  rng, values = np.random.default_rng(seed), []
  for _ in range(repeats):
    rows = rng.permutation(len(real))
    values.append(distance(real[rows[:size]], real[rows[size : 2 * size]], groups=0).value)
  low, high = np.percentile(values, [2.5, 97.5])
  return Measurement(
    float(np.mean(values)),
    float(low),
    float(high),
    size,
    size,
    f"Mean over {repeats} random splits of {len(real)} real images.",
  )


def compare(real: np.ndarray, generated: np.ndarray, k: int = 5, seed: int = 0) -> dict[str, Measurement]:
  """All measurements of two sets of features that a report shows.

  Returns:
    "frechet" and "kernel" over all images; "kernel_floor"; "frechet_matched" and "frechet_floor", both at
    half the real images (or all generated ones, if fewer) on each side, so that these two are comparable;
    "precision", "recall", "density" and "coverage" if there are more than k images. Floors are absent with
    fewer than 4 real images.

  Raises:
    ValueError: as the parts.
  """
  real, generated = _pair(real, generated, 2)
  measured = {"frechet": frechet_distance(generated, real, seed=seed), "kernel": kernel_distance(generated, real, seed=seed)}
  if len(real) >= 4:
    size = min(len(real) // 2, len(generated))
    rng = np.random.default_rng(seed)
    values = [
      frechet_distance(
        generated[rng.permutation(len(generated))[:size]], real[rng.permutation(len(real))[:size]], groups=0
      ).value
      for _ in range(5)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    measured["frechet_matched"] = Measurement(
      float(np.mean(values)), float(low), float(high), size, size, "Mean over 5 random draws of equal size."
    )
    measured["frechet_floor"] = floor(real, seed=seed, size=size)
    measured["kernel_floor"] = kernel_floor(real, seed=seed)
  if min(len(real), len(generated)) > k:
    measured |= precision_recall_density_coverage(real, generated, k)
  return measured


def _pair(a: np.ndarray, b: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
  """Both sets as float64, checked."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(f"Features of both sets must be [images, d] with the same d, not {a.shape} and {b.shape}.")
  if min(len(a), len(b)) < least:
    raise ValueError(f"{min(len(a), len(b))} image(s) are too few for this distance: give at least {least} in each set.")
  check_finite(a, "Features in the first set")
  check_finite(b, "Features in the second set")
  return a, b


def _jackknife(values: Sequence[float]) -> float:
  """Standard error from leave-a-group-out values; NaN with fewer than three groups."""
  if len(values) < 3:
    return math.nan
  return math.sqrt((len(values) - 1) * float(np.var(values)))


def _with_interval(value, n, m, groups, seed, note) -> Measurement:
  """value(rows_a, rows_b) over all rows, with the jackknife that leaves group g out of both sets."""
  rng = np.random.default_rng(seed)
  groups = min(groups, n // 2, m // 2)
  group_a, group_b = rng.permutation(n) % max(groups, 1), rng.permutation(m) % max(groups, 1)
  estimate = value(slice(None), slice(None))
  deviation = 1.96 * _jackknife([value(group_a != g, group_b != g) for g in range(groups)]) if groups > 2 else math.nan
  return Measurement(estimate, estimate - deviation, estimate + deviation, n, m, note)


def _blocks(total: int):
  return (slice(i, min(i + _BLOCK, total)) for i in range(0, total, _BLOCK))


def _kernel_sums(x, y, groups_x, groups_y, within: bool) -> np.ndarray:
  """Sums of the cubic kernel between groups of rows. `within`: x and y are one set, and each row's kernel with itself is 0."""
  sums = np.zeros((groups_x.max() + 1, groups_y.max() + 1))
  member = np.eye(sums.shape[1])[groups_y]  # [m, groups]
  for rows in _blocks(len(x)):
    kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
    if within:
      kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)] = 0
    np.add.at(sums, groups_x[rows], kernel @ member)
  return sums


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
  one = np.zeros(len(x), int)
  n = len(x)
  within = _kernel_sums(x, x, one, one, within=True) + _kernel_sums(y, y, one, one, within=True)
  between = _kernel_sums(x, y, one, one, within=False)
  return float(within[0, 0] / (n * (n - 1)) - 2 * between[0, 0] / n**2)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.maximum(0, (x * x).sum(1)[:, None] - 2 * (x @ y.T) + (y * y).sum(1))


def _radii(x: np.ndarray, k: int) -> np.ndarray:
  """Squared distance of each row to its k-th nearest other row."""
  radii = np.empty(len(x))
  for rows in _blocks(len(x)):
    squared = _squared_distances(x[rows], x)
    squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
    radii[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
  return radii
