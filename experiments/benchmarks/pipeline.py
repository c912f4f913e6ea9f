"""Images per second of the input pipeline beside what a training step consumes.

    python -m experiments.benchmarks.pipeline --out experiments/benchmarks/pipeline                 # a few minutes on two cores
    python -m experiments.benchmarks.pipeline --source folder:CHASE_DB1 --sizes 512                 # your own files
    python -m experiments.benchmarks.pipeline --configs configs/tree.py configs/fundus.py           # steps on an accelerator
    python -m experiments.benchmarks.pipeline --configs --consumption 800                           # a step measured elsewhere

Each row is one kind of epoch at one size with the default augmentation: `files` decodes every photograph anew, as the first
epoch of any set and every epoch of a set larger than the cache do; `cached` is every later epoch of a few dozen eyes; `phantom`
is the embedded set, drawn and cached. Without --source, 28 JPEG photographs of CHASE_DB1's size (960x999) are drawn and written
first. A config's training step is timed on this machine's devices, on a batch that is there already and with nothing beside it,
as the command line starts it; its consumption is batch size over seconds per step, and `ratio` is what the pipeline delivers
over that, for the config's size and fields. `CPU ms` is processor time per image, all threads together, which a busy machine
does not inflate: cores over it is what an idle one delivers. Writes PATH.json and PATH.md.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

from experiments.benchmarks import stages
from retree_jax.cli import cpu

PHOTOGRAPHS, HEIGHT, WIDTH = 28, 960, 999
BATCH = 16
FIELDS = (("tree",), ("image", "tree", "fov"))
KINDS = ("files", "cached", "phantom")


def write_photographs(folder: pathlib.Path) -> None:
  """A pair folder of phantoms with CHASE_DB1's size and formats."""
  from PIL import Image

  from retree_jax.data import phantom, writing

  (folder / "images").mkdir(parents=True)
  for i in range(PHOTOGRAPHS):
    eye = phantom.eye(i, (HEIGHT, WIDTH), binary=True)
    Image.fromarray(eye["image"]).save(folder / f"images/{i:02d}.jpg", quality=95)
    writing.write_png(folder / f"masks/{i:02d}.png", eye["tree"])
    writing.write_png(folder / f"fov/{i:02d}.png", eye["fov"])


