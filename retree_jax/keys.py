"""Random keys by name, training step and sample number.

Every random number in the project is a pure function of (seed, name of its use, position): a training step uses
`at_step(stream(seed, "noise"), step)`, sample k `per_sample(seed, [k], "trees")`. No key is carried from call to call, so the
order of calls, restarts, the batch size and the number of devices do not affect the values.

The generator is always threefry, whose values depend on the key only; those of the `rbg` generator also depend on the batch
shape. Names are hashed with CRC-32, because Python's own hash differs between processes.
"""

import operator
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def check_seed(seed: int, name: str = "seed") -> int:
  """The seed as a Python number.

  Raises:
    ValueError: it is not a whole number in 0 .. 2**32 - 1; the sentence names it `name`.
  """
  try:
    number = operator.index(seed)
  except TypeError:
    number = -1
  if not 0 <= number < 2**32:
    raise ValueError(f"{name} {seed!r} is not a whole number from 0 to 2**32 - 1; write one, e.g. {name}=0.")
  return number


def stream(seed: int, name: str) -> jax.Array:
  """Root key of one use of randomness, e.g. `stream(config.seed, "dropout")`.

  Args:
    seed: whole number in 0 .. 2**32 - 1.
    name: of the use; different names give independent streams.

  Returns:
    A typed threefry key, shape [].

  Raises:
    ValueError: the seed is not a whole number in that range, or the name is empty.
  """
  number = check_seed(seed)
  if not isinstance(name, str) or not name:
    raise ValueError(f"the name of a random stream must be a non-empty string, not {name!r}.")
  return jax.random.fold_in(jax.random.key(number, impl="threefry2x32"), zlib.crc32(name.encode("utf-8")))


def at_step(key: jax.Array, step: int | jax.Array) -> jax.Array:
  """Key of a training or sampling step, a whole number >= 0, which may be traced; shape []."""
  return jax.random.fold_in(key, step)


def per_sample(seed: int, indices: jax.Array | Sequence[int], name: str) -> jax.Array:
  """One key per sample; the key of sample k depends on (seed, k, name) only.

  Args:
    seed: as for `stream`.
    indices: [B] whole numbers in 0 .. 2**32 - 1, the samples' numbers in the whole set; may be traced or sharded.
    name: as for `stream`. Each use needs its own name, because `per_sample(s, [k], n)` equals `at_step(stream(s, n), k)`.

  Returns:
    Typed threefry keys, shape [B].

  Raises:
    ValueError: the indices are not a one-dimensional array of whole numbers; or as for `stream`.
  """
  indices = jnp.asarray(indices)
  if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
    raise ValueError(
      f"sample indices must be a one-dimensional array of whole numbers, not {indices.dtype} of shape "
      f"{indices.shape}; for samples 0 to 7 write jnp.arange(8)."
    )
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(stream(seed, name), indices)


def normal(keys: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """Standard normal noise [B, *shape] from keys [B]; sample k depends on `keys[k]` only."""
  return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), dtype))(keys)
