"""The refinement stage: a coarse coverage map → the whole vessel tree at twice its size."""

import numpy as np

from retree_jax.data import transforms
from retree_jax.diffusion import conditioning
from retree_jax.tasks.cascade import CascadeTask


class RefineTask(CascadeTask):
  """A diffusion model of a tree, given its own coverage at half the size (and the field of view).

  The coverage is the area average of the batch's "tree".

  Args:
    config, epoch_steps: see `CascadeTask`.

  Raises:
    ValueError: a size, field or weight that cannot be.
  """

  fixed_target = ("vessels", "tree")
  fixed_condition = ("tree", "fov")
  coarse = "tree"

  @classmethod
  def fields_of(cls, config) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*config.data.target, "tree", "fov")))

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Held-out trees coarse, refined and as they are; rows of uint8 images [N, H, W, 1], by name."""
    from retree_jax.inference.refiner import Refiner

    count = min(self.config.preview.num, len(batch["tree"]))
    low = [tuple(s // conditioning.FACTOR for s in self.size)] * count
    low = np.stack([transforms.area_resize(tree, size) for tree, size in zip(batch["tree"], low, strict=False)])
    refiner = self.once(mesh, lambda mesh: Refiner(self.config, self.network, mesh))
    refined = refiner(ema, np.arange(count), {"tree": low, "fov": batch["fov"][:count]})
    factor = conditioning.FACTOR
    return {
      "given_tree": low.repeat(factor, 1).repeat(factor, 2),
      **{f"samples_{name}": pixels for name, pixels in refined.items()},
      **{f"real_{name}": batch[name][:count] for name in self.target},
    }
