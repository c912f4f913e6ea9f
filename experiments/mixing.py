"""How much to mix: segmenters trained on real eyes and on r times as many generated pairs, for several ratios r.

An arm `mix_0.5` of `experiments.validation` draws from all real training eyes and from the first generated pairs, half as many
as there are real eyes; every eye is drawn equally often, and every arm takes the same number of steps. The arm `real` is the
ratio 0. A ratio helps where F1 is above that of `real` beyond chance, over the photographs and over the seeds.
"""

import html
import math
from collections.abc import Sequence

from retree_jax.data import sources
from retree_jax.metrics.intervals import student

_PREFIX = "mix_"
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 300, 70, 250  # of the plot, in SVG units


def ratio(arm: str) -> float | None:
  """The ratio of an arm: 0 for `real`, above 0 for a mixture, None for any other arm."""
  if arm == "real":
    return 0.0
  try:
    value = float(arm[len(_PREFIX) :]) if arm.startswith(_PREFIX) else math.nan
  except ValueError:
    return None
  return value if 0 < value < math.inf else None


def arms(ratios: Sequence[str]) -> tuple[str, ...]:
  """The arms for a list such as ["0", "0.5", "2"]; `real` is always among them.

  Raises:
    ValueError: an entry is not a number of at least 0, or none is above 0.
  """
  values = []
  for text in ratios:
    try:
      value = float(text)
    except ValueError:
      value = math.nan
    if not 0 <= value < math.inf:
      raise ValueError(f"--ratios: {text!r} is no ratio: give numbers of at least 0, such as 0,0.5,1,2,4")
    values.append(value)
  mixtures = sorted({value for value in values if value})
  if not mixtures:
    raise ValueError("--ratios names no mixture: give at least one number above 0, such as 0,0.5,1,2,4")
  return ("real", *(f"{_PREFIX}{value:g}" for value in mixtures))


def source(real: str, generated: str, times: float) -> str:
  """A source spec of all real training eyes and `times` as many generated pairs.

  Raises:
    ValueError: too few generated pairs, or several sources of them.
  """
  if [weight for _, weight in sources.weighted_parts(generated)] != [1.0]:
    raise ValueError(f"--generated={generated} must be one source without a weight: put the pairs into one folder")
  eyes, pairs = (len(sources.open_source(spec, split="train")) for spec in (real, generated))
  wanted = max(1, round(times * eyes))
  if wanted > pairs:
    raise ValueError(
      f"the ratio {times:g} needs {wanted} generated pairs for {eyes} real eyes, and {generated} has {pairs} for training: "
      f"generate more, or ask for at most {math.floor(100 * pairs / eyes) / 100:g}"
    )
  return f"{real}+{generated}[:{wanted}]"


def gains(results: dict, test: str) -> list[dict]:
  """What each ratio adds to F1 on a test set, by ratio.

  Args:
    results: of `validation.collect`.
    test: name of the test set.

  Returns:
    [{"ratio", "gain" (mean difference in F1 to `real`), "low", "high" (95 % over photographs), "seed_low", "seed_high" (95 %
    over seeds, None for fewer than two), "seeds" ([gain of each seed]), "helps"}].
  """
  scores, found = results["scores"][test], []
  for arm in results["gain"][test]:
    times, gain = ratio(arm), results["gain"][test][arm]
    if times is None or gain["mean"] is None:
      continue
    by_seed = [dict(zip(results["seeds"][name], scores[name]["native"]["f1"]["values"], strict=True)) for name in (arm, "real")]
    each = [by_seed[0][seed] - by_seed[1][seed] for seed in gain["seeds"]]
    low, high = student(each) if len(each) > 1 else (None, None)
    helps = None not in (low, gain["low"]) and min(low, gain["low"]) > 0
    span = {"low": gain["low"], "high": gain["high"], "seed_low": low, "seed_high": high}
    found.append({"ratio": times, "gain": gain["mean"], **span, "seeds": each, "helps": helps})
  return sorted(found, key=lambda entry: entry["ratio"])


