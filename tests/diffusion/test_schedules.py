"""Schedules against the original's arrays, their papers' formulas, and their own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.diffusion import schedules
from retree_jax.diffusion.schedules import Grid, make, time_grid


@pytest.mark.parametrize("part, steps", [("tree", 800), ("fundus", 1000)])
def test_paper_schedule_is_the_originals(original, part, steps):
  beta, alpha_bar = original[f"{part}/beta"], original[f"{part}/alpha_bar"]
  ours = make("paper", steps)
  assert ours.num_steps == steps
  # The original subtracts numbers near 0.02 in float32 (spacing 2e-9) and multiplies 1000 of them up.
  np.testing.assert_allclose(ours.beta, beta, rtol=1e-6, atol=4e-9)
  np.testing.assert_allclose(ours.alpha_bar, alpha_bar, rtol=3e-6)
  np.testing.assert_array_equal(ours.beta.argmin(), beta.argmin())


def test_paper_schedule_has_the_published_values():
  assert make("paper", 800).alpha_bar[-1] == pytest.approx(0.00309, abs=5e-6)
  paper = make("paper", 1000)
  assert paper.beta.argmin() == 64 and paper.beta.min() == pytest.approx(1.2e-6, abs=5e-8)
  quantiles = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9]) * 1000 - 1  # the paper counts its steps from 1
  np.testing.assert_allclose(paper.log_snr(quantiles), [5.52, 5.00, 2.15, -0.47, -3.14, -5.37], atol=0.006)


def test_linear_cosine_and_sigmoid_follow_their_papers():
  linear = make("linear", 1000)
  np.testing.assert_allclose(linear.beta[[0, 500, 999]], [1e-4, 1e-4 + 0.0199 * 500 / 999, 0.02])
  assert linear.alpha_bar[-1] == pytest.approx(4.0e-5, rel=0.02)
  # Half as many steps of twice the size destroy as much.
  assert np.log(make("linear", 500).alpha_bar[-1]) == pytest.approx(np.log(linear.alpha_bar[-1]), rel=0.02)

  i = np.arange(1000)
  f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
  # Only the cap on beta, in the very last step, keeps it from the closed form.
  np.testing.assert_allclose(make("cosine", 1000).alpha_bar[:-1], (f((i + 1) / 1000) / f(0))[:-1], rtol=1e-9)
  assert make("cosine", 1000).beta[-1] == 0.999

  sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
  gamma = (sigmoid(3 / 0.7) - sigmoid((6 * (i + 1) / 1000 - 3) / 0.7)) / (sigmoid(3 / 0.7) - sigmoid(-3 / 0.7))
  np.testing.assert_allclose(make("sigmoid", 1000, tau=0.7).alpha_bar[:-1], gamma[:-1], rtol=1e-9)


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_every_schedule_keeps_its_promises(name, zero, shift):
  made = make(name, 250, zero, shift=shift)
  assert made.beta.shape == made.alpha_bar.shape == (250,)
  assert np.all(np.diff(made.alpha_bar) < 0) and np.all(made.beta > 0) and np.all(made.beta <= 1)
  np.testing.assert_allclose(np.cumprod(1 - made.beta), made.alpha_bar, rtol=1e-9, atol=1e-15)
  assert (made.alpha_bar[-1] == 0) == zero
  alpha, sigma = made.alpha_sigma(jnp.arange(250))
  assert alpha.dtype == sigma.dtype == jnp.float32
  np.testing.assert_allclose(alpha, np.sqrt(made.alpha_bar), rtol=5e-6, atol=1e-7)
  np.testing.assert_allclose(sigma, np.sqrt(1 - made.alpha_bar), rtol=5e-6)
  t = np.linspace(0, 249, 2000)
  alpha, sigma = made.alpha_sigma(t)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=3e-7)
  assert np.all(np.diff(alpha) <= 0) and np.all(np.diff(sigma) >= 0)
  in_numpy = made.levels(t)
  np.testing.assert_allclose(alpha, in_numpy[0], atol=4e-7)
  np.testing.assert_allclose(sigma, in_numpy[1], atol=4e-7)
  ratio = in_numpy[1][:-1] / in_numpy[0][:-1]
  np.testing.assert_allclose(made.time_of(ratio), t[:-1], atol=1e-6)


def test_zero_terminal_snr_is_algorithm_1_and_exact_in_float32():
  plain, zero = make("paper", 800), make("paper", 800, zero_terminal_snr=True)
  root, new = np.sqrt(plain.alpha_bar), np.sqrt(zero.alpha_bar)
  assert new[0] == pytest.approx(root[0], rel=1e-12) and zero.beta[-1] == 1
  np.testing.assert_allclose(np.diff(new) / np.diff(root), root[0] / (root[0] - root[-1]), rtol=1e-6)
  alpha, sigma = zero.alpha_sigma(jnp.array([799, 799.0, 2000]))
  assert np.all(alpha == 0) and np.all(sigma == 1) and zero.log_snr(799) == -np.inf
  assert np.isfinite(zero.log_snr(jnp.array([0.0, 798.99]))).all()


def test_shift_lowers_the_log_snr_by_twice_its_logarithm():
  plain, shifted = make("cosine", 1000), make("cosine", 1000, shift=4.0)
  logit = lambda p: np.log(p) - np.log1p(-p)  # noqa: E731
  np.testing.assert_allclose(logit(plain.alpha_bar) - logit(shifted.alpha_bar), 2 * np.log(4), atol=1e-6)
  both = make("cosine", 1000, True, shift=4.0)
  assert both.alpha_bar[-1] == 0 and both.alpha_bar[500] == pytest.approx(shifted.alpha_bar[500], rel=1e-3)


def test_reading_a_schedule_between_its_steps_is_differentiable_and_jits():
  zero = make("cosine", 100, True)
  slope = jax.vmap(jax.grad(lambda t: zero.alpha_sigma(t)[0]))
  values = slope(jnp.array([0.0, 0.5, 10.3, 98.7, 99.0]))
  assert np.isfinite(values).all() and np.all(values < 0)
  at = 10.3
  step = (zero.levels(at + 1e-4)[0] - zero.levels(at - 1e-4)[0]) / 2e-4
  assert values[2] == pytest.approx(step, rel=1e-4)
  np.testing.assert_allclose(jax.jit(zero.alpha_sigma)(jnp.int32(7))[0], zero.levels(7)[0], rtol=1e-6)
  with jax.enable_x64(True):
    assert zero.alpha_sigma(jnp.float64(3.25))[0].dtype == jnp.float64
    np.testing.assert_allclose(zero.alpha_sigma(jnp.float64(3.25)), zero.levels(3.25), rtol=1e-14)
  assert zero.alpha_sigma(jnp.bfloat16(3))[0].dtype == jnp.float32


def test_full_grid_is_the_papers():
  schedule = make("paper", 800)
  grid = time_grid(schedule, spacing="full")
  assert grid.num_steps == 799
  np.testing.assert_array_equal(grid.t, np.arange(799, -1, -1))
  np.testing.assert_allclose(grid.alpha**2, schedule.alpha_bar[::-1], rtol=1e-12)


def test_trailing_grid_is_lins():
  # Table 2 of arXiv 2305.08891, counted from 1 there: 10 steps of 1000 are 1000, 900, ..., 100.
  grid = time_grid(make("linear", 1000), 10)
  np.testing.assert_array_equal(grid.t[:-1] + 1, np.arange(1000, 0, -100))
  assert grid.alpha[-1] == 1 and grid.sigma[-1] == 0
  np.testing.assert_array_equal(time_grid(make("linear", 1000), 1000).t[:-1], np.arange(999, -1, -1))
  assert time_grid(make("linear", 1000), 1).t[0] == 999


def test_trailing_fine_grid_ends_evenly_in_log_snr():
  schedule = make("cosine", 1000, True)
  grid = time_grid(schedule, 11, "trailing_fine")
  np.testing.assert_array_equal(grid.t[:8], time_grid(schedule, 8).t[:8])
  np.testing.assert_allclose(np.diff(np.log(grid.ratio[7:11])), np.log(0.01 / grid.ratio[7]) / 3, rtol=1e-6)
  assert grid.ratio[10] == pytest.approx(0.01) and grid.ratio[11] == 0
  assert time_grid(schedule, 6, "trailing_fine", sigma_min=0.05).ratio[5] == pytest.approx(0.05)
  for steps in (1, 2):  # too few to share
    np.testing.assert_array_equal(time_grid(schedule, steps, "trailing_fine").t, time_grid(schedule, steps).t)


@pytest.mark.parametrize("zero", [False, True])
def test_logsnr_and_karras_grids(zero):
  schedule = make("cosine", 1000, zero)
  first = schedule.levels(0.0)
  grid = time_grid(schedule, 12, "logsnr", sigma_max=50, sigma_min=0.03)
  np.testing.assert_allclose(grid.ratio[[0, -2, -1]], [50, 0.03, 0], rtol=1e-6)
  np.testing.assert_allclose(np.diff(np.log(grid.ratio[:-1])), np.log(0.03 / 50) / 11, rtol=1e-6)
  karras = time_grid(schedule, 18, "karras")
  assert karras.ratio[0] == pytest.approx(80) and karras.ratio[-2] == pytest.approx(first[1] / first[0])
  np.testing.assert_allclose(np.diff(karras.ratio[:-1] ** (1 / 7), 2), 0, atol=1e-6)
  # The network is told the time of exactly the level that the sampler is at.
  alpha, sigma = schedule.alpha_sigma(karras.t[:-1])
  np.testing.assert_allclose(sigma / alpha, karras.ratio[:-1], rtol=2e-5)


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: make("quadratic", 100), "unknown; write one of 'paper', 'linear', 'cosine', 'sigmoid'"),
    (lambda: make("paper", 1), "a whole number of timesteps, at least 2, not 1"),
    (lambda: make("paper", 100.5), "a whole number of timesteps, at least 2, not 100.5"),
    (lambda: make("paper", 100, beta_max=1), "its options are beta_start, beta_end"),
    (lambda: make("cosine", 100, shift=0), "schedule shift is 0; write a positive number"),
    (lambda: make("linear", 100, beta_start=-1.0, beta_end=0.1), "does not add noise"),
    (lambda: make("paper", 100, beta_end=3.0), "does not add noise"),
    (lambda: make("sigmoid", 100, start=3.0, end=3.0), "does not add noise"),
    (lambda: time_grid(make("paper", 100), 10, "evenly"), "unknown; write one of 'full', 'trailing'"),
    (lambda: time_grid(make("paper", 100), 10, "full"), "has 99 steps, not 10"),
    (lambda: time_grid(make("paper", 100), 101), "more than the schedule's 100"),
    (lambda: time_grid(make("paper", 100), 0, "karras"), "sampling steps must be a whole number, at least 1, not 0"),
    (lambda: time_grid(make("paper", 100)), "at least 1, not None"),
    (lambda: time_grid(make("paper", 100), 5, "karras", sigma_max=1e-5), "no grid falls"),
    (lambda: time_grid(make("paper", 100), 5, "karras", rho=0.0), "no grid falls"),
    (lambda: Grid(np.arange(2), np.arange(2), np.arange(3)), "as 1-D arrays of one length"),
    (lambda: Grid([1, 0], [1.0, 0.0], [0.0, 1.0]), "must fall at every step"),
    (lambda: Grid([1, 0], [np.nan, 1.0], [1.0, 0.0]), "must fall at every step"),
  ],
)
def test_bad_input_is_answered_in_a_sentence(call, words):
  with pytest.raises(ValueError, match=words):
    call()
