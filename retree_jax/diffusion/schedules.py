"""Noise schedules (the levels of signal and noise at each timestep) and the grids of noise levels that samplers use.

A schedule has T timesteps, from 0 (least noise) to T - 1 (most). Step i adds noise of variance beta_i. With
alpha_bar_i = prod_{j <= i} (1 - beta_j), the image at step i is x_i = alpha x0 + sigma eps, where alpha = sqrt(alpha_bar_i) and
sigma = sqrt(1 - alpha_bar_i) (Ho et al., arXiv 2006.11239, eq. 4).

Between whole timesteps, the angle phi with alpha = cos(phi) and sigma = sin(phi) is interpolated linearly. Unlike the log-SNR,
the angle is finite at both ends, so zero terminal SNR needs no special case.
"""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """A noise schedule, created by `make`. Hashed by identity, so that it can be a static argument of a jitted function.

  Attributes:
    name: name of its formula.
    beta: [T] float64, noise variances in (0, 1]; 1 only at the last step of a schedule with zero terminal SNR.
    alpha_bar: [T] float64, strictly decreasing.
  """

  name: str
  beta: np.ndarray
  alpha_bar: np.ndarray

  @property
  def num_steps(self) -> int:
    """The number of timesteps, T."""
    return len(self.beta)

  @property
  def quarter_turns(self) -> np.ndarray:
    """[T] float64: the angle phi of each timestep in units of pi / 2, increasing; exactly 1 at zero SNR."""
    return np.arctan2(np.sqrt(1 - self.alpha_bar), np.sqrt(self.alpha_bar)) * (2 / np.pi)

  def alpha_sigma(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) at timesteps t, whole or fractional, of any shape; t is clipped to 0 .. T - 1.

    Float32, or float64 for a float64 t. Differentiable in t, with a discontinuous derivative at whole timesteps. At zero
    terminal SNR, alpha is exactly 0 and sigma exactly 1.
    """
    t = jnp.asarray(t)
    t = jnp.clip(t.astype(jnp.promote_types(t.dtype, jnp.float32)), 0, self.num_steps - 1)
    below = jnp.minimum(jnp.floor(t), self.num_steps - 2).astype(jnp.int32)
    turns = jnp.asarray(self.quarter_turns, t.dtype)
    share = t - below
    turn = turns[below] * (1 - share) + turns[below + 1] * share
    # sin(pi/2 (1 - u)) and not cos(pi/2 u): the latter is -4e-8 at u = 1, a negative alpha.
    return jnp.sin((1 - turn) * (np.pi / 2)), jnp.sin(turn * (np.pi / 2))

  def log_snr(self, t: jax.Array) -> jax.Array:
    """Natural log of alpha**2 / sigma**2 at timesteps t (as in `alpha_sigma`); -inf at zero terminal SNR."""
    alpha, sigma = self.alpha_sigma(t)
    return 2 * (jnp.log(alpha) - jnp.log(sigma))

  def levels(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`alpha_sigma` in NumPy and float64, for the constants of compiled samplers."""
    turn = np.interp(t, np.arange(self.num_steps), self.quarter_turns)
    return np.sin((1 - turn) * (np.pi / 2)), np.sin(turn * (np.pi / 2))

  def time_of(self, ratio: np.ndarray) -> np.ndarray:
    """Fractional timesteps (float64) at which sigma / alpha equals `ratio`, clipped to the schedule's range."""
    turn = np.arctan(np.asarray(ratio, np.float64)) * (2 / np.pi)
    return np.interp(turn, self.quarter_turns, np.arange(self.num_steps))


