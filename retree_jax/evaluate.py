"""Compares generated pairs with real ones, and writes a report that people and scripts can read.

    retree-jax evaluate --generated data/retree --real data/CHASE_DB1 --out report
    retree-jax evaluate --generated data/retree --real data/CHASE_DB1 --train data/CHASE_DB1 --out report
    retree-jax evaluate --generated data/retree --real HELD_OUT --train TRAINED_ON --segmenter runs/segment
        --features inception --feature_weights inception.npz --out report

Writes report.html (one file, with pictures), report.md and report.json; `retree_jax.report.files` describes their contents.
--real must be eyes that the generator never saw: generated eyes are compared with them, and the privacy audit takes its
threshold from them. --train is the set on which the generator was trained; with it the audit looks for copies. Where --real
and --train are the same folder, its test and train splits are used. In a notebook, call `evaluate` on sources or arrays.

In a pipeline, --gate ends the command with exit code 1 where a bound is violated, with one sentence for each on stderr; the
report is written all the same. `--gate default` is for copies and for labels that do not fit, `--gate copies=3,label_fit=0.8`
checks these two alone, and `--gate default,heldout=10` is the default with one bound changed; docs/gate.md has the table.
"""

import importlib
import pathlib
import sys

from absl import flags

from retree_jax.cli import errors

# As in `data.sources` and `metrics.features`, which would make --help wait for SciPy and JAX; a test compares them.
SPLITS = ("train", "test", "all", "fit", "validation")
FEATURES = ("scattering", "inception", "vgg19")


def __getattr__(name: str):
  """Loads `evaluate` and `vessel_floors` from `report.evaluation` when they are first used."""
  if name in ("evaluate", "vessel_floors"):
    return getattr(importlib.import_module("retree_jax.report.evaluation"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def define_flags() -> flags.FlagValues:
  """The command's flags, in a set of their own: importing this file defines no global flags."""
  f = flags.FlagValues()
  flags.DEFINE_string("generated", None, "Folder of generated pairs, with images/ and masks/.", flag_values=f)
  flags.DEFINE_string("real", None, "Folder of real pairs on which the generator was not trained.", flag_values=f)
  flags.DEFINE_string("train", None, "Folder on which the generator was trained; adds the privacy audit.", flag_values=f)
  flags.DEFINE_enum(
    "real_split", None, SPLITS, "Split of --real to use (default: all; test if --train is the same folder).", flag_values=f
  )
  flags.DEFINE_enum(
    "train_split", None, SPLITS, "Split of --train to use (default: all; train if --real is the same folder).", flag_values=f
  )
  flags.DEFINE_string(
    "segmenter",
    None,
    "Workdir or name of a segmentation stage trained on real eyes; adds the comparison of its predictions with the labels.",
    flag_values=f,
  )
  flags.DEFINE_enum("features", "scattering", FEATURES, "Features on which image distances are computed.", flag_values=f)
  flags.DEFINE_string("feature_weights", None, "Weights file; needed for --features inception and vgg19.", flag_values=f)
  flags.DEFINE_integer(
    "size",
    None,
    "Height and width in pixels at which eyes are compared (default: the largest of 512, 256, 128 and 64 at which no set has "
    "to be enlarged).",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num",
    None,
    "Compare at most this many generated and real eyes, drawn at random; copies are looked for among all training eyes.",
    flag_values=f,
  )
  flags.DEFINE_integer("seed", 0, "Seed of every random choice.", lower_bound=0, flag_values=f)
  flags.DEFINE_boolean(
    "pictures",
    True,
    "Show photographs and file names; use --nopictures for a report to be shared where the photographs may not be.",
    flag_values=f,
  )
  flags.DEFINE_multi_string(
    "gate",
    [],
    "Exit with 1 where a bound is violated: 'default', NAME or NAME=BOUND, several by commas or by repeating the flag; NAME is "
    "one of copies, near, heldout, label_fit, label_shift, label_f1 (docs/gate.md).",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "workers",
    None,
    "Processes that measure vessels beside the command (default: all cores but one).",
    lower_bound=0,
    flag_values=f,
  )
  flags.DEFINE_string("out", "report", "Folder to write to, on a disk or in a bucket.", flag_values=f)
  return f


def main(argv: list[str] | None = None) -> int:
  """Parses the flags, compares the sets and writes the report. Returns the exit code: 1 if a bound of --gate is violated."""
  f = define_flags()
  errors.parse(f, sys.argv if argv is None else argv, __doc__)
  for name in ("generated", "real"):
    if not f[name].value:
      raise ValueError(f"--{name} is missing: give the folder of {name} pairs, with images/ and masks/ inside")
  if f.features != "scattering" and not f.feature_weights:
    raise ValueError(
      f"--features {f.features} needs its weights: give their file with --feature_weights, or use --features scattering"
    )
  if pathlib.Path(f.out).is_file():
    raise ValueError(f"--out={f.out} is a file: name a folder to write to")
  from retree_jax.data import writing
  from retree_jax.data.workers import spare_cores
  from retree_jax.report import evaluation, files, gate, sets

  writing.check_writable(f.out)  # before an hour of measuring
  bounds = gate.parse(f.gate)
  result = evaluation.evaluate(
    **sets.open_sets(f.generated, f.real, f.train, f.real_split, f.train_split),
    size=None if f.size is None else (f.size, f.size),
    num=f.num,
    features=f.features,
    feature_weights=f.feature_weights,
    segmenter=f.segmenter,
    seed=f.seed,
    pictures=f.pictures,
    log=lambda text: print(text, file=sys.stderr, flush=True),
    workers=spare_cores() if f.workers is None else f.workers,
  )
  if bounds:
    result["gate"] = gate.check(result, bounds)
  files.write(result, f.out)
  for verdict in result["verdicts"]:
    print(f"{verdict['question']} {verdict['answer']}")
  print(f"written: {pathlib.PurePath(f.out) / 'report.html'}, report.md, report.json")
  violated = [entry["sentence"] for entry in result.get("gate", ()) if not entry["passed"]]
  for sentence in violated:
    print(f"gate: {sentence}", file=sys.stderr, flush=True)
  return 1 if violated else 0


if __name__ == "__main__":
  sys.exit(errors.run(main))
