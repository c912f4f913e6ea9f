"""Samplers against exact answers: Gaussian and mixture denoisers, the published algorithms, orders of convergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import keys
from retree_jax.diffusion import samplers
from retree_jax.diffusion.schedules import Grid, make, time_grid

SHAPE = (3, 4, 4, 1)
MEANS = np.array([-0.6, 0.5])  # of the two classes of pixels in the mixture
SPREAD = 0.2


@pytest.fixture(autouse=True)
def float64():
  """Orders of convergence and published updates are compared far below float32's rounding."""
  with jax.enable_x64(True):
    yield


def noise(seed=0, shape=SHAPE):
  return np.random.default_rng(seed).standard_normal(shape)


def start_keys(n=3):
  return keys.per_sample(0, np.arange(n), "sampling noise")


def drawn(step, n=3, shape=SHAPE[1:]):
  """z of step `step` as promised: normal(fold_in(keys[k], step))."""
  return np.stack([jax.random.normal(jax.random.fold_in(k, step), shape, jnp.float64) for k in start_keys(n)])


def gaussian(schedule, mean=0.3, spread=0.5):
  """The exact E[x0 | x_t] for pixels that are N(mean, spread**2) each."""

  def predict_x0(x, t):
    alpha, sigma = (level[:, None, None, None] for level in schedule.alpha_sigma(t.astype(jnp.float64)))
    return mean + alpha * spread**2 * (x - alpha * mean) / (alpha**2 * spread**2 + sigma**2)

  return predict_x0


def mixture(schedule):
  """The exact E[x0 | x_t] for pixels from two equal Gaussians: what a denoiser of dark and bright pixels does."""

  def predict_x0(x, t):
    alpha, sigma = (level[:, None, None, None, None] for level in schedule.alpha_sigma(t.astype(jnp.float64)))
    variance = alpha**2 * SPREAD**2 + sigma**2
    off = x[..., None] - alpha * MEANS
    share = jax.nn.softmax(-(off**2) / (2 * variance), axis=-1)
    return jnp.sum(share * (MEANS + alpha * SPREAD**2 * off / variance), axis=-1)

  return predict_x0


def mixture_flow(x, start, end):
  """The probability-flow ODE's map from level `start` to `end`: it keeps the mixture's quantiles."""
  from scipy import optimize, stats

  def cdf(x, alpha, sigma):
    return stats.norm.cdf(x[..., None], alpha * MEANS, np.sqrt(alpha**2 * SPREAD**2 + sigma**2)).mean(-1)

  wanted = cdf(x, *start)
  find = np.vectorize(lambda p: optimize.brentq(lambda y: cdf(np.array(y), *end) - p, -3, 3, xtol=1e-13))
  return find(wanted)


def smooth_grid(schedule, num_steps, first=900.0, last=100.0):
  """Levels evenly in log-SNR between two interior times, where the order of a method can be seen."""
  alpha, sigma = schedule.levels(np.array([first, last]))
  ratio = np.geomspace(sigma[0] / alpha[0], sigma[1] / alpha[1], num_steps + 1)
  return Grid(schedule.time_of(ratio), 1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2), schedule)


class Exact:
  """A schedule without interpolation: t is the angle in units of pi/2, so levels are exact at every t."""

  def alpha_sigma(self, t):
    return jnp.cos(t * jnp.pi / 2), jnp.sin(t * jnp.pi / 2)

  def levels(self, t):
    return np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)

  def time_of(self, ratio):
    return np.arctan(ratio) * 2 / np.pi


@pytest.mark.parametrize(
  "name, order, steps, options",
  [
    ("ddim", 1, (16, 32, 64), {}),
    ("dpmpp_2m", 2, (16, 32, 64), {}),
    ("dpmpp_2m", 2, (16, 32, 64), {"lower_order_final": False}),
    ("heun", 2, (16, 32, 64), {}),
  ],
)
def test_order_of_convergence(name, order, steps, options):
  schedule = Exact()
  x = np.linspace(-2, 2, 48).reshape(SHAPE)
  first, last = 0.93, 0.1
  start, end = schedule.levels(first), schedule.levels(last)
  predict = mixture(schedule)
  exact = mixture_flow(x, start, end)
  errors = []
  for n in steps:
    grid = smooth_grid(schedule, n, first, last)
    out = jax.jit(functools.partial(samplers.sample, name, predict, grid=grid, **options))(x=jnp.asarray(x))
    errors.append(np.sqrt(np.mean((out - exact) ** 2)))
  slopes = -np.diff(np.log(errors)) / np.diff(np.log(steps))
  assert slopes[-1] == pytest.approx(order, abs=0.2)
  assert errors[-1] < (0.02 if order == 1 else 0.003)


