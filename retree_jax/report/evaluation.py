"""Compares generated pairs of photograph and vessel tree with real ones."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from retree_jax.data import provenance, reduction
from retree_jax.data.workers import Workers
from retree_jax.metrics import features as feature_metrics
from retree_jax.metrics import fidelity, images, two_sample, vessels
from retree_jax.metrics.intervals import mean_with_interval
from retree_jax.report import files, measure, privacy, sets, verdicts

_SHOWN = 8  # pairs of each set in the report's pictures
_SIDE = 256  # of these pictures, in pixels
_SPLITS = 200  # random splits from which the floors of the vessel measures are taken


def evaluate(
  generated,
  real,
  train=None,
  *,
  size: tuple[int, int] | None = None,
  num: int | None = None,
  features: str = "scattering",
  feature_weights=None,
  segmenter=None,
  seed: int = 0,
  pictures: bool = True,
  log: Callable[[str], None] = lambda text: None,
  workers: int = 0,
) -> dict:
  """Compares generated pairs with real ones.

  Args:
    generated: pairs: a source of `retree_jax.data.sources`, a spec ("folder:PATH"), a folder, or arrays
      {"image": uint8 [N, H, W, 3], "tree": uint8 [N, H, W, 1], optional "fov": uint8 [N, H, W, 1]}.
    real: pairs on which the generator was not trained, given in the same way.
    train: the set on which it was trained, given in the same way; trees are optional. None omits the privacy audit.
    size: (height, width) in pixels to which every eye's field of view is fitted before anything is measured. None takes
      the largest of 512, 256, 128 and 64 at which no set has to be enlarged.
    num: at most this many generated and real eyes, drawn at random; None for all. All training eyes count.
    features: features of the image distances, one of `metrics.features.EXTRACTORS`.
    feature_weights: weights file for "inception" and "vgg19".
    segmenter: `checkpoint.Loaded` of a segmentation stage that was trained on real eyes, or its path or name. It adds the
      comparison of its predictions with the labels.
    seed: of every random choice.
    pictures: whether the result holds pictures and names of eyes. Without them it can be shown where those may not be.
    log: receives lines about the progress.
    workers: processes that measure vessels beside this one, see `retree_jax.data.workers`.

  Returns:
    The dict that `report.files` describes, with NaN where something is not defined, and "pictures": arrays for the page.

  Raises:
    ValueError: unsuitable sets or settings.
  """
  if num is not None and num < 2:
    raise ValueError(f"--num={num} leaves nothing to compare: give at least 2.")
  sources = {"generated": sets.open_set(generated, "generated"), "real": sets.open_set(real, "real")}
  if train is not None:
    sources["train"] = sets.open_set(train, "train", needs_tree=False)
    sets.check_files_disjoint(sources["train"], sources["real"])  # all files, also those that `num` leaves out
  size = measure.common_size(sources["generated"], sources["real"]) if size is None else _checked_size(size)
  extractor = feature_metrics.extractor(features, feature_weights)
  extractors, predict, segmenter_name = {"photographs": extractor, "trees": extractor}, None, None
  if segmenter is not None:
    from retree_jax import checkpoint

    loaded = segmenter if hasattr(segmenter, "params") else checkpoint.load(segmenter, stage="segmentation")
    predict, encoder = measure.segmenter_parts(loaded)
    if encoder is not None:
      extractors["photographs by segmenter"] = encoder
    segmenter_name = f"{loaded.identity()}, step {loaded.step}"
  synthetic = [
    sentence
    for side in sources
    if side != "generated"
    for sentence in provenance.warn(
      sources[side], f"given as the {side} set", f"compare with photographs of real eyes, and name their folder with --{side}"
    )
  ]
  # All training eyes: a copy of one that was not drawn would go unseen.
  chosen = {side: measure.draw(source, None if side == "train" else num, seed) for side, source in sources.items()}
  log(f"comparing at {size[0]}x{size[1]} pixels, features: {extractor.name}")
  with Workers(workers) as shared:
    measured = {
      side: measure.pairs(sources[side], chosen[side], size, extractors, predict, log, shared) for side in ("generated", "real")
    }
  if not pictures:
    for part in measured.values():
      part.names = [str(i) for i in range(len(part))]
  if train is not None:
    measured["train"] = measure.photographs(sources["train"], chosen["train"], size)
    sets.check_photographs_disjoint(measured["train"], measured["real"])
  result = {
    "format": files.FORMAT,
    "settings": {
      "size": list(size),
      "mask_rule": reduction.RULE,
      "features": {space: e.name for space, e in extractors.items()},
      "num": num,
      "seed": seed,
      "segmenter": segmenter_name,
    },
    "sets": {side: {"title": part.title, "count": len(part)} for side, part in measured.items()},
    "notes": [*synthetic, *_notes(measured, size)],
    "distances": {space: _distances(measured, space, seed) for space in extractors},
    "tests": {space: _test(measured, space, seed) for space in extractors},
    "vessels": _vessels(measured, seed),
    "fidelity": _fidelity(measured, seed),
    "segmenter": _segmenter_scores(measured, seed) if segmenter is not None else None,
    "privacy": None,
    "pictures": {side: _examples(sources[side], chosen[side], seed) for side in ("generated", "real") if pictures},
  }
  if train is not None:
    log("looking for copies of training images")
    result["privacy"], closest = privacy.audits(measured, sources, chosen, extractor, pictures)
    if pictures:
      result["pictures"]["closest"] = closest
  result["verdicts"] = verdicts.verdicts(result)
  return result


def _checked_size(size) -> tuple[int, int]:
  height, width = (int(v) for v in size)
  if min(height, width) < 64 or max(height, width) > 2048:
    raise ValueError(f"Eyes can be compared at 64 to 2048 pixels a side, not at {height}x{width}: change --size.")
  return height, width


def _notes(measured, size) -> list[str]:
  """Cautions about the sets themselves."""
  notes = []
  for side in ("generated", "real"):
    count = len(measured[side])
    if count < 20:
      notes.append(f"Only {count} {side} pair{'s' if count > 1 else ''}: all numbers about them are rough estimates.")
    repeated = count - len(set(measured[side].digests))
    if repeated:
      notes.append(f"{repeated} of the {count} {side} photographs equal another one of the same set, pixel for pixel.")
  both = len(set(measured["generated"].digests) & set(measured["real"].digests))
  if both:
    notes.append(f"{both} generated photographs equal real ones, pixel for pixel: check that the folders are the right ones.")
  if min(size) < 256:
    notes.append(f"At {size[0]}x{size[1]} pixels most thin vessels are lost: read the vessel measures with that in mind.")
  return notes


def _distances(measured, space: str, seed: int) -> dict:
  """`images.compare` as dicts, or the reason why there is no distance."""
  real, generated = measured["real"].features[space], measured["generated"].features[space]
  if min(len(real), len(generated)) < 2:
    return {
      "refused": f"{len(generated)} generated and {len(real)} real images are too few for a distance: "
      "give at least 2 of each, preferably 50."
    }
  return {name: dataclasses.asdict(m) for name, m in images.compare(real, generated, seed=seed).items()}


def _test(measured, space: str, seed: int) -> dict | None:
  """The energy test of whether both sets have one distribution of features; None where there are too few images."""
  real, generated = measured["real"].features[space], measured["generated"].features[space]
  return None if min(len(real), len(generated)) < 2 else two_sample.energy_test(generated, real, seed=seed)


def _vessels(measured, seed: int) -> dict:
  generated, real = measured["generated"].biomarkers, measured["real"].biomarkers
  part = {
    "definitions": {name: list(text) for name, text in vessels.BIOMARKERS.items()},
    "trees": {
      side: [{"name": name} | values for name, values in zip(m.names, m.biomarkers, strict=True)]
      for side, m in measured.items()
      if side != "train"
    },
  }
  if min(len(generated), len(real)) < 2:
    return part | {
      "refused": f"{len(generated)} generated and {len(real)} real trees are too few to compare "
      "distributions: give at least 2 of each, preferably 20."
    }
  floors, distances = vessel_floors(generated, real, seed=seed), vessels.distances(generated, real, seed=seed)
  return part | {"distances": {name: entry | floors[name] for name, entry in distances.items()}}


def vessel_floors(generated: list[dict], real: list[dict], repeats: int = _SPLITS, seed: int = 0) -> dict[str, dict]:
  """Wasserstein distances at equal counts: generated against real, and real against real, in real standard deviations.

  The distance of two samples grows as they shrink, so it must be compared with a distance at the same counts: that of two
  random halves of the real trees, beside that of as many generated and real trees.

  Args:
    generated, real: biomarkers of each tree.
    repeats: number of random draws; low and high are the 2.5th and 97.5th percentile over them.
    seed: of the draws.

  Returns:
    {name: {"matched": generated against real, "floor": real against real, each {"value", "low", "high"}, "count": trees on
    either side}}; NaN and count 0 where fewer than 2 trees would be on a side or all real trees have the same value.
  """
  undefined = dict.fromkeys(("value", "low", "high"), math.nan)
  floors = {}
  for name in vessels.BIOMARKERS:
    x, y = (np.array([tree[name] for tree in trees], float) for trees in (generated, real))
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    count = min(len(x), len(y) // 2)
    spread = float(y.std(ddof=1)) if len(y) > 1 else 0.0
    if count < 2 or spread <= 1e-12 * abs(y.mean()):
      floors[name] = {"matched": undefined, "floor": undefined, "count": 0}
      continue
    rng = np.random.default_rng(seed)
    matched, floor = [], []
    for _ in range(repeats):
      order = rng.permutation(len(y))
      half, other_half = np.sort(y[order[:count]]), np.sort(y[order[count : 2 * count]])
      drawn = np.sort(rng.choice(x, count, replace=False))
      # Between samples of one size the Wasserstein-1 distance is the mean distance of the sorted values.
      floor.append(np.abs(half - other_half).mean() / spread)
      matched.append(np.abs(drawn - half).mean() / spread)
    floors[name] = {
      key: {"value": float(np.mean(v)), "low": float(np.percentile(v, 2.5)), "high": float(np.percentile(v, 97.5))}
      for key, v in (("matched", matched), ("floor", floor))
    }
    floors[name]["count"] = count
  return floors


def _fidelity(measured, seed: int) -> dict:
  generated, real = measured["generated"], measured["real"]
  return {
    "definitions": {name: list(text) for name, text in fidelity.MEASURES.items()},
    "measures": fidelity.summary(generated.own, generated.shuffled, real.own, seed),
    "shift": {side: list(fidelity.best_shift(measured[side].shifts)) for side in ("generated", "real")},
    "pairs": {
      side: [{"name": n} | v for n, v in zip(measured[side].names, measured[side].own, strict=True)]
      for side in ("generated", "real")
    },
  }


def _segmenter_scores(measured, seed: int) -> dict:
  """The segmenter's scores on both sets: mean, standard deviation and interval over photographs."""
  scores = {"generated": {}, "real": {}}
  for side, side_scores in scores.items():
    for name in ("f1", "precision", "recall", "cldice", "auc"):
      values = np.array([record[name] for record in measured[side].agreement], float)
      side_scores[name] = mean_with_interval(values[np.isfinite(values)], seed=seed)
  return scores


def _examples(source, chosen, seed: int) -> list[dict]:
  """A few pairs, drawn at random, for the report's pictures."""
  drawn = np.random.default_rng(seed + 1).choice(chosen, min(_SHOWN, len(chosen)), replace=False)
  return [
    {key: example[key] for key in ("name", "image", "tree", "fov")}
    for example in measure.fitted(source, np.sort(drawn), (_SIDE, _SIDE))
  ]
