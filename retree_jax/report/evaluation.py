"""Generated eyes against real ones: what `python -m retree_jax.evaluate` measures, on sources or arrays."""

import dataclasses
import math
import pathlib

import numpy as np

from retree_jax.data import folders, sources
from retree_jax.metrics import features as feature_metrics
from retree_jax.metrics import fidelity, images, privacy, two_sample, vessels
from retree_jax.metrics.intervals import mean_with_interval
from retree_jax.report import document, measure, plots

FEATURES = feature_metrics.EXTRACTORS
_SHOWN = 8  # pairs of each set in the report's pictures
_PICTURE = 256  # their side
_REPEATS = 200  # random splits behind the floors of the vessel measures


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
  say=lambda text: None,
) -> dict:
  """Compares generated pairs with real ones.

  Args:
    generated: pairs: a source of `retree_jax.data.sources`, a spec ("folder:PATH"), a folder, or arrays
      {"image": uint8 [N, H, W, 3], "tree": uint8 [N, H, W, 1], optional "fov"}.
    real: pairs that the generator was not trained on, likewise.
    train: what it was trained on, likewise; trees are not needed. None leaves the privacy audit out.
    size: (height, width) to which every eye's field of view is fitted before anything is measured. None takes
      the largest of 512, 256, 128 and 64 at which no set has to be enlarged.
    num: at most so many eyes of each set, drawn at random.
    features: one of `FEATURES`.  feature_weights: file for "inception" and "vgg19".
    segmenter: `checkpoint.Loaded` of the segmentation stage, or its path or name; trained on real eyes.
    seed: of every random choice.
    pictures: whether the result holds pictures and names of eyes; without them it can be shown where those may not.
    say: called with a line now and then.

  Returns:
    The dict that `report` describes; JSON but for the arrays under "pictures". NaN stands where something is
    not defined.

  Raises:
    ValueError: anything wrong with the sets, in one sentence.
  """
  if num is not None and num < 2:
    raise ValueError(f"--num={num} leaves nothing to compare: give at least 2.")
  opened = {"generated": _open(generated, "generated"), "real": _open(real, "real")}
  if train is not None:
    opened["train"] = _open(train, "train", needs_tree=False)
    # All of them, drawn or not.
    shared = sorted(_files(opened["train"]) & _files(opened["real"]))
    if shared:
      _refuse([f"{folder}, {name}" for folder, name in shared], len(opened["real"]))
  size = measure.common_size(opened["generated"], opened["real"]) if size is None else _checked_size(size)
  extractor = feature_metrics.extractor(features, feature_weights)
  extractors, predict, segmenter_note = {"photographs": extractor, "trees": extractor}, None, None
  if segmenter is not None:
    from retree_jax import checkpoint

    loaded = segmenter if hasattr(segmenter, "params") else checkpoint.load(segmenter, stage="segmentation")
    predict, encoder = measure.segmenter_parts(loaded)
    if encoder is not None:
      extractors["photographs by segmenter"] = encoder
    segmenter_note = f"{loaded.identity()}, step {loaded.step}"
  chosen = {side: measure.draw(source, num, seed) for side, source in opened.items()}
  say(f"comparing at {size[0]}x{size[1]} pixels, features: {extractor.name}")
  measured = {side: measure.pairs(opened[side], chosen[side], size, extractors, predict, say) for side in ("generated", "real")}
  if not pictures:
    for m in measured.values():
      m.names = [str(i) for i in range(len(m))]
  if train is not None:
    measured["train"] = measure.photographs(opened["train"], chosen["train"], size)
    _refuse_shared(measured["train"], measured["real"])
  notes = _notes(measured, size)
  result = {
    "format": document.FORMAT,
    "settings": {
      "size": list(size),
      "features": {space: e.name for space, e in extractors.items()},
      "num": num,
      "seed": seed,
      "segmenter": segmenter_note,
    },
    "sets": {side: {"title": m.title, "count": len(m)} for side, m in measured.items()},
    "notes": notes,
    "distances": {space: _distances(measured, space, seed) for space in extractors},
    "tests": {space: _test(measured, space, seed) for space in extractors},
    "vessels": _vessels(measured, seed),
    "fidelity": _fidelity(measured, seed),
    "segmenter": _agreement(measured, seed) if segmenter is not None else None,
    "privacy": None,
    "pictures": {side: _pictures(opened[side], chosen[side], seed) for side in ("generated", "real") if pictures},
  }
  if train is not None:
    say("looking for copies of training images")
    result["privacy"], closest = _privacy(measured, opened, chosen, extractor, pictures)
    if pictures:
      result["pictures"]["closest"] = closest
  result["verdicts"] = document.verdicts(result)
  return result


def _open(given, side: str, needs_tree: bool = True):
  """A source out of whatever was given."""
  if isinstance(given, dict):
    source = measure.Arrays(given, side)
  elif isinstance(given, str | pathlib.PurePath):
    source = _folder(str(given), "all", needs_tree)
  else:
    source = given
  if not len(source):
    raise ValueError(f"The {side} set is empty: give at least one pair.")
  return source


