"""Locality self-attention (Lee et al. 2021, arXiv 2112.13492, section 3.2) and the transformer block around it.

Softmax attention in which no token attends to itself, with a learned temperature in place of 1/sqrt(head_width).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from retree_jax.models.attention import for_platform

_MANY_TOKENS = 4096  # with more, attention is computed row by row: the scores of 4 heads would take over 256 MB per image
_MASKED = -1e30  # added to the scores that are excluded; finite, because a single token has no other token to attend to

# XLA's matrix products on CPUs favour `_keys_first` from JAX 0.12 on. JAX 0.10 is faster with `_queries_first`; on
# accelerators neither was timed.
_CPU_PREFERS_KEYS_FIRST = jax.__version_info__ >= (0, 12)


class BlockNames(NamedTuple):
  """Parameter names of one transformer block; None for a layer that Flax names itself."""

  temperature: str
  norm_0: str | None = None
  qkv: str | None = None
  out: str | None = None
  norm_1: str | None = None
  mlp_0: str | None = None
  mlp_1: str | None = None


def transformer_block(
  module: nn.Module,
  x: jax.Array,
  names: BlockNames,
  attention: Callable[..., jax.Array],
  gelu: Callable[[jax.Array], jax.Array],
  init: Callable[[int], dict] = lambda fan_in: {},
) -> jax.Array:
  """Layer norm, locality self-attention, residual; layer norm, MLP of four times the width, residual. No norm at the end.

  Tokens are pixels, without position features, so any grid size is accepted. Must be called inside a compact method.

  Args:
    module: the calling module, to which the parameters belong; its `heads`, `head_width` and `dtype` are read.
    x: [B, ..., C].
    names: of the parameters.
    attention: (q, k, v, scale), each of q, k, v [B, T, heads, head_width] and scale [] -> [B, T, heads, head_width]:
      `query_scaled_attention` or `score_scaled_attention`.
    gelu: the activation of the MLP.
    init: number of inputs of a dense layer -> its initialisers, as keyword arguments of `flax.linen.Dense`.

  Returns:
    [B, ..., C], of x's dtype.
  """
  heads, dtype, channels = module.heads, jnp.dtype(module.dtype), x.shape[-1]
  inner = heads * module.head_width

  def dense(features, fan_in, name):
    return nn.Dense(features, dtype=dtype, **init(fan_in), name=name)

  scale = jnp.exp(module.param(names.temperature, nn.initializers.constant(-0.5 * math.log(module.head_width)), ()))
  h = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=names.norm_0)(x)
  kernel_init = {k: v for k, v in init(channels).items() if k != "bias_init"}
  h = nn.Dense(3 * inner, use_bias=False, dtype=dtype, **kernel_init, name=names.qkv)(h)
  q, k, v = (rearrange(part, "b ... (heads d) -> b (...) heads d", heads=heads) for part in jnp.split(h, 3, axis=-1))
  h = attention(q, k, v, scale).reshape(*x.shape[:-1], inner)
  x = x + dense(channels, inner, names.out)(h)
  h = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=names.norm_1)(x)
  h = gelu(dense(4 * channels, channels, names.mlp_0)(h))
  return x + dense(channels, 4 * channels, names.mlp_1)(h)


# The two functions below compute the same attention in another order of operations. Both are kept because networks trained
# with one order reproduce their outputs to the bit only in that order.


def query_scaled_attention(q: jax.Array, k: jax.Array, v: jax.Array, scale: jax.Array, height: int) -> jax.Array:
  """Locality attention with the queries scaled before the product; softmax normalised after the product with the values.

  Args:
    q, k, v: queries, keys and values [B, T, heads, D], of one dtype; scores and sums are float32.
    scale: factor of the scores, a scalar.
    height: rows of the image that the tokens come from; divides T.

  Returns:
    [B, T, heads, D], of the same dtype.
  """
  q = (q * scale).astype(q.dtype)
  tokens = q.shape[1]
  if tokens <= _MANY_TOKENS:
    on_cpu = _keys_first if _CPU_PREFERS_KEYS_FIRST else _queries_first
    return for_platform(_block, q, k, v, on_cpu)
  rows = rearrange(q, "b (h w) heads d -> h b w heads d", h=height)
  first = jnp.arange(height) * (tokens // height)
  k, v = _heads_tokens(k), _heads_tokens(v)
  out = jax.lax.map(jax.checkpoint(lambda row: _some_queries(row[0], k, v, row[1])), (rows, first))
  return rearrange(out, "h b w heads d -> b (h w) heads d")


def score_scaled_attention(q: jax.Array, k: jax.Array, v: jax.Array, scale: jax.Array) -> jax.Array:
  """Locality attention with the float32 scores scaled and normalised before the product with the values.

  Args:
    q, k, v: queries, keys and values [B, T, heads, D], of one dtype.
    scale: factor of the scores, a scalar.

  Returns:
    [B, T, heads, D], of the same dtype.
  """

  def block(q, k, v, first):
    scores = _product("bqhd,bkhd->bhqk", q, k) * scale
    own = (first + jnp.arange(q.shape[1]))[:, None] == jnp.arange(k.shape[1])
    scores = jnp.where(own, jnp.finfo(jnp.float32).min, scores)
    return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores).astype(v.dtype), v)

  return for_platform(block, q, k, v)


def _block(q, k, v, first):
  """q [B, n, heads, D], the tokens from `first` on; k, v [B, T, heads, D] -> [B, n, heads, D]."""
  return _some_queries(q, _heads_tokens(k), _heads_tokens(v), first)


def _diagonal_mask(first, count: int, tokens: int):
  """[count, tokens]: added to the scores, excludes token first + i from row i."""
  return jnp.where(first + jnp.arange(count)[:, None] == jnp.arange(tokens), _MASKED, 0.0)


def _product(equation: str, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _queries_first(q, k, v):
  """Scores [B, heads, queries, keys], differentiated by JAX."""
  return _block(q, k, v, 0)


def _some_queries(q, k, v, first):
  """q [B, n, heads, D], the tokens from `first` on; k, v [B, heads, T, D] -> [B, n, heads, D]."""
  # Three choices make the forward pass three times as fast on a CPU, and the backward pass 1.25 times: heads before tokens,
  # a mask that is added instead of selected before the softmax, and the softmax's division after the product.
  scores = _product("bhqd,bhkd->bhqk", _heads_tokens(q), k) + _diagonal_mask(first, q.shape[1], k.shape[2])
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  out = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v) / weights.sum(axis=-1, keepdims=True)
  return rearrange(out.astype(v.dtype), "b heads q d -> b q heads d")


@jax.custom_vjp
def _keys_first(q, k, v):
  """Scores [B, heads, keys, queries], with an explicit gradient: every product of a [tokens, tokens] matrix then has that
  matrix on the right, or untransposed on the left. XLA would transpose it, or choose a slower product."""
  return _keys_first_forward(q, k, v)[0]


def _keys_first_forward(q, k, v):
  scores = _product("bhkd,bhdq->bhkq", _heads_tokens(k), _heads_width(q)) + _diagonal_mask(0, k.shape[1], q.shape[1])
  weights = jnp.exp(scores - scores.max(axis=2, keepdims=True))
  total = weights.sum(axis=2, keepdims=True)
  out = _product("bhdk,bhkq->bhdq", _heads_width(v), weights.astype(v.dtype)) / total
  return rearrange(out, "b heads d q -> b q heads d").astype(v.dtype), (q, k, v, weights, total, out)


def _keys_first_backward(residuals, g):
  q, k, v, weights, total, out = residuals
  g = _heads_width(g.astype(jnp.float32)) / total  # gradient with respect to the sum that `total` divides
  d_weights = _product("bhkd,bhdq->bhkq", _heads_tokens(v), g.astype(v.dtype))
  d_scores = (weights * (d_weights - jnp.sum(g * out, axis=2, keepdims=True))).astype(v.dtype)
  d_q = _product("bhdk,bhkq->bhdq", _heads_width(k), d_scores)
  d_k = _product("bhkq,bhqd->bhkd", d_scores, _heads_tokens(q))
  d_v = _product("bhkq,bhqd->bhkd", weights.astype(v.dtype), rearrange(g, "b heads d q -> b heads q d").astype(v.dtype))
  return (
    rearrange(d_q, "b heads d q -> b q heads d").astype(q.dtype),
    rearrange(d_k, "b heads k d -> b k heads d").astype(k.dtype),
    rearrange(d_v, "b heads k d -> b k heads d").astype(v.dtype),
  )


_keys_first.defvjp(_keys_first_forward, _keys_first_backward)


def _heads_tokens(x):
  return rearrange(x, "b tokens heads d -> b heads tokens d")


def _heads_width(x):
  return rearrange(x, "b tokens heads d -> b heads d tokens")
