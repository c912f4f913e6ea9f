"""From coarse trees to whole ones at twice the size: the sampler of the refinement stage, and what is mended afterwards."""

import jax
import jax.numpy as jnp

from retree_jax import keys
from retree_jax.data import attributes
from retree_jax.diffusion import conditioning
from retree_jax.inference.sampler import Sampler, at_size
from retree_jax.models import scaling


class Refiner(Sampler):
  """A compiled refinement over a mesh; sample k is a function of (weights, seed, k, its coarse tree) alone.

  Args:
    config, network, mesh: see `Sampler`. `config.sampler.condition_level` says how much the coarse tree is degraded, which
      hides what is wrong with drawn ones, and `condition_haze` which coverage counts as none.
    size: (height, width) of the refined trees, multiples of the network's; by default the one that it was trained at.

  Raises:
    ValueError: a field of the config that cannot be, or a size that the network cannot take.
  """

  def __init__(self, config, network, mesh=None, size: tuple[int, int] | None = None):
    super().__init__(at_size(config, network, size), network, mesh)
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
    factor = conditioning.FACTOR
    if "tree" in condition:  # repeated, so that it travels beside the field of view in one array
      condition = condition | {"tree": condition["tree"].repeat(factor, 1).repeat(factor, 2)}
    return super().__call__(params, indices, condition, seed, stream, slots)

  def _as_condition(self, cond, sample_keys):
    cond = scaling.to_signed(cond)
    seen = cond[..., 1] > 0
    rows, columns = (seen.any(axis=axis).sum(axis=1) for axis in (2, 1))
    haze = jnp.where(rows >= attributes.WHOLE * columns, self._haze[1], self._haze[0])
    low = conditioning.without_haze(cond[:, :: conditioning.FACTOR, :: conditioning.FACTOR, :1], haze)
    noise = keys.normal(jax.vmap(jax.random.fold_in, (0, None))(sample_keys, 2), low.shape[1:])
    level = jnp.full(low.shape[:1], self.config.sampler.condition_level, jnp.float32)
    return conditioning.condition(low, cond[..., 1:], level, noise, self.config.diffusion)
