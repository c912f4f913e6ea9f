"""Locality self-attention: every form of it against the textbook's, in NumPy with double precision, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.models import attention, locality

FORMS = {
  "keys first": locality._keys_first,
  "queries first": locality._queries_first,
  "blocks": functools.partial(attention.by_blocks, locality._block),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
  """Twenty-four tokens make three blocks."""
  monkeypatch.setattr(attention, "_FEW", 8)
  monkeypatch.setattr(attention, "_BLOCK", 8)
  monkeypatch.setattr(attention, "_LEAST", 4)


def drawn(tokens: int, num: int = 3):
  """q, k, v (and an output's gradient) [2, tokens, 3, 4]."""
  return jax.random.normal(jax.random.key(0), (num, 2, tokens, 3, 4))


def textbook(q, k, v):
  """(softmax of scores without the diagonal, [B, heads, T, T]; attention [B, T, heads, D])."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  scores = np.einsum("bqhd,bkhd->bhqk", q, k)
  scores[..., np.arange(q.shape[1]), np.arange(q.shape[1])] = -np.inf
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return weights, np.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.mark.parametrize("keys_first", [False, True])
def test_every_order_of_operations_is_the_same_attention(keys_first, monkeypatch):
  q, k, v = drawn(24)
  wanted = textbook(0.7 * q, k, v)[1]
  monkeypatch.setattr(locality, "_CPU_PREFERS_KEYS_FIRST", keys_first)
  np.testing.assert_allclose(locality.query_scaled_attention(q, k, v, 0.7, height=4), wanted, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(locality.score_scaled_attention(q, k, v, 0.7), wanted, rtol=1e-5, atol=1e-6)
  monkeypatch.setattr(locality, "_MANY_TOKENS", 10)  # row by row
  np.testing.assert_allclose(locality.query_scaled_attention(q, k, v, 0.7, height=4), wanted, rtol=1e-5, atol=1e-6)


def test_the_form_is_chosen_for_the_platform_that_the_program_is_compiled_for(monkeypatch):
  """On a machine whose default device is a CPU, a program for a TPU has the TPU's form, and its gradient too."""
  monkeypatch.setattr(locality, "_CPU_PREFERS_KEYS_FIRST", True)
  q, k, v = drawn(24)

  def lowered(function, platform):
    gradient = jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(function(q, k, v) ** 2), argnums=(0, 1, 2)))
    return gradient.trace(q, k, v).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")

  # Scores and their product with the values, and two gradients of each.
  function = functools.partial(locality.query_scaled_attention, scale=1.0, height=4)
  assert lowered(function, "cpu") == lowered(locality._keys_first, "cpu") == 6
  assert lowered(function, "tpu") == lowered(FORMS["blocks"], "tpu") == 8  # in a loop, which computes both once more
  chosen = jax.jit(jax.grad(lambda q: jnp.sum(function(q, k, v) ** 2)))(q)
  plain = jax.jit(jax.grad(lambda q: jnp.sum(locality._keys_first(q, k, v) ** 2)))(q)
  np.testing.assert_allclose(chosen, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_its_gradients_are_the_textbooks(form):
  q, k, v, g = drawn(24, 4)
  out, backward = jax.vjp(FORMS[form], q, k, v)
  weights, wanted = textbook(q, k, v)
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
  # The softmax's Jacobian is diag(w) - w w^T.
  of_weights = np.einsum("bqhd,bkhd->bhqk", g, v)
  of_scores = weights * (of_weights - np.sum(weights * of_weights, axis=-1, keepdims=True))
  gradients = (
    np.einsum("bhqk,bkhd->bqhd", of_scores, k),
    np.einsum("bhqk,bqhd->bkhd", of_scores, q),
    np.einsum("bhqk,bqhd->bkhd", weights, g),
  )
  for ours, truth in zip(backward(g), gradients, strict=True):
    np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_single_token_has_nothing_else_to_see(form):
  q, k, v, g = drawn(1, 4)
  out, backward = jax.vjp(FORMS[form], q, k, v)
  np.testing.assert_allclose(out, v, rtol=1e-6)
  of_q, of_k, of_v = backward(g)
  np.testing.assert_allclose(of_v, g, rtol=1e-6)
  assert np.abs(of_q).max() < 1e-6 and np.abs(of_k).max() < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_stays_bfloat16_and_near(form):
  q, k, v, g = (x.astype(jnp.bfloat16) for x in drawn(24, 4))
  out, backward = jax.vjp(FORMS[form], q, k, v)
  assert out.dtype == jnp.bfloat16 and all(x.dtype == jnp.bfloat16 for x in backward(g))
  wide = [np.asarray(x, np.float32) for x in (q, k, v, g)]
  exact, exact_backward = jax.vjp(FORMS[form], *wide[:3])
  for ours, truth in zip((out, *backward(g)), (exact, *exact_backward(jnp.asarray(wide[3]))), strict=True):
    assert np.linalg.norm(np.asarray(ours, np.float32) - truth) < 0.02 * np.linalg.norm(truth)