def verdict(found: Sequence[dict], test: str) -> str:
  """One sentence: the best ratio, or that none helps."""
  if not found:
    return f"On {test} no ratio is finished yet."
  several = [entry for entry in found if entry["seed_low"] is not None]
  best = max(several or found, key=lambda entry: entry["gain"])
  helping = [entry for entry in found if entry["helps"]]
  if helping:
    best = max(helping, key=lambda entry: entry["gain"])
    return (
      f"On {test} the best ratio is {best['ratio']:g}: F1 rises by {best['gain']:.3f}, above 0 over the photographs "
      f"({best['low']:+.3f} to {best['high']:+.3f}) and over the seeds ({best['seed_low']:+.3f} to {best['seed_high']:+.3f})."
    )
  if best["seed_low"] is None:
    return (
      f"On {test} one seed cannot say whether a ratio helps; the highest gain is {best['gain']:+.3f}, at {best['ratio']:g}."
    )
  return (
    f"On {test} no ratio helps beyond chance: the highest gain is {best['gain']:+.3f}, at {best['ratio']:g} "
    f"({best['low']:+.3f} to {best['high']:+.3f} over the photographs, {best['seed_low']:+.3f} to {best['seed_high']:+.3f} "
    f"over {len(best['seeds'])} seeds)."
  )


def section(results: dict) -> list[str]:
  """Lines of Markdown for all test sets; none where no arm is a mixture."""
  if not any(ratio(arm) for arm in results["plan"]["arms"]):
    return []
  lines = ["", "## How much to mix", "", "![Gain in F1 over the ratio of generated to real eyes](mixing.svg)", ""]
  lines += [f"* {verdict(gains(results, test), test)}" for test in results["scores"]]
  head = "| tested on | generated per real eye | gain in F1 | over photographs | over seeds |"
  lines += ["", head, "|---|---|---|---|---|"]
  for test in results["scores"]:
    for entry in gains(results, test):
      spans = [_span(entry[low], entry[high]) for low, high in (("low", "high"), ("seed_low", "seed_high"))]
      lines.append(f"| {test} | {entry['ratio']:g} | {entry['gain']:+.3f} | {' | '.join(spans)} |")
  return lines


def _span(low: float | None, high: float | None) -> str:
  return "–" if low is None else f"{low:+.3f} to {high:+.3f}"


def plot(results: dict) -> str:
  """The gains as an SVG picture: one line for each test set, bars for the interval over seeds, dots for the seeds."""
  series = {test: gains(results, test) for test in results["scores"]}
  entries = [entry for found in series.values() for entry in found]
  values = [v for e in entries for v in (e["gain"], e["seed_low"], e["seed_high"], *e["seeds"]) if v is not None]
  low, high = min([0.0, *values]), max([0.0, *values])
  margin = 0.08 * (high - low) or 0.01
  low, high = low - margin, high + margin
  ratios = sorted({entry["ratio"] for entry in entries})
  y = lambda value: 20 + (BOTTOM - 20) * (high - value) / (high - low)  # noqa: E731
  x = lambda value, shift: LEFT + 40 + (WIDTH - LEFT - 80) * (ratios.index(value) + 0.5) / len(ratios) + shift  # noqa: E731
  out = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="#888" stroke-dasharray="4 3"/>',
    f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">generated pairs per real eye</text>',
    '<text x="10" y="14">gain in F1</text>',
  ]
  for tick in (low + margin, 0.0, high - margin):
    out.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:+.3f}</text>')
  out += [f'<text x="{x(r, 0):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{r:g}</text>' for r in ratios]
  colours, dashes = ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), ("", "7 4", "2 3", "9 3 2 3")
  for number, (test, found) in enumerate(series.items()):
    colour, dash, shift = colours[number % 4], dashes[number % 4], 9 * (number - (len(series) - 1) / 2)
    points = " ".join(f"{x(e['ratio'], shift):.1f},{y(e['gain']):.1f}" for e in found)
    out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
    for e in found:
      at = f"{x(e['ratio'], shift):.1f}"
      if e["seed_low"] is not None:
        ends = f'y1="{y(e["seed_low"]):.1f}" y2="{y(e["seed_high"]):.1f}"'
        out.append(f'<line x1="{at}" x2="{at}" {ends} stroke="{colour}" stroke-width="2"/>')
      out.append(f'<circle cx="{at}" cy="{y(e["gain"]):.1f}" r="5" fill="{colour}"/>')
      out += [f'<circle cx="{at}" cy="{y(v):.1f}" r="2.5" fill="white" stroke="{colour}"/>' for v in e["seeds"]]
    place = f'x="{WIDTH - 12}" y="{34 + 16 * number}" text-anchor="end" fill="{colour}"'
    out.append(f"<text {place}>tested on {html.escape(test)}</text>")
  return "\n".join([*out, "</svg>"]) + "\n"
