"""The command line of the stages: train, sample, evaluate.

    python -m retree_jax.main --config configs/STAGE.py[:VARIANT] [--workdir DIR] [--mode train|sample|evaluate]

This file is short on purpose: what it calls can be imported, tested and used from a notebook.
"""

import sys

from absl import flags
from ml_collections import config_flags

from retree_jax.cli import cpu, errors

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, configs/STAGE.py[:VARIANT].", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (default runs/STAGE); a bucket will do.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample", "evaluate"], "What to do.")
_NUM = flags.DEFINE_integer("num", None, "--mode sample: number of samples.", lower_bound=1)
_SEED = flags.DEFINE_integer(
  "seed", None, "Root of all randomness, for config.seed (train) or config.sampler.seed.", lower_bound=0
)
_OUT = flags.DEFINE_string("out", None, "--mode sample: folder to write to (default WORKDIR/samples).")
_INPUT = flags.DEFINE_string(
  "input",
  None,
  "--mode sample: folder of photographs to label (segmentation), of pairs to "
  "enlarge (superres), or of trees to paint (fundus).",
)
_STEP = flags.DEFINE_string("step", "best", "--mode sample: checkpoint to use, 'best', 'latest' or a step.")
_DISTRIBUTED = flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "Join the processes of a multi-host job.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for clusters that JAX does not recognise.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: rank of this process.")


def main() -> None:
  """Parses the flags and does what --mode says."""
  errors.parse(flags.FLAGS, sys.argv)
  if _CONFIG.value is None:
    raise ValueError("--config is missing: give for example --config configs/tree.py:tiny")
  import jax

  from retree_jax import sharding
  from retree_jax.cli import stages

  cpu.dispatch_inline()
  jax.config.parse_flags_with_absl()
  sharding.initialize_distributed(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  config = _CONFIG.value
  workdir = _WORKDIR.value or f"runs/{config.stage}"
  if _MODE.value == "train":
    if _SEED.value is not None:
      config.seed = _SEED.value
    stages.train(config, workdir)
    return
  overrides = config_flags.get_override_values(flags.FLAGS["config"])
  if _MODE.value == "sample":
    stages.sample(
      config.stage,
      workdir,
      num=_NUM.value,
      seed=_SEED.value,
      out=_OUT.value,
      inputs=_INPUT.value,
      step=_STEP.value,
      overrides=overrides,
    )
  else:
    stages.evaluate(config.stage, workdir, source=config.data.source, step=_STEP.value, overrides=overrides)


if __name__ == "__main__":
  cpu.restart_with_settings("retree_jax.main")
  sys.exit(errors.run(main))
