"""What several networks' tests do: replace initial zeros, find untrained parameters, compare bfloat16 with float32."""

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax import models


def awake(params):
  """The parameters with their initial zeros replaced, so that every path affects the output."""
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(structure, [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def untrained(gradients) -> list[str]:
  """Names of the parameters whose gradient is 0 everywhere."""
  return [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradients) if not np.abs(g).max() > 0]


def bfloat16_difference(settings, params, *inputs) -> float:
  """Relative difference of a network's output in bfloat16 and in float32; parameters and output must be float32 in both."""
  full, narrow = models.build(settings), models.build({**settings, "dtype": "bfloat16"})
  shapes = jax.eval_shape(lambda: narrow.init(jax.random.key(0), *inputs))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
  half, whole = jax.jit(narrow.apply)(params, *inputs), jax.jit(full.apply)(params, *inputs)
  assert half.dtype == whole.dtype == jnp.float32
  return float(np.linalg.norm(half - whole) / np.linalg.norm(whole))
