"""What processors do to drawn trees beside the networks: they are mended and turned upright, one at a time.

All of it can run in other processes (`retree_jax.data.workers`), several trees at once and while the devices draw the next.
This module does not import JAX, so that those processes start fast and leave the devices alone.
"""

import numpy as np
from scipy import ndimage

from retree_jax.data import attributes, field_of_view, mending, reduction, transforms


def mend(vessels: np.ndarray, coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
  """Mends the mask of a drawn tree, and its coverage with it.

  Args:
    vessels: mask, uint8 0/255 [H, W, 1].
    coverage: uint8 0..255 [H, W, 1].

  Returns:
    The two, mended, and the counts of `mending.mend`.
  """
  mask, counts = mending.mend(vessels)
  added, removed = (mask > 0) & (vessels == 0), (vessels > 0) & (mask == 0)
  around = ndimage.maximum_filter(removed[..., 0].view(np.uint8), 3)[..., None] > 0
  return mask, np.where(added, 255, np.where(around & (mask == 0), 0, coverage)).astype(np.uint8), counts


def turn_upright(vessels: np.ndarray, coverage: np.ndarray, fov: np.ndarray, tilt: float) -> dict[str, np.ndarray]:
  """Turns a refined tree clockwise by `tilt` degrees.

  Args:
    vessels: mask, uint8 0/255 [H, W, 1].
    coverage, fov: uint8 0..255 [H, W, 1].
    tilt: degrees by which the eye is turned counter-clockwise.

  Returns:
    "vessels", "tree" (coverage) and "fov", likewise.
  """
  if not tilt:
    return {"vessels": np.where(fov >= 128, vessels, 0).astype(np.uint8), "tree": coverage, "fov": fov}
  turned = field_of_view.turned(coverage, -tilt)
  fov = field_of_view.upright({"fov": fov[None]}, [tilt])["fov"][0]
  mask = reduction.turn_mask(vessels, -tilt, turned)
  return {
    "vessels": np.where(fov >= 128, mask, 0).astype(np.uint8),
    "tree": np.where(fov > 0, turned, 0).astype(np.uint8),
    "fov": fov,
  }


def measure(mask: np.ndarray, fov: np.ndarray) -> dict[str, float]:
  """The attributes of a drawn tree as training trees are measured (`retree_jax.data.attributes`).

  Args:
    mask: vessels, uint8 0/255 [H, W, 1].
    fov: coverage of the field of view, uint8 [h, w, 1], of any size.

  Returns:
    {name of `attributes.ATTRIBUTES`: value}, NaN where a tree has no such measure.
  """
  size = (attributes.SIZE, attributes.SIZE)
  disc = transforms.binarise(transforms.area_resize(fov, size))
  return attributes.measure(reduction.reduce_mask(mask, size)[..., None], disc)
