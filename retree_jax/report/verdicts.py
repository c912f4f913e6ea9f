"""Verdicts: what the numbers of an evaluation allow one to say, in plain words, each with what it is based on.

Every question of the report is answered by one function, which returns (level, answer, basis) with a level of `LEVELS`.
"""

import math

from retree_jax.report.formatting import PRIVACY_KINDS, biomarker_name, interval, number, percent, share_with_interval

LEVELS = {"good": "No problem found", "caution": "With reservations", "bad": "Problem found", "unknown": "Cannot tell"}

_MIN_IMAGES = 10  # with fewer there is no verdict on a distance
_MIN_NEIGHBOURS = 30  # with fewer the balls around the nearest neighbours cover nearly everything
_MIN_TREES = 10
_MIN_PAIRS = 3
_MANY = 50  # with fewer eyes only large differences are significant
# Position of the generated labels between chance (0) and real pairs (1).
GOOD_POSITION = 0.9
_LOOSE_POSITION = 0.6
GOOD_SHIFT = 1  # pixels by which the labels may be off
_MIN_SEPARATION_GAIN = 0.05  # of real labels over shuffled ones: with less the real pairs are no reference
GOOD_GAP = 0.05  # of F1, from real labels to generated ones
_LOOSE_GAP = 0.15
_MIN_SEGMENTER_F1 = 0.5  # on real eyes: with less the segmenter says nothing about generated ones
# Not tested: these repeat another biomarker or describe the quality of a fit.
_NOT_TESTED = ("fractal_fit", "width_area", "branching_angle_median", "tortuosity_median")
_PRIVACY_LEVELS = {"copies": "bad", "suspicious": "caution", "clear": "good", "unclear": "unknown"}

Answer = tuple[str, str, str]


def verdicts(result: dict) -> list[dict]:
  """The verdicts on a result of `evaluation.evaluate`, as {"id", "question", "level", "answer", "basis"}."""
  answers = [
    ("photographs", "Do the generated photographs look like real ones?", _looks(result, "photographs")),
    ("trees", "Do the generated vessel trees look like real ones?", _looks(result, "trees")),
    ("vessels", "Do measurements of the generated vessels match those of real vessels?", _vessels(result)),
    ("labels", "Do the labels lie on the vessels of the photographs?", _labels(result)),
  ]
  if result["segmenter"]:
    question = "Does a segmenter trained on real eyes find the labels in the generated photographs?"
    answers.append(("segmenter", question, _segmenter(result)))
  if result["privacy"] is None:
    answer = "Copies were not looked for, because no training set was given."
    answers.append(("privacy", "Were training eyes copied?", ("unknown", answer, "Name the training set with --train.")))
  for kind, audit in (result["privacy"] or {}).items():
    answers.append((f"privacy of {kind}", f"Were training {PRIVACY_KINDS[kind]} copied?", _privacy(kind, audit)))
  return [
    {"id": name, "question": question, "level": level, "answer": answer, "basis": basis}
    for name, question, (level, answer, basis) in answers
  ]


def _counts(result: dict) -> tuple[int, int]:
  return result["sets"]["generated"]["count"], result["sets"]["real"]["count"]


def _looks(result: dict, space: str) -> Answer:
  """Whether a permutation test tells the sets apart; if so, whether they overlap."""
  distances, test, features = result["distances"][space], result["tests"][space], result["settings"]["features"][space]
  generated, real = _counts(result)
  basis = f"{generated} generated and {real} real {space}"
  if "refused" in distances:
    return "unknown", distances["refused"], f"{basis}."
  if min(generated, real) < _MIN_IMAGES:
    answer = f"There are too few {space} to tell: at least {_MIN_IMAGES} of each are needed, and {_MANY} are better."
    return "unknown", answer, f"{basis}."
  kernel = distances["kernel"]
  basis += (
    f"; {features} features; permutation test of the energy distance, p = {number(test['p'])}; kernel distance "
    f"{number(kernel['value'])} (95 % interval {interval(kernel)})"
  )
  if "kernel_floor" in distances:
    floor = distances["kernel_floor"]
    basis += f"; between random halves of the real set, {floor['num_a']} each, it ranges by chance from {interval(floor)}"
  basis += "."
  shares, overlap = "", False
  if "precision" in distances and min(generated, real) >= _MIN_NEIGHBOURS:
    precision, coverage = distances["precision"]["value"], distances["coverage"]["value"]
    overlap = min(precision, coverage) >= 0.5
    shares = (
      f" {100 * precision:.0f} % of the generated {space} lie among real ones, and {100 * coverage:.0f} % of the real "
      "ones have a generated one close by."
    )
  if test["p"] > 0.05:
    return "good", f"No difference was found with these features.{_power_caution(generated, real)}{shares}", basis
  if overlap:
    return "caution", f"The sets differ, but they overlap.{shares}", basis
  return "bad", f"The sets differ clearly.{shares}", basis


