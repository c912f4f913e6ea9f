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

from retree_jax import report_page, report_privacy
from retree_jax.data import writing
from retree_jax.report_parts import interval, number

FORMAT = 1
LEVELS = ("good", "caution", "bad", "unknown")
_ENOUGH_IMAGES = 10  # below this no verdict on a distance is given
_ENOUGH_TREES = 10
_ENOUGH_PAIRS = 3
_SAME_LABELS = 0.9  # share of the way from chance to real pairs above which labels are said to lie as well
_LOOSE_LABELS = 0.6
# Numbers that repeat another biomarker, or judge a fit, are tabulated but not judged.
_NOT_JUDGED = ("fractal_fit", "width_area", "branching_angle_median", "tortuosity_median")


def verdicts(result: dict) -> list[dict]:
  """What the numbers allow one to say, in plain words, each with what it is based on."""
  found = [_looks(result, "photographs", "Do the generated photographs look like real ones?"),
           _looks(result, "trees", "Do the generated vessel trees look like real ones?"),
           _vessels(result), _labels(result)]
  if result["segmenter"]:
    found.append(_segmenter(result))
  return found + _privacy(result)


def write(result: dict, out) -> None:
  """Writes report.html, report.md and report.json, each whole or not at all.

  Args:
    result: what `evaluate.evaluate` returned.
    out: folder, local or a bucket; files of an earlier report are replaced.
  """
  files = {"report.html": report_page.html(result), "report.md": markdown(result)}
  for name, text in files.items():
    writing.write_text(epath.Path(out) / name, text)
  # Last, so that a script that finds it finds the other two beside it.
  writing.write_json(epath.Path(out) / "report.json", to_json(result))


def to_json(result: dict) -> dict:
  """The result without its pictures, NaN and infinity as None, numpy scalars as Python's."""
  return _plain({key: value for key, value in result.items() if key != "pictures"})


def markdown(result: dict) -> str:
  """Verdicts and tables as Markdown."""
  lines = [f"# {report_page.TITLE}", "", report_page.subtitle(result), ""]
  for verdict in result["verdicts"]:
    lines += [f"- **{verdict['question']}** {report_page.WORDS[verdict['level']]}: {verdict['answer']} "
              f"*{verdict['basis']}*"]
  if result["notes"]:
    lines += ["", "Please note:", "", *(f"- {note}" for note in result["notes"])]
  for table in report_page.tables(result):
    lines += ["", f"## {table.title}", "", table.lead, ""] if table.lead else ["", f"## {table.title}", ""]
    if table.rows:
      lines += ["| " + " | ".join(_cell(h) for h in table.head) + " |", "|" + " --- |" * len(table.head)]
      lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in table.rows]
  return "\n".join([*lines, "", report_page.LIMITS, ""])


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
  found, test, features = result["distances"][space], result["tests"][space], result["settings"]["features"][space]
  generated, real = _counts(result)
  basis = f"{generated} generated and {real} real {space}"
  if "refused" in found:
    return _verdict(space, question, "unknown", found["refused"], basis + ".")
  if min(generated, real) < _ENOUGH_IMAGES:
    return _verdict(space, question, "unknown", f"There are too few {space} to tell: at least {_ENOUGH_IMAGES} of each "
                    "are needed, 50 are better.", basis + ".")
  kernel = found["kernel"]
  basis += (f"; {features} features; permutation test of the energy distance, p = {number(test['p'])}; kernel distance "
            f"{number(kernel['value'])} (95 % interval {interval(kernel)})")
  if "kernel_floor" in found:
    floor = found["kernel_floor"]
    basis += (f", random halves of the real set, {floor['num_a']} each, score {number(floor['value'])} "
              f"({interval(floor)}) against each other")
  shares = (f" {_percent(found['precision'])} of the generated {space} lie among real ones, and "
            f"{_percent(found['coverage'])} of the real ones have a generated one close by.") if "precision" in found else ""
  if test["p"] > 0.05:
    few = " With so few images only large differences would show." if min(generated, real) < 50 else ""
    return _verdict(space, question, "good", f"No difference was found by these features.{few}{shares}", basis + ".")
  if shares and min(found["precision"]["value"], found["coverage"]["value"]) >= 0.5:
    return _verdict(space, question, "caution", f"They differ as sets, though they overlap.{shares}", basis + ".")
  return _verdict(space, question, "bad", f"They differ clearly.{shares}", basis + ".")


def _percent(measure: dict) -> str:
  return f"{100 * measure['value']:.0f} %"


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
  question = "Do the generated vessels measure like real vessels?"
  generated, real = _counts(result)
  basis = f"{generated} generated and {real} real trees at {result['settings']['size'][0]} × {result['settings']['size'][1]} pixels"
  if "refused" in result["vessels"]:
    return _verdict("vessels", question, "unknown", result["vessels"]["refused"], basis + ".")
  if min(generated, real) < _ENOUGH_TREES:
    return _verdict("vessels", question, "unknown", f"There are too few trees to tell (at least {_ENOUGH_TREES} of each are "
                    "needed, 20 are better).", basis + ".")
  names, judged = differing(result)
  basis += f"; two-sample Kolmogorov-Smirnov tests of {len(judged)} measures, corrected for their number (Holm), 5 % level."
  if not judged:
    return _verdict("vessels", question, "unknown", "The trees have nothing that could be measured: they are empty.", basis)
  if not names:
    few = " With so few trees only large differences would show." if min(generated, real) < 50 else ""
    return _verdict("vessels", question, "good", f"No difference was found in any of {len(judged)} measures.{few}", basis)
  distances = result["vessels"]["distances"]
  names.sort(key=lambda n: -_size(distances[n]))
  told = "; ".join(f"{report_page.readable(n)} {number(distances[n]['mean_a'])} instead of "
                   f"{number(distances[n]['mean_b'])}{_unit(result, n)}" for n in names[:4])
  more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
  level = "caution" if len(names) <= len(judged) / 3 and max(_size(distances[n]) for n in names) < 1 else "bad"
  return _verdict("vessels", question, level, f"{len(names)} of {len(judged)} measures differ, on average: {told}{more}.", basis)


