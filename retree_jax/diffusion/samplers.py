"""Samplers: from noise to images with a network that estimates the clean image.

All four take `predict_x0(x [B, H, W, C], t [B]) -> x0 [B, H, W, C]`, noise x [B, H, W, C], a `Grid` of noise levels and, where
they draw noise, one key per sample. Each is one `lax.scan` that carries the current image (`dpmpp_2m` also the last estimate),
so memory does not depend on the number of steps, and compiles into whatever jitted function calls it. Arithmetic is in float32,
or in float64 for a float64 x, whatever the network computes in.

The noise of sample k in step i is `normal(fold_in(keys[k], i))`: the same at any batch size, on any devices.

Notation, for a step from level t to the less noisy level s: x_t = alpha_t x0 + sigma_t eps, the ratio sigma / alpha (EDM's
sigma) and the half log-SNR lambda = log(alpha / sigma). Coefficients are computed in NumPy and float64 before compilation: for
one step of a 1000-step grid, 1 - alpha_t**2 / alpha_s**2 has few correct digits in float32.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax.diffusion.process import expand
from retree_jax.diffusion.schedules import Grid
from retree_jax.diffusion.schedules import time_grid as time_grid  # samplers.time_grid, beside its readers
from retree_jax.keys import at_step, normal

Predict = Callable[[jax.Array, jax.Array], jax.Array]

CLIPS = ("none", "static", "dynamic")
VARIANCES = ("beta", "posterior")


def guided(
  predict_cond: Predict, predict_uncond: Predict, scale: float, interval: tuple[float, float] | None = None
) -> Predict:
  """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598, eq. 6): uncond + scale (cond - uncond).

  It is the same rule for x0, eps and v, since each is linear in the others at one noise level.

  Args:
    predict_cond, predict_uncond: `predict_x0` with and without the condition.
    scale: 1 is no guidance, and then `predict_uncond` is never called; 0 ignores the condition.
    interval: (first, last) timesteps, both included, outside which the scale is 1 and, when a whole batch is outside,
      `predict_uncond` is not computed (Kynkäänniemi et al., arXiv 2404.07724). None guides everywhere.

  Raises:
    ValueError: the interval is empty.
  """
  if interval is not None and not interval[0] <= interval[1]:
    raise ValueError(f"guidance interval {interval} is empty; write (smallest, largest) timestep.")
  if scale == 1:
    return predict_cond

  def blend(x, t):
    cond = predict_cond(x, t)
    mixed = predict_uncond(x, t)
    mixed = mixed + scale * (cond - mixed)
    return mixed if interval is None else jnp.where(expand(inside(t), x) > 0, mixed, cond)

  def inside(t):
    return (t >= interval[0]) & (t <= interval[1])

  if interval is None:
    return blend
  return lambda x, t: jax.lax.cond(jnp.any(inside(t)), blend, predict_cond, x, t)


def threshold(x0: jax.Array, clip: str = "none", percentile: float = 0.995) -> jax.Array:
  """Keeps estimates of x0 [B, ...] within [-1, 1].

  "static" clips. "dynamic" divides each sample by the given percentile (in (0, 1]) of its absolute values
  where that exceeds 1, after clipping to it (Saharia et al., arXiv 2205.11487, section 2.3), which keeps
  guided samples from saturating. "none" returns x0. ValueError for anything else.
  """
  if clip not in CLIPS or not 0 < percentile <= 1:
    raise ValueError(
      f"clip {clip!r} with percentile {percentile} is no thresholding; write clip as one of "
      f"{', '.join(map(repr, CLIPS))} and percentile in (0, 1]."
    )
  if clip == "none":
    return x0
  if clip == "static":
    return jnp.clip(x0, -1, 1)
  limit = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
  limit = expand(jnp.maximum(limit, 1), x0)
  return jnp.clip(x0, -limit, limit) / limit


def _begin(predict_x0: Predict, x: jax.Array, clip: str, percentile: float) -> tuple[jax.Array, Predict]:
  """x in the sampler's dtype, and the estimate of x0 at one timestep, thresholded, in that dtype."""
  x = jnp.asarray(x)
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def denoise(x, t):
    x0 = predict_x0(x, jnp.broadcast_to(t, x.shape[:1])).astype(x.dtype)
    return threshold(x0, clip, percentile)

  return x, denoise


def _noise_source(keys: jax.Array | None, x: jax.Array, who: str) -> Callable[[jax.Array], jax.Array]:
  """step -> noise of x's shape from the samples' keys; ValueError if there is not one key per sample."""
  if keys is None or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != x.shape[:1]:
    raise ValueError(
      f"{who} draws noise and needs one key per sample, {x.shape[0]} here; write "
      "keys=retree_jax.keys.per_sample(seed, indices, name)."
    )
  return lambda i: normal(jax.vmap(at_step, (0, None))(keys, i), x.shape[1:], x.dtype)


