"""What is done to a network's estimates before a sampler takes them: guidance, and shifted time steps."""

import jax
import jax.numpy as jnp

from retree_jax.diffusion.process import expand
from retree_jax.diffusion.samplers import Predict


def guided(
  predict_cond: Predict, predict_uncond: Predict, scale: float, interval: tuple[float, float] | None = None
) -> Predict:
  """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598, eq. 6): uncond + scale (cond - uncond).

  The rule is the same for x0, eps and v, because each is a linear function of the others at a given noise level.

  Args:
    predict_cond, predict_uncond: `predict_x0` with and without the condition.
    scale: 1 for no guidance, in which case `predict_uncond` is never called; 0 ignores the condition.
    interval: (first, last) timesteps, inclusive; outside, the scale is 1, and `predict_uncond` is not computed if the whole
      batch is outside (Kynkäänniemi et al., arXiv 2404.07724). None for guidance at all timesteps.

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


def shifted(predict_x0: Predict, factor: float, last: float) -> Predict:
  """`predict_x0`, given `factor` times the true time step where that is at most `last`.

  Given a smaller time step than the true one, a network removes less noise: with few steps, whose images come out smoother than
  the training images, it keeps more fine texture. Li et al. (arXiv 2305.15583) shift time steps to the same end.

  Args:
    predict_x0: (x [B, H, W, C], t [B]) -> estimate of the clean images.
    factor: of the time step; 1 for no change.
    last: largest time step that is changed.
  """
  return lambda x, t: predict_x0(x, jnp.where(t <= last, factor * t, t))
