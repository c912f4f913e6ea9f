"""Training steps of the stages on the device at hand: milliseconds, images/s, share of the device's peak (MFU), memory.

    python -m experiments.benchmarks.steps --configs tree,fundus --peak 989e12 --out steps     # one H100 or H200 in bfloat16

The step is the one that `retree-jax train` compiles, on one device and on pixels that are there already, with the config's batch
size. The arithmetic of MFU is that of the network as it is written (`tpu.flops`), not what the compiler makes of it. --peak is
the vendor's figure for dense matrix products in the type that the config computes in. Writes PATH.json and PATH.md.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.tpu import flops, programs
from retree_jax import keys, tasks
from retree_jax.cli import config_files, cpu, errors
from retree_jax.data import writing

AT_ONCE = 5  # steps between two looks at the clock


def prepare(spec: str):
  """(function that takes one step and returns its loss, what is known of it) of a config such as "tree" or "fundus:cpu"."""
  config = config_files.load(spec)
  task = tasks.make(config)
  state = jax.jit(lambda: task.init(keys.stream(0, "benchmark")))()
  rng, batch = np.random.default_rng(0), {}
  for name, shape in programs.batch_shapes(config, task).items():
    kind = np.dtype(shape.dtype)
    drawn = rng.standard_normal(shape.shape) if kind.kind == "f" else rng.integers(0, 256 if kind == np.uint8 else 2, shape.shape)
    batch[name] = jnp.asarray(drawn.astype(kind))
  started = time.perf_counter()
  step = jax.jit(task.train_step, donate_argnums=0).lower(state, batch).compile()
  known = {
    "config": spec,
    "device": jax.devices()[0].device_kind,
    "dtype": config.model.dtype,
    "batch": config.train.batch_size,
    "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    "model_flops": flops.count(task.train_step, state, batch),
    "compile_seconds": time.perf_counter() - started,
  }

  def train():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics["loss"]

  return train, known


def measure(train, known: dict, peak: float | None, seconds: float) -> dict:
  """What is known, with the median "ms" of a step, "images_per_second", "mfu" and "peak_bytes", None where unknown."""
  jax.block_until_ready(train())
  times = []
  while len(times) < 5 or sum(times) * AT_ONCE < seconds:
    started = time.perf_counter()
    losses = [train() for _ in range(AT_ONCE)]
    jax.block_until_ready(losses)
    times.append((time.perf_counter() - started) / AT_ONCE)
  if not np.isfinite(losses).all():
    raise RuntimeError(f"the loss of {known['config']} is not finite after {len(times) * AT_ONCE} steps on random pixels")
  step = statistics.median(times)
  memory = jax.devices()[0].memory_stats() or {}
  return known | {
    "ms": 1000 * step,
    "images_per_second": known["batch"] / step,
    "mfu": known["model_flops"] / step / peak if peak else None,
    "peak_bytes": memory.get("peak_bytes_in_use"),
  }


def table(rows: list[dict]) -> str:
  """The results as Markdown."""
  lines = [
    "| step | device | dtype | batch | parameters, M | TFLOP | ms | images/s | MFU | peak memory, GiB | compiled in, s |",
    "|---" * 11 + "|",
  ]
  for row in rows:
    mfu = "–" if row["mfu"] is None else f"{row['mfu']:.2f}"
    memory = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"
    lines.append(
      f"| {row['config']} | {row['device']} | {row['dtype']} | {row['batch']} | {row['parameters'] / 1e6:.1f} | "
      f"{row['model_flops'] / 1e12:.2f} | {row['ms']:.1f} | {row['images_per_second']:.0f} | {mfu} | {memory} | "
      f"{row['compile_seconds']:.0f} |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.benchmarks.steps", description=__doc__.split("\n\n")[0])
  p.add_argument("--configs", default="tree,fundus", help="configs, joined by commas, e.g. tree,fundus:cpu")
  p.add_argument("--peak", type=float, help="FLOP/s of the device at its best; without it there is no MFU")
  p.add_argument("--seconds", type=float, default=5.0, help="each is timed for so long, at least")
  p.add_argument("--out", help="path without suffix, for PATH.json and PATH.md")
  args = p.parse_args()
  cpu.dispatch_inline()
  rows = []
  for spec in args.configs.split(","):
    rows.append(measure(*prepare(spec), args.peak, args.seconds))
    print(rows[-1], file=sys.stderr, flush=True)
  text = table(rows)
  print(text)
  if args.out:
    writing.write_json(f"{args.out}.json", rows)
    writing.write_text(f"{args.out}.md", text)


if __name__ == "__main__":
  sys.exit(errors.run(main))
