"""The arithmetic of a training step: moving average, learning rate, clipping, gradient accumulation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retree_jax import state
from tests import small


def test_moving_average_has_its_closed_form():
  # From 0 towards a constant 1, the gap after n warm-up steps is prod (1 + s)/(10 + s) = 1 / C(n + 9, 9) ...
  ema = jnp.float32(0)
  for step in range(12):
    ema = state.ema_update(ema, jnp.float32(1), step, 0.9999)
    assert float(1 - ema) == pytest.approx(1 / math.comb(step + 10, 9), rel=1e-3, abs=1e-6)
  # ... and falls by the decay in each step once that is smaller: (1 + s)/(10 + s) > 1/2 from s = 9 on.
  ema = {"a": jnp.zeros(2)}
  for step in range(100, 105):
    ema = state.ema_update(ema, {"a": jnp.array([1.0, 2.0])}, step, 0.5)
  np.testing.assert_allclose(ema["a"], [1 - 0.5**5, 2 - 2 * 0.5**5], rtol=1e-6)


def test_learning_rate_warms_up_and_anneals():
  optimizer = small.config(optimizer__warmup_steps=4, optimizer__learning_rate=2.0).optimizer
  rate = state.make_schedule(optimizer)
  np.testing.assert_allclose([rate(s) for s in (0, 1, 2, 4, 1000)], [0, 0.5, 1, 2, 2], rtol=1e-6)
  optimizer.update(schedule="cosine", decay_steps=12)
  rate = state.make_schedule(optimizer)
  # Half-way down a cosine from step 4 to step 12.
  np.testing.assert_allclose([rate(s) for s in (2, 4, 8, 12)], [1, 2, 1, 0], rtol=1e-6, atol=1e-6)
  optimizer.update(schedule="constant", warmup_steps=0)
  assert float(state.make_schedule(optimizer)(0)) == 2.0


def test_gradients_are_clipped_by_their_global_norm():
  optimizer = state.make_optimizer(
    small.config(optimizer__clip_norm=1.0, optimizer__weight_decay=0.0, optimizer__warmup_steps=0, optimizer__eps=1e6).optimizer
  )
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  # With a huge epsilon AdamW's first step is the learning rate times the gradient, over epsilon.
  step, _ = optimizer.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, optimizer.init(params), params)
  np.testing.assert_allclose([step["a"][0], step["b"][0]], np.array([-0.6, -0.8]) * 1e-3 / 1e6, rtol=1e-4)


def test_muon_makes_updates_of_kernels_orthogonal_and_leaves_biases_to_adamw():
  config = small.config(optimizer__name="muon", optimizer__warmup_steps=0, optimizer__clip_norm=0.0).optimizer
  params = {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}
  optimizer = state.make_optimizer(config)
  opt_state = optimizer.init(params)
  gradients = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 8)), "bias": jnp.arange(8.0) - 3.5}
  for _ in range(3):
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
  strengths = np.linalg.svd(np.asarray(updates["kernel"]).reshape(36, 8), compute_uv=False)
  assert strengths.max() < 1.8 * strengths.min()  # five Newton-Schulz steps bring singular values to between about 0.7 and 1.2
  plain = np.linalg.svd(np.asarray(gradients["kernel"]).reshape(36, 8), compute_uv=False)
  assert plain.max() > 1.8 * plain.min()
  np.testing.assert_allclose(np.sign(updates["bias"]), -np.sign(gradients["bias"]))
  # As large as AdamW's updates: their root mean square is about a fifth of the learning rate (Liu et al. 2025).
  rms = float(jnp.sqrt(jnp.mean(updates["kernel"] ** 2)))
  assert 0.1 < rms / config.learning_rate < 0.3


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"optimizer.name='sgd' is unknown: use 'adamw' or 'muon'"):
    state.make_optimizer(small.config(optimizer__name="sgd").optimizer)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
  rng = np.random.default_rng(0)
  batch = {"x": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), "y": jnp.asarray(rng.normal(size=6), jnp.float32)}
  params = jnp.array([0.5, -1.0, 2.0])

  def loss(params, part):
    error = part["x"] @ params - part["y"]
    return jnp.mean(error**2), {"mean_error": jnp.mean(error)}

  total, metrics, grads = jax.jit(lambda p, b: state.value_and_gradients(loss, p, b, parts))(params, batch)
  error = np.asarray(batch["x"]) @ np.asarray(params) - np.asarray(batch["y"])
  np.testing.assert_allclose(total, np.mean(error**2), rtol=1e-5)
  np.testing.assert_allclose(metrics["mean_error"], np.mean(error), rtol=1e-5)
  np.testing.assert_allclose(grads, 2 * error @ np.asarray(batch["x"]) / 6, rtol=1e-5)


def test_an_average_that_equals_the_parameters_stays_equal():
  params = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
  np.testing.assert_array_equal(state.ema_update(params, params, 7, 0.999), params)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_accumulation_is_unrolled_on_cpus_only(platform, monkeypatch):
  """Which of the two follows the platform that the step is compiled for, not the machine's default device."""
  monkeypatch.setattr(jax, "default_backend", lambda: pytest.fail("the form must follow the platform that runs it"))

  def step(params, batch):
    return state.value_and_gradients(lambda p, x: (jnp.mean(jnp.square(x @ p)), {}), params, batch, 4)

  program = jax.jit(step).trace(jnp.ones(3), jnp.ones((8, 3))).lower(lowering_platforms=(platform,)).as_text()
  assert ("stablehlo.while" in program) == (platform != "cpu")
