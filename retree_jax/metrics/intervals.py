"""Confidence intervals of means and proportions over few images."""

import numpy as np
from scipy import stats


def mean_with_interval(values, num_bootstrap: int = 1000, seed: int = 0) -> dict[str, float]:
  """Mean of some numbers, their spread, and a 95 % percentile bootstrap interval of the mean (Efron 1979).

  Args:
    values: [n], without NaN.
    num_bootstrap: resamples, with replacement.
    seed: of the resampling.

  Returns:
    {"mean", "std", "low", "high", "count"}; std has n - 1 in its denominator. With one value std, low and
    high are NaN, with none everything but the count is.
  """
  values = np.asarray(values, float)
  nan = float("nan")
  if values.size < 2:
    mean = float(values[0]) if values.size else nan
    return {"mean": mean, "std": nan, "low": nan, "high": nan, "count": int(values.size)}
  generator = np.random.default_rng(seed)
  # In blocks, so that thousands of values do not make a matrix of a thousand times that.
  block = max(1, 2_000_000 // values.size)
  means = np.concatenate(
    [
      values[generator.integers(values.size, size=(min(block, num_bootstrap - done), values.size))].mean(1)
      for done in range(0, num_bootstrap, block)
    ]
  )
  low, high = np.percentile(means, (2.5, 97.5))
  return {
    "mean": float(values.mean()),
    "std": float(values.std(ddof=1)),
    "low": float(low),
    "high": float(high),
    "count": int(values.size),
  }


def student(values) -> tuple[float, float]:
  """95 % interval of the mean of a few numbers by Student's t: for two to a dozen seeds, too few for a bootstrap.

  Raises:
    ValueError: fewer than two numbers.
  """
  values = np.asarray(values, float)
  if values.size < 2:
    raise ValueError(f"{values.size} numbers have no interval: give at least two")
  half = float(stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
  return float(values.mean()) - half, float(values.mean()) + half


def wilson(hits: int, total: int) -> tuple[float, float]:
  """95 % Wilson score interval of a proportion (Wilson 1927), which stays in [0, 1] and has width at 0 and at 1.

  Args:
    hits: number of successes.
    total: number of trials, at least 1.

  Returns:
    (low, high), both in [0, 1].

  Raises:
    ValueError: `hits` is not between 0 and `total`, or `total` is 0.
  """
  if not 0 <= hits <= total or total < 1:
    raise ValueError(f"{hits} of {total} is not a proportion: give counts with 0 <= hits <= total and total at least 1")
  low, high = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
  return float(low), float(high)
