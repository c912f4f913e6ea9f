"""The paper's recipe against ours with equal training time, and its repetitive training technique (RTT) on and off.

    python -m experiments.recipes --real folder:data/CHASE_DB1+folder:data/HRF_native --minutes 20 --out runs/recipes

Four models of 64×64 trees are trained on the train split of --real: the paper's network and loss with RTT for --minutes; the
same without RTT for the same number of optimizer steps; ours (`tree.py:tiny`) for --minutes; ours for half of the time on
phantom trees, then for the other half on real trees. Then --num trees are sampled from each with its own sampler and compared
with the held-out trees. The held-out loss is comparable within the paper's two models and within ours. Run it on an otherwise
idle machine, because time is part of the comparison. Writes recipes.json, recipes.md, and recipes.png with the first trees of
each model, one row per model in the order of the table.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from experiments import figures, reproduce, sampling_table
from retree_jax import checkpoint, train
from retree_jax.cli import errors
from retree_jax.data import writing
from retree_jax.inference.sampler import Sampler

SHOWN = 8  # trees in a row of the picture


def arms(args) -> dict[str, list[tuple[str, ...]]]:
  """{name: flags of `retree_jax.main` for each training in order}; the last training runs in `folder_name(name)`."""
  paper = ("--config", "configs/tree.py:paper", f"--config.model.dim={args.dim}")
  tiny = ("--config", "configs/tree.py:tiny", "--config.train.num_steps=1000000")
  quiet = (
    "--config.preview.every=0",
    "--config.evaluate.every=0",
    "--config.checkpoint.every=200",
    "--config.log.every=20",
    f"--config.seed={args.seed}",
  )
  real, after = f"--config.data.source={args.real}", pathlib.Path(args.out) / "phantom"
  return {
    "paper, RTT": [(*paper, *quiet, real)],
    "paper, no RTT": [(*paper, "--noconfig.train.rtt", *quiet, real)],
    "ours": [(*tiny, *quiet, real)],
    "ours, phantom first": [
      (*tiny, *quiet, "--config.data.source=phantom:400", "--workdir", str(after)),
      (*tiny, *quiet, real, f"--config.train.start_from={after}"),
    ],
  }


def optimizer_steps(workdir) -> int:
  """Optimizer steps of a run with RTT, from metrics.jsonl: number of batches times mean number of repetitions."""
  total, before = 0.0, 0
  for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines():
    values = json.loads(line)
    if "repetitions" in values:
      total += values["repetitions"] * (values["step"] - before)
      before = values["step"]
  return round(total)


def run(args, say=print) -> dict:
  """Runs the missing trainings, samples, and writes recipes.json, recipes.md and recipes.png."""
  out = pathlib.Path(args.out)
  path = out / "recipes.json"
  found = json.loads(path.read_text()) if path.exists() else {}
  for name, trainings in arms(args).items():
    workdir = out / folder_name(name)
    entry = found.setdefault(name, {})
    if "seconds" not in entry:
      steps = (f"--config.train.num_steps={found['paper, RTT']['optimizer_steps']}",) if name == "paper, no RTT" else ()
      budget = float("inf") if steps else 60 * args.minutes / len(trainings)
      say(f"=== {name}")
      # Time is kept while it passes, so that an arm that was killed gets no more of it than the others.
      spent = entry.setdefault("spent", [0.0] * len(trainings))
      for i, flags in enumerate(trainings):
        before = spent[i]

        def note(took, i=i, before=before, spent=spent):
          spent[i] = before + took
          writing.write_json(path, found)

        if before >= budget:
          continue
        code, _ = reproduce.run_command(
          ("-m", "retree_jax.main", "--workdir", str(workdir), *flags, *steps), budget - before, note
        )
        if code:
          raise RuntimeError(f"the training of '{name}' failed (exit code {code}): see its message above")
      entry["seconds"] = round(sum(entry.pop("spent")), 1)
      entry["batches"] = checkpoint.load(workdir, step="latest").step
      entry["optimizer_steps"] = optimizer_steps(workdir) if name == "paper, RTT" else entry["batches"]
      writing.write_json(path, found)
    if "row" not in entry:
      loaded = checkpoint.load(workdir, step="latest", stage="tree")
      real = sampling_table.heldout(args.real, loaded.config.data.image_size, ("tree", "fov"))
      entry["row"] = sampling_table.tree_row(loaded, {}, args.num, real)
      entry["floor"] = sampling_table.floor(real["tree"])
      say(f"{name}: {json.dumps(entry)}")
      writing.write_json(path, found)
    if "loss" not in entry:
      entry["loss"] = train.evaluate(checkpoint.load(workdir, step="latest", stage="tree"), args.real)["heldout_loss"]
      writing.write_json(path, found)
  writing.write_text(path.with_suffix(".md"), markdown(found))
  if not (picture := path.with_suffix(".png")).exists():
    drawn = [trees(out / folder_name(name)) for name in arms(args)]
    writing.write_png(picture, figures.sheet(drawn, side=112))
  return found


def folder_name(arm: str) -> str:
  """The folder of an arm: "paper, RTT" → "paper_RTT"."""
  return arm.replace(", ", "_").replace(" ", "_")


def trees(workdir) -> list:
  """The first trees of a run, uint8 [H, W, 1] each."""
  loaded = checkpoint.load(workdir, step="latest", stage="tree")
  return list(Sampler(loaded.config, loaded.network)(loaded.params, np.arange(SHOWN))["tree"])


def markdown(found: dict) -> str:
  """The table as text."""
  lines = [
    "| recipe | training s | optimizer steps | held-out loss | s / tree | kernel distance | floor | "
    "density of the frame (real) | components (real) |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for name, entry in found.items():
    row = entry["row"]
    lines.append(
      f"| {name} | {entry['seconds']:.0f} | {entry['optimizer_steps']} | {entry['loss']:.4f} | "
      f"{row['seconds']:.2f} | "
      f"{sampling_table.interval(row['distance'])} | {sampling_table.interval(entry['floor'])} | "
      f"{row['generated']['density']:.4f} ({row['real']['density']:.4f}) | "
      f"{row['generated']['components']:.1f} ({row['real']['components']:.1f}) |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.recipes", description=__doc__.split("\n\n")[0])
  p.add_argument("--real", required=True, help="source of real pairs: trained on the train split, compared with the test split")
  p.add_argument("--minutes", type=float, default=20, help="training time in minutes")
  p.add_argument("--dim", type=int, default=512, help="width of the paper's network (the original's: 4096)")
  p.add_argument("--num", type=int, default=32, help="trees per recipe")
  p.add_argument("--seed", type=int, default=0, help="seed")
  p.add_argument("--out", required=True, help="folder to write")
  run(p.parse_args())


if __name__ == "__main__":
  sys.exit(errors.run(main))
