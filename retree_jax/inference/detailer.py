"""Fine detail for painted photographs: the sampler of the detail stage."""

import numpy as np

from retree_jax.data import transforms
from retree_jax.diffusion import conditioning
from retree_jax.inference.cascade import CascadeSampler
from retree_jax.models import scaling


class Detailer(CascadeSampler):
  """A compiled detail stage over a mesh; photograph k is a function of (weights, seed, k, its condition) alone.

  The photograph is reduced to half its size, and what is lost by that is drawn anew, along the tree.
  `config.sampler.condition_level` says how blurred the reduced photograph is taken to be.

  Args:
    config, network, mesh, size: see `CascadeSampler`.
  """

  def __call__(self, params, indices, condition: dict, seed: int | None = None, stream: str = "samples", slots=None):
    """Draws detail.

    Args:
      params, indices, seed, stream, slots: see `Sampler`.
      condition: "tree" (coverage) and "fov" uint8 [N, H, W, 1], and "image" uint8 [N, h, w, 3] of any size, which is reduced or
        enlarged to half the size.

    Returns:
      {"image": uint8 [N, H, W, 3]} on every host.

    Raises:
      ValueError: a condition that is missing or of another size.
    """
    if "image" in condition and len(condition["image"]):
      half = tuple(side // conditioning.FACTOR for side in self.size)
      low = np.stack([transforms.area_resize(image, half) for image in condition["image"]])
      condition = condition | {"image": self._spread(low)}
    return super().__call__(params, indices, condition, seed, stream, slots)

  def _as_condition(self, cond, sample_keys):
    cond = scaling.to_signed(cond)
    return self._degraded(self._gathered(cond[..., :3]), cond[..., 3:], sample_keys)

  def _finished(self, x, cond):
    return conditioning.with_detail(x, cond)
