"""The evaluation as files: report.json for scripts, report.md for a repository, report.html for people.

report.json (`FORMAT` 1; NaN is null):

  format       1
  settings     size [height, width], features {space: name of the extractor}, num, seed, segmenter
  sets         {"generated" | "real" | "train": {"title", "count"}}
  notes        sentences of caution about the sets
  verdicts     list of {"id", "question", "level", "answer", "basis"}, level one of `LEVELS`
  distances    {space: {measure: {"value", "low", "high", "num_a", "num_b", "note"}}}, measures as
               `metrics.images.compare` names them; or {space: {"refused": why}}
  tests        {space: `metrics.two_sample.energy_test`, or null where there are too few images}
  vessels      "definitions" {name: [unit, definition]}; "trees" {"generated" | "real": [{"name", biomarkers}]};
               "distances" {name: `metrics.vessels.distances` and "matched", "floor" {"value", "low", "high"}
               (Wasserstein distance over the real standard deviation at `count` trees a side)}, or "refused"
  fidelity     "definitions"; "measures" as `metrics.fidelity.summary`; "shift" {"generated" | "real": [dy, dx] px};
               "pairs" {"generated" | "real": [{"name", measures}]}
  segmenter    null, or {"generated" | "real": {score: {"mean", "std", "low", "high", "count"}}}
  privacy      null, or {"photographs" and, where the training set has trees, "trees": what
               `metrics.privacy.Audit.to_json` gives, or {"refused": why}}

Intervals are 95 %. The same sets, settings and seed give the same files.
"""

import math

from etils import epath

from retree_jax.data import writing
from retree_jax.report import page, privacy_section
from retree_jax.report.parts import interval, number

FORMAT = 1
LEVELS = ("good", "caution", "bad", "unknown")
_ENOUGH_IMAGES = 10  # below this no verdict on a distance is given
_ENOUGH_NEIGHBOURS = 30  # below this the balls of the nearest neighbours cover nearly everything
_ENOUGH_TREES = 10
_ENOUGH_PAIRS = 3
_SAME_LABELS = 0.9  # share of the way from chance to real pairs above which labels are said to lie as well
_LOOSE_LABELS = 0.6
_LEAST_GAIN = 0.05  # by which real labels must separate better than shuffled ones to be a yardstick
_USELESS_F1 = 0.5  # of a segmenter on real eyes, below which it is no judge
# Numbers that repeat another biomarker, or judge a fit, are tabulated but not judged.
_NOT_JUDGED = ("fractal_fit", "width_area", "branching_angle_median", "tortuosity_median")


def verdicts(result: dict) -> list[dict]:
  """What the numbers allow one to say, in plain words, each with what it is based on."""
  found = [
    _looks(result, "photographs", "Do the generated photographs look like real ones?"),
    _looks(result, "trees", "Do the generated vessel trees look like real ones?"),
    _vessels(result),
    _labels(result),
  ]
  if result["segmenter"]:
    found.append(_segmenter(result))
  return found + _privacy(result)


def write(result: dict, out) -> None:
  """Writes report.html, report.md and report.json, each whole or not at all.

  Args:
    result: what `evaluate.evaluate` returned.
    out: folder, local or a bucket; files of an earlier report are replaced.
  """
  files = {"report.html": page.html(result), "report.md": markdown(result)}
  for name, text in files.items():
    writing.write_text(epath.Path(out) / name, text)
  # Last, so that a script that finds it finds the other two beside it.
  writing.write_json(epath.Path(out) / "report.json", to_json(result))


def to_json(result: dict) -> dict:
  """The result without its pictures, NaN and infinity as None, numpy scalars as Python's."""
  return _plain({key: value for key, value in result.items() if key != "pictures"})


def markdown(result: dict) -> str:
  """Verdicts and tables as Markdown."""
  lines = [f"# {page.TITLE}", "", page.subtitle(result), ""]
  for verdict in result["verdicts"]:
    lines += [f"- **{verdict['question']}** {page.WORDS[verdict['level']]}: {verdict['answer']} *{verdict['basis']}*"]
  if result["notes"]:
    lines += ["", "Please note:", "", *(f"- {note}" for note in result["notes"])]
  for table in page.tables(result):
    lines += ["", f"## {table.title}", "", table.lead, ""] if table.lead else ["", f"## {table.title}", ""]
    if table.rows:
      lines += ["| " + " | ".join(_cell(h) for h in table.head) + " |", "|" + " --- |" * len(table.head)]
      lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in table.rows]
  return "\n".join([*lines, "", page.LIMITS, ""])


