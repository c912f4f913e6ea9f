"""The detail stage: a painted photograph and its tree → the photograph with its fine detail."""

import numpy as np

from retree_jax.diffusion import conditioning
from retree_jax.tasks.cascade import CascadeTask


class DetailTask(CascadeTask):
  """A diffusion model of what a photograph loses at half the size, given the photograph at half the size, its tree and its
  field of view at the whole one.

  What is learnt is the difference between the photograph and the condition's, a few grey levels, so that colours and all that
  is coarse stay as they are (residual prediction: Li et al., SRDiff, arXiv 2104.14951).

  Args:
    config, epoch_steps: see `CascadeTask`.

  Raises:
    ValueError: a size, field or weight that cannot be.
  """

  fixed_target = ("image",)
  fixed_condition = ("image", "tree", "fov")
  coarse = "image"

  @classmethod
  def fields_of(cls, config) -> tuple[str, ...]:
    del config
    return cls.fixed_condition

  def _clean(self, batch, cond):
    return conditioning.detail_of(super()._clean(batch, cond), cond)

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Held-out photographs with the detail that was drawn, and as they are; rows of uint8 images [N, H, W, 3], by name."""
    from retree_jax.inference.detailer import Detailer

    count = min(self.config.preview.num, len(batch["image"]))
    given = {name: batch[name][:count] for name in self.condition}
    detailer = self.once(mesh, lambda mesh: Detailer(self.config, self.network, mesh))
    return {"samples_image": detailer(ema, np.arange(count), given)["image"], "real_image": given["image"]}
