"""What each stage is to the training loop: five functions of a state and a batch.

A task offers `init`, `train_step`, `evaluate`, `preview` and the example fields it needs; the loop in `retree_jax.train` knows
nothing else of a stage, and a task knows nothing of the loop, meshes or files.
"""

import importlib

from retree_jax.config import validate

# stage -> (module of this package, class). Imported when asked for.
_TASKS = {
  "tree": ("diffusion", "DiffusionTask"),
  "fundus": ("diffusion", "DiffusionTask"),
  "superres": ("superres", "SuperresTask"),
  "segmentation": ("segmentation", "SegmentationTask"),
  "filter": ("tree_filter", "TreeFilterTask"),
}


def make(config):
  """The task of `config.stage`.

  Args:
    config: a whole config (see `retree_jax.config.defaults`).

  Raises:
    ValueError: unknown stage, or a value that the stage cannot take.
  """
  if config.stage not in _TASKS:
    raise ValueError(f"config.stage={config.stage!r} is unknown: use {', '.join(_TASKS)}")
  validate.check(config)
  size = tuple(config.data.image_size)
  if len(size) != 2 or min(size) < 1:
    raise ValueError(f"config.data.image_size={size} must be (height, width): write it once, as '(256, 256)'")
  module, name = _TASKS[config.stage]
  if config.stage == "segmentation" and "diffusion" in config:  # masks drawn from noise, given the photograph
    module, name = _TASKS["tree"]
  return getattr(importlib.import_module(f"retree_jax.tasks.{module}"), name)(config)