def _cell(text: str) -> str:
  return str(text).replace("|", "\\|").replace("\n", " ")


def _plain(value):
  if isinstance(value, dict):
    return {str(key): _plain(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _verdict(name: str, question: str, level: str, answer: str, basis: str) -> dict:
  return {"id": name, "question": question, "level": level, "answer": answer, "basis": basis}


def _counts(result: dict) -> tuple[int, int]:
  return result["sets"]["generated"]["count"], result["sets"]["real"]["count"]


def _looks(result: dict, space: str, question: str) -> dict:
  """Whether a permutation test tells the sets apart; if so, whether they overlap."""
  found, test, features = (part[space] for part in (result["distances"], result["tests"], result["settings"]["features"]))
  generated, real = _counts(result)
  basis = f"{generated} generated and {real} real {space}"

  def say(level, answer):
    return _verdict(space, question, level, answer, basis + ".")

  if "refused" in found:
    return say("unknown", found["refused"])
  if min(generated, real) < _ENOUGH_IMAGES:
    return say("unknown", f"There are too few {space} to tell: at least {_ENOUGH_IMAGES} of each are needed, 50 are better.")
  kernel = found["kernel"]
  basis += (
    f"; {features} features; permutation test of the energy distance, p = {number(test['p'])}; kernel distance "
    f"{number(kernel['value'])} (95 % interval {interval(kernel)})"
  )
  if "kernel_floor" in found:
    floor = found["kernel_floor"]
    basis += (
      f", random halves of the real set, {floor['num_a']} each, score {number(floor['value'])} "
      f"({interval(floor)}) against each other"
    )
  shares, overlap = "", False
  if "precision" in found and min(generated, real) >= _ENOUGH_NEIGHBOURS:
    among, covered = found["precision"]["value"], found["coverage"]["value"]
    overlap = min(among, covered) >= 0.5
    shares = (
      f" {100 * among:.0f} % of the generated {space} lie among real ones, and {100 * covered:.0f} % of the real "
      "ones have a generated one close by."
    )
  if test["p"] > 0.05:
    return say("good", f"No difference was found by these features.{_few(generated, real)}{shares}")
  if overlap:
    return say("caution", f"They differ as sets, though they overlap.{shares}")
  return say("bad", f"They differ clearly.{shares}")


def _few(generated: int, real: int) -> str:
  return " With so few eyes only large differences would show." if min(generated, real) < 50 else ""


def differing(result: dict, level: float = 0.05) -> tuple[list[str], list[str]]:
  """Biomarkers that differ and those that were judged: Kolmogorov-Smirnov p-values after Holm (1979) at `level`."""
  distances = result["vessels"]["distances"]
  judged = [n for n, d in distances.items() if n not in _NOT_JUDGED and not math.isnan(d["ks_p"])]
  found = []
  for rank, name in enumerate(sorted(judged, key=lambda n: distances[n]["ks_p"])):
    if distances[name]["ks_p"] > level / (len(judged) - rank):
      break
    found.append(name)
  return [name for name in judged if name in found], judged


def _vessels(result: dict) -> dict:
  generated, real = _counts(result)
  height, width = result["settings"]["size"]
  basis = f"{generated} generated and {real} real trees at {height} × {width} pixels"

  def say(level, answer):
    return _verdict("vessels", "Do the generated vessels measure like real vessels?", level, answer, basis + ".")

  if "refused" in result["vessels"]:
    return say("unknown", result["vessels"]["refused"])
  if min(generated, real) < _ENOUGH_TREES:
    return say("unknown", f"There are too few trees to tell: at least {_ENOUGH_TREES} of each are needed, 50 are better.")
  names, judged = differing(result)
  if not judged:
    return say("unknown", "The trees have nothing that could be measured: they are empty.")
  basis += f"; Kolmogorov-Smirnov tests of {len(judged)} measures at the 5 % level, corrected for their number (Holm)"
  if not names:
    return say("good", f"No difference was found in any of {len(judged)} measures.{_few(generated, real)}")
  distances = result["vessels"]["distances"]
  names.sort(key=lambda n: -_size(distances[n]))
  told = "; ".join(
    f"{page.readable(n)} {number(distances[n]['mean_a'])} instead of {number(distances[n]['mean_b'])}{_unit(result, n)}"
    for n in names[:4]
  )
  more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
  small = len(names) <= len(judged) / 3 and max(_size(distances[n]) for n in names) < 1
  return say("caution" if small else "bad", f"{len(names)} of {len(judged)} measures differ; on average: {told}{more}.")


def _size(entry: dict) -> float:
  """How far the sets are apart, in standard deviations of the real one; infinite where all real trees agree."""
  return entry["wasserstein_normalised"] if math.isfinite(entry["wasserstein_normalised"]) else math.inf


def _unit(result: dict, name: str) -> str:
  unit = result["vessels"]["definitions"][name][0]
  return f" {unit}" if unit in ("px", "degrees", "1/px²") else ""


def _labels(result: dict) -> dict:
  measures, shift = result["fidelity"]["measures"], result["fidelity"]["shift"]
  own, null, real = (measures["darker"][side] for side in ("generated", "shuffled", "real"))
  basis = (
    f"{own['count']} generated and {real['count']} real pairs; 95 % bootstrap intervals of the mean. It finds labels "
    "without a vessel, not vessels without a label."
  )

  def say(level, answer):
    return _verdict("labels", "Do the labels lie on the vessels of the photographs?", level, answer, basis)

  if min(own["count"], real["count"], null["count"]) < _ENOUGH_PAIRS:
    return say("unknown", f"There are too few pairs with vessels to tell: at least {_ENOUGH_PAIRS} of each are needed.")
  if measures["separation"]["real"]["mean"] - measures["separation"]["shuffled"]["mean"] < _LEAST_GAIN:
    return say(
      "unknown",
      "The labels of the real pairs do not lie on dark lines either, so there is nothing to compare "
      "with: check the real folder.",
    )

  def share(side):
    return f"{100 * side['mean']:.0f} % ({100 * side['low']:.0f} to {100 * side['high']:.0f} %)"

  told = (
    f"{share(own)} of the labelled pixels are darker in green than the retina around them; in real pairs "
    f"{share(real)}, with the labels of other eyes {share(null)}."
  )
  if any(shift["generated"]):
    told += f" They would lie best if moved by {_moved(*shift['generated'])} (the real ones by {_moved(*shift['real'])})."
  position = min(m["position"] for m in (measures["darker"], measures["separation"]) if not math.isnan(m["position"]))
  if position >= _SAME_LABELS and max(map(abs, shift["generated"])) <= 1:
    return say("good", f"As well as in real pairs, or nearly. {told}")
  if position >= _LOOSE_LABELS:
    return say("caution", f"Less well than in real pairs. {told}")
  return say("bad", f"Poorly. {told}")


def _moved(dy: int, dx: int) -> str:
  parts = [f"{abs(step)} px {words[step > 0]}" for step, words in ((dy, ("up", "down")), (dx, ("left", "right"))) if step]
  return " and ".join(parts) or "nothing"


def _segmenter(result: dict) -> dict:
  own, real = (result["segmenter"][side]["f1"] for side in ("generated", "real"))
  height, width = result["settings"]["size"]
  basis = (
    f"Segmenter {result['settings']['segmenter']}; F1 inside the field of view at {height} × {width} pixels, "
    f"{own['count']} generated and {real['count']} real pairs, 95 % bootstrap intervals of the mean. If it was trained "
    "on these real eyes, its score on them is too high."
  )

  def say(level, answer):
    question = "Does a segmenter trained on real eyes find the labels in the generated photographs?"
    return _verdict("segmenter", question, level, answer, basis)

  if min(own["count"], real["count"]) < _ENOUGH_PAIRS:
    return say("unknown", f"There are too few pairs to tell: at least {_ENOUGH_PAIRS} of each are needed.")

  def told(side):
    return f"{side['mean']:.3f} ({side['low']:.3f} to {side['high']:.3f})"

  text = f"It agrees with the generated labels at F1 {told(own)}, with the real ones at {told(real)}."
  if real["mean"] < _USELESS_F1:
    return say("unknown", f"{text} A segmenter that fails on real eyes says nothing about generated ones.")
  if own["low"] > real["high"]:
    return say("caution", f"{text} The generated photographs are easier to segment than real ones.")
  gap = real["mean"] - own["mean"]
  return say("good" if gap <= 0.05 else "caution" if gap <= 0.15 else "bad", text)


def _privacy(result: dict) -> list[dict]:
  if result["privacy"] is None:
    answer = "It was not looked for, because the training set was not given."
    return [_verdict("privacy", "Were training eyes copied?", "unknown", answer, "Give it with --train.")]
  thing = {"photographs": "photographs", "trees": "vessel trees"}
  return [
    _verdict(f"privacy of {kind}", f"Were training {thing[kind]} copied?", *privacy_section.verdict(kind, audit))
    for kind, audit in result["privacy"].items()
  ]
