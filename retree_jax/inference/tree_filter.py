"""Decides which generated trees are kept, by a discriminator's score and by simple anatomical measures.

Both bounds come from real trees and are stored in `threshold.json` beside the checkpoint: the least score from held-out
trees (a fraction of them, `config.filter.pass_rate`, passes), the ranges of the measures from the training trees. `load`
writes the file where it is missing or belongs to another checkpoint.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from scipy import ndimage

from retree_jax import checkpoint
from retree_jax.data import attributes, generated_trees, pipeline, sources, transforms, writing
from retree_jax.metrics import topology
from retree_jax.models import scaling

_EIGHT = np.ones((3, 3), bool)
_ACCELERATOR_BLOCK = 64  # trees that an accelerator sees at once
_MARGIN = 0.25  # extends each range on both sides, as a fraction of its width: a few dozen trees do not cover all eyes
# name -> (definition, whether it has a lower bound, whether it has an upper bound)
MEASURES = {
  "density": ("vessel pixels over pixels of the field of view", True, True),
  "components": ("pieces, gaps of two pixels bridged", False, True),
  "largest": ("share of the vessel pixels in the largest piece", True, False),
  "trunk": (
    "how far from its root the largest piece reaches, over the diameter of the field of view; 0 where it "
    "does not pass the root, which lies where the tree is densest: vessels leave the optic disc there",
    True,
    False,
  ),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The filter's decision about one tree.

  Attributes:
    accepted: whether the tree is kept.
    score: the discriminator's mean over its patches, 0 (generated) to 1 (real).
    reason: why it is rejected; "" if it is accepted.
  """

  accepted: bool
  score: float
  reason: str


@dataclasses.dataclass(frozen=True)
class Bounds:
  """What trees must reach.

  Attributes:
    threshold: least accepted score.
    ranges: {name of `MEASURES`: (low, high)}, None for no bound; {} checks no measures.
    how: how the threshold was chosen, for logs and data cards.
  """

  threshold: float
  ranges: Mapping[str, tuple]
  how: str


class Filter:
  """Decides about trees, with the filter stage's network and bounds.

  Args:
    config: the filter stage's config.
    network: `retree_jax.models.Network`.
    bounds: what trees must reach.

  Attributes:
    size: (height, width) in pixels that the network works at.
  """

  def __init__(self, config, network, bounds: Bounds):
    self.bounds, self.size = bounds, tuple(config.data.image_size)
    # A score must not depend on the batch: on CPUs, where only a batch of one gives the same bits for any number of trees, one
    # tree is scored at a time; elsewhere all batches have the same size.
    self._block = 1 if jax.default_backend() == "cpu" else _ACCELERATOR_BLOCK
    self._score = jax.jit(lambda params, x: jnp.mean(network.apply(params, scaling.to_signed(x)), axis=(1, 2, 3)))

  def __call__(self, params, tree: np.ndarray, fov: np.ndarray) -> list[Verdict]:
    """Decides about trees.

    Args:
      params: the network's parameters.
      tree: coverage, uint8 [N, H, W, 1], of any size with the filter's aspect ratio.
      fov: uint8 0/255 [N, H, W, 1].

    Returns:
      N verdicts, each a function of its own tree alone.
    """
    verdicts, n = [], len(tree)
    sized = [[transforms.area_resize(p, self.size) for p in pair] for pair in zip(tree, fov, strict=True)]
    rows = [np.minimum(np.arange(start, start + self._block), n - 1) for start in range(0, n, self._block)]
    # All are dispatched before the first is read.
    blocks = [self._score(params, np.stack([sized[i][0] for i in block])) for block in rows]
    scores = np.concatenate([np.asarray(block) for block in blocks])[:n] if blocks else []
    for score, (pixels, disc) in zip(scores, sized, strict=True):
      score, reason = float(score), outside(measures(pixels, disc), self.bounds.ranges)
      if not reason and not score >= self.bounds.threshold:
        reason = f"score {score:.4f} is below {self.bounds.threshold:.4f}"
      verdicts.append(Verdict(not reason, score, reason))
    return verdicts


