"""The vessel measures that the page shows, each beside the range of real eyes.

Trees are measured as `retree-jax evaluate` measures them: the field of view is fitted to one of `report.measure.SIZES`, and the
mask reduced by `data.reduction.RULE`. `real_ranges.json` holds the ranges at each of these sizes; `experiments/real_ranges.py`
made it and stands in it as a command.
"""

import functools
import json
import pathlib

import numpy as np

from retree_jax.data import reduction
from retree_jax.metrics import vessels
from retree_jax.report import measure
from retree_jax.report.formatting import biomarker_name, number
from retree_jax.report.sets import ArraySource

# Medians and area over length would repeat what others say; the fit of the fractal dimension is no property of an eye.
MEASURES = (
  "density", "length", "width", "tortuosity", "tortuosity_curvature", "branching_angle", "junctions", "endpoints",
  "fractal_dimension", "fractal_dimension_skeleton", "components", "loops",
)  # fmt: skip
QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}
_FILE = pathlib.Path(__file__).parent / "real_ranges.json"


@functools.cache
def ranges() -> dict:
  """What `real_ranges.json` holds: {"eyes", "split", "command", "mask_rule", "sizes": {"512": {measure: {"low", "median",
  "high": its 5th, 50th and 95th percentile}}}}.

  Raises:
    ValueError: the file was made with another rule for masks, so that nothing may be compared with it.
  """
  found = json.loads(_FILE.read_text())
  if found["mask_rule"] != reduction.RULE:
    raise ValueError(f"{_FILE.name} was made with the rule {found['mask_rule']}: make it again with `{found['command']}`")
  return found


def spread(source, size: tuple[int, int]) -> dict[str, dict[str, float]]:
  """The range of each of `MEASURES` over the eyes of a source, at one size.

  Args:
    source: see `retree_jax.data.sources`; examples need a tree.
    size: (height, width) in pixels.

  Returns:
    {measure: {"low", "median", "high"}}, four digits of each; eyes in which a measure is not defined are left out of it.

  Raises:
    ValueError: a measure is defined in no eye.
  """
  trees = [vessels.biomarkers(eye["tree"] >= 128, eye["fov"] > 0) for eye in measure.fitted(source, range(len(source)), size)]
  found = {}
  for name in MEASURES:
    values = [tree[name] for tree in trees if np.isfinite(tree[name])]
    if not values:
      raise ValueError(f"no eye of {source.title} has a {biomarker_name(name)} at {size[0]} pixels: give more eyes")
    found[name] = {key: float(f"{np.quantile(values, q):.4g}") for key, q in QUANTILES.items()}
  return found


def table(image: np.ndarray, tree: np.ndarray, fov: np.ndarray) -> dict:
  """Measures one eye.

  Args:
    image: uint8 [H, W, 3].
    tree: uint8 0/255 [H, W, 1].
    fov: uint8 0/255 [H, W, 1].

  Returns:
    {"size": side in pixels at which it was measured, "eyes": whose range is shown, "rows": [{"name", "label", "unit",
    "definition", "value" (a text), "range" (a text), "at", "low", "median", "high": places on an axis from 0 to 1, "at" None
    where the value is not defined, "inside": whether it lies in the range}]}.
  """
  eye = ArraySource({"image": image[None], "tree": tree[None], "fov": fov[None]}, "page")
  size = measure.common_size(eye)
  (fitted,) = measure.fitted(eye, [0], size)
  values = vessels.biomarkers(fitted["tree"] >= 128, fitted["fov"] > 0)
  known = ranges()["sizes"][str(size[0])]
  return {"size": size[0], "eyes": ranges()["eyes"], "rows": [_row(name, values[name], known[name]) for name in MEASURES]}


def _row(name: str, value: float, known: dict[str, float]) -> dict:
  unit, definition = vessels.BIOMARKERS[name]
  low, high, defined = known["low"], known["high"], np.isfinite(value)
  # The range takes the middle half of the axis; what lies further out stands at its end.
  start, width = low - (high - low) / 2, 2 * (high - low) or 1.0
  places = {key: float(np.clip((known[key] - start) / width, 0, 1)) for key in QUANTILES}
  return {
    "name": name,
    "label": biomarker_name(name),
    "unit": unit if defined and unit not in ("count", "ratio", "share") else "",
    "definition": definition,
    "value": number(value) if unit != "count" else str(int(value)),
    "range": f"{number(low)} to {number(high)}",
    "at": float(np.clip((value - start) / width, 0, 1)) if defined else None,
    "inside": bool(defined and low <= value <= high),
    **places,
  }