def open_sets(
  generated: str, real: str, train: str | None = None, real_split: str | None = None, train_split: str | None = None
) -> dict:
  """Opens the sets that a command line names, as arguments of `evaluate`.

  Args:
    generated, real, train: specs of sources, or plain folders.
    real_split, train_split: parts of them; by default all, or test and train where both are one folder.

  Raises:
    ValueError: as `sources.open_source`.
  """
  same = bool(train) and _parts(train) == _parts(real)
  splits = {
    "generated": "all",
    "real": real_split or ("test" if same else "all"),
    "train": train_split or ("train" if same else "all"),
  }
  given = {"generated": generated, "real": real, "train": train}
  return {side: _folder(given[side], splits[side], side != "train") for side in splits if given[side]}


def _folder(text: str, split: str, needs_tree: bool):
  """A source by its spec, or by a plain path."""
  is_spec = text.startswith(("folder:", "phantom", "tfds:")) and not folders.expanded(text).exists()
  spec = text if is_spec else f"folder:{text}"
  return sources.open_source(spec, split=split, fields=("image", "tree" if needs_tree else "tree?"))


def _checked_size(size) -> tuple[int, int]:
  height, width = (int(v) for v in size)
  if min(height, width) < 64 or max(height, width) > 2048:
    raise ValueError(f"Eyes can be compared at 64 to 2048 pixels a side, not at {height}x{width}: change --size.")
  return height, width


def _refuse_shared(train, real) -> None:
  known = dict(zip(train.digests, train.names, strict=True))
  shared = [name for name, digest in zip(real.names, real.digests, strict=True) if digest in known]
  if shared:
    _refuse(shared, len(real))


def _refuse(shared, count: int) -> None:
  raise ValueError(
    f"{len(shared)} of the {count} real eyes are training eyes too, {shared[0]} first: "
    "held-out eyes must be ones the generator never saw; give others with --real, or a "
    "folder with splits.json for both."
  )


def _files(source) -> set[tuple[str, str]]:
  """(folder, name) of the eyes of a source that lie in folders."""
  if hasattr(source, "parts"):
    return set().union(*map(_files, source.parts))
  return {(str(source.path.resolve()), name) for name in source.names} if hasattr(source, "path") else set()


def _parts(text: str) -> set[str]:
  """What a spec or path names, however it is written: folders resolved, weights and order left out."""
  if folders.expanded(text).exists():
    return {str(folders.expanded(text).resolve())}
  return {
    str(folders.expanded(part.removeprefix("folder:")).resolve()) if part.startswith("folder:") else part
    for part, _ in sources.weighted_parts(text)
  }


def _notes(measured, size) -> list[str]:
  """Cautions about the sets themselves."""
  notes = []
  for side in ("generated", "real"):
    count = len(measured[side])
    if count < 20:
      notes.append(f"Only {count} {side} pair{'s' if count > 1 else ''}: every number about them is rough.")
    repeated = count - len(set(measured[side].digests))
    if repeated:
      notes.append(f"{repeated} of the {count} {side} photographs repeat another one of the same set, pixel for pixel.")
  both = len(set(measured["generated"].digests) & set(measured["real"].digests))
  if both:
    notes.append(f"{both} generated photographs are real ones, pixel for pixel: check that the folders are the right ones.")
  if min(size) < 256:
    notes.append(f"At {size[0]}x{size[1]} pixels most thin vessels are lost: read the vessel measures with that in mind.")
  return notes


def _distances(measured, space: str, seed: int) -> dict:
  """`images.compare` as plain numbers, or the reason why there is none."""
  real, generated = measured["real"].features[space], measured["generated"].features[space]
  if min(len(real), len(generated)) < 2:
    return {
      "refused": f"{len(generated)} generated and {len(real)} real images are too few for a distance: "
      "give at least 2 of each, better 50."
    }
  return {name: dataclasses.asdict(m) for name, m in images.compare(real, generated, seed=seed).items()}


def _test(measured, space: str, seed: int) -> dict | None:
  """Whether the sets could be of one kind, by their features; None where there are too few images to ask."""
  real, generated = measured["real"].features[space], measured["generated"].features[space]
  return None if min(len(real), len(generated)) < 2 else two_sample.energy_test(generated, real, seed=seed)


def _vessels(measured, seed: int) -> dict:
  a, b = measured["generated"].biomarkers, measured["real"].biomarkers
  found = {
    "definitions": {name: list(text) for name, text in vessels.BIOMARKERS.items()},
    "trees": {
      side: [{"name": name} | values for name, values in zip(m.names, m.biomarkers, strict=True)]
      for side, m in measured.items()
      if side != "train"
    },
  }
  if min(len(a), len(b)) < 2:
    return found | {
      "refused": f"{len(a)} generated and {len(b)} real trees are too few to compare "
      "distributions: give at least 2 of each, better 20."
    }
  floors = vessel_floors(a, b, seed=seed)
  return found | {"distances": {name: entry | floors[name] for name, entry in vessels.distances(a, b, seed=seed).items()}}


