"""Numbers, intervals, shares and biomarker names as readers see them in the report."""

import math

_BIOMARKER_NAMES = {
  "density": "vessel density",
  "length": "total length",
  "width": "mean width",
  "width_area": "area over length",
  "junctions": "forks and crossings",
  "endpoints": "free ends",
  "branching_angle": "branching angle",
  "branching_angle_median": "branching angle, median",
  "tortuosity": "tortuosity",
  "tortuosity_median": "tortuosity, median",
  "tortuosity_curvature": "curvature tortuosity",
  "fractal_dimension": "fractal dimension",
  "fractal_fit": "fit of the fractal dimension",
  "fractal_dimension_skeleton": "fractal dimension of centrelines",
  "components": "separate pieces",
  "loops": "closed loops",
}
# The two kinds of pictures of a pair that the privacy audit compares, as the reader calls them.
PRIVACY_KINDS = {"photographs": "photographs", "trees": "vessel trees"}


def biomarker_name(name: str) -> str:
  """The reader's name of a biomarker of `metrics.vessels.BIOMARKERS`."""
  return _BIOMARKER_NAMES.get(name, name.replace("_", " "))


def number(value: float | None) -> str:
  """A number with three significant digits; a dash for NaN, infinity and None."""
  if value is None or not math.isfinite(value):
    return "–"
  if value == 0:
    return "0"
  exponent = math.floor(math.log10(abs(float(f"{value:.2e}"))))  # of the rounded value: 0.9999 is written 1.00
  if not -6 < exponent < 6:
    return f"{value:.2e}"
  text = f"{value:.{max(0, 2 - exponent)}f}"
  return text.replace("-", "−")


def interval(entry: dict) -> str:
  """The interval from entry["low"] to entry["high"] as "a to b"; a dash where it is not defined."""
  return f"{number(entry['low'])} to {number(entry['high'])}" if number(entry["low"]) != "–" else "–"


def with_interval(entry: dict, key: str) -> str:
  """entry[key] with its interval in brackets."""
  return f"{number(entry[key])} ({interval(entry)})"


def percent(share: float) -> str:
  """A share in [0, 1] as a percentage with one decimal."""
  return f"{100 * share:.1f} %"


def share_with_interval(entry: dict) -> str:
  """A `metrics.privacy.Share` as a percentage with its interval in brackets."""
  return f"{percent(entry['share'])} ({100 * entry['low']:.1f} to {100 * entry['high']:.1f} %)"
