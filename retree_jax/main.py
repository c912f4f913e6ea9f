"""The stages: train one, sample from it, evaluate it.

    retree-jax train  --config STAGE[:VARIANT] [--workdir DIR] [--config.FIELD=VALUE ...]
    retree-jax sample --config STAGE[:VARIANT] [--workdir DIR] [--num N | --input FOLDER] [--out DIR]
    python -m retree_jax.main --config configs/STAGE.py[:VARIANT] [--workdir DIR] [--mode train|sample|evaluate]

STAGE is a built-in config, such as tree or fundus (`retree-jax info` lists them and their variants), or the path of a
config file. --config.FIELD=VALUE changes any field of the config. Rerunning a training resumes it.

This file only reads flags; `retree_jax.cli.stages` does the work and can be used from a notebook.
"""

import sys

from absl import flags
from ml_collections import config_flags

from retree_jax.cli import cpu, errors

_MODES = ("train", "sample", "evaluate")
_UNUSED = {"train": ("num", "out", "input", "step"), "sample": (), "evaluate": ("num", "out", "input", "seed")}


def define_flags(mode: str | None = None) -> flags.FlagValues:
  """The flags of one mode, or those of all modes and --mode itself."""
  f = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "STAGE[:VARIANT], or a config file.", lock_config=True, flag_values=f)
  flags.DEFINE_string("workdir", None, "Folder of the run (default runs/STAGE), local or a bucket.", flag_values=f)
  flags.DEFINE_integer(
    "seed",
    None,
    "Root of all randomness; sets config.seed (train) or config.sampler.seed (sample).",
    lower_bound=0,
    flag_values=f,
  )
  if mode is None:
    flags.DEFINE_enum("mode", "train", _MODES, "What to do.", flag_values=f)
  if mode != "train":
    only = "" if mode else "--mode sample: "
    flags.DEFINE_integer("num", None, f"{only}Number of samples (default 16, or all inputs).", lower_bound=1, flag_values=f)
    flags.DEFINE_string("out", None, f"{only}Folder to write to (default WORKDIR/samples).", flag_values=f)
    flags.DEFINE_string(
      "input",
      None,
      f"{only}Folder of photographs to segment (segmentation), of pairs to enlarge (superres), or of trees to paint (fundus).",
      flag_values=f,
    )
    flags.DEFINE_string("step", "best", f"{only}Checkpoint to use: best, latest or a step.", flag_values=f)
  flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "Join the processes of a multi-host job.", flag_values=f)
  flags.DEFINE_string("coordinator", None, "host:port of process 0, for clusters that JAX does not recognise.", flag_values=f)
  flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.", flag_values=f)
  flags.DEFINE_integer("process_id", None, "With --coordinator: rank of this process.", flag_values=f)
  return f


def train() -> None:
  """`retree-jax train`."""
  main("train")


def sample() -> None:
  """`retree-jax sample`."""
  main("sample")


def main(mode: str | None = None) -> None:
  """Parses the flags in `sys.argv`, where ml_collections looks for fields of the config, and trains, samples or evaluates.

  Args:
    mode: "train", "sample" or "evaluate"; by default what --mode says.

  Raises:
    ValueError: bad flags, config, workdir or data.
  """
  f = define_flags(mode)
  errors.parse(f, sys.argv, __doc__)
  if f.config is None:
    raise ValueError("--config is missing: give for example --config tree:tiny")
  from retree_jax import sharding
  from retree_jax.cli import stages

  flags.FLAGS(sys.argv[:1])  # Grain's workers read the global flags
  cpu.dispatch_inline()
  sharding.initialize_distributed(f.distributed, f.coordinator, f.num_processes, f.process_id)
  config, mode = f.config, mode or f.mode
  workdir = f.workdir or f"runs/{config.stage}"
  for name in _UNUSED[mode]:
    if name in f and f[name].present:
      raise ValueError(f"--{name} has no effect with --mode {mode}: leave it out")
  if mode == "train":
    if f.seed is not None:
      config.seed = f.seed
    stages.train(config, workdir)
    return
  overrides = config_flags.get_override_values(f["config"])
  if mode == "sample":
    stages.sample(config.stage, workdir, num=f.num, seed=f.seed, out=f.out, inputs=f.input, step=f.step, overrides=overrides)
  else:
    stages.evaluate(config.stage, workdir, step=f.step, overrides=overrides)


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
