"""Samplers: from noise to images with a network that estimates the clean image.

All four take `predict_x0(x [B, H, W, C], t [B]) -> x0 [B, H, W, C]`, noise x [B, H, W, C], a `Grid` of noise levels and, if
they are stochastic, one key per sample. Each is a single `lax.scan` whose carry is the current image (for `dpmpp_2m` also the
last estimate), so that memory does not depend on the number of steps, and can be used inside a jitted function. Arithmetic is
in float32, or float64 for a float64 x, whatever the network's type.

The noise of sample k in step i is `normal(fold_in(keys[k], i))`, independent of batch size and devices.

Notation, for a step from level t to the less noisy level s: x_t = alpha_t x0 + sigma_t eps, the ratio sigma / alpha (EDM's
sigma) and the half log-SNR lambda = log(alpha / sigma). Coefficients are computed with NumPy in float64 before compilation: for
a step of a 1000-step grid, 1 - alpha_t**2 / alpha_s**2 has few correct digits in float32.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from retree_jax.diffusion.process import expand
from retree_jax.diffusion.schedules import Grid
from retree_jax.diffusion.schedules import time_grid as time_grid  # also available as samplers.time_grid
from retree_jax.keys import at_step, normal

Predict = Callable[[jax.Array, jax.Array], jax.Array]

CLIPS = ("none", "static", "dynamic")
VARIANCES = ("beta", "posterior")


def threshold(x0: jax.Array, clip: str = "none", percentile: float = 0.995) -> jax.Array:
  """Limits estimates of x0 [B, ...] to [-1, 1].

  "static" clips. "dynamic" clips each sample to the given percentile (in (0, 1]) of its absolute values, if that exceeds 1, and
  divides by it (Saharia et al., arXiv 2205.11487, section 2.3), which prevents saturation with guidance. "none" returns x0
  unchanged. ValueError for other values.
  """
  if clip not in CLIPS or not 0 < percentile <= 1:
    raise ValueError(
      f"clip {clip!r} with percentile {percentile} is not a valid thresholding; write clip as one of "
      f"{', '.join(map(repr, CLIPS))} and percentile in (0, 1]."
    )
  if clip == "none":
    return x0
  if clip == "static":
    return jnp.clip(x0, -1, 1)
  limit = jnp.quantile(rearrange(jnp.abs(x0), "b ... -> b (...)"), percentile, axis=1)
  limit = expand(jnp.maximum(limit, 1), x0)
  return jnp.clip(x0, -limit, limit) / limit


def _begin(predict_x0: Predict, x: jax.Array, clip: str, percentile: float) -> tuple[jax.Array, Predict]:
  """x in the sampler's dtype, and a function for the thresholded estimate of x0 at one timestep in that dtype."""
  x = jnp.asarray(x)
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def denoise(x, t):
    x0 = predict_x0(x, jnp.broadcast_to(t, x.shape[:1])).astype(x.dtype)
    return threshold(x0, clip, percentile)

  return x, denoise


def _noise_source(keys: jax.Array | None, x: jax.Array, who: str) -> Callable[[jax.Array], jax.Array]:
  """A function from the step's number to noise of x's shape; ValueError unless there is one key per sample."""
  if keys is None or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != x.shape[:1]:
    raise ValueError(
      f"{who} draws noise and needs one key per sample, {x.shape[0]} here; write "
      "keys=retree_jax.keys.per_sample(seed, indices, name)."
    )
  return lambda i: normal(jax.vmap(at_step, (0, None))(keys, i), x.shape[1:], x.dtype)


def _per_step(x: jax.Array, **columns: np.ndarray) -> dict[str, jax.Array]:
  """The scan's inputs: columns [n] in x's dtype (or bool), and the step's number "i"."""
  ready = {k: jnp.asarray(v, bool if v.dtype == bool else x.dtype) for k, v in columns.items()}
  return ready | {"i": jnp.arange(len(next(iter(columns.values()))), dtype=jnp.int32)}