def _paper_beta(num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
  """The original's schedule: |beta_end cos(pi/2 i/(T-1)) - (beta_end - beta_start)|.

  Because of the absolute value, beta decreases from beta_start to about 0 at 6 % of the timesteps, then increases to nearly
  beta_end. The last alpha_bar, 0.0031 for T = 800, is not 0, although sampling starts from pure noise.
  """
  i = np.arange(num_steps, dtype=np.float64)
  return np.abs(beta_end * np.cos(np.pi / 2 * i / max(num_steps - 1, 1)) - (beta_end - beta_start))


def _linear_beta(num_steps: int, beta_start: float | None = None, beta_end: float | None = None) -> np.ndarray:
  """Ho et al., arXiv 2006.11239, section 4: 1e-4 to 0.02 for T = 1000, multiplied by 1000/T for other T."""
  scale = 1000 / num_steps
  beta_start = 1e-4 * scale if beta_start is None else beta_start
  beta_end = 0.02 * scale if beta_end is None else beta_end
  return np.minimum(np.linspace(beta_start, beta_end, num_steps), 0.999)


def _cosine_beta(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
  """Nichol & Dhariwal, arXiv 2102.09672, eq. 17, with their upper bound of beta."""
  u = np.arange(num_steps + 1) / num_steps
  return _from_alpha_bar(np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2, max_beta)


def _sigmoid_beta(
  num_steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> np.ndarray:
  """Jabri et al., arXiv 2212.11972, and Chen, arXiv 2301.10972, section 2.1."""
  u = np.arange(num_steps + 1) / num_steps
  value = 1 / (1 + np.exp(-(start + (end - start) * u) / tau))
  return _from_alpha_bar((value[-1] - value) / (value[-1] - value[0]), max_beta)


def _from_alpha_bar(alpha_bar: np.ndarray, max_beta: float) -> np.ndarray:
  """beta [T] from a continuous alpha_bar evaluated at the T + 1 boundaries of the steps."""
  return np.minimum(1 - np.maximum(alpha_bar[1:], 0) / alpha_bar[:-1], max_beta)


_BETAS = {"paper": _paper_beta, "linear": _linear_beta, "cosine": _cosine_beta, "sigmoid": _sigmoid_beta}
NAMES = tuple(_BETAS)
SPACINGS = ("full", "trailing", "trailing_fine", "logsnr", "karras")
_FINEST = 0.01  # sigma / alpha of the last level of "trailing_fine": a grey level and a quarter


def make(name: str, num_steps: int, zero_terminal_snr: bool = False, shift: float = 1.0, **options: float) -> Schedule:
  """A noise schedule.

  Args:
    name: "paper" (options beta_start=1e-4, beta_end=0.02; the paper has T = 800 for trees, 1000 for
      photographs), "linear" (beta_start, beta_end; by default 1e-4 and 0.02, times 1000/T), "cosine"
      (offset=0.008, max_beta=0.999) or "sigmoid" (start=-3, end=3, tau=1, max_beta=0.999).
    num_steps: T, at least 2.
    zero_terminal_snr: rescale sqrt(alpha_bar) so that its last value is 0 and its first is unchanged (Lin et al., arXiv
      2305.08891, algorithm 1). Sampling from pure noise then matches training; requires a "v" or "x0" network.
    shift: image size divided by the size that the schedule was designed for, e.g. 4 for 256 pixels with a 64-pixel schedule.
      The log-SNR is lowered by 2 log(shift), because larger images are more redundant (Hoogeboom et al., arXiv 2301.11093, eq.
      9). Applied before the rescaling; 1 has no effect.
    **options: as listed under name.

  Raises:
    ValueError: unknown name or option, or values that do not give a valid schedule.
  """
  if name not in _BETAS:
    raise ValueError(f"schedule {name!r} is unknown; write one of {', '.join(map(repr, NAMES))}.")
  try:
    steps = operator.index(num_steps)
  except TypeError:
    steps = 0
  if steps < 2:
    raise ValueError(f"a schedule needs a whole number of timesteps, at least 2, not {num_steps!r}.")
  if not 0 < shift < np.inf:
    raise ValueError(f"schedule shift is {shift}; write a positive number, 1 for none.")
  code = _BETAS[name].__code__
  valid = code.co_varnames[1 : code.co_argcount]
  if unknown := sorted(set(options) - set(valid)):
    raise ValueError(f"schedule {name!r} has no option {unknown[0]!r}; its options are {', '.join(valid)}.")
  with np.errstate(all="ignore"):  # checked below
    beta = _BETAS[name](steps, **options)
    alpha_bar = np.cumprod(1 - beta)
    if shift != 1:
      alpha_bar = alpha_bar / (alpha_bar + shift**2 * (1 - alpha_bar))  # logit(alpha_bar) - 2 log(shift)
    if zero_terminal_snr:
      root = np.sqrt(alpha_bar)
      alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if shift != 1 or zero_terminal_snr:
      beta = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
  decreasing = np.all(np.diff(alpha_bar) < 0) and 0 < alpha_bar[0] < 1 and alpha_bar[-1] >= 0
  if not (np.all(np.isfinite(alpha_bar)) and decreasing):
    raise ValueError(
      f"schedule {name!r} with {options} does not add noise at each of its {steps} timesteps; "
      "choose options closer to their defaults."
    )
  beta.flags.writeable = alpha_bar.flags.writeable = False
  return Schedule(name, beta, alpha_bar)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
  """The noise levels of a sampler, from noise to image, created by `time_grid`. Hashed by identity.

  Attributes:
    t: [n + 1] timesteps as passed to the network; at the last one sampling ends, and the network is not evaluated.
    alpha, sigma: [n + 1] noise levels, with sigma / alpha strictly decreasing; sigma may be 0 only at the end.
    schedule: the schedule that the levels belong to; needed for churn only.

  Raises:
    ValueError: arrays of invalid shapes or values.
  """

  t: np.ndarray
  alpha: np.ndarray
  sigma: np.ndarray
  schedule: Schedule | None = None

  def __post_init__(self):
    for field in ("t", "alpha", "sigma"):
      object.__setattr__(self, field, np.asarray(getattr(self, field), np.float64))
    if not (self.t.ndim == 1 and len(self.t) >= 2 and self.t.shape == self.alpha.shape == self.sigma.shape):
      raise ValueError("a sampling grid needs t, alpha and sigma as 1-D arrays of one length, at least 2.")
    if not (np.all(self.alpha >= 0) and np.all(self.sigma >= 0) and np.all(np.diff(self.ratio) < 0)):
      raise ValueError("the noise levels of a sampling grid must fall at every step, from noise to image.")

  @property
  def num_steps(self) -> int:
    """Number of steps, n."""
    return len(self.t) - 1

  @property
  def ratio(self) -> np.ndarray:
    """[n + 1] sigma / alpha, EDM's sigma; infinite where alpha is 0."""
    return np.divide(self.sigma, self.alpha, out=np.full_like(self.sigma, np.inf), where=self.alpha > 0)


def _trailing(schedule: Schedule, steps: int) -> np.ndarray:
  """`steps` whole timesteps, evenly spaced down from the last one."""
  if steps > schedule.num_steps:
    raise ValueError(
      f"{steps} sampling steps are more than the schedule's {schedule.num_steps} timesteps; write fewer, or spacing='logsnr'."
    )
  return np.round(np.linspace(schedule.num_steps, 0, steps + 1))[:-1] - 1


def time_grid(
  schedule: Schedule,
  num_steps: int | None = None,
  spacing: str = "trailing",
  *,
  sigma_min: float | None = None,
  sigma_max: float | None = None,
  rho: float = 7.0,
) -> Grid:
  """The noise levels of a sampler with `num_steps` steps.

  Args:
    schedule: the schedule that the network was trained with.
    num_steps: n; `predict_x0` is called n times (2 n - 1 times by `heun`). Must be omitted for "full".
    spacing: "full", the paper's: every timestep from T - 1 to 1, T - 1 steps, ending at the level of timestep 0, which the
      paper treats as the image. The others end at the clean image, alpha = 1 and sigma = 0: "trailing", n whole timesteps,
      evenly spaced down from T - 1 (Lin et al., arXiv 2305.08891, table 2); "trailing_fine", the same for three quarters of the
      steps, then evenly in log(sigma / alpha) to sigma_min: with few steps "trailing" ends in one from a level at which fine
      texture drowns in noise, and blurs it; "logsnr", evenly spaced in log(sigma / alpha) (Lu
      et al., arXiv 2211.01095, section 6); "karras", evenly spaced in (sigma / alpha)**(1 / rho) (Karras et al., arXiv
      2206.00364, eq. 5).
    sigma_min, sigma_max: bounds of sigma / alpha for "logsnr" and "karras"; by default EDM's 0.002 and 80, and within the range
      of the schedule. At sigma_max the image is treated as pure noise. "trailing_fine" has no upper bound, and 0.01 by default.
    rho: as above; larger values place more steps near the image.

  Raises:
    ValueError: unknown spacing, or an invalid number of steps.
  """
  if spacing not in SPACINGS:
    raise ValueError(f"time spacing {spacing!r} is unknown; write one of {', '.join(map(repr, SPACINGS))}.")
  last = schedule.num_steps - 1
  if spacing == "full":
    if num_steps not in (None, last):
      raise ValueError(
        f"the full grid of this schedule has {last} steps, not {num_steps}; omit the number or write spacing='trailing'."
      )
    t = np.arange(last, -1, -1.0)
    return Grid(t, *schedule.levels(t), schedule)
  try:
    steps = operator.index(num_steps)
  except TypeError:
    steps = 0
  if steps < 1:
    raise ValueError(f"the number of sampling steps must be a whole number, at least 1, not {num_steps!r}.")
  if spacing == "trailing":
    t = _trailing(schedule, steps)
  elif spacing == "trailing_fine":
    fine = max(0, min(-(-steps // 4), steps - 2))  # two stay: the first level can be pure noise, whose ratio is infinite
    t = _trailing(schedule, steps - fine)
    if fine:
      alpha, sigma = schedule.levels(np.array([0.0, t[-1]]))
      low = max(_FINEST if sigma_min is None else sigma_min, sigma[0] / alpha[0])
      if sigma[1] / alpha[1] <= low:
        raise ValueError(
          f"{steps} steps of spacing 'trailing_fine' are too many for this schedule: write fewer, or 'trailing'."
        )
      t = np.append(t, schedule.time_of(np.geomspace(sigma[1] / alpha[1], low, fine + 1)[1:]))
  else:
    alpha, sigma = schedule.levels(np.array([0.0, last]))
    low = max(0.002 if sigma_min is None else sigma_min, sigma[0] / alpha[0])
    high = min(80.0 if sigma_max is None else sigma_max, sigma[1] / alpha[1] if alpha[1] > 0 else np.inf)
    if not 0 < low < high < np.inf or not rho > 0:
      raise ValueError(
        f"no grid falls from sigma_max={sigma_max} to sigma_min={sigma_min} with rho={rho} on "
        "this schedule; omit the three for their defaults."
      )
    u = np.linspace(0, 1, steps)
    if spacing == "logsnr":
      ratio = np.exp(np.log(high) + u * np.log(low / high))
    else:
      ratio = (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    t = schedule.time_of(ratio)
  alpha, sigma = schedule.levels(t)
  return Grid(np.append(t, 0.0), np.append(alpha, 1.0), np.append(sigma, 0.0), schedule)