@dataclasses.dataclass(frozen=True)
class LoadedFilter:
  """A filter with its parameters.

  Attributes:
    loaded: `checkpoint.Loaded` of the filter stage.
    bounds: what trees must reach.
  """

  loaded: checkpoint.Loaded
  bounds: Bounds

  @functools.cached_property
  def filter(self) -> Filter:
    """The compiled filter."""
    return Filter(self.loaded.config, self.loaded.network, self.bounds)

  def __call__(self, tree: np.ndarray, fov: np.ndarray) -> list[Verdict]:
    """`Filter.__call__` with the loaded parameters."""
    return self.filter(self.loaded.params, tree, fov)


def measures(tree: np.ndarray, fov: np.ndarray) -> dict[str, float]:
  """Anatomical measures of one tree: the names of `MEASURES`, which gives the definitions.

  Args:
    tree: coverage or mask, uint8 0..255 [H, W, 1].
    fov: uint8 0..255 [H, W, 1].
  """
  inside = fov[..., 0] >= 128
  mask = (tree[..., 0] >= 128) & inside
  area, visible = int(mask.sum()), max(1, int(inside.sum()))
  if not area:
    return {"density": 0.0, "components": 0, "largest": 0.0, "trunk": 0.0}
  # A vessel thinner than a pixel falls below half coverage here and there; its pieces still are one vessel.
  bridged = ndimage.binary_dilation(mask, _EIGHT)
  labels, _ = ndimage.label(bridged, _EIGHT)
  sizes = np.bincount(labels[mask])
  diameter = 2.0 * np.sqrt(visible / np.pi)
  root = np.array(attributes.root(mask, inside))
  away = np.hypot(*(np.nonzero(mask & (labels == np.argmax(sizes))) - root[:, None]))
  return {
    "density": area / visible,
    "components": topology.betti_numbers(bridged)[0],
    "largest": float(sizes.max() / area),
    "trunk": float(away.max() / diameter) if away.min() <= diameter / 10 else 0.0,
  }


def outside(values: Mapping[str, float], ranges: Mapping[str, tuple]) -> str:
  """The first measure outside its range, in words; "" if all are inside."""
  for name, (low, high) in ranges.items():
    if low is not None and values[name] < low:
      return f"{name} {values[name]:.4g} is below {low:.4g}"
    if high is not None and values[name] > high:
      return f"{name} {values[name]:.4g} is above {high:.4g}"
  return ""


def ranges_of(trees: list[Mapping[str, float]]) -> dict[str, tuple]:
  """The accepted range of each measure, from the measures of real trees."""
  ranges = {}
  for name, (_, has_low, has_high) in MEASURES.items():
    values = [tree[name] for tree in trees]
    margin = _MARGIN * (max(values) - min(values))
    # Never as low as 0, which would accept everything; at least half the smallest real value, so that sparse eyes pass.
    low = max(min(values) - margin, min(values) / 2.0)
    ranges[name] = (round(low, 6) if has_low else None, round(max(values) + margin, 6) if has_high else None)
  return ranges


def calibrate(loaded) -> dict:
  """Chooses the bounds from the real trees of the filter's `config.data.source`.

  Args:
    loaded: `checkpoint.Loaded` of the filter stage.

  Returns:
    JSON-able: "checkpoint" (to which the bounds belong), "threshold" and "how" it was chosen, "ranges", "num_validation" and
    "num_training" trees, and "generated_accepted", the fraction of held-out generated trees that pass (None if
    `config.data.generated` does not exist).

  Raises:
    ValueError: the data cannot be read.
  """
  config = loaded.config
  training, validation = (_real(config, split) for split in ("fit", "validation"))
  ranges = ranges_of([measures(t, f) for t, f in zip(*training, strict=True)])
  scores = np.array([v.score for v in LoadedFilter(loaded, Bounds(0.0, {}, ""))(*validation)])
  if config.filter.threshold:
    threshold, how = float(config.filter.threshold), "config.filter.threshold"
  else:
    threshold = float(np.quantile(scores, 1.0 - config.filter.pass_rate, method="lower"))
    how = f"the score that {config.filter.pass_rate:.0%} of {len(scores)} held-out real trees reach"
  tree_filter, share = LoadedFilter(loaded, Bounds(threshold, ranges, how)), None
  try:
    generated = [generated_trees.read(config.data.generated, tree_filter.filter.size, kind)[1] for kind in ("coverage", "fov")]
    share = float(np.mean([v.accepted for v in tree_filter(*generated)]))
  except ValueError:
    pass  # the bounds need only real trees
  return {
    "checkpoint": loaded.identity(),
    "threshold": threshold,
    "how": how,
    "ranges": ranges,
    "num_validation": len(scores),
    "num_training": len(training[0]),
    "real_accepted": float(np.mean([v.accepted for v in tree_filter(*validation)])),
    "generated_accepted": share,
  }