def vessel_floors(generated: list[dict], real: list[dict], repeats: int = _REPEATS, seed: int = 0) -> dict[str, dict]:
  """Wasserstein distances at equal counts: generated against real, and real against real, in real standard deviations.

  The distance of two samples grows as they shrink, so a distance says something only beside one of the same
  counts: random halves of the real trees against each other, and as many generated against as many real.

  Args:
    generated, real: biomarkers of each tree.
    repeats: random draws; low and high are the 2.5th and 97.5th percentile over them.
    seed: of the draws.

  Returns:
    {name: {"matched": {"value", "low", "high"}, "floor": likewise, "count": trees on either side}}; NaN, count
    0, where fewer than 2 trees would be on a side or all real trees agree.
  """
  nothing = dict.fromkeys(("value", "low", "high"), math.nan)
  found = {}
  for name in vessels.BIOMARKERS:
    x, y = (np.array([tree[name] for tree in trees], float) for trees in (generated, real))
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    count = min(len(x), len(y) // 2)
    spread = float(y.std(ddof=1)) if len(y) > 1 else 0.0
    if count < 2 or spread <= 1e-12 * abs(y.mean()):
      found[name] = {"matched": nothing, "floor": nothing, "count": 0}
      continue
    rng = np.random.default_rng(seed)
    matched, floor = [], []
    for _ in range(repeats):
      order = rng.permutation(len(y))
      one, other = np.sort(y[order[:count]]), np.sort(y[order[count : 2 * count]])
      mine = np.sort(rng.choice(x, count, replace=False))
      # Between samples of one size the Wasserstein-1 distance is the mean distance of the sorted values.
      floor.append(np.abs(one - other).mean() / spread)
      matched.append(np.abs(mine - one).mean() / spread)
    found[name] = {
      key: {"value": float(np.mean(v)), "low": float(np.percentile(v, 2.5)), "high": float(np.percentile(v, 97.5))}
      for key, v in (("matched", matched), ("floor", floor))
    }
    found[name]["count"] = count
  return found


def _fidelity(measured, seed: int) -> dict:
  generated, real = measured["generated"], measured["real"]
  shift = {side: list(fidelity.best_shift(m.shifts)) for side, m in (("generated", generated), ("real", real))}
  return {
    "definitions": {name: list(text) for name, text in fidelity.MEASURES.items()},
    "measures": fidelity.summary(generated.own, generated.shuffled, real.own, seed),
    "shift": shift,
    "pairs": {
      side: [{"name": n} | v for n, v in zip(m.names, m.own, strict=True)]
      for side, m in (("generated", generated), ("real", real))
    },
  }


def _agreement(measured, seed: int) -> dict:
  """The segmenter's scores on both sets: mean, spread and interval over photographs."""
  found = {}
  for side in ("generated", "real"):
    records = measured[side].agreement
    found[side] = {}
    for name in ("f1", "precision", "recall", "cldice", "auc"):
      values = np.array([record[name] for record in records], float)
      found[side][name] = mean_with_interval(values[np.isfinite(values)], seed=seed)
  return found


def _privacy(measured, opened, chosen, extractor, pictures: bool) -> tuple[dict, dict]:
  """Audits of photographs and, where the training set has them, of trees; and the closest pairs as pictures."""
  audits, closest = {}, {}
  for kind, field in (("photographs", "image"), ("trees", "tree")):
    sets = [m.thumbnails[field] for m in (measured["generated"], measured["train"], measured["real"])]
    if not len(sets[1]):
      continue
    try:
      # Features of trees would say little that their pixels do not.
      audit = privacy.audit(*sets, extractor if field == "image" else None)
    except ValueError as error:
      audits[kind] = {"refused": str(error)}
      continue
    audits[kind] = audit.to_json()
    if not pictures:
      continue
    pairs = audit.spaces["pixels"].closest(_SHOWN)
    shown = {}
    for side in ("generated", "train"):
      rows = [chosen[side][getattr(pair, side)] for pair in pairs]
      shown[side] = list(measure.fitted(opened[side], rows, (_PICTURE, _PICTURE)))
    closest[kind] = [
      {
        "generated": plots.to_rgb(one[field]),
        "train": plots.to_rgb(pair.pose(other[field], _PICTURE)),
        "distance": pair.distance,
        "second": pair.second,
        "copied": pair.copied,
        "generated_name": one["name"],
        "train_name": other["name"],
      }
      for pair, one, other in zip(pairs, shown["generated"], shown["train"], strict=True)
    ]
  return audits, closest


def _pictures(source, chosen, seed: int) -> list[dict]:
  """A few pairs drawn at random, not picked."""
  shown = np.random.default_rng(seed + 1).choice(chosen, min(_SHOWN, len(chosen)), replace=False)
  return [
    {key: example[key] for key in ("name", "image", "tree", "fov")}
    for example in measure.fitted(source, np.sort(shown), (_PICTURE, _PICTURE))
  ]