def _per_step(x: jax.Array, **columns: np.ndarray) -> dict[str, jax.Array]:
  """Columns [n] for the scan to run over, in x's dtype (booleans as they are), and the step's number i."""
  ready = {k: jnp.asarray(v, bool if v.dtype == bool else x.dtype) for k, v in columns.items()}
  return ready | {"i": jnp.arange(len(next(iter(columns.values()))), dtype=jnp.int32)}


def _linear(predict_x0, x, grid, coefficients, keys, who, clip, percentile):
  """Scan of steps x <- keep x + add x0 + spread z, which is what DDPM and DDIM are."""
  x, denoise = _begin(predict_x0, x, clip, percentile)
  keep, add, spread = coefficients
  draw = _noise_source(keys, x, who) if np.any(spread) else None

  def step(x, at):
    x = at["keep"] * x + at["add"] * denoise(x, at["t"])
    return (x if draw is None else x + at["spread"] * draw(at["i"])), None

  return jax.lax.scan(step, x, _per_step(x, t=grid.t[:-1], keep=keep, add=add, spread=spread))[0]


def _exact(level: np.ndarray) -> np.ndarray:
  return np.asarray(level, np.float64)


def _ddpm_coefficients(alpha, sigma, alpha_next, sigma_next, variance):
  """(keep, add, spread) of `ddpm_step`, float64."""
  if variance not in VARIANCES:
    raise ValueError(f"variance {variance!r} is unknown; write one of {', '.join(map(repr, VARIANCES))}.")
  alpha, sigma, alpha_next, sigma_next = map(_exact, (alpha, sigma, alpha_next, sigma_next))
  gain = alpha / alpha_next
  beta = 1 - gain**2
  share = sigma_next / sigma
  return gain * share**2, alpha_next * beta / sigma**2, np.sqrt(beta) * (1 if variance == "beta" else share)


def ddpm_step(
  x: jax.Array,
  x0: jax.Array,
  alpha: np.ndarray,
  sigma: np.ndarray,
  alpha_next: np.ndarray,
  sigma_next: np.ndarray,
  noise: jax.Array | None = None,
  variance: str = "beta",
) -> jax.Array:
  """One ancestral step (Ho et al., arXiv 2006.11239, eq. 7 and algorithm 2), written for x0: alpha may be 0.

      x_s = (g sigma_s**2 / sigma_t**2) x_t + (alpha_s beta / sigma_t**2) x0 + spread z,
      g = alpha_t / alpha_s,  beta = 1 - g**2

  With x0 = (x_t - sigma_t eps) / alpha_t and neighbouring timesteps this is the paper's
  (x_t - beta / sigma_t eps) / sqrt(1 - beta) + sqrt(beta) z.

  Args:
    x, x0: [B, H, W, C] image at level t and the estimate of the clean one.
    alpha, sigma, alpha_next, sigma_next: levels t and s, known numbers (not traced), [] or [B].
    noise: z, or None for the last step, which adds none.
    variance: of the noise, "beta" (the paper's) or "posterior", beta sigma_s**2 / sigma_t**2, right for few
      steps.
  """
  keep, add, spread = _ddpm_coefficients(alpha, sigma, alpha_next, sigma_next, variance)
  mean = expand(keep, x) * x + expand(add, x) * x0
  return mean if noise is None else mean + expand(spread, x) * noise


def ddpm(
  predict_x0: Predict,
  x: jax.Array,
  grid: Grid,
  keys: jax.Array | None = None,
  *,
  variance: str = "beta",
  clip: str = "none",
  percentile: float = 0.995,
) -> jax.Array:
  """Ancestral sampling, `ddpm_step` after step, no noise in the last; exactly the paper's on its "full" grid.

  Args, as for every sampler here:
    predict_x0: (x [B, H, W, C], t [B]) -> estimate of the clean images.
    x: [B, H, W, C] standard normal noise, e.g. `keys.normal(keys.per_sample(...), (H, W, C))` from a stream
      other than that of `keys`.
    grid: from `time_grid`.
    keys: [B] typed keys; step i of sample k draws from fold_in(keys[k], i).
    clip, percentile: see `threshold`.
    variance: see `ddpm_step`. On grids of few steps write "posterior".

  Returns:
    [B, H, W, C] samples, not clipped beyond what `clip` does.

  Raises:
    ValueError: keys missing or not one per sample, or an unknown option value.
  """
  keep, add, spread = _ddpm_coefficients(grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:], variance)
  spread[-1] = 0
  return _linear(predict_x0, x, grid, (keep, add, spread), keys, "ddpm", clip, percentile)


