"""The refinement stage: a coarse coverage map → the whole vessel tree at twice its size."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from retree_jax.data import transforms
from retree_jax.diffusion import conditioning
from retree_jax.models import scaling
from retree_jax.tasks import image_transforms
from retree_jax.tasks.diffusion import DiffusionTask


class RefineTask(DiffusionTask):
  """A diffusion model of a tree, given its own coverage at half the size (and the field of view); learnt on crops.

  The coverage is the area average of the batch's "tree", degraded at a random level that the network is told
  (`retree_jax.diffusion.conditioning`). The network is convolutional: it refines pictures of any size.

  Args:
    config: as `DiffusionTask` reads, and `config.data.crop`, `crops` and `turns`, `config.diffusion.condition_blur` and
      `condition_noise`.

  Raises:
    ValueError: a size, field or weight that cannot be.
  """

  def __init__(self, config, epoch_steps: int = 1):
    super().__init__(config, epoch_steps)
    crop = config.data.crop
    if self.condition != ("tree", "fov") or "vessels" not in self.target:
      raise ValueError(
        f"the refine stage learns config.data.target=('vessels', 'tree') from config.data.condition=('tree', 'fov'), not "
        f"{self.target} from {self.condition}: set them so"
      )
    if config.loss.outside_fov != 1.0 or config.diffusion.condition_dropout:
      raise ValueError(
        "the refine stage needs config.loss.outside_fov=1 and config.diffusion.condition_dropout=0: all pixels have one "
        "weight, and it is always given its tree"
      )
    if config.data.get("attributes", ()):
      raise ValueError(
        "the refine stage is told no attributes, since its trees are drawn already: set config.data.attributes=()"
      )
    if not 0 <= crop <= min(self.size):
      raise ValueError(f"config.data.crop={crop} does not fit into config.data.image_size={self.size}: make it smaller")
    if config.data.crops > 1 and not crop:
      raise ValueError(f"config.data.crops={config.data.crops} needs config.data.crop above 0: set it, or use one crop")
    if any(side % conditioning.FACTOR for side in self.size):
      raise ValueError(f"config.data.image_size={self.size} must be even: the condition has half the size")
    self.trained_size = (crop, crop) if crop else self.size
    self.network.check_size(*self.trained_size, field="config.data.crop" if crop else "config.data.image_size")
    self.condition_channels = 3  # see `conditioning.condition`

  @classmethod
  def fields_of(cls, config) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*config.data.target, "tree", "fov")))

  def _given(self, batch, key) -> dict:
    """Crops of the batch, each with the level of its eye."""
    data, n = self.config.data, len(batch["tree"])
    key_level, key_noise, key_crop, key_turn = jax.random.split(key, 4)
    # Squared: coarse trees as they are shall be what the network knows best.
    level = jnp.square((jax.random.uniform(key_level) + jnp.arange(n) / n) % 1.0)
    target = scaling.stack_signed(batch, self.target)
    pictures = jnp.concatenate([target, self._degraded(batch, level, key_noise)], axis=-1)
    if data.crop:
      cut = jax.vmap(lambda k, picture: image_transforms.random_crops(k, picture, data.crop, data.crops))
      pictures = rearrange(cut(jax.random.split(key_crop, n), pictures), "b n h w c -> (b n) h w c")
    if data.turns:
      pictures = jax.vmap(image_transforms.rotate_or_flip)(jax.random.split(key_turn, len(pictures)), pictures)
    return {"x0": pictures[..., : self.channels], "cond": pictures[..., self.channels :]}

  def _condition(self, batch, keep):
    """The condition of whole pictures, not degraded."""
    return self._degraded(batch, jnp.zeros_like(keep), None)

  def _degraded(self, batch, level, key):
    low = image_transforms.downscale(scaling.to_signed(batch["tree"]), conditioning.FACTOR)
    noise = jnp.zeros_like(low) if key is None else jax.random.normal(key, low.shape)
    return conditioning.condition(low, scaling.to_signed(batch["fov"]), level, noise, self.config.diffusion)

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