def delivered(kind: str, source_spec: str, size: int, fields, threads: int, processes: int, seconds: float, rounds: int):
  """Images per second in each of `rounds` spans of `seconds`, and processor milliseconds per image over all of them (None with
  processes, whose time cannot be read while they run)."""
  from retree_jax.data import pipeline, sources, transforms

  spec = f"phantom:{PHOTOGRAPHS}" if kind == "phantom" else source_spec
  source = sources.open_source(spec, split="all", fields=[f for f in fields if f != "fov"], size=(size, size))
  rates, total = [], 0
  with pipeline.train_iterator(
    source,
    size=(size, size),
    batch_size=BATCH,
    augment=transforms.Augment(),
    fields=fields,
    num_threads=threads,
    num_processes=processes,
    cache_bytes=0 if kind == "files" else 2**30,
  ) as batches:
    # A whole epoch fills the cache; then what was prepared ahead goes, so that no round is paid for by the one before.
    for _ in range(1 if kind == "files" else max(1, processes) * (-(-len(source) // BATCH) + threads + 1)):
      next(batches)
    used = time.process_time()
    for _ in range(rounds):
      started, count = time.perf_counter(), 0
      while time.perf_counter() - started < seconds:
        next(batches)
        count += BATCH
      rates.append(count / (time.perf_counter() - started))
      total += count
    return rates, None if processes else 1000 * (time.process_time() - used) / total


def consumed(config_spec: str, seconds: float) -> dict:
  """Size, fields and images per second of a config's training step on random pixels."""
  import jax

  config = stages.load_config(config_spec)
  task, state, batch = stages.prepared(config)
  step = jax.jit(task.train_step, donate_argnums=0)

  def call():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  per_step, cpu_seconds = stages.timed(call, seconds)
  number = config.train.batch_size
  return {
    "config": config_spec,
    "size": config.data.image_size[0],
    "fields": [f.rstrip("?") for f in task.fields],
    "batch": number,
    "images_per_second": number / per_step,
    "cpu_ms": 1000 * cpu_seconds / number,
    "device": jax.devices()[0].device_kind,
  }


def table(result: dict) -> str:
  """The result as Markdown."""
  at_work = f"{result['threads']} threads" + f" in each of {result['processes']} processes" * bool(result["processes"])
  lines = [
    f"{result['cores']} cores, {at_work}; median (least to greatest) of {result['rounds']} rounds",
    "",
    "| epoch | size | fields | images/s | CPU ms per image |",
    "|---|---|---|---|---|",
  ]
  for row in result["delivered"]:
    cpu_ms = "" if row["cpu_ms"] is None else f"{row['cpu_ms']:.1f}"
    lines.append(
      f"| {row['kind']} | {row['size']} | {', '.join(row['fields'])} | {statistics.median(row['rates']):.0f} "
      f"({min(row['rates']):.0f} to {max(row['rates']):.0f}) | {cpu_ms} |"
    )
  if result["steps"]:
    lines += [
      "",
      "| step | device | size | consumes images/s | CPU ms | cached epoch delivers | ratio | first epoch | ratio |",
      "|---|---|---|---|---|---|---|---|---|",
    ]
  for step in result["steps"]:
    found = {kind: _rate(result, kind, step) for kind in ("cached", "files")}
    cells = [f"{r:.0f} | {r / step['images_per_second']:.1f}" if r else "not measured | " for r in found.values()]
    lines.append(
      f"| {step['config']} | {step['device']} | {step['size']} | {step['images_per_second']:.1f} | "
      f"{step['cpu_ms']:.1f} | {' | '.join(cells)} |"
    )
  return "\n".join(lines) + "\n"


def _rate(result, kind, step):
  """The median rate of the row with the step's size and at least its pictures; None where there is none."""
  # Attributes are numbers, measured once before the first batch.
  pictures = set(step["fields"]) - {"attributes"}
  for row in result["delivered"]:
    if row["kind"] == kind and row["size"] == step["size"] and pictures <= set(row["fields"]):
      return statistics.median(row["rates"])
  return None


def main(arguments=None) -> dict:
  """Measures and writes; returns what was measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--source", help="folder:PATH of real photographs and masks; drawn ones by default")
  parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256, 512])
  parser.add_argument("--configs", nargs="*", default=["configs/tree.py:cpu", "configs/fundus.py:cpu"])
  parser.add_argument("--consumption", type=float, help="images/s of a step measured elsewhere, compared at every size")
  parser.add_argument("--threads", type=int, default=4)
  parser.add_argument(
    "--processes", type=int, default=0, help="processes with so many threads each, see config.data.num_processes"
  )
  parser.add_argument("--seconds", type=float, default=4.0, help="length of a round")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", help="PATH.json and PATH.md")
  options = parser.parse_args(arguments)
  from absl import flags

  flags.FLAGS(["benchmark"])  # Grain reads flags
  cpu.dispatch_inline()

  steps = [consumed(spec, options.seconds) for spec in options.configs]
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    spec = options.source
    if not spec:
      write_photographs(pathlib.Path(folder) / "eyes")
      spec = f"folder:{folder}/eyes"
    for size, fields, kind in itertools.product(options.sizes, FIELDS, KINDS):
      rates, cpu_ms = delivered(kind, spec, size, fields, options.threads, options.processes, options.seconds, options.rounds)
      rows.append({"kind": kind, "size": size, "fields": fields, "rates": rates, "cpu_ms": cpu_ms})
      print(f"{kind:8} {size} {','.join(fields):15} {statistics.median(rates):8.0f} images/s", flush=True)
  if options.consumption:
    steps += [
      {
        "config": "given",
        "size": size,
        "fields": ["image", "tree", "fov"],
        "device": "elsewhere",
        "images_per_second": options.consumption,
        "cpu_ms": 0.0,
      }
      for size in options.sizes
    ]
  result = {
    "cores": os.cpu_count(),
    "threads": options.threads,
    "processes": options.processes,
    "rounds": options.rounds,
    "source": options.source or "drawn",
    "delivered": rows,
    "steps": steps,
  }
  print(table(result))
  if options.out:
    path = pathlib.Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_name(path.name + ".md").write_text(table(result))
  return result


if __name__ == "__main__":
  cpu.restart_with_settings()
  main()
