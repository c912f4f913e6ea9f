"""Geometry of the report's charts. The template draws them as SVG and the style sheet colours them."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from retree_jax.report.formatting import number

WIDTH, HEIGHT = 240, 92  # of a histogram, in SVG units, without the axis labels below it
_BAR_HEIGHT = 84  # of the highest bar


@dataclasses.dataclass(frozen=True)
class Histogram:
  """Two samples over one axis, ready to be drawn.

  Attributes:
    label: what a screen reader says.
    bars, outline: corners of the two histograms, as in the `points` attribute of an SVG polygon.
    means: (sample, x) of every mean, sample being "real" or "generated".
    low, high: labels of the ends of the axis.
    clipped: whether the outermost bars also hold values beyond the axis.
  """

  label: str
  bars: str
  outline: str
  means: list[tuple[str, float]]
  low: str
  high: str
  clipped: bool


def histogram(
  real: Sequence[float | None],
  generated: Sequence[float | None],
  title: str,
  unit: str,
  bins: int = 16,
  real_name: str = "real",
  clip: bool = True,
) -> Histogram | None:
  """A chart of two samples: real as filled bars, generated as a dashed outline, so that it can be read without colours.

  Args:
    real, generated: values; NaN and None are left out.
    title: what the values are.
    unit: of the values; may be empty.
    bins: number of bins over the range of both samples.
    real_name: name of the filled sample, for screen readers.
    clip: end the axis at Tukey's outer fences and count values beyond them in the outermost bins. Otherwise the axis covers
      all values.

  Returns:
    The chart, or None where neither sample has values.
  """
  samples = [np.array([v for v in values if v is not None and math.isfinite(v)], float) for values in (real, generated)]
  both = np.concatenate(samples)
  if not both.size:
    return None
  low, high = float(both.min()), float(both.max())
  # Without the outer fences a single outlier would squeeze all other values into one bar.
  lower, upper = np.percentile(both, [25, 75])
  fences = lower - 3 * (upper - lower), upper + 3 * (upper - lower)
  clipped = clip and upper > lower and (low < fences[0] or high > fences[1])
  if clipped:
    low, high = max(low, float(fences[0])), min(high, float(fences[1]))
  if high <= low:
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, bins + 1)
  shares = [np.histogram(np.clip(v, low, high), edges)[0] / max(v.size, 1) for v in samples]
  scale_x, scale_y = WIDTH / bins, _BAR_HEIGHT / max(float(s.max()) for s in shares)

  def corners(share):
    points = [f"0,{HEIGHT}"]
    for i, s in enumerate(share):
      y = HEIGHT - s * scale_y
      points += [f"{i * scale_x:.1f},{y:.1f}", f"{(i + 1) * scale_x:.1f},{y:.1f}"]
    return " ".join([*points, f"{WIDTH},{HEIGHT}"])

  means = [f"mean {number(float(v.mean()))}" if v.size else "none" for v in samples]
  label = (
    f"{title}: {real_name} {means[0]} over {samples[0].size} eyes, generated {means[1]} over {samples[1].size} eyes, "
    f"in {unit or 'no unit'}."
  )
  marks = [
    (name, WIDTH * min(1.0, max(0.0, (float(v.mean()) - low) / (high - low))))
    for name, v in zip(("real", "generated"), samples, strict=True)
    if v.size
  ]
  return Histogram(label, corners(shares[0]), corners(shares[1]), marks, number(low), number(high), bool(clipped))


@dataclasses.dataclass(frozen=True)
class Range:
  """One row of a chart of shares with their intervals.

  Attributes:
    name: label of the row.
    sample: "real", "generated" or "shuffled", which the style sheet colours.
    y: of the row.
    value: as a percentage, or a dash where it is not defined.
    x, start, end: places of the value and of its interval; None where they are not defined.
  """

  name: str
  sample: str
  y: int
  value: str
  x: float | None
  start: float | None
  end: float | None


@dataclasses.dataclass(frozen=True)
class RangeChart:
  """Shares with their intervals, one below the other on an axis from 0 to 100 %.

  Attributes:
    label: what a screen reader says.
    rows: of the chart.
    width, height: of the whole chart.  left, right: ends of the axis.
  """

  label: str
  rows: list[Range]
  width: int
  height: int
  left: int
  right: int


def range_chart(rows: Sequence[tuple[str, str, float, float, float]], label: str) -> RangeChart:
  """A chart of shares with their intervals.

  Args:
    rows: (name, sample, share, low, high) each, see `Range`; NaN where a number is not defined.
    label: what a screen reader says before it reads the shares.
  """
  width, left, right, step = 480, 118, 424, 30

  def place(share):
    return left + (right - left) * min(1.0, max(0.0, share)) if math.isfinite(share) else None

  drawn = []
  for i, (name, sample, share, low, high) in enumerate(rows):
    value = f"{100 * share:.0f} %" if math.isfinite(share) else "–"
    has_interval = math.isfinite(share) and math.isfinite(low) and math.isfinite(high)
    start, end = (place(low), place(high)) if has_interval else (None, None)
    drawn.append(Range(name, sample, 18 + i * step, value, place(share), start, end))
  values = "; ".join(f"{row.name}: {row.value}" for row in drawn if row.x is not None)
  return RangeChart(f"{label} {values}.", drawn, width, step * len(rows) + 26, left, right)
