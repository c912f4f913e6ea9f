"""Compares generated eyes with real ones and writes a report that people and scripts can read.

    retree-jax evaluate --generated data/retree --real data/CHASE_DB1 --out report
    retree-jax evaluate --generated data/retree --real data/CHASE_DB1 --train data/CHASE_DB1 --out report
    retree-jax evaluate --generated data/retree --real HELD_OUT --train TRAINED_ON --segmenter runs/segment
        --features inception --feature_weights inception.npz --out report

Writes report.html (one file, with pictures), report.md and report.json (`retree_jax.report` says what is in it).
--real must be eyes that the generator never saw: they are what it is compared with, and what the audit calls "not
copied". With --train, the set the generator was trained on, the audit looks for copies; where both are one folder,
its train and test splits are used. `evaluate` does the same on sources or arrays, for notebooks."""

import importlib
import pathlib
import sys

from absl import flags

from retree_jax.cli import errors
from retree_jax.data import sources

FEATURES = ("scattering", "inception", "vgg19")


def __getattr__(name: str):
  """`retree_jax.evaluate.evaluate`, from `report.evaluation`, loaded at its first use."""
  if name in ("evaluate", "vessel_floors"):
    return getattr(importlib.import_module("retree_jax.report.evaluation"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def define_flags() -> flags.FlagValues:
  """The command's flags, apart from the global ones: importing this file must not claim names there."""
  f = flags.FlagValues()
  flags.DEFINE_string("generated", None, "Folder of generated pairs (images/, masks/).", flag_values=f)
  flags.DEFINE_string("real", None, "Folder of real pairs that the generator was not trained on.", flag_values=f)
  flags.DEFINE_string("train", None, "Folder that the generator was trained on: turns the privacy audit on.", flag_values=f)
  flags.DEFINE_enum(
    "real_split", None, sources.SPLITS, "Part of --real (default: all, or test if --train is the same folder).", flag_values=f
  )
  flags.DEFINE_enum(
    "train_split", None, sources.SPLITS, "Part of --train (default: all, or train if --real is the same folder).", flag_values=f
  )
  flags.DEFINE_string("segmenter", None, "Workdir or name of a segmentation stage trained on real eyes.", flag_values=f)
  flags.DEFINE_enum("features", "scattering", FEATURES, "What image distances are taken over.", flag_values=f)
  flags.DEFINE_string("feature_weights", None, "Weights file of inception or vgg19.", flag_values=f)
  flags.DEFINE_integer(
    "size",
    None,
    "Side at which eyes are compared (default: the largest of 512, 256, 128 and 64 at which no set is enlarged).",
    flag_values=f,
  )
  flags.DEFINE_integer("num", None, "At most so many eyes of each set, drawn at random.", flag_values=f)
  flags.DEFINE_integer("seed", 0, "Of every random choice.", lower_bound=0, flag_values=f)
  flags.DEFINE_boolean(
    "pictures",
    True,
    "Show photographs and file names; --nopictures for a report that can be shared when they may not.",
    flag_values=f,
  )
  flags.DEFINE_string("out", "report", "Folder to write to; a bucket will do.", flag_values=f)
  return f


def main(argv: list[str] | None = None) -> None:
  """Parses the flags, compares and writes the report."""
  f = define_flags()
  errors.parse(f, sys.argv if argv is None else argv, __doc__)
  for name in ("generated", "real"):
    if not f[name].value:
      raise ValueError(f"--{name} is missing: give the folder of {name} pairs, with images/ and masks/ inside")
  from retree_jax.report import document, evaluation

  opened = evaluation.open_sets(f.generated, f.real, f.train, f.real_split, f.train_split)
  result = evaluation.evaluate(
    **opened,
    size=None if f.size is None else (f.size, f.size),
    num=f.num,
    features=f.features,
    feature_weights=f.feature_weights,
    segmenter=f.segmenter,
    seed=f.seed,
    pictures=f.pictures,
    say=lambda text: print(text, file=sys.stderr, flush=True),
  )
  document.write(result, f.out)
  for verdict in result["verdicts"]:
    print(f"{verdict['question']} {verdict['answer']}")
  print(f"written: {pathlib.PurePath(f.out) / 'report.html'}, report.md, report.json")


if __name__ == "__main__":
  sys.exit(errors.run(main))
