"""Steps against quality, and guidance against fidelity: the tables behind the default sampler.

    python -m experiments.sampling_table --tree runs/tree --fundus runs/fundus \\
        --real folder:data/CHASE_DB1+folder:data/HRF_native --steps 5,10,20,50,full --guidance 1,1.5,2,3 \\
        --num 32 --out runs/tables

Trees are sampled from noise. Photographs are generated for the held-out trees of --real, so that they can be compared with the
photographs in which those trees were traced. Distances are unbiased kernel distances to the held-out eyes over scattering
features; these need no weights, and are not comparable with published distances. The floor is the distance between two halves
of the real eyes. Separation measures how well the green channel of the photograph predicts the tree
(`retree_jax.metrics.fidelity`); 0.5 is chance. Power is that of photographs over that of real ones in details of 2 to 4, 4 to 8
and 8 to 16 pixels away from the optic disc (`experiments.octaves`). Each row is written when it is finished, and a rerun skips
finished rows.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

from retree_jax import checkpoint
from retree_jax.cli import errors
from retree_jax.data import pipeline, sources, writing
from retree_jax.diffusion import schedules
from retree_jax.inference.sampler import Sampler
from retree_jax.metrics import features, fidelity, images, vessels

SAMPLERS = ("dpmpp_2m", "ddim", "heun")
MARKS = ("density", "components", "fractal_dimension")


def heldout(source: str, size, fields) -> dict[str, np.ndarray]:
  """The test split of a source at `size`: uint8 fields [N, H, W, C]."""
  opened = sources.open_source(source, split="test", fields=("image", "tree"), size=tuple(size))
  return next(iter(pipeline.evaluation_batches(opened, size=tuple(size), batch_size=len(opened), fields=fields)))


def settings(steps: str, names: str = ",".join(SAMPLERS), spacings: str = "trailing") -> list[tuple[str, dict]]:
  """(title, config fields) for lists such as "5,10,full", "dpmpp_2m,heun" and "trailing,karras"; "full" is the ancestral
  sampler over every time step.

  Raises:
    ValueError: an entry is neither a number of steps nor "full", or no sampler or spacing.
  """
  for flag, given, known in (("samplers", names, SAMPLERS), ("spacings", spacings, schedules.SPACINGS[1:])):
    for part in given.split(","):
      if part not in known:
        raise ValueError(f"--{flag}: {part!r} is unknown: write some of {', '.join(known)}")
  found = []
  for part in filter(None, steps.split(",")):
    if part == "full":
      found.append(("ddpm", {"name": "ddpm", "spacing": "full"}))
    elif part.isdigit() and int(part) > 0:
      found += [
        (name if spacing == "trailing" else f"{name} {spacing}", {"name": name, "spacing": spacing, "num_steps": int(part)})
        for name in names.split(",")
        for spacing in spacings.split(",")
      ]
    else:
      raise ValueError(f"--steps: {part!r} is neither a number of steps nor 'full'")
  return found


def scales(guidance: str, flag: str = "guidance") -> list[str]:
  """The factors in a list such as "1,1.5,2".

  Raises:
    ValueError: an entry is not a finite number of at least 0.
  """
  found = [part.strip() for part in guidance.split(",") if part.strip()]
  for part in found:
    try:
      good = 0.0 <= float(part) < float("inf")
    except ValueError:
      good = False
    if not good:
      raise ValueError(f"--{flag}: {part!r} is not a number of at least 0: write e.g. 1,1.5,2")
  return found


def sample(loaded, changes: dict, count: int, condition=None) -> tuple[dict[str, np.ndarray], float]:
  """Samples 0 to count - 1, as (fields, seconds per sample without compilation)."""
  config = loaded.config.copy_and_resolve_references()
  config.sampler.update(changes)
  sampler = Sampler(config, loaded.network)
  first = None if condition is None else {f: v[:1] for f, v in condition.items()}
  sampler(loaded.params, np.arange(1), first)  # compiles; one program serves every count
  start = time.perf_counter()
  made = sampler(loaded.params, np.arange(count), condition)
  return made, (time.perf_counter() - start) / count


def distance(real: np.ndarray, made: np.ndarray) -> dict:
  """Kernel distance between two sets of images over scattering features, with its interval."""
  extractor = features.extractor("scattering")
  found = images.kernel_distance(features.extract(real, extractor), features.extract(made, extractor))
  return {**_as_json(found), "real": len(real), "generated": len(made)}


def floor(real: np.ndarray) -> dict:
  """Kernel distance between halves of one set."""
  found = images.kernel_floor(features.extract(real, features.extractor("scattering")))
  return _as_json(found)


def _as_json(measurement) -> dict:
  """Value and interval; the interval is None if there are too few images."""
  low, high = ((float(x) if np.isfinite(x) else None) for x in (measurement.low, measurement.high))
  return {"value": float(measurement.value), "low": low, "high": high}


def tree_row(loaded, changes, count, real) -> dict:
  """One row of the table of trees."""
  made, seconds = sample(loaded, changes, count)
  marks = [[vessels.biomarkers(t[..., 0] >= 128) for t in trees] for trees in (made["tree"], real["tree"])]
  means = [{k: float(np.nanmean([m[k] for m in side])) for k in MARKS} for side in marks]
  return {"seconds": seconds, "distance": distance(real["tree"], made["tree"]), "generated": means[0], "real": means[1]}


def fundus_row(loaded, changes, real, count) -> dict:
  """One row of the table of photographs, made for evenly spaced held-out trees so that every joined set is represented."""
  painted = np.linspace(0, len(real["tree"]) - 1, count).round().astype(int)
  trees, fovs = real["tree"][painted], real["fov"][painted]
  made, seconds = sample(loaded, changes, count, {f: real[f][painted] for f in loaded.config.data.condition})
  own, other = (
    [fidelity.measures(i, t >= 128, f >= 128) for i, t, f in zip(made["image"], labels, fovs, strict=True)]
    for labels in (trees, np.roll(trees, 1, 0))
  )
  colour = [float(x) for x in np.abs(_mean_colour(made["image"], fovs) - _mean_colour(real["image"], real["fov"]))]
  return {
    "seconds": seconds,
    "distance": distance(real["image"], made["image"]),
    "colour_error": colour,
    "separation": float(np.nanmean([m["separation"] for m in own])),
    "separation_shuffled": float(np.nanmean([m["separation"] for m in other])),
    "contrast": float(np.nanmean([m["contrast"] for m in own])),
    "power": _power(made["image"], trees, fovs, real),
  }


def _power(pictures, trees, fovs, real) -> list[float] | None:
  """Power of photographs over that of real ones in each of `octaves.OCTAVES`; None where they are too small to tell."""
  from experiments import octaves  # here, because it imports this module

  elsewhere = octaves.PLACES.index("elsewhere")
  if min(fovs.shape[1:3]) < 4 * octaves.WINDOW:  # hardly a window lies in the field of view
    return None
  made, known = (
    np.nanmean([octaves.eye_power(*eye)[elsewhere] for eye in zip(*eyes, strict=True)], axis=0)
    for eyes in ((pictures, trees, fovs), (real["image"], real["tree"], real["fov"]))
  )
  return [float(x) for x in made / known]


def _mean_colour(pictures, fov):
  inside = fov[..., 0] >= 128
  return np.stack([p[m].mean(0) for p, m in zip(pictures, inside, strict=True)]).mean(0)


def tables(args, say=print) -> dict:
  """Computes the rows missing in args.out/sampling.json, writes it and sampling.md, and returns the tables."""
  if not (args.tree or args.fundus):
    raise ValueError("no stage to sample from: give --tree, --fundus or both")
  if args.num < 2:
    raise ValueError(f"--num={args.num} is too small for a comparison: use 2 or more")
  rows = settings(args.steps, args.samplers, args.spacings)
  guidance, shifts = scales(args.guidance), scales(args.time_shift, "time_shift")
  path = pathlib.Path(args.out) / "sampling.json"
  found = json.loads(path.read_text()) if path.exists() else {}
  tree = checkpoint.load(args.tree, stage="tree") if args.tree else None
  fundus = checkpoint.load(args.fundus, stage="fundus") if args.fundus else None
  for stage, loaded in (("tree", tree), ("fundus", fundus)):
    facts = loaded and {"checkpoint": loaded.identity(), "num": args.num, "source": args.real}
    if facts and found.setdefault(f"{stage} of", facts) != facts:
      raise ValueError(f"{path} holds rows of another {stage} stage, --num or --real: name another folder with --out")
  jobs = []
  if tree is not None:
    real = heldout(args.real, tree.config.data.image_size, ("tree", "fov"))
    found.setdefault("tree floor", floor(real["tree"]))
    jobs += [(f"tree {name} {c.get('num_steps', 'full')}", lambda c=c: tree_row(tree, c, args.num, real)) for name, c in rows]
  if fundus is not None:
    pairs = heldout(args.real, fundus.config.data.image_size, ("image", "tree", "fov"))
    count = min(args.num, len(pairs["image"]))
    found.setdefault("fundus floor", floor(pairs["image"]))
    if "fundus real" not in found:
      own = [
        fidelity.measures(i, t >= 128, f >= 128) for i, t, f in zip(pairs["image"], pairs["tree"], pairs["fov"], strict=True)
      ]
      found["fundus real"] = {k: float(np.nanmean([m[k] for m in own])) for k in ("separation", "contrast")}
    jobs += [
      (f"fundus {name} {c.get('num_steps', 'full')}", lambda c=c: fundus_row(fundus, c, pairs, count)) for name, c in rows
    ]
    jobs += [
      (f"{title} {value}", lambda f=field, v=value: fundus_row(fundus, {f: float(v)}, pairs, count))
      for title, field, values in (("guidance", "guidance", guidance), ("shift", "time_shift", shifts))
      for value in values
    ]
  for name, job in jobs:
    if name not in found:
      found[name] = job()
      say(f"{name}: {json.dumps(found[name])}")
      writing.write_json(path, found)
  writing.write_text(path.with_suffix(".md"), markdown(found))
  return found


def markdown(found: dict) -> str:
  """The tables as text."""
  lines = []
  measured = [v for k, v in found.items() if k.startswith("tree ") and "real" in v]
  if measured:
    real = measured[0]["real"]
    lines += [
      "| trees | s / tree | kernel distance | density (of the frame) | components | fractal dimension |",
      "|---|---|---|---|---|---|",
      f"| real | | {interval(found['tree floor'])} (floor) | {_marks(real)} |",
    ]
    lines += [
      f"| {k[5:]} | {v['seconds']:.2f} | {interval(v['distance'])} | {_marks(v['generated'])} |"
      for k, v in found.items()
      if k.startswith("tree ") and "seconds" in v
    ]
  head = "| s / photograph | kernel distance | separation (shuffled) | contrast | mean colour error, R G B | power |"
  for prefix, title in (("fundus ", "photographs"), ("guidance ", "guidance scale"), ("shift ", "time shift")):
    rows = [(k, v) for k, v in found.items() if k.startswith(prefix) and "seconds" in v]
    if rows:
      r = found["fundus real"]
      lines += [
        "",
        f"| {title} {head}",
        "|---|---|---|---|---|---|---|",
        f"| real | | {interval(found['fundus floor'])} (floor) | {r['separation']:.3f} | {r['contrast']:.3f} | | |",
      ]
      lines += [
        f"| {k.removeprefix(prefix)} | {v['seconds']:.2f} | {interval(v['distance'])} | {v['separation']:.3f} "
        f"({v['separation_shuffled']:.3f}) | {v['contrast']:.3f} | {' '.join(f'{c:.1f}' for c in v['colour_error'])} | "
        f"{' '.join(f'{p:.2f}' for p in v.get('power') or ())} |"
        for k, v in rows
      ]
  return "\n".join(lines) + "\n"


def _marks(m):
  return f"{m['density']:.4f} | {m['components']:.1f} | {m['fractal_dimension']:.3f}"


def interval(d: dict) -> str:
  """A distance and its interval as text."""
  if d["low"] is None:
    return f"{d['value']:.3g}"
  return f"{d['value']:.3g} [{d['low']:.3g}, {d['high']:.3g}]"


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.sampling_table", description=__doc__.split("\n\n")[0])
  p.add_argument("--tree", help="workdir or name of the tree stage")
  p.add_argument("--fundus", help="workdir or name of the fundus stage")
  p.add_argument("--real", required=True, help="source of real pairs (its test split)")
  p.add_argument("--steps", default="5,10,20,50,full", help="numbers of steps; 'full' = the ancestral sampler")
  p.add_argument("--samplers", default=",".join(SAMPLERS), help="samplers")
  p.add_argument("--spacings", default="trailing", help=f"spacings of the steps, some of {', '.join(schedules.SPACINGS[1:])}")
  p.add_argument("--guidance", default="1,1.5,2,3", help="guidance scales")
  p.add_argument("--time_shift", default="", help="factors of the last steps' time, e.g. 1,0.93,0.9")
  p.add_argument("--num", type=int, default=32, help="number of trees in a row, and largest number of photographs")
  p.add_argument("--out", required=True, help="folder to write")
  tables(p.parse_args())


if __name__ == "__main__":
  sys.exit(errors.run(main))
