"""Labelled retinal photographs from diffusion models, and what they are worth.

Importing the package imports nothing heavy; take what you need: `retree_jax.checkpoint.load`, `retree_jax.generate`,
`retree_jax.train`, `retree_jax.metrics.segmentation`, ...
"""

import importlib

__version__ = "0.1.0"

_ROOMS = (
    "checkpoint", "data", "diffusion", "evaluate", "generate", "keys", "losses", "main", "metrics", "models",
    "plots", "report", "sampling", "sharding", "tasks", "train", "writers",
)  # fmt: skip


def __getattr__(name):
  """Imports a room at its first use, so that `import retree_jax` alone starts no JAX."""
  if name in _ROOMS:
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_ROOMS])
