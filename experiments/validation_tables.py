"""Results of `experiments.validation`: what is collected from the scores of its runs, and the tables made of it."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from retree_jax.metrics.intervals import mean_with_interval

from . import mixing

METRICS = ("f1", "auc", "cldice", "mcc")
BASELINE = "real"


def collect(plan, out: pathlib.Path) -> dict:
  """The results of the finished runs.

  {"plan", "seeds": {arm: seeds}, "scores": {test: {arm: {protocol: {metric: {"mean", "std", "values"}}}}},
  "gain": {test: {arm: difference to `real` with its interval}}, "fidelity": {metric: ...} or None}.

  The standard deviation is over seeds. The gain is the mean over photographs of the difference in F1 (native protocol),
  averaged for each photograph over the seeds that both arms have, with a 95 % bootstrap interval over photographs.
  """
  from retree_jax.inference import segmenter

  done = {}
  for arm in plan.arms:
    for seed in plan.seeds:
      path = out / "scores" / f"{arm}-{seed}.json"
      if path.exists():
        done[arm, seed] = json.loads(path.read_text())
  result = {
    "plan": json.loads(json.dumps(dataclasses.asdict(plan))),
    "scores": {},
    "gain": {},
    "seeds": {arm: [s for a, s in done if a == arm] for arm in plan.arms},
    "fidelity": None,
  }
  for test in plan.tests:
    result["scores"][test] = {
      arm: {
        p: {m: _spread([done[arm, s][test][p][m] for s in result["seeds"][arm]]) for m in METRICS} for p in segmenter.PROTOCOLS
      }
      for arm in plan.arms
      if result["seeds"][arm]
    }
    result["gain"][test] = {}
    for arm in plan.arms:
      shared = [s for s in result["seeds"][arm] if (BASELINE, s) in done]
      if arm != BASELINE and shared:
        names = done[arm, shared[0]][test]["images"]
        per_image = [
          np.mean([done[arm, s][test]["images"][n] - done[BASELINE, s][test]["images"][n] for s in shared]) for n in names
        ]
        result["gain"][test][arm] = _finite(mean_with_interval(per_image)) | {"seeds": shared}
  faithful = [scores["fidelity"] for (arm, _), scores in done.items() if arm == BASELINE and "fidelity" in scores]
  if faithful:
    result["fidelity"] = {m: _spread([f["native"][m] for f in faithful]) for m in METRICS}
    result["fidelity"]["photographs"] = len(faithful[0]["images"])
  return result


def _spread(values: Sequence[float]) -> dict:
  """Mean and standard deviation (n - 1) over seeds; the deviation is None for a single seed."""
  known = [v for v in values if v is not None]
  return {
    "mean": float(np.mean(known)) if known else None,
    "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    "values": list(values),
  }


def _finite(values: dict) -> dict:
  return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def markdown(results: dict) -> str:
  """The results as tables."""
  plan = results["plan"]
  lines = [
    f"# What generated pairs are worth: {plan['name']}",
    "",
    f"Trained on {plan['name']} and on generated pairs with {plan['steps']} optimizer steps in every arm. "
    "Mean over photographs, ± standard deviation over seeds. Gain: F1 minus that of `real` on the same "
    "photographs, with a 95 % bootstrap interval over photographs.",
  ]
  for test, arms in results["scores"].items():
    lines += [
      "",
      f"## Tested on {test}",
      "",
      "| arm | seeds | F1 in FOV | AUC in FOV | clDice in FOV | MCC in FOV | F1 256² full frame | gain in F1 |",
      "|---|---|---|---|---|---|---|---|",
    ]
    for arm, scores in arms.items():
      native, gain = scores["native"], results["gain"][test].get(arm)
      cells = [_cell(native[m]) for m in METRICS] + [_cell(scores["paper"]["f1"]), _gain(gain)]
      lines.append(f"| {arm} | {len(results['seeds'][arm])} | {' | '.join(cells)} |")
  lines += mixing.section(results)
  fidelity = results["fidelity"]
  if fidelity:
    own = next(iter(results["scores"].values())).get(BASELINE)
    lines += [
      "",
      "## Fidelity of the generated labels",
      "",
      f"Segmenters of the arm `real` on {fidelity['photographs']} generated photographs that no arm was trained on, "
      "scored against the trees of those photographs. Second row: the same segmenters on the first test set.",
      "",
      "| | F1 in FOV | AUC in FOV | clDice in FOV | MCC in FOV |",
      "|---|---|---|---|---|",
      f"| generated | {' | '.join(_cell(fidelity[m]) for m in METRICS)} |",
      f"| {next(iter(results['scores']))} | {' | '.join(_cell(own['native'][m]) for m in METRICS)} |",
    ]
  missing = [
    f"{arm} ({len(plan['seeds']) - len(s)} of {len(plan['seeds'])} seeds)"
    for arm, s in results["seeds"].items()
    if len(s) < len(plan["seeds"])
  ]
  if missing:
    lines += ["", f"Not finished: {', '.join(missing)}. Rerun the same command to continue."]
  return "\n".join(lines) + "\n"


def _cell(value: dict) -> str:
  if value["mean"] is None:
    return "–"
  return f"{value['mean']:.3f}" + (f" ± {value['std']:.3f}" if value["std"] is not None else "")


def _gain(value: dict | None) -> str:
  if value is None or value["mean"] is None:
    return "–"
  if value["low"] is None:
    return f"{value['mean']:+.3f}"
  return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
