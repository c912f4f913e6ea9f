"""Vessel probabilities of whole photographs from a segmenter that was trained on crops; for the task and for `Segmenter`."""

import jax

from retree_jax.inference import tiling
from retree_jax.models import scaling


def tile_size(config) -> tuple[int, int]:
  """(height, width) of the crops and tiles that a network of this config is trained on and applied to."""
  return (config.crop.size, config.crop.size) if config.crop.size else tuple(config.data.image_size)


def probabilities(config, network, params, batch):
  """Vessel probabilities of photographs, 0 outside the field of view; can be compiled with `jax.jit`.

  Args:
    config: `config.data.condition`, `config.crop` and `config.sampler` are read.
    network: the segmenter.
    params: its parameters.
    batch: uint8 "image" [B, H, W, 3] and "fov" [B, H, W, 1].

  Returns:
    [B, H, W, 1] float32 in [0, 1].
  """

  def vessels(x):
    return tiling.tiled(lambda part: jax.nn.sigmoid(network.apply(params, part)), x, tile_size(config), config.sampler.overlap)

  images = scaling.stack_signed(batch, config.data.condition)
  return tiling.flip_average(vessels, images, config.sampler.flips) * (batch["fov"] >= 128)
