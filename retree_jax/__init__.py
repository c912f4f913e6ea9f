"""Labelled retinal photographs from diffusion models, and what they are worth.

Importing the package imports nothing heavy; take what you need: `retree_jax.checkpoint.load`, `retree_jax.generate`,
`retree_jax.train`, `retree_jax.metrics.segmentation`, ...
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