def _power_caution(generated: int, real: int) -> str:
  return " With so few eyes, only large differences can be found." if min(generated, real) < _MANY else ""


def differing(result: dict, level: float = 0.05) -> tuple[list[str], list[str]]:
  """The biomarkers that differ, and all that were tested.

  Kolmogorov-Smirnov p-values, corrected for the number of tests (Holm 1979) at the given level.
  """
  distances = result["vessels"]["distances"]
  tested = [n for n, d in distances.items() if n not in _NOT_TESTED and not math.isnan(d["ks_p"])]
  rejected = []
  for rank, name in enumerate(sorted(tested, key=lambda n: distances[n]["ks_p"])):
    if distances[name]["ks_p"] > level / (len(tested) - rank):
      break
    rejected.append(name)
  return [name for name in tested if name in rejected], tested


def _vessels(result: dict) -> Answer:
  generated, real = _counts(result)
  height, width = result["settings"]["size"]
  basis = f"{generated} generated and {real} real trees at {height} × {width} pixels"
  if "refused" in result["vessels"]:
    return "unknown", result["vessels"]["refused"], f"{basis}."
  if min(generated, real) < _MIN_TREES:
    answer = f"There are too few trees to tell: at least {_MIN_TREES} of each are needed, and {_MANY} are better."
    return "unknown", answer, f"{basis}."
  names, tested = differing(result)
  if not tested:
    return "unknown", "The trees are empty, so nothing can be measured.", f"{basis}."
  basis += f"; Kolmogorov-Smirnov tests of {len(tested)} measures at the 5 % level, corrected for their number (Holm)."
  if not names:
    return "good", f"No difference was found in any of {len(tested)} measures.{_power_caution(generated, real)}", basis
  distances = result["vessels"]["distances"]
  names.sort(key=lambda n: -_effect(distances[n]))
  largest = "; ".join(
    f"{biomarker_name(n)} {number(distances[n]['mean_a'])} instead of {number(distances[n]['mean_b'])}{_unit(result, n)}"
    for n in names[:4]
  )
  more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
  small = len(names) <= len(tested) / 3 and max(_effect(distances[n]) for n in names) < 1
  answer = f"{len(names)} of {len(tested)} measures differ. Means, largest differences first: {largest}{more}."
  return "caution" if small else "bad", answer, basis


def _effect(entry: dict) -> float:
  """How far the sets are apart, in standard deviations of the real one; infinite where all real trees are equal."""
  return entry["wasserstein_normalised"] if math.isfinite(entry["wasserstein_normalised"]) else math.inf


def _unit(result: dict, name: str) -> str:
  unit = result["vessels"]["definitions"][name][0]
  return f" {unit}" if unit in ("px", "degrees", "1/px²") else ""


def _labels(result: dict) -> Answer:
  measures, shift = result["fidelity"]["measures"], result["fidelity"]["shift"]
  generated, shuffled, real = (measures["darker"][side] for side in ("generated", "shuffled", "real"))
  basis = (
    f"{generated['count']} generated and {real['count']} real pairs; 95 % bootstrap intervals of the mean. This comparison "
    "finds labels without a vessel, but not vessels without a label."
  )
  if reason := labels_unknown(result):
    return "unknown", reason, basis

  def share(side):
    return f"{100 * side['mean']:.0f} % ({100 * side['low']:.0f} to {100 * side['high']:.0f} %)"

  details = (
    f"In the green channel, {share(generated)} of the labelled pixels are darker than the retina around them; in real pairs "
    f"it is {share(real)}, and with the labels of other eyes {share(shuffled)}."
  )
  if any(shift["generated"]):
    details += (
      f" The labels would fit best {shift_text(*shift['generated'])}, those of real pairs {shift_text(*shift['real'])}."
    )
  position = label_position(result)
  if position >= GOOD_POSITION and max(map(abs, shift["generated"])) <= GOOD_SHIFT:
    return "good", f"About as well as in real pairs. {details}", basis
  if position >= _LOOSE_POSITION:
    return "caution", f"Less well than in real pairs. {details}", basis
  return "bad", f"Poorly. {details}", basis


