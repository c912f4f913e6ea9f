"""The gate of an evaluation: whether a set may pass, for pipelines.

Each quantity is one that the report holds already, and its default bound the one up to which the report finds no problem. A
bound that cannot be checked is violated: what was not measured must not pass.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

from retree_jax.metrics import fidelity, privacy
from retree_jax.report import verdicts
from retree_jax.report.formatting import PRIVACY_KINDS, percent


class _NotMeasuredError(Exception):
  """Why a quantity is unknown, and what to give."""


@dataclasses.dataclass(frozen=True)
class Bound:
  """One quantity that can be bounded.

  Attributes:
    limit: the default bound.
    possible: least and greatest bound that a user may set.
    measure: result of `evaluation.evaluate` -> (value, sentence about it); raises _NotMeasuredError.
    at_least: whether the value must reach the bound; otherwise it must not exceed it.
    whole: whether only whole numbers make sense.
    by_default: whether `default` includes it.
  """

  limit: float
  possible: tuple[float, float]
  measure: Callable[[dict], tuple[float, str]]
  at_least: bool = False
  whole: bool = False
  by_default: bool = True


def parse(texts: Iterable[str]) -> dict[str, float]:
  """Reads the values of `--gate`.

  Args:
    texts: each one or more of the following, joined by commas: "default", NAME (with its default bound) or NAME=BOUND. A bound
      that is written out wins over a default.

  Returns:
    {name: bound}, in the order of `BOUNDS`; only what was named is checked.

  Raises:
    ValueError: an unknown name, a bound that is not a possible number, or one name with two bounds.
  """
  chosen, written = {}, {}
  for item in (part.strip() for text in texts for part in text.split(",")):
    name, given, value = (part.strip() for part in item.partition("="))
    if name == "default" and not given:
      chosen |= {n: b.limit for n, b in BOUNDS.items() if b.by_default}
    elif name not in BOUNDS:
      raise ValueError(f"--gate {item!r} is not a bound: write default, or NAME=BOUND with one of {', '.join(BOUNDS)}")
    elif given:
      number = _number(name, value)
      if written.setdefault(name, number) != number:
        raise ValueError(f"--gate gives {name} two bounds, {written[name]:g} and {number:g}: leave one out")
    else:
      chosen[name] = BOUNDS[name].limit
  return {name: (chosen | written)[name] for name in BOUNDS if name in chosen | written}


def _number(name: str, text: str) -> float:
  bound = BOUNDS[name]
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  low, high = bound.possible
  if not (low <= value <= high and math.isfinite(value)) or (bound.whole and value != int(value)):
    kind = "a whole number" if bound.whole else "a number"
    until = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
    raise ValueError(f"--gate {name}={text} cannot be: give {kind} {until}, e.g. {name}={bound.limit:g}")
  return int(value) if bound.whole else value


def check(result: dict, bounds: dict[str, float]) -> list[dict]:
  """Compares the result of `evaluation.evaluate` with bounds.

  Args:
    result: of the evaluation.
    bounds: from `parse`.

  Returns:
    For each bound {"name", "bound", "value", "passed", "sentence"}; the value is None where it was not measured, which never
    passes.
  """
  checked = []
  for name, limit in bounds.items():
    bound = BOUNDS[name]
    try:
      value, sentence = bound.measure(result)
      passed = value >= limit if bound.at_least else value <= limit
      sentence += f"; --gate {name}={limit:g} asks for at {'least' if bound.at_least else 'most'} {limit:g}"
    except _NotMeasuredError as error:
      value, passed, sentence = None, False, f"--gate {name}={limit:g} could not be checked: {error}"
    checked.append({"name": name, "bound": limit, "value": value, "passed": passed, "sentence": sentence})
  return checked


def _audits(result: dict) -> dict[str, dict]:
  if result["privacy"] is None:
    raise _NotMeasuredError("copies were not looked for; name the set on which the generator was trained with --train")
  for audit in result["privacy"].values():
    if "refused" in audit:
      raise _NotMeasuredError(audit["refused"])
  return result["privacy"]


def _copies(result: dict) -> tuple[float, str]:
  audits = _audits(result)
  counted = [f"{a['copies']['hits']} of {a['copies']['total']} generated {PRIVACY_KINDS[kind]}" for kind, a in audits.items()]
  most = max(audit["copies"]["hits"] for audit in audits.values())
  return most, f"{' and '.join(counted)} are copies of training ones"


def _near(result: dict) -> tuple[float, str]:
  spaces = [(kind, audit, name) for kind, audit in _audits(result).items() for name in audit["spaces"]]

  def excess(kind, audit, name):
    return audit["spaces"][name]["near"]["low"] - privacy.explained(audit["num_heldout"])

  kind, audit, name = max(spaces, key=lambda s: excess(*s))
  near = audit["spaces"][name]["near"]
  sentence = (
    f"by {name}, {percent(near['share'])} of the generated {PRIVACY_KINDS[kind]} are nearer to a training eye than nearly all "
    f"held-out eyes are; the lower end of the interval is {percent(near['low'])}, and with {audit['num_heldout']} held-out "
    f"eyes up to {percent(privacy.explained(audit['num_heldout']))} can be chance"
  )
  return max(0.0, excess(kind, audit, name)), sentence


def _heldout(result: dict) -> tuple[float, str]:
  count = min(audit["num_heldout"] for audit in _audits(result).values())
  return count, f"the search for copies was calibrated on {count} held-out eyes (--real)"


def _label_fit(result: dict) -> tuple[float, str]:
  if reason := verdicts.labels_unknown(result):
    raise _NotMeasuredError(reason)
  position = verdicts.label_position(result)
  return position, f"on the scale from labels of other eyes (0) to real pairs (1), the generated labels fit at {position:.2f}"


def _label_shift(result: dict) -> tuple[float, str]:
  if reason := verdicts.labels_unknown(result):
    raise _NotMeasuredError(reason)
  shift = result["fidelity"]["shift"]["generated"]
  return max(map(abs, shift)), f"the generated labels fit best {verdicts.shift_text(*shift)}"


def _label_f1(result: dict) -> tuple[float, str]:
  if not result["segmenter"]:
    raise _NotMeasuredError("no segmenter was applied; name one that was trained on real eyes with --segmenter")
  generated, real = (result["segmenter"][side]["f1"] for side in ("generated", "real"))
  if reason := verdicts.segmenter_unknown(generated, real):
    raise _NotMeasuredError(reason)
  gap = real["mean"] - generated["mean"]
  return gap, (
    f"F1 of the segmenter is {generated['mean']:.3f} against the generated labels and {real['mean']:.3f} against the real "
    f"ones, a loss of {gap:.3f}"
  )


BOUNDS: dict[str, Bound] = {
  "copies": Bound(0, (0, math.inf), _copies, whole=True),
  "near": Bound(0.0, (0, 1), _near),
  "heldout": Bound(privacy.CALIBRATED, (2, math.inf), _heldout, at_least=True, whole=True),
  "label_fit": Bound(verdicts.GOOD_POSITION, (0, 1), _label_fit, at_least=True),
  "label_shift": Bound(verdicts.GOOD_SHIFT, (0, fidelity.SHIFTS - 1), _label_shift, whole=True),
  "label_f1": Bound(verdicts.GOOD_GAP, (0, 1), _label_f1, by_default=False),
}