def _size(entry: dict) -> float:
  """How far the sets are apart, in standard deviations of the real one; infinite where all real trees agree."""
  return entry["wasserstein_normalised"] if math.isfinite(entry["wasserstein_normalised"]) else math.inf


def _unit(result: dict, name: str) -> str:
  unit = result["vessels"]["definitions"][name][0]
  return f" {unit}" if unit in ("px", "degrees", "1/px²") else ""


def _labels(result: dict) -> dict:
  question = "Do the labels lie on the vessels of the photographs?"
  found, (dy, dx) = result["fidelity"]["measures"]["darker"], result["fidelity"]["shift"]["generated"]
  separation = result["fidelity"]["measures"]["separation"]
  own, null, real = found["generated"], found["shuffled"], found["real"]
  if min(own["count"], real["count"], null["count"]) < _ENOUGH_PAIRS:
    return _verdict("labels", question, "unknown", f"There are too few pairs with vessels to tell (at least {_ENOUGH_PAIRS} of "
                    "each are needed).", f"{own['count']} generated and {real['count']} real pairs.")
  if not min(found["position"], separation["position"]) > -math.inf:
    return _verdict("labels", question, "unknown", "The labels of the real pairs do not lie on dark lines either, so nothing can "
                    "be compared: check the real folder.", f"{own['count']} generated and {real['count']} real pairs.")
  def share(side):
    return f"{100 * side['mean']:.0f} % ({100 * side['low']:.0f} to {100 * side['high']:.0f} %)"

  told = (f"{share(own)} of the labelled pixels are darker in green than the retina around them; in real pairs "
          f"{share(real)}, with the labels of other eyes {share(null)}.")
  basis = (f"{own['count']} generated and {real['count']} real pairs; 95 % bootstrap intervals of the mean. It finds labels "
           "without a vessel, not vessels without a label.")
  position = min(found["position"], separation["position"])
  if (dy, dx) != (0, 0):
    real_shift = result["fidelity"]["shift"]["real"]
    moved = f" They would lie best if moved by {_moved(dy, dx)} ({_moved(*real_shift)} for the real ones)."
    told += moved
  if position >= _SAME_LABELS and max(abs(dy), abs(dx)) <= 1:
    return _verdict("labels", question, "good", "As well as in real pairs, or nearly. " + told, basis)
  if position >= _LOOSE_LABELS:
    return _verdict("labels", question, "caution", "Less well than in real pairs. " + told, basis)
  return _verdict("labels", question, "bad", "Poorly. " + told, basis)


def _moved(dy: int, dx: int) -> str:
  parts = [f"{abs(dy)} px {'down' if dy > 0 else 'up'}"] * bool(dy) + [f"{abs(dx)} px {'right' if dx > 0 else 'left'}"] * bool(dx)
  return " and ".join(parts) or "nothing"


def _segmenter(result: dict) -> dict:
  question = "Does a segmenter trained on real eyes find the labels in the generated photographs?"
  own, real = (result["segmenter"][side]["f1"] for side in ("generated", "real"))
  basis = (f"Segmenter {result['settings']['segmenter']}; F1 inside the field of view at {result['settings']['size'][0]} × "
           f"{result['settings']['size'][1]} pixels, {own['count']} generated and {real['count']} real pairs, 95 % bootstrap "
           "intervals of the mean. If it was trained on these real eyes, its score on them is too high.")
  if min(own["count"], real["count"]) < _ENOUGH_PAIRS:
    return _verdict("segmenter", question, "unknown", f"There are too few pairs to tell (at least {_ENOUGH_PAIRS} of each are "
                    "needed).", basis)

  def told(side):
    return f"{side['mean']:.3f} ({side['low']:.3f} to {side['high']:.3f})"

  gap = real["mean"] - own["mean"]
  text = f"It agrees with the generated labels at F1 {told(own)}, with the real ones at {told(real)}."
  if own["low"] > real["high"]:
    return _verdict("segmenter", question, "caution", text + " The generated photographs are easier to segment than real ones.",
                    basis)
  level = "good" if gap <= 0.05 else "caution" if gap <= 0.15 else "bad"
  return _verdict("segmenter", question, level, text, basis)


def _privacy(result: dict) -> list[dict]:
  if result["privacy"] is None:
    return [_verdict("privacy", "Were training eyes copied?", "unknown", "It was not looked for, because the training set was not "
                     "given.", "Give it with --train.")]
  thing = {"photographs": "photographs", "trees": "vessel trees"}
  return [_verdict(f"privacy of {kind}", f"Were training {thing[kind]} copied?", *report_privacy.verdict(kind, audit))
          for kind, audit in result["privacy"].items()]
