"""Attention on accelerators: a block of queries after the other, so that scores of all tokens with all are never stored.

Stored, float32 scores of 1,024 tokens took most of the memory traffic of an attention layer on TPUs (`experiments.benchmarks`).
A block's scores stay in the chip's vector memory, and the backward pass computes them again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

_BLOCK = 128  # queries at once; twice as many need three times the traffic on a TPU v5e
_LEAST = 32  # smaller blocks would leave the matrix units idle: then all queries at once
_FEW = 256  # tokens up to which all queries are taken at once


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Softmax attention, scaled by 1 / sqrt(D): `jax.nn.dot_product_attention` in the form that suits the platform.

  Args:
    q, k, v: queries, keys and values [B, T, heads, D], of one dtype.

  Returns:
    [B, T, heads, D], of the same dtype.
  """

  return for_platform(lambda q, k, v, first: jax.nn.dot_product_attention(q, k, v), q, k, v)


def for_platform(
  function: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, on_cpu: Callable[..., jax.Array] | None = None
) -> jax.Array:
  """Applies an attention function to all queries at once on CPUs, and to blocks of them elsewhere.

  Args:
    function: see `by_blocks`.
    q, k, v: [B, T, heads, D].
    on_cpu: (q, k, v) -> [B, T, heads, D], the form for CPUs, if it is another than `function`.

  Returns:
    [B, T, heads, D].
  """
  whole = on_cpu or (lambda q, k, v: function(q, k, v, 0))
  return jax.lax.platform_dependent(q, k, v, cpu=whole, default=lambda q, k, v: by_blocks(function, q, k, v))


def by_blocks(function: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Applies an attention function to blocks of queries, each computed again for the gradient.

  Args:
    function: (queries [B, n, heads, D], k, v, number of the first of these queries) -> [B, n, heads, D].
    q, k, v: [B, T, heads, D].

  Returns:
    [B, T, heads, D]; for few tokens, or a number of them without a suitable divisor, from one call.
  """
  tokens = q.shape[1]
  size = max(n for n in range(1, _BLOCK + 1) if tokens % n == 0)
  if tokens <= _FEW or size < _LEAST:
    return function(q, k, v, 0)
  # The gradients of keys and values are sums over the blocks: as float32 values, these are summed in float32.
  exact = [x.astype(jnp.float32) for x in (k, v)]

  @jax.checkpoint
  def one(block):
    return function(block[0], *(x.astype(q.dtype) for x in exact), block[1])

  blocks = rearrange(q, "b (n t) heads d -> n b t heads d", t=size)
  out = jax.lax.map(one, (blocks, size * jnp.arange(len(blocks))))
  return rearrange(out, "n b t heads d -> b (n t) heads d")