def _linear(predict_x0, x, grid, coefficients, keys, who, clip, percentile):
  """Scan of steps x <- keep x + add x0 + spread z, the common form of DDPM and DDIM."""
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
  """One ancestral step (Ho et al., arXiv 2006.11239, eq. 7 and algorithm 2), in terms of x0, so that alpha may be 0.

      x_s = (g sigma_s**2 / sigma_t**2) x_t + (alpha_s beta / sigma_t**2) x0 + spread z,
      g = alpha_t / alpha_s,  beta = 1 - g**2

  With x0 = (x_t - sigma_t eps) / alpha_t and neighbouring timesteps this is the paper's
  (x_t - beta / sigma_t eps) / sqrt(1 - beta) + sqrt(beta) z.

  Args:
    x, x0: [B, H, W, C], image at level t and estimate of the clean image.
    alpha, sigma, alpha_next, sigma_next: levels t and s, concrete numbers (not traced), [] or [B].
    noise: z, or None for the last step, which adds none.
    variance: of the noise, "beta" (the paper's) or "posterior", beta sigma_s**2 / sigma_t**2, which is correct for few steps.
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
  """Ancestral sampling: a `ddpm_step` per step, without noise in the last; on the "full" grid, exactly the paper's.

  Args (all but `variance` are common to all samplers):
    predict_x0: (x [B, H, W, C], t [B]) -> estimate of the clean images.
    x: [B, H, W, C] standard normal noise, e.g. `keys.normal(keys.per_sample(...), (H, W, C))`, from another stream than `keys`.
    grid: from `time_grid`.
    keys: [B] typed keys; the noise of sample k in step i is drawn from fold_in(keys[k], i).
    clip, percentile: see `threshold`.
    variance: see `ddpm_step`. Use "posterior" on grids of few steps.

  Returns:
    [B, H, W, C] samples; clipped only by `clip`.

  Raises:
    ValueError: missing keys, another number of keys than samples, or an unknown value of an option.
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

  If x0 was clipped, eps is the noise implied by the clipped image.
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
  """DDIM: a `ddim_step` per step; arguments as for `ddpm`. Keys are needed for eta > 0 only; with 1, the noise is ancestral."""
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

  The first step is of first order (D = x0), as in the paper; so is a last step to sigma = 0, where h is infinite, and with
  `lower_order_final` any last step, as in the authors' code for few steps. From alpha = 0, where h is infinite too, the limits
  of
  the formulas are used: 1 / 2r = 0 for the next step. `keys` is unused; part of the interface that all samplers share.
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


# Above this sigma / alpha, an image is treated as pure noise, and Heun's step from it is of first order. EDM starts at 80; the
# trapezoidal rule for a step from e.g. 40000 (the end of a cosine schedule) to 10 is much less accurate than Euler's.
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

  EDM's image is x / alpha and its noise level u = sigma / alpha. The steps are EDM's, but the carry is x, which has unit scale
  and is finite at alpha = 0. With d = (x / alpha - x0) / u = eps, the two stages are

      x_e = alpha_s x0 + sigma_s eps(x_t)                               Euler step
      x_s = x_e + alpha_s (u_s - u_t) (eps(x_e) - eps(x_t)) / 2         correction, not in a step to sigma = 0

  A step from alpha = 0, or from u above 200, is an Euler step, because it is too long in u for the trapezoidal rule.

  Args:
    churn, churn_min, churn_max, churn_noise: EDM's S_churn, S_tmin, S_tmax (in units of u) and S_noise: noise is added before
      each step, which multiplies u by 1 + min(churn / n, sqrt(2) - 1), within the range of the schedule. The default 0 is
      algorithm 1, which is deterministic and needs no keys.

  Raises:
    ValueError: as for `ddpm`; negative churn, or churn with a grid that has no schedule.
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
    # time_of clips to the end of the schedule, beyond which the network was not trained; hence the levels at that t.
    t = np.where(churned, np.maximum(grid.schedule.time_of(u), t), t)
    alpha, sigma = grid.schedule.levels(t)
    rescale = np.divide(alpha, grid.alpha[:-1], out=np.ones_like(alpha), where=churned)
    added = np.maximum(sigma**2 - (rescale * grid.sigma[:-1]) ** 2, 0)  # alpha**2 times EDM's growth of u**2
    columns = dict(rescale=rescale, spread=churn_noise * np.sqrt(added) * churned)
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
NAMES = _SAMPLERS.keys()  # a view, which includes registered samplers


def register(name: str, sampler: Callable[..., jax.Array]) -> None:
  """Adds a sampler with the arguments of `ddpm` and an option `clip` (`docs/extending.md`)."""
  _SAMPLERS[name] = sampler


def sample(name: str, predict_x0: Predict, x: jax.Array, grid: Grid, keys: jax.Array | None = None, **options) -> jax.Array:
  """The sampler of that name, e.g. `sample("dpmpp_2m", predict_x0, x, time_grid(schedule, 20))`.

  Raises:
    ValueError: unknown name or option (the message lists the known ones), or as for the sampler itself.
  """
  if name not in _SAMPLERS:
    raise ValueError(f"sampler {name!r} is unknown; write one of {', '.join(map(repr, NAMES))}.")
  valid = [p.name for p in inspect.signature(_SAMPLERS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
  if unknown := sorted(set(options) - set(valid)):
    raise ValueError(f"sampler {name!r} has no option {unknown[0]!r}; its options are {', '.join(valid)}.")
  return _SAMPLERS[name](predict_x0, x, grid, keys, **options)
