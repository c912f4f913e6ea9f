"""From coarse trees to whole ones at twice the size: the sampler of the refinement stage."""

import jax.numpy as jnp

from retree_jax.data import attributes
from retree_jax.diffusion import conditioning
from retree_jax.inference.cascade import CascadeSampler
from retree_jax.models import scaling


class Refiner(CascadeSampler):
  """A compiled refinement over a mesh; sample k is a function of (weights, seed, k, its coarse tree) alone.

  Args:
    config, network, mesh: see `Sampler`. `config.sampler.condition_level` says how much the coarse tree is degraded, which
      hides what is wrong with drawn ones, and `condition_haze` which coverage counts as none.
    size: (height, width) of the refined trees, multiples of the network's; by default the one that it was trained at.

  Raises:
    ValueError: a field of the config that cannot be, or a size that the network cannot take.
  """

  def __init__(self, config, network, mesh=None, size: tuple[int, int] | None = None):
    super().__init__(config, network, mesh, size)
    haze = float(config.sampler.get("condition_haze", 0.0))
    whole = float(config.sampler.get("condition_haze_whole", -1.0))
    self._haze = (haze, haze if whole < 0 else whole)

  def __call__(self, params, indices, condition: dict, seed: int | None = None, stream: str = "samples", slots=None):
    """Refines trees.

    Args:
      params, indices, seed, stream, slots: see `Sampler`.
      condition: "tree" uint8 [N, H / 2, W / 2, 1], the coarse coverage, and "fov" uint8 [N, H, W, 1].

    Returns:
      uint8 [N, H, W, 1] for each field of `config.data.target`, on every host: "vessels", nearly two-valued, and "tree",
      coverage.

    Raises:
      ValueError: a condition that is missing or of another size.
    """
    if "tree" in condition:
      condition = condition | {"tree": self._spread(condition["tree"])}
    return super().__call__(params, indices, condition, seed, stream, slots)

  def _as_condition(self, cond, sample_keys):
    cond = scaling.to_signed(cond)
    seen = cond[..., 1] > 0
    rows, columns = (seen.any(axis=axis).sum(axis=1) for axis in (2, 1))
    haze = jnp.where(rows >= attributes.WHOLE * columns, self._haze[1], self._haze[0])
    low = conditioning.without_haze(self._gathered(cond[..., :1]), haze)
    return self._degraded(low, cond[..., 1:], sample_keys)
