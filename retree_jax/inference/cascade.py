"""The sampler that the stages of a cascade share: given a coarser picture, it draws at any size."""

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax import keys
from retree_jax.diffusion import conditioning
from retree_jax.inference.sampler import Sampler


class CascadeSampler(Sampler):
  """A compiled sampler of a convolutional stage that is given a field at half the size.

  Args:
    config, network, mesh: see `Sampler`. `config.sampler.condition_level` says how much the coarse field is degraded, which
      hides what is wrong with drawn ones.
    size: (height, width) in pixels to draw at, multiples of the network's; by default the size that it was trained at.

  Raises:
    ValueError: a field of the config that cannot be, or a size that the network cannot take.
  """

  def __init__(self, config, network, mesh=None, size: tuple[int, int] | None = None):
    if size is not None:
      network.check_size(*size)
      config = config.copy_and_resolve_references()
      config.data.image_size = tuple(size)
    super().__init__(config, network, mesh)

  @staticmethod
  def _spread(low: np.ndarray) -> np.ndarray:
    """A coarse field [N, h, w, C] repeated to the whole size, [N, 2 h, 2 w, C], so that it travels beside the others."""
    return low.repeat(conditioning.FACTOR, 1).repeat(conditioning.FACTOR, 2)

  @staticmethod
  def _gathered(spread: jax.Array) -> jax.Array:
    """The inverse of `_spread`."""
    return spread[:, :: conditioning.FACTOR, :: conditioning.FACTOR]

  def _degraded(self, low, sharp, sample_keys):
    """`conditioning.condition` of a coarse field [b, h, w, C] and sharp ones [b, H, W, D] at the config's level."""
    noise = keys.normal(jax.vmap(jax.random.fold_in, (0, None))(sample_keys, 2), low.shape[1:])
    level = jnp.full(low.shape[:1], self.config.sampler.condition_level, jnp.float32)
    return conditioning.condition(low, sharp, level, noise, self.config.diffusion)
