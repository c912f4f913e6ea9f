"""What the TPU compiler says of every stage's programs, on a machine without a TPU.

    pip install '.[tpu]'
    python -m experiments.benchmarks.tpu --topology v5e:2x4 --config configs/tree.py configs/fundus.py
    python -m experiments.benchmarks.tpu --topology v5e:1x1 v6e:2x4 --config configs/tree.py --program use
    python -m experiments.benchmarks.tpu --topology v5e:4x8 --config configs/tree.py --fsdp 1 -1 --batch 256
    python -m experiments.benchmarks.tpu --render            # the tables of the documents anew, nothing compiled

libtpu compiles for chips that are not there. For each program: whether it compiles, peak memory, arithmetic as written and as
compiled, HBM traffic, collectives beside their minimum, and what follows at the chip's full speed: the time of the slowest of
these, and the share of the peak (MFU) that it allows. A real step takes longer; a program whose bound is low cannot be quick.

A default stage takes about ten minutes of two cores. What was compiled is kept in --keep by the hash of the program, so that
only what changed is compiled again. Rows go to results.json, tables to ../RESULTS.md and docs/scaling.md.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results.json"
DOCUMENT = FOLDER.parent / "RESULTS.md"
SCALING = FOLDER.parents[2] / "docs" / "scaling.md"
KEEP = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "retree_jax" / "tpu"
# What makes libtpu compile on a machine without a TPU, also beside another process that does.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_SAME = ("config", "program", "topology", "fsdp", "images", "parts")


def measure(spec: str, program: str, topology: str, fsdp: int, batch: int | None, parts: int, keep: pathlib.Path) -> dict:
  """One row, in this process, whose environment must be `ENVIRONMENT`."""
  from experiments.benchmarks import stages
  from experiments.benchmarks.tpu import chips, measure, programs

  config, (_, count) = stages.load_config(spec), chips.parse(topology)
  config.mesh.fsdp = fsdp
  if batch:
    config.train.batch_size = batch
  config.train.accumulate = parts
  built = programs.build(config, program, chips.devices(topology))
  fsdp = count if fsdp == -1 else fsdp
  named = {"config": spec, "program": program, "topology": topology, "fsdp": fsdp, "parts": parts, "hash": built.key}
  return named | measure.row(built, measure.compiled(built, topology, keep), topology, fsdp)


def main(arguments=None) -> int:
  """Measures each program in a process of its own, so that one that ends the compiler ends no other; writes after each."""
  p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  p.add_argument("--topology", nargs="+", default=["v5e:2x4"])
  p.add_argument("--config", nargs="+", default=[])
  p.add_argument("--program", nargs="+", default=["train"], choices=["train", "use"])
  p.add_argument("--fsdp", nargs="+", type=int, default=[1], help="devices that share one copy of the parameters; -1 = all")
  p.add_argument("--batch", type=int, help="images of a training step over all chips; by default the config's")
  p.add_argument("--accumulate", type=int, default=1, help="parts in which a training step computes its batch, one by one")
  p.add_argument("--keep", type=pathlib.Path, default=KEEP, help="where compiled programs are kept")
  p.add_argument("--out", type=pathlib.Path, default=RESULTS)
  p.add_argument("--render", action="store_true", help="write the tables, compile nothing")
  p.add_argument("--one", help=argparse.SUPPRESS)
  options = p.parse_args(arguments)
  if options.one:
    found = measure(*json.loads(options.one), options.keep)
    pathlib.Path(options.out).write_text(json.dumps(found))
    return 0
  rows = json.loads(options.out.read_text()) if options.out.exists() else []
  failed = 0
  for spec, topology, program, fsdp in (
    (c, t, n, f) for c in options.config for t in options.topology for n in options.program for f in options.fsdp
  ):
    found = _apart([spec, program, topology, fsdp, options.batch, options.accumulate], options.keep)
    failed += found is None
    if found is not None:
      rows = [r for r in rows if any(r[n] != found[n] for n in _SAME)] + [found]
      _write(options.out, rows)
      print(_table([found]), flush=True)
  if options.render or (options.config and options.out == RESULTS):
    from experiments.benchmarks.tpu import scaling, table

    DOCUMENT.write_text(table.inserted(DOCUMENT.read_text(), rows))
    SCALING.write_text(scaling.inserted(SCALING.read_text(), rows))
  return 1 if failed else 0


def _apart(what: list, keep: pathlib.Path) -> dict | None:
  """The row of one program from a process of its own; None, with the last words said, where that failed."""
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "row.json"
    child = subprocess.run(
      [sys.executable, "-m", "experiments.benchmarks.tpu", "--one", json.dumps(what), "--keep", str(keep), "--out", str(out)],
      env={**os.environ, **ENVIRONMENT},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    if child.returncode == 0:
      return json.loads(out.read_text())
    last = child.stdout.strip().splitlines()[-1:] or ["no message"]
    print(f"error: {' '.join(map(str, what[:4]))}: {last[0][:600]}", file=sys.stderr, flush=True)
    return None


def _table(rows):
  from experiments.benchmarks.tpu import table

  return table.table(rows)


def _write(path: pathlib.Path, rows: list[dict]) -> None:
  from retree_jax.data import writing

  writing.write_json(path, sorted(rows, key=lambda r: [str(r[n]) for n in _SAME]))


if __name__ == "__main__":
  sys.exit(main())
