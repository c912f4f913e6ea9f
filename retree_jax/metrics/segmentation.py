"""How well a predicted vessel map agrees with a traced one, by named protocols.

The numbers of different papers differ by the protocol as much as by the method (Kovacs and Fazekas, MedIA
2022), so protocols are named: `protocol("native")` is native resolution inside the field of view,
`protocol("paper")` is that of ReTree's published code (everything resized to 256 x 256, no field of view).

All counts equal scikit-learn's. Cases that scikit-learn leaves undefined or warns about are defined as follows:

==================  ========================================================================================
both maps empty     precision, recall, f1, jaccard, cldice, kappa, mcc are 1 (both full: kappa, mcc 1)
target empty        recall and auc are NaN (nothing to find), precision, f1, jaccard, cldice, kappa, mcc 0
prediction empty    precision, recall, f1, jaccard, cldice, kappa, mcc are 0
target full         specificity and auc are NaN
==================  ========================================================================================

where "empty" and "full" mean: no vessel pixel, or nothing but vessel pixels, among the pixels that count.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from retree_jax.metrics import topology
from retree_jax.metrics.intervals import mean_with_interval
from retree_jax.metrics.masks import as_mask
from retree_jax.metrics.skeleton import skeletonize

METRICS = (
  "accuracy",
  "precision",
  "recall",
  "specificity",
  "f1",
  "jaccard",
  "kappa",
  "mcc",
  "auc",
  "cldice",
  "betti0_error",
  "betti1_error",
)


def scores(prediction, target, fov=None, threshold: float = 0.5) -> dict[str, float]:
  """Agreement of one predicted map with one traced map.

  accuracy, precision, recall (sensitivity), specificity, f1 (Dice), jaccard (IoU), kappa (Cohen 1960), mcc
  (Matthews 1975) from the pixel counts; auc, the area under the ROC curve, exact, from ranks with ties at one
  half (of a hard map it is the mean of recall and specificity); cldice (Shit et al., CVPR 2021), the harmonic
  mean of the share of the prediction's skeleton inside the target and of the target's skeleton inside the
  prediction; betti0_error and betti1_error, the absolute differences of the numbers of connected pieces and
  of loops (topology.betti_numbers).

  Args:
    prediction: [H, W] or [H, W, 1]; probabilities in [0, 1], or a mask (bool, {0, 1} or {0, 255}).
    target: [H, W] or [H, W, 1] mask.
    fov: [H, W] or [H, W, 1] mask of the pixels that count; None for all. For cldice and the Betti numbers both
      maps are background outside it.
    threshold: a pixel is predicted to be vessel where its probability is greater. Unused for masks.

  Returns:
    {name: value} for the names in METRICS; degenerate maps as in the table at the top of this file.

  Raises:
    ValueError: if shapes differ, values are NaN or out of range, or the field of view is empty.
  """
  return _scores([_check(prediction, target, fov, threshold)])


def pooled(predictions: Sequence, targets: Sequence, fovs: Sequence | None = None, threshold: float = 0.5) -> dict[str, float]:
  """Scores of several images together: all their pixels in one confusion matrix and one ROC curve.

  For cldice the skeleton pixels are pooled; the Betti errors are means of the per-image errors. Images may
  differ in size. Arguments as in `scores`, in lists of one length.

  Raises:
    ValueError: if the lists are empty or differ in length, or as in `scores`.
  """
  return _scores([_check(*item, threshold) for item in _together(predictions, targets, fovs)])


def choose_threshold(predictions: Sequence, targets: Sequence, fovs: Sequence | None = None) -> float:
  """The threshold, a multiple of 0.001, that gives the largest pooled F1.

  Use it on validation data, never on a test set.

  Args:
    predictions: list of [H, W] probabilities in [0, 1].
    targets: list of masks.
    fovs: list of masks (or Nones), or None.

  Returns:
    The threshold in [0, 0.999] to pass to `scores`; among equally good thresholds the one nearest 0.5.

  Raises:
    ValueError: if no target holds a vessel pixel, or as in `pooled`.
  """
  grid = np.arange(1000) / 1000
  above = np.zeros((2, grid.size + 1), np.int64)  # [background, vessel] x how many thresholds a pixel exceeds
  for prediction, target, fov in _together(predictions, targets, fovs):
    case = _check(prediction, target, fov, 0.5)
    exceeded = np.searchsorted(grid, case.probability, side="left")
    for label in (0, 1):
      above[label] += np.bincount(exceeded[case.truth == label], minlength=grid.size + 1)
  if not above[1].sum():
    raise ValueError("no target holds a vessel pixel, so no threshold is better than another; pass labelled images")
  # Pixels predicted as vessel at grid[j] are those that exceed more than j thresholds.
  positive = above[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
  f1 = 2 * positive[1] / (positive.sum(0) + above[1].sum())
  best = grid[f1 == f1.max()]
  return float(best[np.argmin(np.abs(best - 0.5))])


def summary(scores: Sequence[Mapping[str, float]], num_bootstrap: int = 1000, seed: int = 0) -> dict[str, dict]:
  """Means over images, with their spread and a 95 % bootstrap interval of the mean.

  Args:
    scores: one dict per image, all with the same names (from `scores`, or any numbers).
    num_bootstrap: resamples of the images, with replacement.
    seed: of the resampling; the same for every name, so images are resampled whole.

  Returns:
    {name: {"mean", "std", "low", "high", "count"}}; std has n - 1 in its denominator. NaN values are left
    out, and count says how many remain; with one value std, low and high are NaN, with none everything is.

  Raises:
    ValueError: if there are no scores, or the images' names differ.
  """
  scores = list(scores)
  if not scores:
    raise ValueError("there are no scores to summarise; pass one dict per image")
  if any(set(one) != set(scores[0]) for one in scores):
    raise ValueError("the images' scores do not have the same names; compute them all with the same function")
  result = {}
  for name in scores[0]:
    values = np.array([one[name] for one in scores], float)
    result[name] = mean_with_interval(values[~np.isnan(values)], num_bootstrap, seed)
  return result


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A named way of scoring.

  Attributes:
    name: "paper" or "native".
    size: (height, width) that prediction and target are resized to first, or None.
    use_fov: whether only the pixels inside the field of view count.
    threshold: above which a probability is vessel.
  """

  name: str
  size: tuple[int, int] | None
  use_fov: bool
  threshold: float

  def prepare(self, prediction, target, fov=None):
    """The (prediction, target, fov) that are scored.

    If the protocol has a size, both maps are resized bilinearly and the target is thresholded at 1/2 again.
    """
    if self.use_fov and fov is None:
      raise ValueError(
        f"the protocol {self.name!r} scores inside the field of view; pass fov, the mask of the visible "
        "disc (np.ones_like(target) where the whole frame is visible)"
      )
    fov = fov if self.use_fov else None
    if self.size is None:
      return prediction, target, fov
    prediction = _probability(prediction, "the prediction")
    target = _resize(as_mask(target, "the target"), self.size) > 0.5
    return _resize(prediction, self.size), target, fov

  def scores(self, prediction, target, fov=None) -> dict[str, float]:
    """As `scores`, by this protocol; raises ValueError as that does, and if a needed fov is missing."""
    return scores(*self.prepare(prediction, target, fov), self.threshold)

  def pooled(self, predictions, targets, fovs=None) -> dict[str, float]:
    """As `pooled`, by this protocol."""
    items = [self.prepare(*item) for item in _together(predictions, targets, fovs)]
    return pooled(*map(list, zip(*items, strict=True)), self.threshold)


