"""Generates a labelled data set: seeds → trees → filter → photographs → super-resolution → files.

    retree-jax generate --num 16 --out out                                  # the shipped models
    retree-jax generate --tree runs/tree --fundus runs/fundus --num 1000 --out data/retree
    retree-jax generate --trees FOLDER --fundus runs/fundus --out painted   # paint your own trees
    retree-jax generate --tree runs/tree --num 500 --out trees              # trees alone
    retree-jax generate --format nnunet --out nnUNet_raw/Dataset501_ReTree  # docs/formats.md

Pair k depends on the models, the settings, the seed and k alone; the batch size, the number of devices or hosts and restarts
do not change it. Rerunning the command continues it. `python -m retree_jax.generate` is the same command. In a notebook,
`retree_jax.generate.pairs` returns arrays.
"""

import importlib
import sys
from collections.abc import Sequence

from absl import flags

from retree_jax.cli import cpu, errors, model_flags

_MAX_NUM = 2**32 // 20  # every pair has the numbers of 20 attempts, see `inference.pairs.MAX_ATTEMPTS`
FORMATS = ("png", "tfds", "nnunet", "imagefolder")  # as in `data.formats`, without importing it; a test compares them
_NOTEBOOK = ("Generator", "Models", "load_models", "pairs", "tilts", "MAX_ATTEMPTS")


def __getattr__(name: str):
  """`retree_jax.generate.load_models` and the others of `_NOTEBOOK`, imported from `inference.pairs` at their first use."""
  if name in _NOTEBOOK:
    return getattr(importlib.import_module("retree_jax.inference.pairs"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def define_flags() -> flags.FlagValues:
  """The command's flags, separate from absl's global ones: other commands of the project have flags of the same names."""
  f = flags.FlagValues()
  model_flags.define(f)
  for name, text in (
    ("trees", "Folder of trees (vessel masks) to paint, instead of sampling trees."),
    ("coordinator", "host:port of process 0, for clusters that JAX does not recognise."),
  ):
    flags.DEFINE_string(name, None, text, flag_values=f)
  flags.DEFINE_string("out", "out", "Folder to write to, local or a bucket.", flag_values=f)
  flags.DEFINE_integer(
    "num", None, "Number of pairs (default 16, or all of --trees).", lower_bound=1, upper_bound=_MAX_NUM, flag_values=f
  )
  flags.DEFINE_integer("seed", 0, "Root of all randomness.", lower_bound=0, upper_bound=2**32 - 1, flag_values=f)
  flags.DEFINE_enum(
    "format",
    "png",
    FORMATS,
    "PNG folders; a TFDS data set in ArrayRecord files; nnU-Net's raw layout, into a folder DatasetXXX_NAME; Hugging Face's "
    "imagefolder.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "filter_threshold",
    None,
    "Keep trees that score at least this (default: chosen on the filter's validation data).",
    flag_values=f,
  )
  flags.DEFINE_float("guidance", None, "Guidance scale of the fundus stage.", lower_bound=0.0, flag_values=f)
  flags.DEFINE_multi_string(
    "ask",
    [],
    "Attribute that trees should have, as NAME=VALUE; repeat the flag for several: outline=whole or cut, side=left or right, "
    "density, width, tortuosity, fractal_dimension. Attributes that are not given are left open.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "ask_guidance",
    None,
    "Guidance scale of the tree stage: above 1, what is asked for is exaggerated (default: 2 where a number other than a "
    "tortuosity is asked for).",
    lower_bound=0.0,
    flag_values=f,
  )
  flags.DEFINE_integer(
    "ask_candidates",
    None,
    "Trees drawn for each pair; the one that comes nearest to what is asked for is kept. Takes that many times as long in the "
    "tree and refinement stages (default: 6 where a tortuosity is asked for, else 1).",
    lower_bound=1,
    upper_bound=64,
    flag_values=f,
  )
  flags.DEFINE_float(
    "cut_share",
    None,
    "Share of eyes that the camera cuts above and below, 0 to 1 (default: the tree stage's config.sampler.cut_share, .7 in the "
    "shipped one).",
    flag_values=f,
  )
  flags.DEFINE_integer("steps", None, "Sampler steps of the diffusion stages.", lower_bound=1, flag_values=f)
  flags.DEFINE_integer(
    "batch_size",
    None,
    "Pairs that a stage makes at once on each device: lower it where memory is short (default: config.sampler.batch_size).",
    lower_bound=1,
    flag_values=f,
  )
  flags.DEFINE_integer(
    "workers",
    None,
    "Processes that mend and turn trees while the devices draw (default: with an accelerator all cores but one, on CPUs none).",
    lower_bound=0,
    flag_values=f,
  )
  flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "Join the processes of a multi-host job.", flag_values=f)
  flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.", flag_values=f)
  flags.DEFINE_integer("process_id", None, "With --coordinator: rank of this process.", flag_values=f)
  return f


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags, loads the stages and writes the data set.

  Args:
    argv: program name and flags; `sys.argv` by default.

  Raises:
    ValueError: bad flags, models or folders.
  """
  f = define_flags()
  errors.parse(f, sys.argv if argv is None else argv, __doc__)
  from retree_jax import sharding
  from retree_jax.data import attributes
  from retree_jax.inference import dataset_writer

  cpu.dispatch_inline()
  sharding.initialize_distributed(f.distributed, f.coordinator, f.num_processes, f.process_id)
  paths = model_flags.paths(f)
  if not any(paths.values()):
    paths = dataset_writer.shipped()
  if f.trees:
    for name in ("tree", "refine", "filter"):
      if f[name].value:
        raise ValueError(f"--{name} is for sampling trees, but --trees gives them: leave one of the two out")
    paths |= {"tree": None, "refine": None, "filter_path": None}
  if f.filter_threshold is not None and not paths["filter_path"]:
    raise ValueError("--filter_threshold needs a tree filter: give --filter, or leave --filter_threshold out")
  if f.filter_threshold is not None and not 0 <= f.filter_threshold <= 1:
    raise ValueError(f"--filter_threshold={f.filter_threshold} is no score: give a number from 0 to 1")
  if f.ask_guidance is not None and f.trees:
    raise ValueError("--ask_guidance is for sampling trees, but --trees gives them: leave one of the two out")
  if f.guidance is not None and not paths["fundus"]:
    raise ValueError("--guidance needs a fundus stage: give --fundus, or leave --guidance out")
  dataset_writer.write(
    paths,
    out=f.out,
    num=f.num,
    seed=f.seed,
    trees=f.trees,
    form=f.format,
    guidance=f.guidance,
    num_steps=f.steps,
    threshold=f.filter_threshold,
    ask=attributes.parse(f.ask),
    ask_guidance=f.ask_guidance,
    ask_candidates=f.ask_candidates,
    batch_size=f.batch_size,
    cut_share=f.cut_share,
    workers=f.workers,
  )


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