def _ddim_coefficients(alpha, sigma, alpha_next, sigma_next, eta):
  """(keep, add, spread) of `ddim_step`, float64."""
  if not 0 <= eta <= 1:
    raise ValueError(f"eta is {eta}; write a number from 0 (no noise) to 1 (as much as ancestral sampling).")
  alpha, sigma, alpha_next, sigma_next = map(_exact, (alpha, sigma, alpha_next, sigma_next))
  _, _, posterior = _ddpm_coefficients(alpha, sigma, alpha_next, sigma_next, "posterior")
  spread = eta * posterior
  keep = np.sqrt(np.maximum(sigma_next**2 - spread**2, 0)) / sigma
  return keep, alpha_next - keep * alpha, spread


def ddim_step(
  x: jax.Array,
  x0: jax.Array,
  alpha: np.ndarray,
  sigma: np.ndarray,
  alpha_next: np.ndarray,
  sigma_next: np.ndarray,
  noise: jax.Array | None = None,
  eta: float = 0.0,
) -> jax.Array:
  """One DDIM step (Song et al., arXiv 2010.02502, eq. 12 and 16); arguments as for `ddpm_step`.

      x_s = alpha_s x0 + sqrt(sigma_s**2 - spread**2) eps + spread z,  eps = (x_t - alpha_t x0) / sigma_t,
      spread = eta (sigma_s / sigma_t) sqrt(1 - alpha_t**2 / alpha_s**2)

  Where x0 was clipped eps is the noise that belongs to the clipped image.
  """
  keep, add, spread = _ddim_coefficients(alpha, sigma, alpha_next, sigma_next, eta)
  mean = expand(keep, x) * x + expand(add, x) * x0
  return mean if noise is None else mean + expand(spread, x) * noise


def ddim(
  predict_x0: Predict,
  x: jax.Array,
  grid: Grid,
  keys: jax.Array | None = None,
  *,
  eta: float = 0.0,
  clip: str = "none",
  percentile: float = 0.995,
) -> jax.Array:
  """DDIM, `ddim_step` after step; arguments as for `ddpm`. Only eta > 0 needs keys; 1 is ancestral noise."""
  coefficients = _ddim_coefficients(grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:], eta)
  return _linear(predict_x0, x, grid, coefficients, keys, "ddim with eta > 0", clip, percentile)


def dpmpp_2m(
  predict_x0: Predict,
  x: jax.Array,
  grid: Grid,
  keys: jax.Array | None = None,
  *,
  lower_order_final: bool = True,
  clip: str = "none",
  percentile: float = 0.995,
) -> jax.Array:
  """DPM-Solver++(2M), deterministic: Lu et al., arXiv 2211.01095, algorithm 2; arguments as for `ddpm`.

      D = (1 + 1 / 2r) x0(x_t) - 1 / 2r (the x0 before),  r = h_before / h,  h = lambda_s - lambda_t
      x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) D

  The first step is of first order (D = x0), as in the paper; so is a last step to sigma = 0, where h is
  infinite, and with `lower_order_final` any last step, as in the authors' code for few steps. From alpha = 0,
  where h is infinite too, the formulas hold in the limit: 1 / 2r = 0 for the step after. `keys` is accepted
  and not used.
  """
  del keys
  x, denoise = _begin(predict_x0, x, clip, percentile)
  keep = grid.sigma[1:] / grid.sigma[:-1]
  add = grid.alpha[1:] - keep * grid.alpha[:-1]  # -alpha_s (exp(-h) - 1), finite at both ends
  with np.errstate(divide="ignore", invalid="ignore"):
    h = np.diff(-np.log(grid.ratio))
    extra = np.append(0, h[1:] / (2 * h[:-1]))  # 1 / 2r
  if lower_order_final or grid.sigma[-1] == 0:
    extra[-1] = 0

  def step(carry, at):
    x, before = carry
    x0 = denoise(x, at["t"])
    x = at["keep"] * x + at["add"] * (x0 + at["extra"] * (x0 - before))
    return (x, x0), None

  columns = _per_step(x, t=grid.t[:-1], keep=keep, add=add, extra=extra)
  return jax.lax.scan(step, (x, jnp.zeros_like(x)), columns)[0][0]


# Above this sigma / alpha an image counts as pure noise and Heun's step from it is of first order. EDM starts
# at 80; the trapezoid rule from, say, 40000 (a cosine schedule's end) to 10 would be far worse than Euler's.
_PURE_NOISE = 200.0


