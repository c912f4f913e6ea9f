"""Host work per pair: what processors do in `retree-jax generate` besides running the networks.

    python -m experiments.benchmarks.host --num 32 --out experiments/benchmarks/host

Pairs of the shipped models are made and written twice. The first time what the networks return is recorded; the second time the
recorded arrays take their place, and the processor time of all threads and child processes is measured. Then the drawn masks
are mended again by growing numbers of worker processes. Writes PATH.json and PATH.md.
"""

import argparse
import os
import pathlib
import resource
import sys
import tempfile
import time
from unittest import mock

import numpy as np

from retree_jax.cli import cpu, errors
from retree_jax.data import workers, writing
from retree_jax.inference import dataset_writer, host_work, pairs


class Tape:
  """Stands before a function of arrays: records what it returns, then returns that again, in the same order.

  Attributes of the function (a sampler's size, for instance) are passed on.
  """

  def __init__(self, function):
    self._function, self._returned, self._place, self.replays = function, [], 0, False

  def __getattr__(self, name):
    return getattr(self._function, name)

  def __call__(self, *arguments, **options):
    if self.replays:
      self._place += 1
      return self._returned[self._place - 1]
    out = self._function(*arguments, **options)
    self._returned.append({k: np.array(v) for k, v in out.items()} if isinstance(out, dict) else np.asarray(out))
    return out


def taped(generator: pairs.Generator) -> list[Tape]:
  """Puts a tape before each network of a generator."""
  tapes = {name: Tape(sampler) for name, sampler in generator.samplers.items()}
  generator.samplers = dict(tapes)
  generator._refiners = [(name, tapes[name], params) for name, _, params in generator._refiners]
  generator._detailers = [(name, tapes[name], params) for name, _, params in generator._detailers]
  others = []
  if generator._enlarger is not None:
    generator._enlarger = Tape(generator._enlarger)
    others.append(generator._enlarger)
  if (tree_filter := generator.models.tree_filter) is not None:
    tree_filter.filter._score = Tape(tree_filter.filter._score)
    others.append(tree_filter.filter._score)
  return [*tapes.values(), *others]


def processor_seconds() -> float:
  """Of this process with all threads, and of the child processes that have ended."""
  return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def measure(num: int, stages: dict[str, str]) -> dict:
  """Measures a generator of `stages`, as `pairs.load_models` takes them.

  Returns:
    {"pairs", "cores", "core_seconds" and "wall" per pair, "stages" {name: wall seconds per pair}, "mended" {worker processes:
    trees per second}}, the last one empty without refinement.
  """
  models = pairs.load_models(**stages)
  generator = pairs.Generator(models)
  tapes, drawn, mend = taped(generator), [], host_work.mend

  def recorded_mend(*tree):
    drawn.append([np.array(field) for field in tree])
    return mend(*tree)

  with (
    tempfile.TemporaryDirectory() as folder,
    mock.patch.multiple(pairs, load_models=lambda **unused: models, Generator=lambda *unused: generator),
  ):
    with mock.patch.object(host_work, "mend", recorded_mend):
      dataset_writer.write(stages, f"{folder}/recorded", num=num)
    for tape in tapes:
      tape.replays = True
    generator.seconds.clear()
    used, began = processor_seconds(), time.monotonic()
    dataset_writer.write(stages, f"{folder}/replayed", num=num)
    wall, used = time.monotonic() - began, processor_seconds() - used
    recorded, replayed = (sorted(pathlib.Path(folder, name).glob("*/*.png")) for name in ("recorded", "replayed"))
    if [path.read_bytes() for path in recorded] != [path.read_bytes() for path in replayed]:
      raise RuntimeError("the replayed pairs are not the recorded ones: the benchmark measures something else")
  return {
    "pairs": num,
    "cores": os.cpu_count(),
    "core_seconds": used / num,
    "wall": wall / num,
    "stages": {name: seconds / num for name, seconds in generator.seconds.items()},
    "mended": {str(count): mended_per_second(drawn, count) for count in range((os.cpu_count() or 1) + 1) if drawn},
  }


def mended_per_second(drawn: list, count: int) -> float:
  """Trees (mask, coverage) that `count` worker processes mend in a second, once they have started; 0 for the calling thread."""
  with workers.Workers(count) as pool:
    pool.map(host_work.mend, *zip(*drawn[: max(1, count)], strict=True))
    began = time.monotonic()
    pool.map(host_work.mend, *zip(*drawn, strict=True))
    return len(drawn) / (time.monotonic() - began)


def table(row: dict) -> str:
  """The result as Markdown."""
  stages, mended = sorted(row["stages"]), [f"| {count} | {speed:.1f} |\n" for count, speed in row["mended"].items()]
  return (
    f"| pairs | cores | core-seconds per pair | seconds per pair | {' | '.join(f'{s}, s' for s in stages)} |\n"
    f"|{'---|' * (4 + len(stages))}\n"
    f"| {row['pairs']} | {row['cores']} | {row['core_seconds']:.3f} | {row['wall']:.3f} | "
    f"{' | '.join(format(row['stages'][s], '.3f') for s in stages)} |\n"
  ) + "".join(["\n| worker processes | trees mended per second |\n|---|---|\n", *mended] if mended else [])


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.benchmarks.host", description=__doc__.split("\n\n")[0])
  p.add_argument("--num", type=int, default=32, help="pairs")
  p.add_argument("--out", help="path without suffix, for PATH.json and PATH.md")
  args = p.parse_args()
  cpu.dispatch_inline()
  row = measure(args.num, dataset_writer.shipped())
  print(table(row))
  if args.out:
    writing.write_json(f"{args.out}.json", row)
    writing.write_text(f"{args.out}.md", table(row))


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
