"""Writes the result of an evaluation: report.json for scripts, report.md for repositories, report.html for people.

Contents of report.json (`FORMAT` 1; null stands for NaN):

  format       1
  settings     size [height, width], features {space: name of the extractor}, num, seed, segmenter
  sets         {"generated" | "real" | "train": {"title", "count"}}
  notes        sentences of caution about the sets
  verdicts     list of {"id", "question", "level", "answer", "basis"}, level one of `verdicts.LEVELS`
  distances    {space: {measure: {"value", "low", "high", "num_a", "num_b", "note"}}}, measures named
               as by `metrics.images.compare`; or {space: {"refused": why}}
  tests        {space: `metrics.two_sample.energy_test`, or null where there are too few images}
  vessels      "definitions" {name: [unit, definition]}; "trees" {"generated" | "real": [{"name", biomarkers}]};
               "distances" {name: `metrics.vessels.distances` and `evaluation.vessel_floors`}, or "refused"
  fidelity     "definitions"; "measures" as `metrics.fidelity.summary`; "shift" {"generated" | "real": [dy, dx] px};
               "pairs" {"generated" | "real": [{"name", measures}]}
  segmenter    null, or {"generated" | "real": {score: {"mean", "std", "low", "high", "count"}}}
  privacy      null, or {"photographs" and, where the training set has some, "trees": what
               `metrics.privacy.Audit.to_dict` returns, or {"refused": why}}
  gate         with `evaluate --gate` alone: list of {"name", "bound", "value", "passed", "sentence"}, see `report.gate`

Intervals are 95 %. The same sets, settings and seed give the same files.
"""

from etils import epath

from retree_jax.data import writing
from retree_jax.report import page
from retree_jax.report.tables import tables
from retree_jax.report.verdicts import LEVELS

FORMAT = 1


def write(result: dict, out) -> None:
  """Writes report.html, report.md and report.json, each whole or not at all.

  Args:
    result: what `evaluation.evaluate` returned.
    out: folder on a disk or in a bucket; files of an earlier report are replaced.
  """
  files = {"report.html": page.html(result), "report.md": markdown(result)}
  for name, text in files.items():
    writing.write_text(epath.Path(out) / name, text)
  # Written last, so that a script that waits for report.json also finds the other two files.
  writing.write_json(epath.Path(out) / "report.json", to_json(result))


def to_json(result: dict) -> dict:
  """The result as JSON can hold it: without its pictures, NaN and infinity as None."""
  return writing.json_values({key: value for key, value in result.items() if key != "pictures"})


def markdown(result: dict) -> str:
  """Verdicts and tables as Markdown."""
  lines = [f"# {page.TITLE}", "", page.subtitle(result), ""]
  for verdict in result["verdicts"]:
    lines += [f"- **{verdict['question']}** {LEVELS[verdict['level']]}: {verdict['answer']} *{verdict['basis']}*"]
  if result["notes"]:
    lines += ["", "Please note:", "", *(f"- {note}" for note in result["notes"])]
  for table in tables(result):
    lines += ["", f"## {table.title}", "", table.lead, ""] if table.lead else ["", f"## {table.title}", ""]
    if table.rows:
      lines += ["| " + " | ".join(_cell(h) for h in table.head) + " |", "|" + " --- |" * len(table.head)]
      lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in table.rows]
  return "\n".join([*lines, "", page.LIMITS, ""])


def _cell(text: str) -> str:
  """Text that stays within one cell of a Markdown table."""
  return text.replace("|", "\\|").replace("\n", " ")
