"""Variants of the refinement stage with equal processor time: what each makes of held-out trees.

    python -m experiments.refine_trials --real folder:data/CHASE_DB1+folder:data/HRF_native --seconds 900 --out runs/trials

Every arm trains `configs/refine.py:cpu` (128 → 256) from random parameters for --seconds of processor time, compilation left
out; then it refines the true coverage of held-out eyes. Arms: "v": the config as it is. "x0": the network predicts x0, from
which v and its loss are computed (Li & He, arXiv 2511.13720). "muon": Muon for all matrices and kernels instead of AdamW
(Jordan et al. 2024, `optax.contrib.muon`). "position": the network is told where in the picture a crop lies (Patch Diffusion,
Wang et al., arXiv 2304.12526). "centreline": the network also draws the centrelines; its tree is rendered from them and its
coverage. An arm that has a row in OUT.json is left out, so that the command can be interrupted.
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import stages
from retree_jax import keys
from retree_jax.cli import cpu, errors
from retree_jax.data import examples, fields, mending, reduction, transforms, writing
from retree_jax.data.attributes import is_whole
from retree_jax.inference.refiner import Refiner
from retree_jax.metrics import skeleton, vessels
from retree_jax.report import verdicts
from retree_jax.tasks.refine import RefineTask

ARMS = ("v", "x0", "muon", "position", "centreline")
SHOWN = {"components": "{:.0f}", "length": "{:.0f}", "density": "{:.4f}", "junctions": "{:.0f}", "branching_angle": "{:.1f}"}


def with_position(cond):
  """[B, H, W, C] → [B, H, W, C + 2]: row and column of each pixel in the picture, from -1 to 1."""
  rows, columns = (jnp.linspace(-1.0, 1.0, side) for side in cond.shape[1:3])
  place = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
  return jnp.concatenate([cond, jnp.broadcast_to(place, (*cond.shape[:3], 2))], axis=-1)


class PositionTask(RefineTask):
  """Refinement that is told where its crop lies."""

  def __init__(self, config):
    super().__init__(config)
    self.condition_channels += 2

  def _degraded(self, batch, level, key):
    return with_position(super()._degraded(batch, level, key))


class PositionRefiner(Refiner):
  """The sampler of `PositionTask`."""

  def _as_condition(self, cond, sample_keys):
    return with_position(super()._as_condition(cond, sample_keys))


def x0_network(task: RefineTask):
  """The task's network with outputs that are taken for x0; `apply` returns the v that follows from them."""

  class Network(type(task.network)):
    def apply(self, params, x, t, cond=None, **kw):
      alpha, sigma = (c[:, None, None, None] for c in task.schedule.alpha_sigma(t))
      # As Li & He do, the divisor is kept away from 0.
      return (alpha * x - super().apply(params, x, t, cond, **kw)) / jnp.maximum(sigma, 0.05)

  return Network(task.network.settings, task.network.module)


def make(arm: str, real: str) -> RefineTask:
  """The task of an arm, trained on the train split of `real`."""
  config = stages.load_config("configs/refine.py:cpu")
  config.data.update(source=real, heldout="test")
  config.optimizer.name = "muon" if arm == "muon" else "adamw"
  if arm == "centreline":
    fields.CHANNELS["centreline"] = 1
    config.data.target = ("vessels", "tree", "centreline")
  task = (PositionTask if arm == "position" else RefineTask)(config)
  if arm == "x0":
    task.network = x0_network(task)
  return task


def with_centreline(batch: dict) -> dict:
  """A batch with the one-pixel skeleton of every mask as "centreline"."""
  thin = [skeleton.skeletonize(mask[..., 0] >= 128)[..., None] * np.uint8(255) for mask in batch["vessels"]]
  return batch | {"centreline": np.stack(thin)}


