"""A pseudo-random number generator (PRNG) for initial parameters, chosen because it compiles fast.

A network has some hundred parameters, and each is drawn separately. With JAX's default generator (threefry), XLA needs half a
second of compilation per draw on a CPU, half a minute per network before the first step; this generator, a hash of the
element's index, takes a tenth of that. Like threefry it is counter-based: values depend only on the key and the index, so
parameters are the same on every platform and mesh. Used for initialisation only; training and sampling use `retree_jax.keys`.
"""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)  # 2**32 divided by the golden ratio, as in Fibonacci hashing


def _mix(x: jax.Array) -> jax.Array:
  """A hash of uint32 without collisions; each input bit changes half of the output bits (C. Wellons' lowbias32, 2018)."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
  return x ^ (x >> np.uint32(16))


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
  first = _mix(key[0] ^ _mix(jnp.asarray(data, jnp.uint32) + _GOLDEN))
  return jnp.stack([first, _mix(key[1] + first)])


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  numbers = jnp.arange(math.prod(shape), dtype=jnp.uint32)
  return jax.vmap(_fold_in, (None, 0))(_fold_in(key, _GOLDEN), numbers).reshape(*shape, 2)


def _seed(seed: jax.Array) -> jax.Array:
  return _fold_in(jnp.zeros(2, jnp.uint32), seed)


def _bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
  """Random bits of the given shape; element i depends only on the key and i, so each device can compute its own shard."""
  strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
  index = jnp.zeros(shape, jnp.uint32)
  for axis, stride in enumerate(strides):
    index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)

  def words(salt):
    return _mix(_mix(_mix(index * _GOLDEN + key[0]) ^ key[1]) + (key[0] ^ np.uint32(salt)))

  if bit_width == 64:
    return words(0).astype(jnp.uint64) << np.uint64(32) | words(1).astype(jnp.uint64)
  return words(0).astype(f"uint{bit_width}")


_GENERATOR = jax.extend.random.define_prng_impl(
  key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="retree_initial", tag="init"
)


def key_from(key: jax.Array) -> jax.Array:
  """Converts a key of another generator (typed, or raw uint32 data; may be traced) to a key of this one, shape []."""
  data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
  words = jnp.stack([data.reshape(-1)[0], data.reshape(-1)[-1]]).astype(jnp.uint32)
  return jax.random.wrap_key_data(_fold_in(words, _GOLDEN), impl=_GENERATOR)
