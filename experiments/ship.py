"""Exports trained stages as the weights inside the package: averaged parameters in bfloat16, under a name.

    python -m experiments.ship tree=runs/chain/tree fundus=runs/chain/fundus superres=runs/chain/superres

Afterwards `retree_jax.checkpoint.load("tree")` and `retree-jax generate --num 16 --out out` use them. Of each run the
checkpoint is exported that all commands use ("best" of `checkpoint.load`), unless --step selects another. Folders in the config
are reduced to their last component, so that no path of the training machine is published. The bounds of a tree filter and the
vessel threshold of super-resolution are chosen here, on the data that the run's config names. --cards names a JSON file
{NAME: {"data": ..., "licence": ..., "scores": [...]}} with what `retree-jax info` shows of the weights, see
`retree_jax.cli.info.model`. --sampler changes fields of a stage's `config.sampler`, for example fundus.guidance=1.5.
"""

import argparse
import json
import pathlib
import re
import sys

import retree_jax
from experiments.benchmarks import superres
from retree_jax import checkpoint
from retree_jax.cli import errors, info
from retree_jax.data import writing
from retree_jax.inference import tree_filter

WEIGHTS = pathlib.Path(retree_jax.__file__).parent / "weights"


def without_paths(value):
  """Config values with folders reduced to their names: "folder:/a/CHASE*2+folder:/b/HRF" → "folder:CHASE*2+folder:HRF"."""
  if isinstance(value, dict):
    return {k: without_paths(v) for k, v in value.items()}
  if isinstance(value, str) and "/" in value:
    return re.sub(r"[^+:*]*/", "", value)
  return value


def ship(name: str, path, step="best", folder=WEIGHTS, sampler=None, card=None) -> int:
  """Exports the run in `path` to folder/name, with changed fields of `config.sampler` and a card if given. Returns the size in
  bytes."""
  loaded = checkpoint.load(path, step=step)
  given = loaded.config.copy_and_resolve_references()
  loaded.config.update(without_paths(loaded.config.to_dict()))
  loaded.config.train.start_from = ""
  with loaded.config.unlocked():
    if given.stage == "superres":
      scores = superres.choose_cut(loaded, given.data.source)
      loaded.config.sampler.mask_threshold = max(scores, key=scores.get)
      print(f"{name}: clDice {', '.join(f'{s:.3f} at {c:.3f}' for c, s in scores.items())}")
    loaded.config.sampler.update(sampler or {})
  out = pathlib.Path(folder) / name
  checkpoint.export(loaded, out)
  # Orbax writes the absolute path into this file; only its existence matters.
  (out / "commit_success.txt").write_text("Checkpoint commit was successful\n")
  if given.stage == "filter":
    tree_filter.choose_bounds(out, given)
  if card is not None:
    fields = {field: card[field] for field in ("data", "licence", "scores")}
    writing.write_json(out / info.CARD, {"checkpoint": checkpoint.load(out).identity(), **fields})
  return sum(f.stat().st_size for f in out.rglob("*") if f.is_file())


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.ship", description=__doc__.split("\n\n")[0])
  p.add_argument("runs", nargs="+", metavar="NAME=WORKDIR", help="name of the weights and the run they come from")
  p.add_argument("--step", default="best", help="checkpoint: best, latest or a step")
  p.add_argument("--sampler", nargs="*", default=[], metavar="NAME.FIELD=VALUE", help="fields of config.sampler to change")
  p.add_argument("--cards", help="JSON file of the models' data, licences and scores")
  args = p.parse_args()
  cards = json.loads(pathlib.Path(args.cards).read_text()) if args.cards else {}
  sampler = [re.fullmatch(r"([a-z0-9_]+)\.([a-z_]+)=(.+)", change) for change in args.sampler]
  if None in sampler:
    raise ValueError("--sampler takes NAME.FIELD=VALUE: write for example fundus.guidance=1.5")
  sampler = [change.groups() for change in sampler]
  for pair in args.runs:
    name, _, path = pair.partition("=")
    if not re.fullmatch(r"[a-z0-9_]+", name) or not path:
      raise ValueError(f"{pair!r} is not NAME=WORKDIR: write for example tree=runs/tree")
    changes = {field: json.loads(value) for stage, field, value in sampler if stage == name}
    print(f"{name}: {ship(name, path, args.step, WEIGHTS, sampler=changes, card=cards.get(name)) / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
  sys.exit(errors.run(main))