_PROTOCOLS = {
  # ReTree's published scoring: both maps resized to 256 x 256 by bilinear interpolation, sigmoid > 0.5, full
  # frame. Its accuracy is about 1.6 points above that inside the field of view, and it breaks thin vessels: at
  # this size the Betti errors mean little.
  "paper": Protocol("paper", (256, 256), False, 0.5),
  # What most comparisons since 2020 use, and what this project reports.
  "native": Protocol("native", None, True, 0.5),
}


def protocol(name: str) -> Protocol:
  """The scoring protocol of a name.

  Args:
    name: "paper" (the original's: 256 x 256, full frame, threshold 0.5) or "native" (as stored, inside the
      field of view, 0.5).

  Raises:
    ValueError: for another name.
  """
  if name not in _PROTOCOLS:
    raise ValueError(f"there is no scoring protocol {name!r}; choose one of {', '.join(sorted(_PROTOCOLS))}")
  return _PROTOCOLS[name]


@dataclasses.dataclass(frozen=True)
class _Case:
  """One checked image: whole maps for measures of shape, flat ones of the pixels that count."""

  predicted: np.ndarray  # [H, W] bool, False outside the field of view
  traced: np.ndarray  # [H, W] bool, False outside the field of view
  probability: np.ndarray  # [n] float
  positive: np.ndarray  # [n] bool
  truth: np.ndarray  # [n] bool


def _check(prediction, target, fov, threshold) -> _Case:
  target = as_mask(target, "the target")
  probability = _probability(prediction, "the prediction")
  # Any threshold from 0 to below 1 separates the 0 and 1 of a mask.
  hard = probability.dtype == bool
  if not hard and not 0 <= threshold <= 1:
    raise ValueError(f"the threshold {threshold} is no probability; give one from 0 to 1, such as 0.5")
  fov = np.ones(target.shape, bool) if fov is None else as_mask(fov, "the field of view")
  for what, other in (("prediction", probability), ("field of view", fov)):
    if other.shape != target.shape:
      raise ValueError(f"the {what} is {other.shape} pixels (height, width) and the target {target.shape}; resize one of them")
  if not fov.any():
    raise ValueError("the field of view is empty, so no pixel counts; pass fov=None to score the whole frame")
  predicted = probability if hard else probability > threshold
  return _Case(predicted & fov, target & fov, probability[fov].astype(np.float64), predicted[fov], target[fov])