# --- the published algorithms, step by step in numpy ------------------------------------------------------------------


def numpy_ddpm(predict, x, schedule, variance):
  """Ho et al. 2006.11239, algorithm 2, in terms of beta, alpha and alpha_bar of the schedule; from T-1 to 1."""
  beta, alpha_bar = schedule.beta, schedule.alpha_bar
  for step, i in enumerate(range(schedule.num_steps - 1, 0, -1)):
    x0 = predict(x, i)
    eps = (x - np.sqrt(alpha_bar[i]) * x0) / np.sqrt(1 - alpha_bar[i])
    x = (x - beta[i] / np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(1 - beta[i])
    if i > 1:
      noise_variance = beta[i]
      if variance == "posterior":  # eq. 7
        noise_variance *= (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i])
      x = x + np.sqrt(noise_variance) * drawn(step)
  return x


def numpy_ddim(predict, x, grid, eta):
  """Song et al. 2010.02502, eq. 12 with sigma of eq. 16; their alpha is alpha_bar."""
  bar = grid.alpha**2
  for i in range(grid.num_steps):
    a, b = bar[i], bar[i + 1]
    sigma = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
    eps = (x - np.sqrt(a) * predict(x, grid.t[i])) / np.sqrt(1 - a)
    x = np.sqrt(b) * (x - np.sqrt(1 - a) * eps) / np.sqrt(a) + np.sqrt(1 - b - sigma**2) * eps + sigma * drawn(i)
  return x


def numpy_dpmpp_2m(predict, x, grid, lower_order_final):
  """Lu et al. 2211.01095, algorithm 2, in lambda = log(alpha / sigma); to a level above 0."""
  a, s = grid.alpha, grid.sigma
  lam = np.log(a / s)
  before = None
  for i in range(1, grid.num_steps + 1):
    h = lam[i] - lam[i - 1]
    x0 = predict(x, grid.t[i - 1])
    d = x0
    if i > 1 and not (lower_order_final and i == grid.num_steps):
      r = (lam[i - 1] - lam[i - 2]) / h
      d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
    x = s[i] / s[i - 1] * x - a[i] * np.expm1(-h) * d
    before = x0
  return x


def numpy_heun(predict, x, grid, schedule, churn):
  """Karras et al. 2206.00364, algorithm 2, on their image x / alpha and noise level u; S_noise = 1."""
  level = grid.sigma / grid.alpha
  x = x / grid.alpha[0]
  for i in range(grid.num_steps):
    gamma = min(churn / grid.num_steps, np.sqrt(2) - 1)
    hat = level[i] * (1 + gamma)
    x = x + np.sqrt(hat**2 - level[i] ** 2) * drawn(i)
    at = lambda u: schedule.levels(schedule.time_of(u))[0]  # noqa: E731  alpha at a level
    d = (x - predict(at(hat) * x, schedule.time_of(hat))) / hat
    after = x + (level[i + 1] - hat) * d
    if level[i + 1] > 0:
      u = level[i + 1]
      d_after = (after - predict(at(u) * after, schedule.time_of(u))) / u
      after = x + (level[i + 1] - hat) * (d + d_after) / 2
    x = after
  return x * grid.alpha[-1]


def numpy_predict(schedule):
  """`mixture` for numpy images and one time."""
  predict = jax.jit(mixture(schedule))
  return lambda x, t: np.asarray(predict(x, np.full(x.shape[0], t, np.float64)))


