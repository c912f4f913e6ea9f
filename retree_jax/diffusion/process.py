"""The forward process: adding noise, the quantities that a network may predict, and the weights of their losses.

The process is variance preserving: alpha**2 + sigma**2 = 1 at every noise level.

    x_t = alpha x0 + sigma eps                       (1)  Ho et al., arXiv 2006.11239, eq. 4
    v   = alpha eps - sigma x0                       (2)  Salimans & Ho, arXiv 2202.00512, appendix D
    x0  = (x_t - sigma eps) / alpha = alpha x_t - sigma v
    eps = (x_t - alpha x0) / sigma  = sigma x_t + alpha v

A network predicts "eps", "x0" or "v". All functions take images [B, H, W, C], and `alpha` and `sigma` of shape [B] (one noise
level per sample) or [] (one for all).
"""

import jax
import jax.numpy as jnp

KINDS = ("eps", "x0", "v")


def _check(kind: str) -> None:
  if kind not in KINDS:
    raise ValueError(f"prediction kind {kind!r} is unknown; write one of {', '.join(map(repr, KINDS))}.")


def expand(level: jax.Array, x: jax.Array) -> jax.Array:
  """A noise level [] or [B] in x's dtype, with shape [] or [B, 1, ...], so that it broadcasts over x [B, ...]."""
  level = jnp.asarray(level, x.dtype)
  return level.reshape(level.shape + (1,) * (x.ndim - level.ndim)) if level.ndim else level


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """numerator / denominator, and 0 where the denominator is 0, with a finite gradient."""
  usable = denominator > 0
  return jnp.where(usable, numerator / jnp.where(usable, denominator, 1), 0)


def corrupt(x0: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
  """Noisy images x_t = alpha x0 + sigma noise, eq. (1); shape of x0."""
  return expand(alpha, x0) * x0 + expand(sigma, x0) * noise


def target(x0: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array, kind: str) -> jax.Array:
  """The training target of a network of this kind; shape of x0. ValueError for an unknown kind."""
  _check(kind)
  if kind == "eps":
    return noise
  if kind == "x0":
    return x0
  return expand(alpha, x0) * noise - expand(sigma, x0) * x0


def to_x0(pred: jax.Array, xt: jax.Array, alpha: jax.Array, sigma: jax.Array, kind: str) -> jax.Array:
  """The clean images implied by a prediction; shape of xt.

  Where alpha is 0 (zero terminal SNR), x_t is pure noise and an "eps" prediction does not determine x0: the result is 0, the
  middle of the range, not NaN. Use "v" or "x0" with such a schedule.
  """
  _check(kind)
  alpha, sigma = expand(alpha, xt), expand(sigma, xt)
  if kind == "eps":
    return _ratio(xt - sigma * pred, alpha)
  if kind == "x0":
    return pred
  return alpha * xt - sigma * pred


def loss_weight(alpha: jax.Array, sigma: jax.Array, kind: str, min_snr_gamma: float | None = None) -> jax.Array:
  """Weight of the squared error in the predicted quantity; shape of alpha.

  All ones without `min_snr_gamma` (g). Otherwise the min-SNR weight of Hang et al., arXiv 2303.09556, section 3.4, with
  SNR = alpha**2 / sigma**2: min(SNR, g) for an error in x0, which is min(SNR, g) / SNR for "eps". They use g = 5. For "v", this
  function has min(SNR + 1, g) / (SNR + 1) instead of their min(SNR, g) / (SNR + 1): theirs approaches 0 with the SNR, which
  would leave the first sampling steps from pure noise untrained, and those determine the mean colour and overall appearance.
  Finite at both ends of a schedule.

  For "x0" the weight approaches 0 with the SNR.

  Args:
    alpha, sigma: noise levels.
    kind: of the prediction.
    min_snr_gamma: g, or None.

  Raises:
    ValueError: unknown kind, or min_snr_gamma not positive.
  """
  _check(kind)
  alpha, sigma = jnp.asarray(alpha), jnp.asarray(sigma)
  if min_snr_gamma is None:
    return jnp.ones_like(alpha)
  if not min_snr_gamma > 0:
    raise ValueError(f"min_snr_gamma is {min_snr_gamma}; write a positive number such as 5.0, or None.")
  # min(SNR, g) = clipped / sigma**2, and SNR + 1 = 1 / sigma**2: only x0 and eps need protection from division by 0.
  clipped = jnp.minimum(alpha**2, min_snr_gamma * sigma**2)
  if kind == "v":
    return jnp.minimum(1.0, min_snr_gamma * sigma**2)
  if kind == "eps":
    return jnp.where(alpha > 0, clipped / jnp.where(alpha > 0, alpha, 1) ** 2, 1)
  return jnp.where(sigma > 0, clipped / jnp.where(sigma > 0, sigma, 1) ** 2, min_snr_gamma)
