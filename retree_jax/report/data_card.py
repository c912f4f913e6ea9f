"""The papers of a generated data set: a data card, and a contact sheet to look at."""

import collections

import numpy as np

from retree_jax.data import image_io, transforms, writing
from retree_jax.report import plots

_SHOWN = 16
_CELL = 256  # pixels of the longer side of a picture on the sheet


def write(books, identity: dict, models) -> None:
  """Writes contact_sheet.png and DATA_CARD.md; the card last, as the sign that the set is finished.

  Args:
    books: `retree_jax.data.manifest.Ledger` with a merged manifest.
    identity: what the pairs depend on, as in run.json.
    models: `retree_jax.generate.Models`.
  """
  if identity["format"] == "png":
    writing.write_png(books.out / "contact_sheet.png", contact_sheet(books))
  writing.write_text(books.out / "DATA_CARD.md", card(books, identity, models))


def contact_sheet(books) -> np.ndarray:
  """The first pairs of a folder, each photograph beside its tree drawn over it; or the trees alone, as drawn: at their size a
  thin vessel covers less than half of a pixel, and a mask lacks it. uint8 [H, W, 3]."""
  cells = []
  for row, _ in zip(books.rows(), range(_SHOWN), strict=False):
    image, mask, drawn = (_read(books.out / folder / f"{row['name']}.png") for folder in ("images", "masks", "coverage"))
    cells += [drawn] if image is None else [image, plots.overlay(image, mask)]
  pairs = cells[0].shape[-1] == 3
  return plots.grid(np.stack(cells), columns=min(len(cells), 8 if pairs else 4))


def _read(path) -> np.ndarray | None:
  if not path.exists():
    return None
  pixels = image_io.decode(path.read_bytes(), str(path))
  pixels = pixels if pixels.ndim == 3 else pixels[..., None]
  share = min(1.0, _CELL / max(pixels.shape[:2]))
  return transforms.area_resize(pixels, tuple(max(1, round(side * share)) for side in pixels.shape[:2]))


def card(books, identity: dict, models) -> str:
  """The data card, Markdown."""
  pairs = drawn = passed = 0
  reasons: collections.Counter = collections.Counter()
  for row in books.rows():
    pairs += 1
    drawn += row.get("attempts", 0)
    passed += bool(row.get("accepted", False))
    reasons.update(reason.split()[0] for reason in row.get("dropped", ()))
  stages = identity["stages"]
  lines = [
    "# Data card",
    "",
    f"{pairs} {'labelled photographs' if 'fundus' in stages else 'vessel trees'} made by retree_jax. No picture here shows a "
    "person's eye.",
    "",
    "## What is in it",
    "",
    *_contents(identity),
    "",
    "## How it was made",
    "",
    "| stage | checkpoint | config | step | sampler |",
    "|---|---|---|---|---|",
  ]
  for name, stage in stages.items():
    s = stage.get("sampler")
    how = "" if s is None else f"{s['name']}, {s['num_steps']} steps, guidance {s['guidance']:g}"
    lines.append(f"| {name} | {stage['checkpoint']} | {stage['config']} | {stage['step']} | {how} |")
  lines += ["", f"Seed {identity['seed']}. Pair k is a function of these models and settings, the seed and k.", ""]
  if models.fundus is not None:
    lines += [
      f"Photographs were learnt from `{models.fundus.config.data.source}`"
      + (f", trees from `{models.tree.config.data.source}`." if models.tree is not None else "."),
      "",
    ]
  lines += ["## Trees", "", *_trees(identity, drawn, passed, pairs, reasons), ""]
  lines += [
    "## What it is for, and what it is not",
    "",
    "To train and test methods that find vessels, beside real eyes. Not for diagnosis, and no measure of a population: "
    "the pairs show what their models learnt from few eyes. Before you publish models or findings, compare the set with "
    "real eyes and look for copies of training eyes: "
    "`python -m retree_jax.evaluate --generated DIR --real DIR --train DIR --out DIR`.",
    "",
  ]
  return "\n".join(lines)


def _contents(identity) -> list[str]:
  if identity["format"] == "tfds":
    return [
      "ArrayRecord shards for TFDS: `tfds.builder_from_directory(FOLDER).as_data_source('train')`; `manifest.jsonl` has "
      "one line per pair."
    ]
  first = (
    "- `images/`: photographs, RGB, 8 bits"
    if "fundus" in identity["stages"]
    else "- `coverage/`: trees as drawn, 0..255, the share of a pixel that is vessel"
  )
  return [
    first,
    "- `masks/`: vessels, 0 or 255 (coverage of at least one half)",
    "- `fov/`: the visible disc, 0 or 255",
    "- `manifest.jsonl`: one line per pair: seed, number, filter score, models and settings",
  ]


def _trees(identity, drawn, passed, pairs, reasons) -> list[str]:
  if identity["trees"] != "sampled":
    return ["Given by the user, and brought to the size and framing of the fundus stage."]
  if "filter" not in identity["stages"]:
    return ["Sampled, and all kept: no filter was used."]
  judge = identity["stages"]["filter"]
  ranges = "; ".join(
    f"{name} {'' if low is None else f'from {low:.4g} '}{'' if high is None else f'to {high:.4g}'}".strip()
    for name, (low, high) in judge["ranges"].items()
  )
  lines = [
    f"Kept from a filter score of {judge['threshold']:.4f} on ({judge['how']})"
    + (f", within the anatomy of real trees: {ranges}." if ranges else "; no anatomy was checked."),
    "",
    f"{drawn} trees were drawn and {passed} kept: an acceptance rate of {passed / max(1, drawn):.1%}.",
  ]
  if reasons:
    lines += ["", "Dropped for: " + ", ".join(f"{name} {count}" for name, count in sorted(reasons.items())) + "."]
  if pairs > passed:
    lines += ["", f"For {pairs - passed} pairs no tree passed; they have the best of those drawn, and `accepted` is false."]
  return lines