def labels_unknown(result: dict) -> str:
  """Why the fit of the labels cannot be told; "" if it can."""
  measures = result["fidelity"]["measures"]
  if min(measures["darker"][side]["count"] for side in ("generated", "shuffled", "real")) < _MIN_PAIRS:
    return f"There are too few pairs with vessels to tell: at least {_MIN_PAIRS} of each are needed."
  if measures["separation"]["real"]["mean"] - measures["separation"]["shuffled"]["mean"] < _MIN_SEPARATION_GAIN:
    return (
      "The labels of the real pairs do not lie on dark lines either, so there is nothing to compare with: check the folder of "
      "real pairs."
    )
  return ""


def label_position(result: dict) -> float:
  """Where the generated labels are between those of other eyes (0) and real pairs (1): the worse of two measures."""
  measures = result["fidelity"]["measures"]
  return min(m["position"] for m in (measures["darker"], measures["separation"]) if not math.isnan(m["position"]))


def shift_text(dy: int, dx: int) -> str:
  """Where labels fit best, in words."""
  parts = [f"{abs(step)} px {words[step > 0]}" for step, words in ((dy, ("up", "down")), (dx, ("left", "right"))) if step]
  return f"if moved {' and '.join(parts)}" if parts else "where they are"


def _segmenter(result: dict) -> Answer:
  generated, real = (result["segmenter"][side]["f1"] for side in ("generated", "real"))
  height, width = result["settings"]["size"]
  basis = (
    f"Segmenter {result['settings']['segmenter']}; F1 inside the field of view at {height} × {width} pixels, "
    f"{generated['count']} generated and {real['count']} real pairs, 95 % bootstrap intervals of the mean. If it was trained "
    "on these real eyes, its score on them is too high."
  )
  unknown = segmenter_unknown(generated, real)
  if unknown and min(generated["count"], real["count"]) < _MIN_PAIRS:
    return "unknown", unknown, basis

  def score(side):
    return f"{side['mean']:.3f} ({side['low']:.3f} to {side['high']:.3f})"

  scores = f"F1 is {score(generated)} against the generated labels and {score(real)} against the real ones."
  if unknown:
    return "unknown", f"{scores} {unknown}", basis
  if generated["low"] > real["high"]:
    return "caution", f"{scores} The generated photographs are easier to segment than real ones.", basis
  gap = real["mean"] - generated["mean"]
  return "good" if gap <= GOOD_GAP else "caution" if gap <= _LOOSE_GAP else "bad", scores, basis


def segmenter_unknown(generated: dict, real: dict) -> str:
  """Why the F1 scores of a segmenter on both sets say nothing; "" if they do."""
  if min(generated["count"], real["count"]) < _MIN_PAIRS:
    return f"There are too few pairs to tell: at least {_MIN_PAIRS} of each are needed."
  return "" if real["mean"] >= _MIN_SEGMENTER_F1 else "A segmenter that fails on real eyes says nothing about generated ones."


def _privacy(kind: str, audit: dict) -> Answer:
  """The verdict of one audit: `metrics.privacy.Audit.to_dict`, or {"refused": why}."""
  if "refused" in audit:
    return "unknown", audit["refused"], "No audit was possible."
  basis = (
    f"{audit['num_generated']} generated {PRIVACY_KINDS[kind]} were compared with {audit['num_train']} training and "
    f"{audit['num_heldout']} held-out ones, allowing for mirroring, rotation, zoom, colour and lighting. "
  )
  spaces = [
    f"by {name}, {share_with_interval(space['near'])} are nearer to a training eye than all but "
    f"{percent(space['near_expected'])} of the held-out eyes"
    for name, space in audit["spaces"].items()
  ]
  basis += (
    "Compared "
    + "; ".join(spaces)
    + ". Copies of a part of an eye are not detected."
    + "".join(f" {note}" for note in audit["notes"])
  )
  return _PRIVACY_LEVELS[audit["verdict"]], audit["sentence"], basis