@pytest.mark.parametrize("variance", samplers.VARIANCES)
def test_ddpm_is_algorithm_2_on_the_papers_grid(variance):
  schedule = make("paper", 25, beta_end=0.3)
  out = samplers.ddpm(
    mixture(schedule), jnp.asarray(noise()), time_grid(schedule, spacing="full"), start_keys(), variance=variance
  )
  wanted = numpy_ddpm(numpy_predict(schedule), noise(), schedule, variance)
  # The first level, alpha_bar = 1 - 1e-4, is taken for the image.
  np.testing.assert_allclose(out, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_equation_12(eta):
  schedule = make("cosine", 40)
  grid = time_grid(schedule, 7)
  out = samplers.ddim(mixture(schedule), jnp.asarray(noise()), grid, start_keys(), eta=eta)
  np.testing.assert_allclose(out, numpy_ddim(numpy_predict(schedule), noise(), grid, eta), rtol=1e-8, atol=1e-9)


def test_ddim_with_eta_1_is_ancestral_sampling_with_the_posteriors_variance():
  schedule = make("linear", 40)
  t = np.array([39.0, 20.0, 2.0])
  levels = *schedule.levels(t), *schedule.levels(t - np.array([1, 10, 2]))
  x, x0, z = noise(0), noise(1), noise(2)
  np.testing.assert_allclose(
    samplers.ddim_step(x, x0, *levels, z, eta=1.0), samplers.ddpm_step(x, x0, *levels, z, "posterior"), rtol=1e-9
  )
  np.testing.assert_allclose(samplers.ddim_step(x, x0, *levels, eta=1.0), samplers.ddpm_step(x, x0, *levels), rtol=1e-9)


@pytest.mark.parametrize("lower_order_final", [True, False])
def test_dpmpp_2m_is_algorithm_2(lower_order_final):
  schedule = make("cosine", 40)
  grid = smooth_grid(schedule, 6, 38.0, 1.0)
  out = samplers.dpmpp_2m(mixture(schedule), jnp.asarray(noise()), grid, lower_order_final=lower_order_final)
  wanted = numpy_dpmpp_2m(numpy_predict(schedule), noise(), grid, lower_order_final)
  np.testing.assert_allclose(out, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("churn", [0.0, 3.0, 1000.0])
def test_heun_is_edms_algorithm_2(churn):
  schedule = Exact()
  ratio = np.append(np.geomspace(50, 0.05, 6), 0)
  grid = Grid(schedule.time_of(ratio), 1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2), schedule)
  out = samplers.heun(mixture(schedule), jnp.asarray(noise()), grid, start_keys(), churn=churn)
  wanted = numpy_heun(numpy_predict(schedule), noise(), grid, schedule, churn)
  np.testing.assert_allclose(out, wanted, rtol=1e-8, atol=1e-9)


# --- what they sample, and from where ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "name, spacing, steps, options",
  [
    ("ddpm", "full", None, {}),
    ("ddpm", "trailing", 60, {"variance": "posterior"}),
    ("ddim", "trailing", 60, {}),
    ("ddim", "trailing", 60, {"eta": 1.0}),
    ("dpmpp_2m", "trailing", 20, {}),
    ("dpmpp_2m", "logsnr", 20, {}),
    ("heun", "karras", 18, {}),
    ("heun", "karras", 40, {"churn": 10.0}),
  ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_a_gaussian_is_sampled_from_pure_noise(name, spacing, steps, options, zero):
  # N(0.3, 0.5^2) must come out of N(0, 1), on every grid, whether or not the schedule ends in pure noise.
  schedule = make("cosine", 200, zero)
  grid = time_grid(schedule, steps, spacing)
  shape = (2, 64, 64, 1)
  out = np.asarray(samplers.sample(name, gaussian(schedule), jnp.asarray(noise(1, shape)), grid, start_keys(2), **options))
  error = 4 * 0.5 / np.sqrt(out.size)
  assert out.mean() == pytest.approx(0.3, abs=error + 0.005)
  assert out.std() == pytest.approx(0.5, abs=error + 0.012)
  assert np.isfinite(out).all()


def test_one_step_is_the_estimate_of_the_image():
  schedule = make("cosine", 50, True)
  x = jnp.asarray(noise())
  estimate = gaussian(schedule)(x, jnp.full(3, 49.0))
  for name in samplers.NAMES:
    out = samplers.sample(name, gaussian(schedule), x, time_grid(schedule, 1), start_keys())
    np.testing.assert_allclose(out, estimate, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", samplers.NAMES)
def test_memory_does_not_grow_with_the_number_of_steps(name):
  schedule = make("cosine", 1000)
  x = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)

  def temporary(steps):
    run = jax.jit(lambda x, k: samplers.sample(name, gaussian(schedule), x, time_grid(schedule, steps), k))
    return run.lower(x, start_keys(2)).compile().memory_analysis().temp_size_in_bytes

  picture = 2 * 32 * 32 * 4
  few, many = temporary(4), temporary(400)
  # The levels themselves are up to 10 numbers per step; a picture per step would be 400 * 8192 bytes.
  assert many - few <= 400 * 80 and few < 40 * picture


@pytest.mark.parametrize("name, options", [("ddpm", {}), ("ddim", {"eta": 1.0}), ("heun", {"churn": 2.0})])
def test_a_sample_depends_on_its_own_noise_and_key_alone(name, options):
  schedule = make("cosine", 30)
  run = jax.jit(lambda x, k: samplers.sample(name, gaussian(schedule), x, time_grid(schedule, 5), k, **options))
  x, k = jnp.asarray(noise(), jnp.float32), start_keys()
  out = run(x, k)
  order = jnp.array([2, 0, 1])
  np.testing.assert_array_equal(run(x[order], k[order]), out[order])
  assert out.dtype == jnp.float32
  half = run(x.astype(jnp.bfloat16), k)
  assert half.dtype == jnp.float32  # arithmetic is not left to what the noise came in


# --- clipping, guidance, options --------------------------------------------------------------------------------------


def test_thresholds():
  x0 = np.stack([np.linspace(-0.5, 0.5, 201), np.linspace(-4, 4, 201)])[:, :, None, None]
  np.testing.assert_array_equal(samplers.threshold(x0), x0)
  np.testing.assert_array_equal(samplers.threshold(x0, "static"), np.clip(x0, -1, 1))
  dynamic = samplers.threshold(x0, "dynamic", 0.9)
  np.testing.assert_allclose(dynamic[0], x0[0])  # nothing beyond 1: nothing to do
  limit = np.quantile(np.abs(x0[1]), 0.9)
  np.testing.assert_allclose(dynamic[1], np.clip(x0[1], -limit, limit) / limit)
  for clip, percentile in (("hard", 0.9), ("dynamic", 0.0), ("dynamic", 1.5)):
    with pytest.raises(ValueError, match="write clip as one of 'none', 'static', 'dynamic'"):
      samplers.threshold(x0, clip, percentile)


@pytest.mark.parametrize("name", samplers.NAMES)
def test_clipped_estimates_keep_samples_in_range(name):
  schedule = make("cosine", 50, True)
  wild = lambda x, t: 3 * jnp.sign(x)  # noqa: E731
  x = jnp.asarray(noise())
  for clip in ("static", "dynamic"):
    out = samplers.sample(name, wild, x, time_grid(schedule, 4), start_keys(), clip=clip)
    assert np.abs(out).max() <= 1 + 1e-9
  free = samplers.sample(name, wild, x, time_grid(schedule, 4), start_keys())
  assert np.abs(free).max() > 2


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda p, x, g: samplers.sample("euler", p, x, g), "write one of 'ddpm', 'ddim', 'dpmpp_2m', 'heun'"),
    (lambda p, x, g: samplers.sample("ddim", p, x, g, variance="beta"), "its options are eta, clip, percentile"),
    (lambda p, x, g: samplers.sample("heun", p, x, g, churn=-1.0), "churn is -1.0"),
    (lambda p, x, g: samplers.ddpm(p, x, g), "needs one key per sample, 3 here"),
    (lambda p, x, g: samplers.ddpm(p, x, g, start_keys(2)), "needs one key per sample, 3 here"),
    (lambda p, x, g: samplers.heun(p, x, g, churn=1.0), "heun with churn draws noise"),
    (lambda p, x, g: samplers.heun(p, x, Grid(g.t, g.alpha, g.sigma), start_keys(), churn=1.0), "levels between"),
    (lambda p, x, g: samplers.ddim(p, x, g, eta=1.5), "eta is 1.5"),
    (lambda p, x, g: samplers.ddpm(p, x, g, start_keys(), variance="learned"), "write one of 'beta', 'posterior'"),
    (lambda p, x, g: samplers.dpmpp_2m(p, x, g, clip="hard"), "not a valid thresholding"),
  ],
)
def test_bad_options_are_answered_in_a_sentence(call, words):
  schedule = make("cosine", 10)
  with pytest.raises(ValueError, match=words):
    call(gaussian(schedule), jnp.asarray(noise()), samplers.time_grid(schedule, 3))
