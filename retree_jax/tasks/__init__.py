"""Tasks: what each stage is to the training loop.

A task (`base.Task`) has `init`, `train_step`, `evaluate`, `preview` and the names of the example fields that it reads. The loop
in `retree_jax.train` depends on nothing else of a stage, and a task on nothing of the loop, meshes or files.
"""

import importlib

from retree_jax.config import validate

# stage -> (module of this package, class), imported on first use.
_TASKS = {
  "tree": ("diffusion", "DiffusionTask"),
  "refine": ("refine", "RefineTask"),
  "fundus": ("diffusion", "DiffusionTask"),
  "detail": ("detail", "DetailTask"),
  "superres": ("superres", "SuperresTask"),
  "segmentation": ("segmentation", "SegmentationTask"),
  "filter": ("tree_filter", "TreeFilterTask"),
}


def register(stage: str, task: type) -> None:
  """Adds a stage from outside the package (`docs/extending.md`).

  Args:
    stage: its name, the value of `config.stage`.
    task: a class like those of this package, for instance a subclass of `base.Task`.

  Raises:
    ValueError: the name is that of a built-in stage.
  """
  if isinstance(_TASKS.get(stage), tuple):
    raise ValueError(f"the stage {stage!r} is built in: register yours under another name")
  _TASKS[stage] = task


def fields(config) -> tuple[str, ...]:
  """Names of the example fields that the task of `config.stage` reads.

  Args:
    config: a whole config (see `retree_jax.config.defaults`).

  Raises:
    ValueError: an unknown stage or field.
  """
  task = _class(config)
  return task.fields_of(config) if hasattr(task, "fields_of") else tuple(task.fields)


def make(config, epoch_steps: int = 1):
  """The task of `config.stage`.

  Args:
    config: a whole config (see `retree_jax.config.defaults`).
    epoch_steps: steps per epoch, for tasks that count epochs.

  Raises:
    ValueError: an unknown stage, or an invalid value of a field.
  """
  task = _class(config)
  validate.check(config)
  size = tuple(config.data.image_size)
  if len(size) != 2 or min(size) < 1:
    raise ValueError(f"config.data.image_size={size} must be (height, width): write it once, as '(256, 256)'")
  return task(config, epoch_steps) if hasattr(task, "fields_of") else task(config)


def _class(config) -> type:
  if config.stage not in _TASKS:
    raise ValueError(f"config.stage={config.stage!r} is unknown: use {', '.join(_TASKS)}")
  task = _TASKS[config.stage]
  if config.stage == "segmentation" and "diffusion" in config:  # masks sampled by diffusion, conditioned on the photograph
    task = _TASKS["tree"]
  if isinstance(task, tuple):
    module, name = task
    task = getattr(importlib.import_module(f"retree_jax.tasks.{module}"), name)
  return task