def _probability(prediction, what: str) -> np.ndarray:
  """[H, W] float probabilities, or [H, W] bool where a mask was given."""
  prediction = np.asarray(prediction)
  if prediction.dtype == bool or np.issubdtype(prediction.dtype, np.integer):
    return as_mask(prediction, f"{what} (integers are read as a mask; give probabilities as floats)")
  if prediction.ndim == 3 and prediction.shape[-1] == 1:
    prediction = prediction[..., 0]
  if prediction.ndim != 2 or not prediction.size:
    raise ValueError(f"{what} has shape {prediction.shape}, but one map [height, width] is needed; pass one image at a time")
  prediction = prediction.astype(np.float64)
  low, high = prediction.min(), prediction.max()
  if not (low >= 0 and high <= 1):
    raise ValueError(
      f"{what} must hold probabilities from 0 to 1, but it holds values from {low:.4g} to {high:.4g}; "
      "apply a sigmoid to logits, and look for NaN"
    )
  return prediction


def _together(predictions, targets, fovs):
  predictions, targets = list(predictions), list(targets)
  fovs = [None] * len(targets) if fovs is None else list(fovs)
  if not targets or not len(predictions) == len(targets) == len(fovs):
    raise ValueError(
      f"{len(predictions)} predictions, {len(targets)} targets and {len(fovs)} fields of view do not go "
      "together; pass lists of one length, at least 1"
    )
  return list(zip(predictions, targets, fovs, strict=True))


def _scores(cases: Sequence[_Case]) -> dict[str, float]:
  tp = sum(int(np.count_nonzero(c.positive & c.truth)) for c in cases)
  positive = sum(int(np.count_nonzero(c.positive)) for c in cases)
  true = sum(int(np.count_nonzero(c.truth)) for c in cases)
  total = sum(c.truth.size for c in cases)
  fp, fn, tn = positive - tp, true - tp, total - positive - true + tp
  # Products of four counts overflow 64-bit integers; Python's do not.
  product = positive * true * (total - positive) * (total - true)
  chance = (positive * true + (total - positive) * (total - true)) / total**2
  accuracy = (tp + tn) / total
  perfect = float(fp == fn == 0)
  skeletons = [_cldice_counts(c) for c in cases]
  kept, predicted, covered, traced = np.sum(skeletons, axis=0)
  betti = [(topology.betti_numbers(c.predicted), topology.betti_numbers(c.traced)) for c in cases]
  errors = np.mean([np.abs(np.subtract(a, b)) for a, b in betti], axis=0)
  nan = float("nan")
  empty = not positive and not true
  return {
    "accuracy": accuracy,
    "precision": 1.0 if empty else tp / positive if positive else 0.0,
    "recall": 1.0 if empty else tp / true if true else nan,
    "specificity": tn / (total - true) if total > true else nan,
    "f1": 1.0 if empty else 2 * tp / (positive + true),
    "jaccard": 1.0 if empty else tp / (tp + fp + fn),
    "kappa": (accuracy - chance) / (1 - chance) if product or not perfect else 1.0,
    "mcc": (tp * tn - fp * fn) / float(product) ** 0.5 if product else perfect,
    "auc": _auc(np.concatenate([c.probability for c in cases]), np.concatenate([c.truth for c in cases])),
    "cldice": 1.0 if empty else _harmonic(kept / max(predicted, 1), covered / max(traced, 1)),
    "betti0_error": float(errors[0]),
    "betti1_error": float(errors[1]),
  }


def _cldice_counts(case: _Case) -> tuple[int, int, int, int]:
  """Skeleton pixels: (predicted inside the target, predicted, traced inside the prediction, traced)."""
  predicted, traced = skeletonize(case.predicted), skeletonize(case.traced)
  return (
    int(np.count_nonzero(predicted & case.traced)),
    int(np.count_nonzero(predicted)),
    int(np.count_nonzero(traced & case.predicted)),
    int(np.count_nonzero(traced)),
  )


def _harmonic(a: float, b: float) -> float:
  return float(2 * a * b / (a + b)) if a + b else 0.0


def _auc(probability: np.ndarray, truth: np.ndarray) -> float:
  """P(vessel score > background score) + half of P(equal): Mann and Whitney's U, exact."""
  background, vessel = np.sort(probability[~truth]), probability[truth]
  if not background.size or not vessel.size:
    return float("nan")
  # Sorted queries access memory in order, which is several times faster.
  vessel = np.sort(vessel)
  wins = np.searchsorted(background, vessel, "left").sum() + np.searchsorted(background, vessel, "right").sum()
  return float(wins / (2 * background.size * vessel.size))


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """[H, W] -> `size`, bilinear at pixel centres without antialiasing, as in the original's loader."""
  values = np.asarray(values, np.float64)
  for axis, (old, new) in enumerate(zip(values.shape, size, strict=True)):
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, old - 1)
    weight = (place - low).reshape([-1 if i == axis else 1 for i in range(2)])
    values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
  return values