def load(path, threshold: float | None = None) -> LoadedFilter:
  """Loads a filter and its bounds; chooses the bounds where they are not stored yet.

  Args:
    path: workdir, checkpoint folder or name of shipped weights.
    threshold: least score, in place of the one chosen on validation data.

  Raises:
    ValueError: no checkpoint of the filter stage, or no bounds and no data to choose them from.
  """
  loaded = checkpoint.load(path, stage="filter")
  bounds = _read_bounds(loaded)
  if bounds is None:
    try:
      bounds = calibrate(loaded)
    except (ValueError, OSError) as error:
      if threshold is None:
        raise ValueError(
          f"{path} has no threshold yet, and its validation data cannot be read ({error}): give "
          "--filter_threshold, or load it once on a machine that has config.data.source"
        ) from error
      logging.warning("The filter checks no anatomy: its data cannot be read (%s)", error)
      return LoadedFilter(loaded, Bounds(threshold, {}, "given by hand; no anatomy is checked"))
    _write_bounds(loaded, bounds)
  if threshold is not None:
    bounds = {**bounds, "threshold": threshold, "how": "given by hand"}
  logging.info(
    "Tree filter: score at least %.4f (%s); %s",
    bounds["threshold"],
    bounds["how"],
    ", ".join(f"{k} {low} to {high}" for k, (low, high) in bounds["ranges"].items()),
  )
  ranges = {k: tuple(v) for k, v in bounds["ranges"].items()}
  return LoadedFilter(loaded, Bounds(float(bounds["threshold"]), ranges, bounds["how"]))


def export(path, out) -> None:
  """Writes a filter with 16-bit weights, and bounds chosen for these rounded weights: a folder that `load` reads anywhere."""
  checkpoint.export(checkpoint.load(path, stage="filter"), out)
  choose_bounds(out, checkpoint.load(out, stage="filter").config)


def choose_bounds(path, config) -> None:
  """Writes the bounds of the filter in `path`, chosen from the data of `config`, for filters whose own data are not available.

  Raises:
    ValueError: no checkpoint of the filter stage, or data that cannot be read.
  """
  loaded = checkpoint.load(path, stage="filter")
  bounds = calibrate(dataclasses.replace(loaded, config=config))
  _write_bounds(loaded, bounds | {"checkpoint": loaded.identity()})


def _bounds_path(loaded) -> epath.Path:
  path = epath.Path(loaded.path)
  return (path.parent.parent if path.parent.name == "checkpoints" else path) / "threshold.json"


def _read_bounds(loaded) -> dict | None:
  path = _bounds_path(loaded)
  if not path.exists():
    return None
  try:
    bounds = json.loads(path.read_text())
    return bounds if bounds["checkpoint"] == loaded.identity() else None
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is damaged: remove it, and it is made again") from error


def _write_bounds(loaded, bounds) -> None:
  if jax.process_index() != 0:
    return
  try:
    writing.write_json(_bounds_path(loaded), bounds)
  except OSError as error:  # a folder without write access: the bounds are chosen at each start, which only takes time
    logging.warning("Cannot store the filter's bounds (%s)", error)


def _real(config, split: str) -> tuple[np.ndarray, np.ndarray]:
  """All real trees of a split and their fields of view at the filter's size, uint8 [N, H, W, 1] each."""
  size = tuple(config.data.image_size)
  source = sources.open_source(config.data.source, split=split, fields=("tree",), seed=config.seed, size=size)
  batches = list(
    pipeline.evaluation_batches(source, size=size, batch_size=min(64, len(source)), fit=config.data.fit, fields=("tree", "fov"))
  )
  return tuple(np.concatenate([b[name][b["valid"]] for b in batches]) for name in ("tree", "fov"))
