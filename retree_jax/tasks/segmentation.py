"""The segmentation stage: photograph → vessel tree, by a network trained on random crops of photographs."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from retree_jax import losses, sharding
from retree_jax.data.fields import num_channels, split_channels
from retree_jax.inference import tiling, vessel_map
from retree_jax.models import scaling
from retree_jax.tasks import base, image_transforms

_CANDIDATES = 4  # random positions tried for a crop whose centre lies in the field of view


class SegmentationTask(base.Task):
  """A vessel segmenter trained on crops (`config.crop`) of photographs, with losses on its logits inside the field of view.

  Args:
    config: besides what `base.Task` reads, `config.crop`, `config.loss`, `config.sampler` and `config.preview`.
    epoch_steps: see `base.Task`; not used.

  Raises:
    ValueError: invalid fields, sizes or weights.
  """

  fields = ("image", "tree", "fov")

  def __init__(self, config, epoch_steps: int = 1):
    super().__init__(config, epoch_steps)
    if tuple(config.data.target) != ("tree",):
      raise ValueError(f"config.data.target={tuple(config.data.target)} cannot be segmented: write ('tree',)")
    self.condition = tuple(config.data.condition)
    if not self.condition or set(self.condition) - {"image", "fov"}:
      raise ValueError(f"config.data.condition={self.condition} cannot be segmented: write ('image',) or ('image', 'fov')")
    self.tile = vessel_map.tile_size(config)
    if any(tile > side for tile, side in zip(self.tile, self.size, strict=True)):
      raise ValueError(f"config.crop.size={config.crop.size} exceeds config.data.image_size={self.size}: use a smaller crop")
    self.network.check_size(*self.tile, field="config.crop.size" if config.crop.size else "config.data.image_size")
    if not 0 <= config.sampler.overlap < min(self.tile):
      raise ValueError(
        f"config.sampler.overlap={config.sampler.overlap} does not fit tiles of {min(self.tile)} pixels (config.crop.size): "
        f"use 0 to {min(self.tile) - 1}"
      )
    if config.crop.num < 1:
      raise ValueError(f"config.crop.num={config.crop.num} leaves nothing to learn from: use 1 or more")
    if not any(config.loss[name] for name in ("bce", "dice", "jaccard", "cldice")):
      raise ValueError("all weights in config.loss are 0: set config.loss.bce=1.0")

  def init_parameters(self, key):
    return self.network.init(key, jax.ShapeDtypeStruct((1, *self.tile, num_channels(self.condition)), jnp.float32))

  # --- training --------------------------------------------------------------------------------------------------------

  def prepare(self, batch, key) -> dict:
    """Random crops of a batch, uint8 [B * num, h, w, C], and a dropout key for each."""
    fields = dict.fromkeys(("tree", "fov", *self.condition))
    images = jnp.concatenate([batch[f] for f in fields], axis=-1)
    crop_keys = jax.random.split(key, (len(images), self.config.crop.num))

    def random_crop(image, crop_key):
      corner_key, flip_key = jax.random.split(crop_key)
      crop = jax.lax.dynamic_slice(image, (*self._corner(image[..., 1], corner_key), 0), (*self.tile, image.shape[-1]))
      # Vessels have all orientations, although whole fundus images do not.
      return image_transforms.rotate_or_flip(flip_key, crop) if self.config.crop.turns else crop

    crops = jax.vmap(lambda image, ks: jax.vmap(lambda k: random_crop(image, k))(ks))(images, crop_keys)
    return {"key": crop_keys.reshape(-1), **split_channels(rearrange(crops, "b n h w c -> (b n) h w c"), fields)}

  def _corner(self, fov, key):
    """Upper left corner of a crop: the first of a few random ones with the crop's centre in the field of view, or the first."""
    limit = jnp.asarray([s - t + 1 for s, t in zip(self.size, self.tile, strict=True)])
    corners = jax.random.randint(key, (_CANDIDATES, 2), 0, limit)
    centres = corners + jnp.asarray(self.tile) // 2
    return corners[jnp.argmax(fov[centres[:, 0], centres[:, 1]] > 0)]

  def loss(self, params, prepared):
    kw = {"key": prepared["key"][0]} if self.config.model.get("dropout", 0.0) else {}
    logits = self.network.apply(params, scaling.stack_signed(prepared, self.condition), **kw)
    tree, fov = scaling.to_unit(prepared["tree"]), scaling.to_unit(prepared["fov"])
    return jnp.mean(self._example_losses(logits, tree, fov)), {"f1": jnp.mean(_f1(logits, tree, fov))}

  def _example_losses(self, logits, tree, fov):
    """Weighted loss of each example inside the field of view, [B]; `tree` is a coverage in [0, 1]."""
    weights = self.config.loss
    mask = fov + weights.outside_fov * (1.0 - fov)
    terms = {
      "bce": lambda: losses.bce_with_logits(logits, tree, weights.positive_weight, mask=mask),
      "dice": lambda: losses.dice_with_logits(logits, tree, mask=mask),
      "jaccard": lambda: losses.jaccard_with_logits(logits, tree, mask=mask),
      "cldice": lambda: losses.cldice_with_logits(logits, tree, weights.cldice_iterations, mask=mask),
    }
    return sum(weights[name] * term() for name, term in terms.items() if weights[name])

  # --- evaluation ------------------------------------------------------------------------------------------------------

  def evaluate(self, ema, batch, index) -> dict:
    """Loss, and F1 score at a probability of 0.5, of each held-out example [B], inside the field of view, at the config's image
    size.

    Args:
      ema: averaged parameters.
      batch: as in `train_step`.
      index: unused; part of the interface that all tasks share.
    """
    images = scaling.stack_signed(batch, self.condition)
    logits = tiling.tiled(lambda x: self.network.apply(ema, x), images, self.tile, self.config.sampler.overlap)
    tree, fov = scaling.to_unit(batch["tree"]), scaling.to_unit(batch["fov"])
    return {"loss": self._example_losses(logits, tree, fov), "f1": _f1(logits, tree, fov)}

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Photographs, annotated trees and predicted probabilities of held-out examples: {name: uint8 images [N, H, W, 1 or 3]}.

    Args:
      ema: averaged parameters.
      batch: held-out examples as uint8 NumPy arrays.
      mesh: devices, which all compute the same; all hosts must take part.
    """
    count = min(self.config.preview.num, len(batch["image"]))
    batch = {f: batch[f][:count] for f in self.fields}
    predict = self.once(mesh, self._predictor)
    predicted = [np.asarray(predict(ema, {f: v[i : i + 1] for f, v in batch.items()})) for i in range(count)]
    pixels = scaling.from_unit(np.concatenate(predicted))
    return {"given_image": batch["image"], "real_tree": batch["tree"], "predicted_tree": pixels}

  def _predictor(self, mesh):
    return jax.jit(
      lambda params, example: vessel_map.probabilities(self.config, self.network, params, example),
      out_shardings=sharding.replicated(mesh),
    )


def _f1(logits, tree, fov):
  """F1 score of each example inside the field of view, [B], of probabilities above and coverage from one half."""
  return losses.f1_score(logits > 0, tree >= 0.5, fov > 0)
