"""Parts of the report: numbers, tables, pictures, and charts as inline SVG.

Charts have no script and no colours of their own: the page's style sheet gives them.
"""

import base64
import dataclasses
import html as markup
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Table:
  """One table of the report: texts only."""

  title: str
  lead: str
  head: list[str]
  rows: list[list[str]]


def number(value) -> str:
  """Three significant digits, as people write them; a dash for NaN and None."""
  if value is None or not math.isfinite(value):
    return "–"
  if value == 0:
    return "0"
  size = math.floor(math.log10(abs(float(f"{value:.2e}"))))  # of the rounded value: 0.9999 is 1.00
  if not -6 < size < 6:
    return f"{value:.2e}"
  text = f"{value:.{max(0, 2 - size)}f}"
  return text.replace("-", "−")


def interval(entry: dict, low: str = "low", high: str = "high") -> str:
  """ "a to b", or a dash."""
  return f"{number(entry[low])} to {number(entry[high])}" if number(entry[low]) != "–" else "–"


def data_uri(pixels: np.ndarray, quality: int = 82) -> str:
  """uint8 [H, W, 3] as a JPEG data URI."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
  return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def image(pixels: np.ndarray, alt: str) -> str:
  """An <img> with its picture inside."""
  height, width = pixels.shape[:2]
  return f'<img src="{data_uri(pixels)}" width="{width}" height="{height}" alt="{markup.escape(alt, quote=True)}">'


def histogram(
  real: Sequence[float],
  generated: Sequence[float],
  title: str,
  unit: str,
  bins: int = 16,
  real_name: str = "real",
  whole: bool = False,
) -> str:
  """Two samples over one axis: real as filled bars, generated as a dashed outline, so that colour is not needed.

  Args:
    real, generated: values; NaN are left out.
    title: heading.  unit: of the axis.
    whole: show the whole range, whatever lies far out.
    real_name: what the filled sample is called by screen readers.
    bins: number of bins over the range of both samples; values beyond Tukey's outer fences fall into the
      outermost.

  Returns:
    An <svg> element, or a sentence where neither sample has values.
  """
  x, y = (np.array([v for v in values if v is not None and math.isfinite(v)], float) for values in (real, generated))
  both = np.concatenate([x, y])
  if not both.size:
    return f"<p>{markup.escape(title)}: nothing to measure.</p>"
  low, high = float(both.min()), float(both.max())
  # Tukey's outer fences: single far values would squeeze all the others into one bar.
  lower, upper = np.percentile(both, [25, 75])
  fences = lower - 3 * (upper - lower), upper + 3 * (upper - lower)
  clipped = not whole and upper > lower and (low < fences[0] or high > fences[1])
  if clipped:
    low, high = max(low, float(fences[0])), min(high, float(fences[1]))
  if high <= low:
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, bins + 1)
  shares = [np.histogram(np.clip(v, low, high), edges)[0] / max(v.size, 1) for v in (x, y)]
  top = max(float(s.max()) for s in shares)
  width, height, foot = 240, 92, 16
  scale_x, scale_y = width / bins, (height - 8) / top

  def outline(share):
    points = ["0,92"]
    for i, s in enumerate(share):
      points += [f"{i * scale_x:.1f},{height - s * scale_y:.1f}", f"{(i + 1) * scale_x:.1f},{height - s * scale_y:.1f}"]
    return " ".join([*points, f"{width},{height}"])

  means = [f"mean {number(float(v.mean()))}" if v.size else "none" for v in (x, y)]
  told = f"{title}: {real_name} {means[0]} over {x.size} eyes, generated {means[1]} over {y.size} eyes, in {unit or 'no unit'}."
  marks = "".join(
    f'<line class="{css}" x1="{p:.1f}" x2="{p:.1f}" y1="{height}" y2="{height + 6}"/>'
    for css, v in (("real-mark", x), ("made-mark", y))
    if v.size
    for p in [width * min(1.0, max(0.0, (float(v.mean()) - low) / (high - low)))]
  )
  note = "*" if clipped else ""
  return (
    f'<svg class="chart" viewBox="0 0 {width} {height + foot + 8}" role="img" '
    f'aria-label="{markup.escape(told, quote=True)}"><polygon class="real-fill" '
    f'points="{outline(shares[0])}"/><polyline class="made-line" points="{outline(shares[1])}"/><line '
    f'class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"/>{marks}<text x="0" '
    f'y="{height + foot}">{number(low)}</text>'
    f'<text x="{width / 2:.0f}" y="{height + foot}" text-anchor="middle">{note}</text>'
    f'<text x="{width}" y="{height + foot}" text-anchor="end">{number(high)}</text></svg>'
  )


def ranges(
  rows: Sequence[tuple[str, str, float, float, float]], low: float, high: float, told: str, percent: bool = False
) -> str:
  """Values with their intervals, one below the other on a common axis.

  Args:
    rows: (label, css class of the mark, value, low, high); NaN intervals are left out.
    low, high: of the axis.
    told: what a screen reader says.
    percent: whether to write 0.5 as 50 %.
  """
  width, left, step = 480, 118, 30
  height = step * len(rows) + 26

  def place(value):
    return left + (width - left - 56) * min(1.0, max(0.0, (value - low) / (high - low)))

  def text(value):
    return f"{100 * value:.0f} %" if percent else number(value)

  parts = []
  for i, (label, css, value, start, end) in enumerate(rows):
    y = 18 + i * step
    parts.append(f'<text x="0" y="{y + 5}">{markup.escape(label)}</text>')
    parts.append(f'<line class="rule" x1="{left}" x2="{width - 56}" y1="{y}" y2="{y}"/>')
    if value is None or not math.isfinite(value):
      parts.append(f'<text x="{left}" y="{y + 5}">–</text>')
      continue
    if math.isfinite(start) and math.isfinite(end):
      parts.append(f'<line class="{css} span" x1="{place(start):.1f}" x2="{place(end):.1f}" y1="{y}" y2="{y}"/>')
    parts.append(f'<circle class="{css}" cx="{place(value):.1f}" cy="{y}" r="6"/>')
    parts.append(f'<text x="{width}" y="{y + 5}" text-anchor="end">{text(value)}</text>')
  bottom = height - 4
  parts.append(
    f'<text class="tick" x="{left}" y="{bottom}">{text(low)}</text>'
    f'<text class="tick" x="{width - 56}" y="{bottom}" text-anchor="end">{text(high)}</text>'
  )
  return (
    f'<svg class="chart wide" viewBox="0 0 {width} {height}" role="img" '
    f'aria-label="{markup.escape(told, quote=True)}">' + "".join(parts) + "</svg>"
  )
