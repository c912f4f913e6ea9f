"""Checks arguments that should be masks, and measures how wide they are."""

import numpy as np
from scipy import ndimage

_WIDE = 64  # pixels: masks with wider parts are left to SciPy
_FAR = 20_000  # pixels: larger pictures are left to SciPy


def as_mask(mask, what: str = "the mask") -> np.ndarray:
  """A two-valued map as bool [H, W].

  Args:
    mask: [H, W] or [H, W, 1]; bool, or numbers that are all in {0, 1} or all in {0, 255}.
    what: how to call it in an error.

  Raises:
    ValueError: if it has another shape, no pixels, or other values (grey levels, probabilities, NaN).
  """
  mask = np.asarray(mask)
  if mask.ndim == 3 and mask.shape[-1] == 1:
    mask = mask[..., 0]
  if mask.ndim != 2 or not mask.size:
    raise ValueError(f"{what} has shape {mask.shape}, but one map [height, width] is needed; pass one image at a time")
  if mask.dtype == bool:
    return mask
  on = mask != 0
  if not on.any():
    return on
  value = mask[on].flat[0]
  if value not in (1, 255) or not np.all(mask[on] == value):
    raise ValueError(
      f"{what} must hold only 0 and 1 (or 0 and 255), but it holds values between {mask.min()} and "
      f"{mask.max()}; threshold it first, for example mask >= 128"
    )
  return on


def distance_to_background(mask: np.ndarray) -> np.ndarray:
  """Distance of each pixel of a mask to the nearest one outside it, 0 there: SciPy's `distance_transform_edt`, faster where
  nothing in the mask is wide.

  Args:
    mask: [H, W] bool.

  Returns:
    [H, W] float, pixels between the pixels' middles.
  """
  height, width = mask.shape
  if max(mask.shape) > _FAR:
    return ndimage.distance_transform_edt(mask)
  columns = np.arange(width, dtype=np.int32)
  left = np.maximum.accumulate(np.where(mask, np.int32(-_FAR), columns), axis=1)
  right = np.minimum.accumulate(np.where(mask, np.int32(_FAR), columns)[:, ::-1], axis=1)[:, ::-1]
  # Squared distance along the row, with rows around the picture in which nothing is near.
  along = np.full((height + 2 * _WIDE, width), _FAR**2, np.int32)
  along[_WIDE:-_WIDE] = np.minimum(columns - left, right - columns) ** 2
  along = along.ravel()
  place = np.flatnonzero(mask)
  squared = along[place + _WIDE * width]
  active = np.arange(place.size)
  for step in range(1, _WIDE + 1):
    active = active[squared[active] > step**2]
    if not active.size:
      break
    here = place[active] + _WIDE * width
    near = np.minimum(along[here - step * width], along[here + step * width])
    squared[active] = np.minimum(squared[active], near + step**2)
  else:
    return ndimage.distance_transform_edt(mask)
  out = np.zeros(mask.size)
  out[place] = np.sqrt(squared.astype(float))
  return out.reshape(mask.shape)
