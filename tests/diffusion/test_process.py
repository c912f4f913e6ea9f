"""Noising and the three parameterisations: round trips, both ends, and the min-SNR weights as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.diffusion import process, samplers, schedules

KEYS = jax.random.split(jax.random.key(0), 2)
X0 = jax.random.uniform(KEYS[0], (6, 4, 5, 3), minval=-1, maxval=1)
NOISE = jax.random.normal(KEYS[1], X0.shape)
PHI = jnp.array([0.05, 0.3, 0.8, 1.1, 1.4, 1.5])
ALPHA, SIGMA = jnp.cos(PHI), jnp.sin(PHI)


def test_corrupt_mixes_each_sample_at_its_own_level():
  xt = process.corrupt(X0, NOISE, ALPHA, SIGMA)
  for k in range(6):
    np.testing.assert_allclose(xt[k], float(ALPHA[k]) * X0[k] + float(SIGMA[k]) * NOISE[k], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(process.corrupt(X0, NOISE, 0.6, 0.8), 0.6 * X0 + 0.8 * NOISE, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", process.KINDS)
def test_the_true_target_gives_the_image_back(kind):
  xt = process.corrupt(X0, NOISE, ALPHA, SIGMA)
  answer = process.target(X0, NOISE, ALPHA, SIGMA, kind)
  truth = {"x0": X0, "eps": NOISE, "v": ALPHA[:, None, None, None] * NOISE - SIGMA[:, None, None, None] * X0}
  np.testing.assert_allclose(answer, truth[kind], atol=1e-6)
  # 1 / cos(1.5) = 14 multiplies the rounding of x_t.
  np.testing.assert_allclose(process.to_x0(answer, xt, ALPHA, SIGMA, kind), X0, atol=1e-5)


@pytest.mark.parametrize("kind", process.KINDS)
def test_the_ends_are_finite_in_value_and_gradient(kind):
  alpha, sigma = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
  x0, noise = X0[:2], NOISE[:2]
  xt = process.corrupt(x0, noise, alpha, sigma)
  answer = process.target(x0, noise, alpha, sigma, kind)
  value, slope = jax.value_and_grad(lambda p: jnp.sum(process.to_x0(p, xt, alpha, sigma, kind)))(answer)
  assert np.isfinite(value) and np.isfinite(slope).all()
  converted = process.to_x0(answer, xt, alpha, sigma, kind)
  # What the prediction cannot know is 0: the noise says nothing of the image at alpha = 0.
  np.testing.assert_allclose(converted[0], 0 if kind == "eps" else x0[0], atol=1e-6)
  np.testing.assert_allclose(converted[1], x0[1], atol=1e-6)


def test_min_snr_weights_are_the_papers_but_for_v_in_pure_noise():
  snr = (ALPHA / SIGMA) ** 2
  assert snr.max() > 5 > snr.min()  # both sides of the clip are in play
  clipped = np.minimum(snr, 5)
  np.testing.assert_allclose(process.loss_weight(ALPHA, SIGMA, "x0", 5.0), clipped, rtol=1e-5)
  np.testing.assert_allclose(process.loss_weight(ALPHA, SIGMA, "eps", 5.0), clipped / snr, rtol=1e-5)
  np.testing.assert_allclose(process.loss_weight(ALPHA, SIGMA, "v", 5.0), np.minimum(snr + 1, 5) / (snr + 1), rtol=1e-5)
  for kind in process.KINDS:
    np.testing.assert_array_equal(process.loss_weight(ALPHA, SIGMA, kind), np.ones(6))


def test_the_weighted_losses_of_all_kinds_are_the_same_loss_where_there_is_signal():
  # The weights exist so that the same error in x0 costs the same whatever the network predicts; v adds 1 to the SNR.
  snr = (ALPHA / SIGMA) ** 2
  xt = process.corrupt(X0, NOISE, ALPHA, SIGMA)
  wrong = X0 + 0.1
  implied = (xt - ALPHA[:, None, None, None] * wrong) / SIGMA[:, None, None, None]  # noise
  losses = []
  for kind in process.KINDS:
    error = process.target(wrong, implied, ALPHA, SIGMA, kind) - process.target(X0, NOISE, ALPHA, SIGMA, kind)
    losses.append(process.loss_weight(ALPHA, SIGMA, kind, 5.0) * jnp.mean(error**2, axis=(1, 2, 3)))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
  np.testing.assert_allclose(losses[0], losses[2] * np.minimum(snr, 5) / np.minimum(snr + 1, 5), rtol=1e-3)


def test_min_snr_weights_at_the_ends():
  alpha, sigma = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
  expected = {"x0": [0, 5], "eps": [1, 0], "v": [1, 0]}  # limits of min(SNR, 5), / SNR; min(SNR + 1, 5) / (SNR + 1)
  for kind in process.KINDS:
    np.testing.assert_array_equal(process.loss_weight(alpha, sigma, kind, 5.0), expected[kind])


def test_dtype_follows_the_images():
  half = process.corrupt(X0.astype(jnp.bfloat16), NOISE.astype(jnp.bfloat16), ALPHA, SIGMA)
  assert half.dtype == jnp.bfloat16
  assert process.to_x0(NOISE, X0, np.float64(0.5), np.float64(0.5), "v").dtype == jnp.float32


def test_bad_input_is_answered_in_a_sentence():
  for call in (process.target, process.to_x0):
    with pytest.raises(ValueError, match="write one of 'eps', 'x0', 'v'"):
      call(X0, NOISE, ALPHA, SIGMA, "epsilon")
  with pytest.raises(ValueError, match="positive number such as"):
    process.loss_weight(ALPHA, SIGMA, "v", 0.0)


@pytest.mark.parametrize("part", ["tree", "fundus"])
def test_one_ancestral_step_is_the_originals(original, part):
  if f"{part}/x_prev" not in original:
    pytest.skip(f"the arrays of {part} are not part of the project")
  x, step_noise, wanted = (original[f"{part}/{name}"] for name in ("x", "step_noise", "x_prev"))
  output = original[f"{part}/output"][:, :, : x.shape[2], : x.shape[3]]
  schedule, t = schedules.make("paper", int(original[f"{part}/config"][-1])), original[f"{part}/t"]
  now, after = schedule.levels(t), schedule.levels(t - 1)
  x0 = process.to_x0(output, x, *now, "eps")
  stepped = samplers.ddpm_step(x, x0, *now, *after, step_noise)
  np.testing.assert_allclose(stepped, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
