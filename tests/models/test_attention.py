"""Attention by blocks of queries: the same function and gradient as all at once, and which of the two a program has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.models import attention


def whole(q, k, v, first=0):
  del first  # softmax attention is the same for all queries
  return jax.nn.dot_product_attention(q, k, v)


blocks = functools.partial(attention.by_blocks, whole)


def drawn(tokens: int, dtype=jnp.float32):
  """q, k, v and an output's gradient, [2, tokens, 3, 8]."""
  return jax.random.normal(jax.random.key(tokens), (4, 2, tokens, 3, 8)).astype(dtype)


# All at once; blocks of 80; a prime number, so all at once; blocks of 128.
@pytest.mark.parametrize("tokens", [256, 320, 331, 1024])
def test_blocks_are_the_same_attention_with_the_same_gradients(tokens):
  *inputs, g = drawn(tokens)
  wanted, of_whole = jax.vjp(whole, *inputs)
  out, of_blocks = jax.vjp(blocks, *inputs)
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
  for ours, truth in zip(of_blocks(g), of_whole(g), strict=True):
    np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-5)


def test_sums_over_blocks_keep_their_precision_in_bfloat16():
  *inputs, g = drawn(4096, jnp.bfloat16)
  exact = jax.vjp(whole, *(x.astype(jnp.float32) for x in inputs))[1](g.astype(jnp.float32))
  for form in (whole, blocks):
    for ours, truth in zip(jax.vjp(form, *inputs)[1](g), exact, strict=True):
      assert ours.dtype == jnp.bfloat16
      assert np.linalg.norm(ours.astype(jnp.float32) - truth) < 0.01 * np.linalg.norm(truth)


def test_no_scores_of_all_tokens_on_an_accelerator():
  """No product there, nor in the gradient, makes or takes scores of all tokens; on a CPU it is JAX's own attention."""
  *inputs, _ = drawn(1024)

  def products(platform):
    gradient = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(attention.attend(*x) ** 2), argnums=(0, 1, 2)))
    text = gradient.trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    return {size: sum(size in line for line in lines) for size in ("1024x1024x", "128x1024x")}

  for platform in ("tpu", "cuda"):
    found = products(platform)
    assert found["1024x1024x"] == 0 and found["128x1024x"] > 0
  found = products("cpu")
  assert found["1024x1024x"] > 0 and found["128x1024x"] == 0
  np.testing.assert_array_equal(jax.jit(attention.attend)(*inputs), jax.jit(whole)(*inputs))
