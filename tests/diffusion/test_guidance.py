"""Guidance and shifted time steps against the published formulas and exact denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.diffusion import guidance, samplers
from retree_jax.diffusion.schedules import make, time_grid
from tests.diffusion.test_samplers import float64, noise  # noqa: F401


def test_guidance_is_the_published_mixture_and_counts_its_calls():
  calls = []

  def cond(x, t):
    calls.append("cond")
    return x + 1

  def uncond(x, t):
    calls.append("uncond")
    return x - 1

  x, t = jnp.zeros((3, 2, 2, 1)), jnp.array([1.0, 5.0, 9.0])
  assert guidance.guided(cond, uncond, 1.0) is cond
  np.testing.assert_array_equal(guidance.guided(cond, uncond, 0.0)(x, t), -1)
  np.testing.assert_array_equal(guidance.guided(cond, uncond, 3.0)(x, t), -1 + 3 * 2)
  within = guidance.guided(cond, uncond, 3.0, (5, 8))(x, t)
  np.testing.assert_array_equal(within[:, 0, 0, 0], [1, 5, 1])
  with pytest.raises(ValueError, match="guidance interval \\(8, 5\\) is empty"):
    guidance.guided(cond, uncond, 3.0, (8, 5))

  ran = []
  spy = lambda x, t: (jax.debug.callback(ran.append, t[0]), uncond(x, t))[1]  # noqa: E731
  schedule = make("linear", 100)
  grid = time_grid(schedule, 10)
  jax.block_until_ready(samplers.ddim(guidance.guided(cond, spy, 2.0, (30, 60)), x, grid))
  jax.effects_barrier()
  assert sorted(map(float, ran)) == [t for t in sorted(grid.t[:-1]) if 30 <= t <= 60]


def test_a_shifted_time_step_leaves_more_texture():
  """White noise of standard deviation 0.1 as data, with its exact denoiser."""
  schedule = make("cosine", 1000, zero_terminal_snr=True)
  told = []

  def denoise(x, t):
    told.append(t)
    alpha, sigma = (level[:, None, None, None] for level in schedule.alpha_sigma(t))
    return alpha * 0.01 / (alpha**2 * 0.01 + sigma**2) * x

  t = jnp.array([900.0, 300.0, 200.0])
  guidance.shifted(denoise, 0.9, 300.0)(jnp.ones((3, 1, 1, 1)), t)
  np.testing.assert_allclose(told[0], [900, 270, 180], rtol=1e-6)
  x, grid = jnp.asarray(noise()), time_grid(schedule, 10, spacing="trailing_fine")
  spread = [float(jnp.std(samplers.dpmpp_2m(guidance.shifted(denoise, f, 300.0), x, grid))) for f in (1.0, 0.95, 0.9)]
  assert spread[0] < 1.02 * spread[1] < 1.04 * spread[2]
  np.testing.assert_array_equal(
    samplers.dpmpp_2m(guidance.shifted(denoise, 1.0, 300.0), x, grid), samplers.dpmpp_2m(denoise, x, grid)
  )


def test_guiding_x0_is_guiding_the_noise():
  alpha, sigma, scale = 0.6, 0.8, 2.5
  x, a, b = noise(), noise(1), noise(2)
  x0 = guidance.guided(lambda x, t: a, lambda x, t: b, scale)(x, None)
  eps = lambda x0: (x - alpha * x0) / sigma  # noqa: E731
  np.testing.assert_allclose(eps(x0), eps(b) + scale * (eps(a) - eps(b)), rtol=1e-10)
