"""What each stage costs: images per second, memory, compile time and share of the peak, in training and in use.

    python -m experiments.benchmarks.stages --out experiments/benchmarks/stages                  # the :cpu variants
    python -m experiments.benchmarks.stages --configs configs/tree.py configs/fundus.py --peak_tflops 989    # H200, bfloat16

Each stage runs in a process of its own, started as the command line starts it, on random pixels that are there already and with
random weights. A training step is the stage's own, averaging included; in use, diffusion stages sample with their config's
sampler, super-resolution enlarges, the segmenter labels photographs of its config's size (tiles and flips included). FLOPs are
XLA's count for the training step as written, before it is optimised; recomputation by `config.train.remat` counts. Peak memory
is the device's, where it keeps account, and else the process's largest resident set. Writes PATH.json and PATH.md.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from retree_jax.cli import cpu

CONFIGS = tuple(f"configs/{stage}.py:cpu" for stage in ("tree", "fundus", "filter", "superres", "segmentation"))
LEAST_CALLS = 3  # that are timed


def load_config(spec: str):
  """The config of "PATH" or "PATH:VARIANT"."""
  path, _, variant = spec.partition(":")
  found = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  return module.get_config(variant)


def prepared(config):
  """(task, state, batch of random pixels) of a config, on the default device."""
  import jax

  from retree_jax import keys, tasks
  from retree_jax.data import attributes, writing
  from retree_jax.data.fields import CHANNELS

  rng, batch = np.random.default_rng(0), {}
  with tempfile.TemporaryDirectory() as folder:
    if config.stage == "filter" and not config.data.generated:  # it learns from generated trees: any will do here
      for i in range(40):
        writing.write_png(pathlib.Path(folder) / f"coverage/{i}.png", 255 * rng.integers(0, 2, (64, 64, 1), np.uint8))
      config.data.generated = folder
    task = tasks.make(config)
  number, size = config.train.batch_size, tuple(config.data.image_size)
  for field in task.fields:
    key = field.rstrip("?")
    if key == "attributes":
      batch[key] = rng.normal(size=(number, len(attributes.ATTRIBUTES))).astype(np.float32)
      continue
    batch[key] = rng.integers(0, 256, (number, *size, CHANNELS[key]), np.uint8)
    if field != key:
      batch[f"has_{key}"] = np.ones(number, bool)
  state = jax.jit(lambda: task.init(keys.stream(0, "benchmark")))()
  return task, state, jax.device_put(batch)


def timed(call, seconds: float) -> tuple[float, float]:
  """(median seconds, processor seconds) of a call, after two that are left out."""
  times, used = [], 0.0
  for i in range(10_000):
    started = time.perf_counter()
    call()
    if i >= 2:
      times.append(time.perf_counter() - started)
    else:
      used = time.process_time()
    if sum(times) > seconds and len(times) >= LEAST_CALLS:
      break
  return statistics.median(times), (time.process_time() - used) / len(times)


def measure(spec: str, seconds: float) -> dict:
  """One stage, in this process."""
  import jax

  config = load_config(spec)
  task, state, batch = prepared(config)
  lowered = jax.jit(task.train_step, donate_argnums=0).lower(state, batch)
  flops = (lowered.cost_analysis() or {}).get("flops", float("nan"))
  started = time.perf_counter()
  step = lowered.compile()
  compile_seconds = time.perf_counter() - started

  def train():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  per_step, cpu = timed(train, seconds)
  number = config.train.batch_size
  found = {
    "config": spec,
    "device": jax.devices()[0].device_kind,
    "size": list(config.data.image_size),
    "batch": number,
    "parameters": sum(x.size for x in jax.tree.leaves(state.averaged)),
    "train_images_per_second": number / per_step,
    "train_cpu_ms": 1000 * cpu / number,
    "compile_seconds": compile_seconds,
    "flops_per_step": flops,
    "tflops": flops / per_step / 1e12,
    "train_peak_mib": peak_mib(),
  }
  use = _use(config, task, state)
  if use:
    count, call = use
    per_call, cpu = timed(call, seconds)
    found |= {"use_images_per_second": count / per_call, "use_cpu_ms": 1000 * cpu / count, "peak_mib": peak_mib()}
  return found


def _use(config, task, state):
  """(images per call, the call) of a trained stage, or None."""
  from retree_jax.inference import superres
  from retree_jax.inference.sampler import Sampler
  from retree_jax.inference.segmenter import Segmenter

  rng, size = np.random.default_rng(1), tuple(config.data.image_size)

  def pixels(count, channels, factor=1):
    return rng.integers(0, 256, (count, size[0] // factor, size[1] // factor, channels), np.uint8)

  if config.stage in ("tree", "fundus"):
    sampler = Sampler(config, task.network)
    count = sampler.batch_size if sampler.mesh.devices.flat[0].platform != "cpu" else 4
    condition = {name: pixels(count, 1) for name in config.data.condition}
    return count, lambda: sampler(state.averaged, np.arange(count), condition)
  if config.stage == "superres":
    enlarger = superres.Enlarger(config, task.network)
    pair = {"image": pixels(8, 3, enlarger.scale), "tree": pixels(8, 1, enlarger.scale)}
    return 8, lambda: enlarger(state.averaged, pair)
  if config.stage == "segmentation":
    segmenter, photographs = Segmenter(config, task.network), list(pixels(1, 3))
    return 1, lambda: segmenter(state.averaged, photographs, [np.full((*size, 1), 255, np.uint8)])
  return None


def peak_mib() -> float:
  """Greatest use of memory so far."""
  import jax

  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10) / 2**20


def table(rows: list[dict], peak_tflops: float | None) -> str:
  """The result as Markdown."""
  last = " | share of the peak" if peak_tflops else ""
  lines = [
    f"{rows[0]['device']}, {os.cpu_count()} cores",
    "",
    f"| stage | pixels | batch | parameters, M | trained images/s | TFLOP/s{last} | compile s | peak MiB | "
    "images/s in use | peak MiB |",
    "|---" * (11 if last else 10) + "|",
  ]
  for r in rows:
    share = f" | {r['tflops'] / peak_tflops:.1%}" if last else ""
    use = f"{r['use_images_per_second']:.2f} | {r['peak_mib']:.0f}" if "peak_mib" in r else " | "
    lines.append(
      f"| {r['config']} | {r['size'][0]}×{r['size'][1]} | {r['batch']} | {r['parameters'] / 1e6:.1f} | "
      f"{r['train_images_per_second']:.2f} | {r['tflops']:.3f}{share} | {r['compile_seconds']:.0f} | "
      f"{r['train_peak_mib']:.0f} | {use} |"
    )
  return "\n".join(lines) + "\n"


def main(arguments=None) -> None:
  """Measures each stage in a process of its own, prints and writes."""
  p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  p.add_argument("--configs", nargs="+", default=list(CONFIGS))
  p.add_argument("--seconds", type=float, default=15.0, help="timed for so long, at least")
  p.add_argument("--peak_tflops", type=float, help="the device's peak at the config's precision")
  p.add_argument("--out", help="PATH.json and PATH.md")
  p.add_argument("--one", help=argparse.SUPPRESS)
  options = p.parse_args(arguments)
  if options.one:
    cpu.dispatch_inline()
    print(json.dumps(measure(options.one, options.seconds)))
    return
  from retree_jax.data import writing

  rows = []
  for spec in options.configs:
    child = subprocess.run(
      [sys.executable, "-m", "experiments.benchmarks.stages", "--one", spec, "--seconds", str(options.seconds)],
      env={**os.environ, **cpu.settings()},
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    rows.append(json.loads(child.stdout.splitlines()[-1]))
    print(table(rows[-1:], options.peak_tflops), flush=True)
  print(table(rows, options.peak_tflops))
  if options.out:
    path = pathlib.Path(options.out)
    writing.write_json(path.with_name(path.name + ".json"), rows)
    writing.write_text(path.with_name(path.name + ".md"), table(rows, options.peak_tflops))


if __name__ == "__main__":
  main()