def trained(task: RefineTask, seconds: float):
  """(averaged parameters, steps) after so many seconds of this process's processor time."""
  arm_data = examples.Examples(task.config, None, ("vessels", "tree", "fov"))
  step = jax.jit(task.train_step, donate_argnums=0)
  current = task.init(keys.stream(task.config.seed, "trial"))
  used, steps = 0.0, 0
  with arm_data.train_iterator() as batches:
    for _ in range(2 * arm_data.num_train // task.config.train.batch_size):  # photographs are read before the clock runs
      next(batches)
    while used < seconds:
      started = time.process_time()
      batch = next(batches)
      batch = with_centreline(batch) if "centreline" in task.target else batch
      current, metrics = step(current, batch)
      jax.block_until_ready(metrics)
      if steps:  # the first compiles
        used += time.process_time() - started
      steps += 1
      if steps % 100 == 0:
        print(f"step {steps}, {used:.0f} s, loss {float(metrics['loss']):.4f}", flush=True)
  return current.averaged, steps


def refined(task: RefineTask, params, eyes: dict) -> np.ndarray:
  """Masks [N, H, W, 1] of held-out eyes from their true coverage at half the size, not mended."""
  low = np.stack([transforms.area_resize(tree, tuple(s // 2 for s in task.size)) for tree in eyes["tree"]])
  refiner = (PositionRefiner if isinstance(task, PositionTask) else Refiner)(task.config, task.network)
  out = refiner(params, np.arange(len(low)), {"tree": low, "fov": eyes["fov"]})
  if "centreline" not in task.target:
    return transforms.binarise(out["vessels"])
  from retree_jax.data.centreline import centreline

  lines = [centreline(skeleton.skeletonize(line[..., 0] >= 128)) for line in out["centreline"]]
  return np.stack([reduction.threshold_coverage(tree, line) for tree, line in zip(out["tree"], lines, strict=True)])


def row(arm: str, masks: np.ndarray, eyes: dict, steps: int) -> dict:
  """What is reported of an arm: medians by outline as refined, and the distance of the mended trees to the real ones."""
  fov, whole = eyes["fov"][..., 0] >= 128, np.array([is_whole(fov) for fov in eyes["fov"]])

  def measured(trees):
    return [vessels.biomarkers(tree[..., 0] >= 128, disc) for tree, disc in zip(trees, fov, strict=True)]

  raw, mended = measured(masks), measured(np.stack([mending.mend(mask)[0] for mask in masks]))
  found = {"arm": arm, "steps": steps}
  for outline, chosen in (("whole", whole), ("cut", ~whole)):
    for name in SHOWN:
      values = [m[name] for m, there in zip(raw, chosen, strict=True) if there and np.isfinite(m[name])]
      found[f"{outline} {name}"] = float(np.median(values)) if values else None
  far = vessels.distances(mended, measured(eyes["vessels"]))
  _, tested = verdicts.differing({"vessels": {"distances": far}})
  found["distance"] = float(np.mean([far[name]["wasserstein_normalised"] for name in tested]))
  return found


def table(rows: list[dict]) -> str:
  """Rows as a Markdown table."""
  names = [name.replace("_", " ").replace("components", "pieces").replace("junctions", "forks") for name in SHOWN]
  lines = [f"| arm | steps | whole: {', '.join(names)} | cut | mean distance, mended |", "|---|---|---|---|---|"]
  for r in rows:
    cells = [
      ", ".join("–" if r[f"{o} {name}"] is None else form.format(r[f"{o} {name}"]) for name, form in SHOWN.items())
      for o in ("whole", "cut")
    ]
    lines.append(f"| {r['arm']} | {r['steps'] or ''} | {cells[0]} | {cells[1]} | {r['distance']:.2f} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.refine_trials", description=__doc__.split("\n\n")[0])
  p.add_argument("--real", required=True, help="source of real eyes; its train split is learnt from")
  p.add_argument("--seconds", type=float, default=900, help="processor time of each training")
  p.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
  p.add_argument("--num", type=int, default=16, help="held-out eyes")
  p.add_argument("--out", required=True, help="path without suffix")
  args = p.parse_args()
  out = pathlib.Path(args.out)
  rows = json.loads(out.with_suffix(".json").read_text()) if out.with_suffix(".json").exists() else []
  heldout = examples.Examples(make("v", args.real).config, None, ("vessels", "tree", "fov"))
  batches = list(heldout.fixed("heldout", args.num, args.num))
  eyes = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  if not rows:
    rows.append(row("real", eyes["vessels"], eyes, 0))
  for arm in args.arms:
    if any(r["arm"] == arm for r in rows):
      continue
    task = make(arm, args.real)
    params, steps = trained(task, args.seconds)
    rows.append(row(arm, refined(task, params, eyes), eyes, steps))
    writing.write_json(out.with_suffix(".json"), rows)
    writing.write_text(out.with_suffix(".md"), table(rows))
    print(table(rows[-1:]), flush=True)


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
