"""The field of view of trees that a model drew: cleaned, cut out, and turned upright in the finished pair."""

from collections.abc import Sequence

import numpy as np

from retree_jax.data import pictures, transforms


def with_fov(fields: dict[str, np.ndarray], framed: bool = True) -> tuple[dict[str, np.ndarray], list[int]]:
  """Trees with a clean field of view, and no vessel outside it.

  Args:
    fields: "tree", and "fov" where the stage draws one, uint8 [N, H, W, 1].
    framed: the stage learnt from eyes cropped to their discs.

  Returns:
    "tree", and "fov" uint8 0..255 (coverage): the disc that the drawn one means. Where none was drawn, the disc
    that the frame inscribes, or the whole frame if eyes were not framed so. And the tilt of each disc, in degrees.
  """
  tree = fields["tree"]
  guess = inscribed(tree.shape[1:3], min(tree.shape[1:3])) if framed else np.full(tree.shape[1:], 255, np.uint8)
  clean, tilts = np.empty_like(tree), [0] * len(tree)
  for i in range(len(tree)):
    clean[i] = guess
    if "fov" in fields:
      disc, tilt = pictures.as_disc(fields["fov"][i, ..., 0] >= 128)
      if (disc >= 128).mean() >= 0.3:  # else no disc to speak of: an untrained model
        clean[i, ..., 0], tilts[i] = disc, tilt
  return {"tree": np.where(clean >= 128, tree, 0).astype(np.uint8), "fov": clean}, tilts


def upright(fields: dict[str, np.ndarray], tilts: Sequence[float]) -> dict[str, np.ndarray]:
  """Finished pairs, turned clockwise by `tilts` degrees; photograph and tree stay 0 outside the field of view."""
  out = {name: pixels.copy() for name, pixels in fields.items()}
  for i in np.flatnonzero(tilts):
    turned = {name: pictures.turned(pixels[i], -tilts[i]) for name, pixels in fields.items()}
    turned["fov"] = transforms.binarise(turned["fov"])
    for name, pixels in turned.items():
      out[name][i] = np.where(turned["fov"] > 0, pixels, 0)
  return out


def inscribed(size: tuple[int, int], diameter: float) -> np.ndarray:
  """Coverage of a disc about the middle of a frame, uint8 0..255 [H, W, 1]."""
  return pictures.disc_coverage(size, ((size[0] - 1) / 2, (size[1] - 1) / 2), diameter / 2)[..., None]
