"""The report as one HTML file: pictures inside it, no script, nothing loaded from elsewhere.

It is written for physicians first: verdicts, then pictures, then tables, then definitions. `report.html.jinja` holds its
structure and sentences, `report.css` its style; this file prepares what they show.
"""

import base64
import functools
import io
import pathlib
import re

import jinja2
import numpy as np
from PIL import Image

from retree_jax.data import montage
from retree_jax.report import charts
from retree_jax.report.formatting import PRIVACY_KINDS, biomarker_name, number
from retree_jax.report.tables import tables
from retree_jax.report.verdicts import LEVELS

TITLE = "Evaluation of generated retinal photographs"
LIMITS = (
  "This report compares statistics of pictures and of vessel trees. It does not show that the pictures are suitable for "
  "diagnosis. A difference that was not found may still exist: the fewer the eyes, the larger the differences that are missed. "
  "Distances can be compared only between reports with the same features, size and real set."
)
_SIGNS = {"good": "✓", "caution": "!", "bad": "✕", "unknown": "?"}
_LABEL_COLOUR = (90, 255, 120)
# Spaces at which a number would be torn from its unit, its deviation or the other end of its interval.
_NUMBER_SPACE = re.compile(r"(?<=\d) (?=[%±×]|px\b|to [−\d])|(?<=[±×]) (?=\d)|(?<=\d to) (?=[−\d])")
_NO_CHART = ("fractal_fit", "width_area")  # biomarkers that stand in the table only


def subtitle(result: dict) -> str:
  """What was compared, in two sentences."""
  sets, (height, width) = result["sets"], result["settings"]["size"]
  trained = f"; the training set has {sets['train']['count']} eyes ({sets['train']['title']})" if "train" in sets else ""
  return (
    f"{sets['generated']['count']} generated pairs ({sets['generated']['title']}) against "
    f"{sets['real']['count']} real ones ({sets['real']['title']}){trained}. Every eye's field of view "
    f"was fitted to {height} × {width} pixels, vessel masks by the rule {result['settings'].get('mask_rule', 'coverage 1/2')}."
  )


def html(result: dict) -> str:
  """The whole page. Its size is a few hundred kilobytes whatever the size of the sets.

  Args:
    result: what `evaluation.evaluate` returns.
  """
  return _template().render(
    title=TITLE,
    subtitle=subtitle(result),
    limits=LIMITS,
    verdicts=[v | {"words": LEVELS[v["level"]], "sign": _SIGNS[v["level"]]} for v in result["verdicts"]],
    notes=result["notes"],
    eyes={
      side: [_eye(example) for example in result["pictures"][side]] for side in ("real", "generated") if result["pictures"]
    },
    labels_chart=_labels_chart(result),
    biomarkers=_biomarkers(result),
    privacy_charts=_privacy_charts(result),
    closest=_closest(result),
    tables=tables(result),
    definitions=[(biomarker_name(name), *text) for name, text in result["vessels"]["definitions"].items()],
  )


@functools.cache
def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    finalize=_keep_numbers_together,
  )
  environment.filters |= {"number": number, "picture": picture}
  return environment.get_template("report.html.jinja")


def _keep_numbers_together(value):
  """Texts with no-break spaces inside numbers; what macros return is left alone."""
  return _NUMBER_SPACE.sub("\N{NO-BREAK SPACE}", value) if type(value) is str else value


def picture(pixels: np.ndarray, quality: int = 82) -> dict:
  """A picture for an <img>.

  Args:
    pixels: uint8 [H, W, 3].
    quality: of the JPEG, 1 to 95.

  Returns:
    {"uri": the JPEG as a data URI, "height", "width": in pixels}.
  """
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
  height, width = pixels.shape[:2]
  return {"uri": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), "height": height, "width": width}


def _eye(example: dict) -> dict:
  overlay = montage.overlay(example["image"], example["tree"], _LABEL_COLOUR, 0.85)
  return {"name": example["name"], "photograph": example["image"], "overlay": overlay}


def _labels_chart(result: dict) -> charts.RangeChart:
  sides = result["fidelity"]["measures"]["darker"]
  samples = (
    ("Real pairs", "real", "real"),
    ("Generated pairs", "generated", "generated"),
    ("Wrong labels", "shuffled", "shuffled"),
  )
  rows = [(title, sample, *(sides[side][k] for k in ("mean", "low", "high"))) for title, sample, side in samples]
  return charts.range_chart(rows, "Share of labelled pixels darker than their surroundings.")


def _biomarkers(result: dict) -> list[dict]:
  trees, drawn = result["vessels"]["trees"], []
  for name, (unit, _) in result["vessels"]["definitions"].items():
    if name not in _NO_CHART:
      real, generated = ([tree[name] for tree in trees[side]] for side in ("real", "generated"))
      drawn.append(_histogram(biomarker_name(name), unit, real, generated))
  return drawn


def _privacy_charts(result: dict) -> list[dict]:
  drawn = []
  for kind, audit in (result["privacy"] or {}).items():
    for name, space in audit.get("spaces", {}).items():
      distances = space["distances"]["heldout_to_train"], space["distances"]["generated_to_train"]
      # Copies are the outliers of this chart: do not clip it.
      drawn.append(
        _histogram(f"{PRIVACY_KINDS[kind]}, by {name}", "1 − correlation", *distances, real_name="held-out", clip=False)
      )
  return drawn


def _histogram(title: str, unit: str, real, generated, **options) -> dict:
  return {"title": title, "unit": unit, "chart": charts.histogram(real, generated, title, unit, **options)}


def _closest(result: dict) -> list[tuple[str, list[dict]]]:
  return [(PRIVACY_KINDS[kind], pairs) for kind, pairs in result["pictures"].get("closest", {}).items() if pairs]
