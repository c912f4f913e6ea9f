"""Version, devices, shipped models with their data and scores, and built-in configs.

    retree-jax info
    retree-jax info --json        # the same for scripts
    retree-jax info --markdown    # the table of MODEL_CARD.md

A shipped model's config comes from its checkpoint, its scores from `card.json` beside it. A card belongs to the weights that it
names: after other weights have taken their place, their scores count as not measured.
"""

import json
import platform
import sys

from absl import flags

import retree_jax
from retree_jax.cli import config_files, errors

CARD = "card.json"


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  f = flags.FlagValues()
  flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=f)
  flags.DEFINE_boolean("markdown", False, "Print the scores of the shipped models as a Markdown table.", flag_values=f)
  return f


def collect() -> dict:
  """What `info --json` prints.

  Returns:
    {"version", "python", "jax": str; "devices": [{"platform", "kind", "count"}]; "models": {name: see `model`};
    "configs": {name: variants}}; the variant "" is the default one.
  """
  import jax

  from retree_jax import checkpoint

  kinds = [(d.platform, d.device_kind) for d in jax.devices()]
  return {
    "version": retree_jax.__version__,
    "python": platform.python_version(),
    "jax": jax.__version__,
    "devices": [{"platform": p, "kind": k, "count": kinds.count((p, k))} for p, k in dict.fromkeys(kinds)],
    "models": {name: model(checkpoint.SHIPPED + name) for name in checkpoint.shipped_names()},
    "configs": {name: list(config_files.variants(name)) for name in config_files.names()},
  }


def model(name) -> dict:
  """A model as its commands load it.

  Args:
    name: name of shipped weights, or the folder of weights written by `checkpoint.export`.

  Returns:
    {"stage", "variant", "source", "checkpoint" (identity of the weights): str; "image_size": [height, width];
    "parameters", "step": int; "data", "licence": str; "scores": [{"measure", "on", "value", "command", and where they
    are known "low" and "high" (95 % interval), "std" (over eyes), "reference": {"name", "value"}}]}. Without a card of these
    weights, "data" and "licence" are None and "scores" is empty.
  """
  import jax
  from etils import epath

  from retree_jax import checkpoint

  loaded = checkpoint.load(name)
  found = {
    "stage": loaded.config.stage,
    "variant": loaded.config.get("variant", "default"),
    "image_size": list(loaded.config.data.image_size),
    "source": loaded.config.data.source,
    "parameters": sum(x.size for x in jax.tree.leaves(loaded.params)),
    "step": loaded.step,
    "checkpoint": loaded.identity(),
  }
  path = epath.Path(loaded.path) / CARD
  card = json.loads(path.read_text()) if path.exists() else {}
  known = card.get("checkpoint") == found["checkpoint"]
  empty = {"data": None, "licence": None, "scores": []}
  return found | (({k: card[k] for k in empty}) if known else empty)


def markdown(models: dict) -> str:
  """The scores of models as a Markdown table."""
  lines = ["| model | measure | on | score | for comparison | command |", "| --- | --- | --- | --- | --- | --- |"]
  for name, facts in models.items():
    for s in facts["scores"]:
      reference = f"{s['reference']['name']}: {_number(s['reference'])}" if "reference" in s else ""
      lines.append(f"| `{name}` | {s['measure']} | {s['on']} | {_number(s)} | {reference} | `{s['command']}` |")
  return "\n".join(lines) + "\n"


def text(facts: dict) -> str:
  """What `info` prints for people."""
  devices = ", ".join(f"{d['count']} × {d['kind']} ({d['platform']})" for d in facts["devices"])
  lines = [
    f"retree-jax {facts['version']}, JAX {facts['jax']}, Python {facts['python']}",
    f"devices: {devices}",
    "",
    "shipped models:",
  ]
  for name, m in facts["models"].items():
    size = "×".join(map(str, m["image_size"]))
    lines.append(f"  {name}: {m['stage']} stage, {size}, {m['parameters']:,} parameters, checkpoint {m['checkpoint']}")
    lines.append(f"    trained on {m['data'] or m['source']}" + (f" ({m['licence']})" if m["licence"] else ""))
    lines += [f"    {s['measure']}, {s['on']}: {_number(s)}" for s in m["scores"]] or ["    no scores of these weights"]
  lines += ["", "built-in configs (--config NAME[:VARIANT]):"]
  lines += [f"  {name}: {', '.join(v or 'default' for v in variants)}" for name, variants in facts["configs"].items()]
  return "\n".join(lines) + "\n"


def _number(score: dict) -> str:
  out = f"{score['value']:g}"
  if "low" in score:
    out += f" [{score['low']:g}, {score['high']:g}]"
  return out + (f" ± {score['std']:g}" if "std" in score else "")


def main() -> None:
  """Prints the information."""
  f = define_flags()
  errors.parse(f, sys.argv, __doc__)
  facts = collect()
  if f.json:
    print(json.dumps(facts, indent=1))
  else:
    print(markdown(facts["models"]) if f.markdown else text(facts), end="")
