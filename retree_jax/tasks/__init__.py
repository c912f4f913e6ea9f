"""What each stage is to the training loop: five functions of a state and a batch.

A task offers `init`, `train_step`, `evaluate`, `preview` and the example fields it needs; the loop in `retree_jax.train` knows
nothing else of a stage, and a task knows nothing of the loop, meshes or files.
"""

import importlib

from retree_jax.config import validate

# stage -> (module of this package, class). Imported when asked for.
_TASKS = {
  "tree": ("diffusion", "DiffusionTask"),
  "refine": ("refine", "RefineTask"),
  "fundus": ("diffusion", "DiffusionTask"),
  "superres": ("superres", "SuperresTask"),
  "segmentation": ("segmentation", "SegmentationTask"),
  "filter": ("tree_filter", "TreeFilterTask"),
}


def register(stage: str, task: type) -> None:
  """Adds a stage from outside the package (`docs/extending.md`).

  Args:
    stage: its name, the value of `config.stage`.
    task: a class like those of this package.

  Raises:
    ValueError: the name is that of a built-in stage.
  """
  if isinstance(_TASKS.get(stage), tuple):
    raise ValueError(f"the stage {stage!r} is built in: register yours under another name")
  _TASKS[stage] = task


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
  task = _TASKS[config.stage]
  if config.stage == "segmentation" and "diffusion" in config:  # masks drawn from noise, given the photograph
    task = _TASKS["tree"]
  if isinstance(task, tuple):
    module, name = task
    task = getattr(importlib.import_module(f"retree_jax.tasks.{module}"), name)
  return task(config)
