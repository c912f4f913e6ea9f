"""Locality self-attention (Lee et al. 2021, arXiv 2112.13492, section 3.2): softmax attention in which no token sees itself."""

import jax
import jax.numpy as jnp

_MANY_TOKENS = 4096  # beyond it attention goes row by row: scores of 4 heads would take over 256 MB an image
_NEVER = -1e30  # added to a score that shall not count; finite, because a single token has no other


def locality_attention(q: jax.Array, k: jax.Array, v: jax.Array, height: int) -> jax.Array:
  """Attention of every token to all others.

  Args:
    q, k, v: queries (already scaled), keys and values [B, T, heads, D], of one dtype; scores and sums are float32.
    height: rows of the picture that the tokens are; divides T.

  Returns:
    [B, T, heads, D], of the same dtype.
  """
  tokens = q.shape[1]
  if tokens <= _MANY_TOKENS:
    if jax.__version_info__ < (0, 12):
      return _queries_first(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cpu=_keys_first, default=_queries_first)
  rows = jnp.moveaxis(q.reshape(q.shape[0], height, tokens // height, *q.shape[2:]), 1, 0)
  first = jnp.arange(height) * (tokens // height)
  k, v = _heads_tokens(k), _heads_tokens(v)
  out = jax.lax.map(jax.checkpoint(lambda row: _some_queries(row[0], k, v, row[1])), (rows, first))
  return jnp.moveaxis(out, 0, 1).reshape(q.shape)


def _not_oneself(first, count: int, tokens: int):
  """[count, tokens]: what keeps token first + i from seeing itself, added to its scores."""
  return jnp.where(first + jnp.arange(count)[:, None] == jnp.arange(tokens), _NEVER, 0.0)


def _product(equation: str, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _queries_first(q, k, v):
  """Scores [B, heads, queries, keys], differentiated by JAX."""
  return _some_queries(q, _heads_tokens(k), _heads_tokens(v), 0)


def _some_queries(q, k, v, first):
  """q [B, n, heads, D], the tokens from `first` on; k, v [B, heads, T, D] -> [B, n, heads, D]."""
  # Heads before tokens, a sum instead of a choice before the softmax, and its division after the product: on a CPU the pass
  # forward takes a third of the time, and the one back four fifths.
  scores = _product("bhqd,bhkd->bhqk", _heads_tokens(q), k) + _not_oneself(first, q.shape[1], k.shape[2])
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  out = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v) / weights.sum(axis=-1, keepdims=True)
  return jnp.swapaxes(out.astype(v.dtype), 1, 2)


@jax.custom_vjp
def _keys_first(q, k, v):
  """Scores [B, heads, keys, queries]. Quicker on CPUs from JAX 0.12 on; with JAX 0.10 the other form is, and on accelerators
  neither was timed. The gradient is written out so that every matrix of tokens by tokens stands on the right of its product, or
  untransposed on the left; otherwise XLA would transpose it, or use a slower product."""
  return _keys_first_forward(q, k, v)[0]


def _keys_first_forward(q, k, v):
  scores = _product("bhkd,bhdq->bhkq", _heads_tokens(k), _heads_width(q)) + _not_oneself(0, k.shape[1], q.shape[1])
  weights = jnp.exp(scores - scores.max(axis=2, keepdims=True))
  total = weights.sum(axis=2, keepdims=True)
  out = _product("bhdk,bhkq->bhdq", _heads_width(v), weights.astype(v.dtype)) / total
  return jnp.transpose(out, (0, 3, 1, 2)).astype(v.dtype), (q, k, v, weights, total, out)


def _keys_first_backward(residuals, g):
  q, k, v, weights, total, out = residuals
  g = _heads_width(g.astype(jnp.float32)) / total  # the gradient of the sum that `total` divides
  of_weights = _product("bhkd,bhdq->bhkq", _heads_tokens(v), g.astype(v.dtype))
  of_scores = (weights * (of_weights - jnp.sum(g * out, axis=2, keepdims=True))).astype(v.dtype)
  of_q = _product("bhdk,bhkq->bhdq", _heads_width(k), of_scores)
  of_k = _product("bhkq,bhqd->bhkd", of_scores, _heads_tokens(q))
  of_v = _product("bhkq,bhqd->bhkd", weights.astype(v.dtype), jnp.swapaxes(g, 2, 3).astype(v.dtype))
  return (
    jnp.transpose(of_q, (0, 3, 1, 2)).astype(q.dtype),
    jnp.swapaxes(of_k, 1, 2).astype(k.dtype),
    jnp.swapaxes(of_v, 1, 2).astype(v.dtype),
  )


_keys_first.defvjp(_keys_first_forward, _keys_first_backward)


def _heads_tokens(x):
  """[B, T, heads, D] -> [B, heads, T, D]."""
  return jnp.swapaxes(x, 1, 2)


def _heads_width(x):
  """[B, T, heads, D] -> [B, heads, D, T]."""
  return jnp.transpose(x, (0, 2, 3, 1))
