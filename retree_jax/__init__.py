"""Labelled retinal photographs from diffusion models, and what they are worth.

Importing the package alone does not import JAX. Its modules are imported when they are first used:
`retree_jax.checkpoint.load`, `retree_jax.generate.pairs`, `retree_jax.train.train`, `retree_jax.metrics.segmentation.scores`.
`retree-jax --help` lists the commands.
"""

import importlib

__version__ = "0.1.0"

_MODULES = (
    "checkpoint", "cli", "config", "convert", "data", "diffusion", "evaluate", "generate", "inference", "keys", "losses",
    "main", "metrics", "models", "report", "sharding", "state", "tasks", "train",
)  # fmt: skip


def __getattr__(name):
  """Imports a module at its first use, so that `import retree_jax` alone does not start JAX."""
  if name in _MODULES:
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_MODULES])
