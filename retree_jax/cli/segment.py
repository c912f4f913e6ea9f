"""Photographs in, vessel maps out, by a trained segmenter.

    retree-jax segment --input PHOTOS --out MASKS                       # the shipped segmenter
    retree-jax segment --input PHOTOS --out MASKS --model runs/segment  # your own

Writes masks/NAME.png and fov/NAME.png at each photograph's own size, a manifest, and copies of the photographs: a folder that
training and evaluation read as pairs. Rerunning the command continues it.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from retree_jax.cli import cpu, errors


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  f = flags.FlagValues()
  flags.DEFINE_string("input", None, "Folder of photographs.", flag_values=f)
  flags.DEFINE_string("out", None, "Folder to write to.", flag_values=f)
  flags.DEFINE_string("model", "shipped:segmentation", "Workdir of a segmentation stage, or shipped weights.", flag_values=f)
  flags.DEFINE_float(
    "threshold", None, "A pixel is vessel where its probability is above this (default: the model's own).", flag_values=f
  )
  flags.DEFINE_boolean("probabilities", False, "Also write probabilities/NAME.png, 255 times the probability.", flag_values=f)
  return f


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags and segments.

  Args:
    argv: program name and flags; `sys.argv` by default.

  Raises:
    ValueError: bad flags, model or photographs.
  """
  f = define_flags()
  errors.parse(f, sys.argv if argv is None else argv, __doc__)
  for name in ("input", "out"):
    if not f[name].value:
      raise ValueError(f"--{name} is missing: write retree-jax segment --input PHOTOS --out MASKS")
  from retree_jax import checkpoint
  from retree_jax.inference import segmenter

  cpu.dispatch_inline()
  loaded = checkpoint.load(f.model, stage="segmentation")
  count = segmenter.label_folder(loaded, f.input, f.out, f.threshold, f.probabilities)
  print(f"segmented {count} photographs: {pathlib.PurePath(f.out) / 'masks'}")
