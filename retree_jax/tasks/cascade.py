"""What the stages of a cascade share: a diffusion model of crops, given a coarser and degraded picture of the same eye."""

import jax
import jax.numpy as jnp
from einops import rearrange

from retree_jax.diffusion import conditioning
from retree_jax.models import scaling
from retree_jax.tasks import image_transforms
from retree_jax.tasks.diffusion import DiffusionTask


class CascadeTask(DiffusionTask):
  """A diffusion model that is given pictures at half the size, degraded at a random level that the network is told
  (`retree_jax.diffusion.conditioning`). The network is convolutional: it works on pictures of any size.

  Subclasses set `fixed_target`, `fixed_condition` and `coarse`.

  Args:
    config: as `DiffusionTask` reads, and `config.data.crop`, `crops` and `turns`, `config.diffusion.condition_blur` and
      `condition_noise`.

  Attributes:
    fixed_target, fixed_condition: what `config.data.target` and `config.data.condition` must be.
    coarse: the field that the network is given at half the size.

  Raises:
    ValueError: a size, field or weight that cannot be.
  """

  fixed_target: tuple[str, ...]
  fixed_condition: tuple[str, ...]
  coarse: str

  def __init__(self, config, epoch_steps: int = 1):
    super().__init__(config, epoch_steps)
    crop, stage = config.data.crop, config.stage
    if self.condition != self.fixed_condition or self.fixed_target[0] not in self.target:
      raise ValueError(
        f"the {stage} stage learns config.data.target={self.fixed_target} from config.data.condition={self.fixed_condition}, "
        f"not {self.target} from {self.condition}: set them so"
      )
    if config.loss.outside_fov != 1.0 or config.diffusion.condition_dropout:
      raise ValueError(
        f"the {stage} stage needs config.loss.outside_fov=1 and config.diffusion.condition_dropout=0: all pixels have one "
        "weight, and it is always given its tree"
      )
    if config.data.get("attributes", ()):
      raise ValueError(
        f"the {stage} stage is told no attributes, since its trees are drawn already: set config.data.attributes=()"
      )
    if not 0 <= crop <= min(self.size):
      raise ValueError(f"config.data.crop={crop} does not fit into config.data.image_size={self.size}: make it smaller")
    if config.data.crops > 1 and not crop:
      raise ValueError(f"config.data.crops={config.data.crops} needs config.data.crop above 0: set it, or use one crop")
    if any(side % conditioning.FACTOR for side in self.size):
      raise ValueError(f"config.data.image_size={self.size} must be even: the condition has half the size")
    self.trained_size = (crop, crop) if crop else self.size
    self.network.check_size(*self.trained_size, field="config.data.crop" if crop else "config.data.image_size")
    self.condition_channels += 1  # the level

  def _given(self, batch, key) -> dict:
    """Crops of the batch, each with the level of its eye."""
    data, n = self.config.data, len(batch["tree"])
    key_level, key_noise, key_crop, key_turn = jax.random.split(key, 4)
    # Squared: coarse pictures as they are shall be what the network knows best.
    level = jnp.square((jax.random.uniform(key_level) + jnp.arange(n) / n) % 1.0)
    degraded = self._degraded(batch, level, key_noise)
    pictures = jnp.concatenate([self._clean(batch, degraded), degraded], axis=-1)
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
    low = image_transforms.downscale(scaling.to_signed(batch[self.coarse]), conditioning.FACTOR)
    noise = jnp.zeros_like(low) if key is None else jax.random.normal(key, low.shape)
    sharp = scaling.stack_signed(batch, [name for name in self.condition if name != self.coarse])
    return conditioning.condition(low, sharp, level, noise, self.config.diffusion)
