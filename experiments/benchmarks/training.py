"""Images per second and peak memory of the paper's network: ours beside PyTorch, turn by turn in one run.

    python -m experiments.benchmarks.training --out experiments/benchmarks/training          # about 20 minutes on two cores
    python -m experiments.benchmarks.training --dims 512 --rounds 2 --seconds 1              # a glance

Three workers, each a process of its own, take turns so that whatever else slows the machine slows all alike; a ratio is that
of two turns of one round. `torch` is the plain transcription in `torch_denoiser.py`, eager, on as many threads as there are
cores; `plain` is ours in a bare environment; `settings` is ours as every command line of the project starts on a CPU
(`retree_jax.cli.cpu`). A training step is the paper's: draw a timestep, noise the batch, mean squared plus mean absolute error,
backward, AdamW. A reverse step is one ancestral step on a batch; ours are those of `--mode sample`. Peak memory is the worker's
largest resident set. Compilation is not part of the times, nor are the first --warmup rounds: the kernel gathers memory into
huge pages during the first half minute of a process, and steps get quicker until then. Writes PATH.json and PATH.md.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

LIBRARIES = ("torch", "plain", "settings")
JOBS = ("train", "sample")
BATCH, SIZE, STEPS = 8, 64, 800
REVERSE_STEPS = 10  # in one call of sampling
LEARNING_RATE = 3e-4


# --- the two implementations: a function that takes `REVERSE_STEPS` reverse steps or one training step, and waits for it ------


def jax_step(job: str, dim: int, batch: int, size: int):
  """Ours: (function of one call, seconds until it could be called)."""
  import jax
  import numpy as np

  from retree_jax import keys, tasks
  from retree_jax.cli import cpu
  from retree_jax.inference.sampler import Sampler

  cpu.dispatch_inline()
  config = _config(dim, batch, size)
  task = tasks.make(config)
  state = jax.jit(lambda: task.init(keys.stream(0, "benchmark")))()
  if job == "sample":
    # The path of previews and `--mode sample`.
    sampler = Sampler(config, task.network)
    started = time.perf_counter()
    sampler(state.params, np.arange(batch))
    return lambda: sampler(state.params, np.arange(batch)), time.perf_counter() - started

  images = {"tree": np.random.default_rng(0).integers(0, 256, (batch, size, size, 1), np.uint8)}
  started = time.perf_counter()
  step = jax.jit(task.train_step, donate_argnums=0).lower(state, images).compile()
  compile_seconds = time.perf_counter() - started

  def train():
    nonlocal state
    state, metrics = step(state, images)
    jax.block_until_ready(metrics["loss"])

  return train, compile_seconds


def _config(dim: int, batch: int, size: int):
  from retree_jax.config import defaults

  config = defaults.base("tree", "paper")
  defaults.add_diffusion(config)
  config.data.update(image_size=(size, size), target=("tree",))
  config.model.update(name="paper_denoiser", dim=dim, time_dim=256)
  config.diffusion.update(
    schedule="paper", num_steps=STEPS, zero_terminal_snr=False, prediction="eps", time_sampling="uniform", first_step=1
  )
  config.loss.min_snr_gamma = 0.0
  config.train.update(batch_size=batch, ema_decay=0.0)
  config.optimizer.update(learning_rate=LEARNING_RATE, warmup_steps=0, b2=0.999, clip_norm=0.0)
  config.sampler.update(name="ddpm", num_steps=REVERSE_STEPS, spacing="trailing", clip="none", batch_size=batch)
  return config


def torch_step(job: str, dim: int, batch: int, size: int):
  """PyTorch: as `jax_step`; nothing to compile."""
  import numpy as np
  import torch

  from experiments.benchmarks import torch_denoiser

  torch.manual_seed(0)
  torch.set_num_threads(os.cpu_count())
  network = torch_denoiser.Denoiser(dim=dim)
  optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
  i = np.arange(STEPS) / (STEPS - 1)
  beta = np.abs(0.02 * np.cos(np.pi / 2 * i) - (0.02 - 1e-4))
  alpha_bar = torch.tensor(np.cumprod(1 - beta), dtype=torch.float32)
  beta = torch.tensor(beta, dtype=torch.float32)
  pixels = np.random.default_rng(0).integers(0, 256, (batch, 1, size, size), np.uint8)

  def train():
    x0 = torch.from_numpy(pixels).float() / 127.5 - 1
    t = torch.randint(1, STEPS, (batch,))
    noise = torch.randn_like(x0)
    bar = alpha_bar[t][:, None, None, None]
    error = network(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, t) - noise
    loss = error.square().mean() + error.abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()

  @torch.no_grad()
  def sample():
    x = torch.randn(batch, 1, size, size)
    for step in range(STEPS - 1, STEPS - 1 - REVERSE_STEPS, -1):
      guess = network(x, torch.full((batch,), step))
      mean = (x - beta[step] / (1 - alpha_bar[step]).sqrt() * guess) / (1 - beta[step]).sqrt()
      x = mean + beta[step].sqrt() * torch.randn_like(x)
    x.numpy()

  return (train if job == "train" else sample), 0.0


# --- a worker: waits for a number of seconds on stdin, answers with a line of JSON ----------------------------------------


def work(library: str, job: str, dim: int, batch: int, size: int) -> None:
  """Serves turns until stdin closes."""
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever libraries print goes to stderr
  step, compile_seconds = (torch_step if library == "torch" else jax_step)(job, dim, batch, size)
  step()  # the first call allocates
  print(json.dumps({"compile_seconds": compile_seconds}), file=out, flush=True)
  for line in sys.stdin:
    started, count, taken = time.perf_counter(), 0, 0.0
    while not count or taken < float(line):
      step()
      count += 1
      taken = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    steps = count * (1 if job == "train" else REVERSE_STEPS)
    print(json.dumps({"seconds_per_step": taken / steps, "peak_mib": peak}), file=out, flush=True)


class Worker:
  """A process that measures one job of one library."""

  def __init__(self, library: str, job: str, dim: int, batch: int, size: int, python: str = sys.executable):
    from retree_jax.cli import cpu

    environment = {**os.environ, "RETREE_JAX_CPU_SETTINGS": "off"}
    if library == "settings":
      environment |= cpu.settings(environment)
    arguments = [
      python,
      "-m",
      "experiments.benchmarks.training",
      "--worker",
      library,
      "--job",
      job,
      "--dims",
      str(dim),
      "--batch",
      str(batch),
      "--size",
      str(size),
    ]
    self._process = subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.compile_seconds = self._answer()["compile_seconds"]

  def _answer(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f"a worker ended with exit code {self._process.wait()}; its message stands above")
    return json.loads(line)

  def turn(self, seconds: float) -> dict:
    """Repeats the job for so many seconds: {"seconds_per_step", "peak_mib"}."""
    self._process.stdin.write(f"{seconds}\n")
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def measure(job: str, dim: int, batch: int, size: int, rounds: int, seconds: float, warmup: int, torch_python: str) -> dict:
  """One job at one width, for each library: medians over rounds, and medians of the ratios to PyTorch's turn of the same
  round."""
  workers = {}
  try:
    for library in LIBRARIES:
      python = torch_python if library == "torch" else sys.executable
      workers[library] = Worker(library, job, dim, batch, size, python)
    turns = []
    for number in range(-warmup, rounds):
      order = LIBRARIES if number % 2 == 0 else LIBRARIES[::-1]
      turns.append({library: workers[library].turn(seconds) for library in order})
      said = ", ".join(f"{library} {turns[-1][library]['seconds_per_step'] * 1e3:.0f} ms" for library in LIBRARIES)
      print(f"dim {dim} {job} {number + 1}/{rounds}: {said}", file=sys.stderr)
      if number < 0:
        turns.clear()
  finally:
    for worker in workers.values():
      worker.close()
  result = {}
  for library in LIBRARIES:
    times = [turn[library]["seconds_per_step"] for turn in turns]
    ratios = [turn[library]["seconds_per_step"] / turn["torch"]["seconds_per_step"] for turn in turns]
    result[library] = {
      "ms_per_step": 1e3 * statistics.median(times),
      "images_per_second": batch / statistics.median(times),
      "time_over_torch": statistics.median(ratios),
      "ratios": ratios,
      "peak_mib": turns[-1][library]["peak_mib"],
      "compile_seconds": workers[library].compile_seconds,
    }
  return result


def markdown(report: dict) -> str:
  """The report as a table."""
  names = {"torch": "PyTorch eager", "plain": "ours, bare environment", "settings": "ours, as started by default"}
  lines = [
    f"{report['machine']}, {report['cores']} cores, load {report['load_at_start']:.1f} at the start; JAX {report['jax']}, "
    f"PyTorch {report['torch']}; batch {report['batch']}, {report['size']}×{report['size']}; medians of {report['rounds']} "
    "rounds. A sampled image takes 799 reverse steps in the paper, 20 in our default.",
    "",
    "| dim | job | implementation | images × steps per s | ms per batch | time over PyTorch | peak MiB | compile s |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  jobs = {"train": "training step", "sample": "reverse step"}
  for dim, rows in report["dims"].items():
    for job, row in rows.items():
      for library, cell in row.items():
        numbers = [
          f"{cell[field]:{spec}}"
          for field, spec in (
            ("images_per_second", ".1f"),
            ("ms_per_step", ".0f"),
            ("time_over_torch", ".2f"),
            ("peak_mib", ".0f"),
            ("compile_seconds", ".0f"),
          )
        ]
        lines.append(f"| {dim} | {jobs[job]} | {names[library]} | {' | '.join(numbers)} |")
  return "\n".join(lines) + "\n"


def main(arguments=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dims", default="512,1024", help="widths of the network")
  parser.add_argument("--batch", type=int, default=BATCH)
  parser.add_argument("--size", type=int, default=SIZE, help="side of the square pictures")
  parser.add_argument("--rounds", type=int, default=9, help="turns of each worker")
  parser.add_argument("--warmup", type=int, default=4, help="rounds before those that count")
  parser.add_argument("--seconds", type=float, default=8.0, help="length of a turn")
  parser.add_argument(
    "--torch_python",
    default=sys.executable,
    help="the Python that runs PyTorch's turns, where it is not installed beside this JAX",
  )
  parser.add_argument("--out", help="path without suffix, for PATH.json and PATH.md")
  parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
  parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  if options.worker:
    work(options.worker, options.job, int(options.dims), options.batch, options.size)
    return
  import importlib.metadata

  version = "import importlib.metadata; print(importlib.metadata.version('torch'))"
  torch = subprocess.run([options.torch_python, "-c", version], check=True, capture_output=True, text=True).stdout.strip()
  report = {
    "machine": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
    "jax": importlib.metadata.version("jax"),
    "torch": torch,
    "load_at_start": os.getloadavg()[0],
    "batch": options.batch,
    "size": options.size,
    "rounds": options.rounds,
    "dims": {},
  }
  for dim in options.dims.split(","):
    report["dims"][dim] = {
      job: measure(
        job, int(dim), options.batch, options.size, options.rounds, options.seconds, options.warmup, options.torch_python
      )
      for job in JOBS
    }
  print(markdown(report))
  if options.out:
    path = pathlib.Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
  main()
