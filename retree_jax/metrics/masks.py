"""Checks arguments that should be masks."""

import numpy as np


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
