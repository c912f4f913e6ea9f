"""Fine detail for painted photographs: the sampler of the detail stage."""

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax import keys
from retree_jax.data import transforms
from retree_jax.diffusion import conditioning
from retree_jax.inference.sampler import Sampler, at_size
from retree_jax.models import scaling


class Detailer(Sampler):
  """A compiled detail stage over a mesh; photograph k is a function of (weights, seed, k, its condition) alone.

  The photograph is reduced to half its size, and what is lost by that is drawn anew, along the tree.
  `config.sampler.condition_level` says how blurred the reduced photograph is taken to be.

  Args:
    config, network, mesh: see `Sampler`.
    size: (height, width) of the photographs, multiples of the network's; by default the one that it was trained at.

  Raises:
    ValueError: a field of the config that cannot be, or a size that the network cannot take.
  """

  def __init__(self, config, network, mesh=None, size: tuple[int, int] | None = None):
    super().__init__(at_size(config, network, size), network, mesh)

  def __call__(self, params, indices, condition: dict, seed: int | None = None, stream: str = "samples", slots=None):
    """Draws detail.

    Args:
      params, indices, seed, stream, slots: see `Sampler`.
      condition: "image" uint8 [N, H, W, 3], "tree" (coverage) and "fov" uint8 [N, H, W, 1].

    Returns:
      {"image": uint8 [N, H, W, 3]} on every host.

    Raises:
      ValueError: a condition that is missing or of another size.
    """
    if "image" in condition and len(condition["image"]):  # reduced, and repeated, so that it travels with the others
      factor, (height, width) = conditioning.FACTOR, condition["image"].shape[1:3]
      low = np.stack([transforms.area_resize(image, (height // factor, width // factor)) for image in condition["image"]])
      condition = condition | {"image": low.repeat(factor, 1).repeat(factor, 2)}
    return super().__call__(params, indices, condition, seed, stream, slots)

  def _as_condition(self, cond, sample_keys):
    cond = scaling.to_signed(cond)
    low = cond[:, :: conditioning.FACTOR, :: conditioning.FACTOR, :3]
    noise = keys.normal(jax.vmap(jax.random.fold_in, (0, None))(sample_keys, 2), low.shape[1:])
    level = jnp.full(low.shape[:1], self.config.sampler.condition_level, jnp.float32)
    return conditioning.condition(low, cond[..., 3:], level, noise, self.config.diffusion)

  def _finished(self, x, cond):
    return conditioning.with_detail(x, cond)