def heun(
  predict_x0: Predict,
  x: jax.Array,
  grid: Grid,
  keys: jax.Array | None = None,
  *,
  churn: float = 0.0,
  churn_min: float = 0.0,
  churn_max: float = np.inf,
  churn_noise: float = 1.0,
  clip: str = "none",
  percentile: float = 0.995,
) -> jax.Array:
  """Heun's second-order method of EDM: Karras et al., arXiv 2206.00364, algorithm 2; arguments as for `ddpm`.

  EDM's image is x / alpha and its noise level u = sigma / alpha; the steps are EDM's, while what is carried
  is x, which stays of unit size and finite at alpha = 0. With d = (x / alpha - x0) / u = eps the two stages
  read

      x_e = alpha_s x0 + sigma_s eps(x_t)                               Euler step
      x_s = x_e + alpha_s (u_s - u_t) (eps(x_e) - eps(x_t)) / 2         correction, not in a step to sigma = 0

  A step from alpha = 0, or from beyond u = 200, is an Euler step: u's step is then too long for the trapezoid
  rule.

  Args:
    churn, churn_min, churn_max, churn_noise: EDM's S_churn, S_tmin, S_tmax (in units of u) and S_noise: noise
      added before each step, raising u by the factor 1 + min(churn / n, sqrt(2) - 1), within what the
      schedule holds. 0, the default, is algorithm 1: deterministic, no keys needed.

  Raises:
    ValueError: as for `ddpm`; churn negative, or with a grid that knows no schedule.
  """
  x, denoise = _begin(predict_x0, x, clip, percentile)
  t, alpha, sigma, columns = grid.t[:-1], grid.alpha[:-1], grid.sigma[:-1], {}
  if churn < 0:
    raise ValueError(f"churn is {churn}; write 0 for none or a positive number, EDM's S_churn.")
  if churn:
    draw = _noise_source(keys, x, "heun with churn")
    if grid.schedule is None:
      raise ValueError("churn needs the levels between the grid's; make the grid with time_grid.")
    u = grid.ratio[:-1]
    churned = (u >= churn_min) & (u <= min(churn_max, _PURE_NOISE))
    u = u * (1 + min(churn / grid.num_steps, np.sqrt(2) - 1))
    # time_of stops at the schedule's end, beyond which no network was trained; levels are read at its answer.
    t = np.where(churned, np.maximum(grid.schedule.time_of(u), t), t)
    alpha, sigma = grid.schedule.levels(t)
    rescale = np.divide(alpha, grid.alpha[:-1], out=np.ones_like(alpha), where=churned)
    gained = np.maximum(sigma**2 - (rescale * grid.sigma[:-1]) ** 2, 0)  # alpha**2 times EDM's growth of u**2
    columns = dict(rescale=rescale, spread=churn_noise * np.sqrt(gained) * churned)
  u = np.divide(sigma, alpha, out=np.full_like(sigma, np.inf), where=alpha > 0)
  corrected = (grid.sigma[1:] > 0) & (u <= _PURE_NOISE)
  half = np.where(corrected, grid.sigma[1:] - grid.alpha[1:] * np.where(corrected, u, 0), 0) / 2
  columns |= dict(
    t=t,
    alpha=alpha,
    sigma=sigma,
    t_next=grid.t[1:],
    alpha_next=grid.alpha[1:],
    sigma_next=grid.sigma[1:],
    corrected=corrected,
    half=half,
  )

  def step(x, at):
    if churn:
      x = at["rescale"] * x + at["spread"] * draw(at["i"])
    x0 = denoise(x, at["t"])
    eps = (x - at["alpha"] * x0) / at["sigma"]
    x = at["alpha_next"] * x0 + at["sigma_next"] * eps

    def correct(x):
      eps_next = (x - at["alpha_next"] * denoise(x, at["t_next"])) / at["sigma_next"]
      return x + at["half"] * (eps_next - eps)

    return jax.lax.cond(at["corrected"], correct, lambda x: x, x), None

  return jax.lax.scan(step, x, _per_step(x, **columns))[0]


_SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "heun": heun}
NAMES = _SAMPLERS.keys()  # a view: registered samplers are in it


def register(name: str, sampler: Callable[..., jax.Array]) -> None:
  """Adds a sampler that is called as `ddpm` is, with `clip` among its options (`docs/extending.md`)."""
  _SAMPLERS[name] = sampler


def sample(name: str, predict_x0: Predict, x: jax.Array, grid: Grid, keys: jax.Array | None = None, **options) -> jax.Array:
  """The sampler of that name, e.g. `sample("dpmpp_2m", predict_x0, x, time_grid(schedule, 20))`.

  Raises:
    ValueError: unknown name or option (the sentence lists the known ones), or as the sampler itself.
  """
  if name not in _SAMPLERS:
    raise ValueError(f"sampler {name!r} is unknown; write one of {', '.join(map(repr, NAMES))}.")
  valid = [p.name for p in inspect.signature(_SAMPLERS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
  if unknown := sorted(set(options) - set(valid)):
    raise ValueError(f"sampler {name!r} has no option {unknown[0]!r}; its options are {', '.join(valid)}.")
  return _SAMPLERS[name](predict_x0, x, grid, keys, **options)
