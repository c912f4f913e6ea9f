"""The paper's network on an accelerator: our training step beside PyTorch's, eager and compiled, on the same card.

    python -m experiments.benchmarks.accelerator --out experiments/benchmarks/accelerator    # needs JAX and PyTorch for CUDA

Each of the three runs in a process of its own, one after another: "jax" is the step that `--mode train` compiles, "torch" the
plain transcription in `torch_denoiser.py`, "compiled" the same under `torch.compile`. A step is the paper's: draw timesteps,
noise the batch, mean squared plus mean absolute error, backward, AdamW. Float32, with TF32 products on both sides. Writes
PATH.json and PATH.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

KINDS = ("jax", "torch", "compiled")
LEAST_STEPS = 20


def jax_step(dim: int, batch: int, size: int):
  """Our training step: a function without arguments that takes one and waits for it."""
  from experiments.benchmarks.training import jax_step as make

  return make("train", dim, batch, size)[0]


def torch_step(dim: int, batch: int, size: int, compiled: bool):
  """PyTorch's, on the first CUDA device."""
  import numpy as np
  import torch

  from experiments.benchmarks import torch_denoiser, training

  torch.set_float32_matmul_precision("high")
  torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
  device = torch.device("cuda")
  network = torch_denoiser.Denoiser(dim=dim).to(device)
  run = torch.compile(network) if compiled else network
  optimizer = torch.optim.AdamW(network.parameters(), lr=training.LEARNING_RATE, weight_decay=0.01, fused=True)
  i = np.arange(training.STEPS) / (training.STEPS - 1)
  beta = np.abs(0.02 * np.cos(np.pi / 2 * i) - (0.02 - 1e-4))
  alpha_bar = torch.tensor(np.cumprod(1 - beta), dtype=torch.float32, device=device)
  pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 1, size, size), np.uint8)).to(device)

  def step():
    x0 = pixels.float() / 127.5 - 1
    t = torch.randint(1, training.STEPS, (batch,), device=device)
    noise = torch.randn_like(x0)
    bar = alpha_bar[t][:, None, None, None]
    error = run(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, t) - noise
    loss = error.square().mean() + error.abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    torch.cuda.synchronize()

  return step


def measure(kind: str, dim: int, batch: int, size: int, seconds: float) -> dict:
  """Median milliseconds of a step, in this process."""
  started = time.perf_counter()
  step = jax_step(dim, batch, size) if kind == "jax" else torch_step(dim, batch, size, kind == "compiled")
  for _ in range(5):
    step()
  ready, times = time.perf_counter() - started, []
  while len(times) < LEAST_STEPS or sum(times) < seconds:
    started = time.perf_counter()
    step()
    times.append(time.perf_counter() - started)
  return {"kind": kind, "dim": dim, "batch": batch, "size": size, "ms": 1000 * statistics.median(times), "ready_seconds": ready}


def table(rows: list[dict]) -> str:
  """The result as Markdown."""
  lines = [
    "| width | batch | " + " | ".join(f"{kind}, ms" for kind in KINDS) + " | JAX over compiled |",
    "|---" * (3 + len(KINDS)) + "|",
  ]
  for dim in dict.fromkeys(row["dim"] for row in rows):
    ms = {row["kind"]: row["ms"] for row in rows if row["dim"] == dim}
    batch = next(row["batch"] for row in rows if row["dim"] == dim)
    cells = " | ".join(f"{ms[kind]:.2f}" if kind in ms else "–" for kind in KINDS)
    ratio = f"{ms['jax'] / ms['compiled']:.2f}" if {"jax", "compiled"} <= set(ms) else "–"
    lines.append(f"| {dim} | {batch} | {cells} | {ratio} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--dims", default="512,1024", help="widths of the network")
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--size", type=int, default=64, help="side of the square pictures")
  parser.add_argument("--seconds", type=float, default=5.0, help="timed for so long, at least")
  parser.add_argument("--out", help="path without suffix, for PATH.json and PATH.md")
  parser.add_argument("--one", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    kind, dim = args.one.split(":")
    print(json.dumps(measure(kind, int(dim), args.batch, args.size, args.seconds)))
    return
  rows = []
  for dim in args.dims.split(","):
    for kind in KINDS:
      command = [sys.executable, "-m", __spec__.name, "--one", f"{kind}:{dim}", *sys.argv[1:]]
      done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
      if done.returncode:
        print(f"{kind} at width {dim} failed", file=sys.stderr)
        continue
      rows.append(json.loads(done.stdout.splitlines()[-1]))
      print(rows[-1], file=sys.stderr, flush=True)
  text = table(rows)
  print(text)
  if args.out:
    with open(f"{args.out}.json", "w") as file:
      json.dump(rows, file, indent=1)
    with open(f"{args.out}.md", "w") as file:
      file.write(text)


if __name__ == "__main__":
  main()
