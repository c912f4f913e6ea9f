"""Pictures that users upload: bounded in bytes, pixels and type before any of them is decoded, and never written to a disk."""

import contextlib
import io

import numpy as np
from PIL import Image

from retree_jax.data import image_io, masks

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 25_000_000  # fundus cameras stay below 20 million
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")
_MAX_PAGES = 8  # of a TIFF file, each of which is looked at for the largest
_KINDS = "a PNG, JPEG, TIFF, BMP, GIF or PPM file"


def check(data: bytes) -> None:
  """Refuses a file by its header, without decoding it.

  Raises:
    ValueError: too many bytes, pixels or pages, or another type.
  """
  if not data:
    raise ValueError("the upload is empty: choose a picture")
  if len(data) > MAX_BYTES:
    raise ValueError(f"the picture has more than {MAX_BYTES // 2**20} MB: shrink it, or save it as JPEG")
  try:
    # Named formats alone: Pillow hands some of the others to programs outside.
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
      width, height = picture.size
      if picture.format == "TIFF":
        width, height = _largest_page(picture)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    width, height = MAX_PIXELS, MAX_PIXELS
  except ValueError:
    raise
  except Exception as error:  # whatever a damaged header makes of Pillow
    raise ValueError(f"this file is not a picture that can be read: choose {_KINDS}") from error
  if width * height > MAX_PIXELS:
    raise ValueError(f"the picture has more than {MAX_PIXELS // 10**6} million pixels: shrink it")


def _largest_page(picture: Image.Image) -> tuple[int, int]:
  """Width and height of the page that will be decoded."""
  sizes = []
  with contextlib.suppress(EOFError):
    for page in range(_MAX_PAGES + 1):
      picture.seek(page)
      sizes.append(picture.size)
  if len(sizes) > _MAX_PAGES:
    raise ValueError(f"the TIFF file has more than {_MAX_PAGES} pages: save the picture alone")
  return max(sizes, key=lambda size: size[0] * size[1])


def photograph(data: bytes) -> np.ndarray:
  """A checked upload as uint8 [H, W, 3].

  Raises:
    ValueError: it cannot be read.
  """
  try:
    return image_io.as_photograph(image_io.decode(data, "this picture", "uploads"))
  except ValueError as error:
    raise ValueError(f"{_reason(error)}: choose another file, or save it as an 8-bit PNG") from None


def tree(data: bytes) -> np.ndarray:
  """A checked upload as a vessel mask, uint8 0/255 [H, W, 1].

  Raises:
    ValueError: it cannot be read, or shows no vessels.
  """
  try:
    return masks.read_tree(data, "this picture", source="uploads")
  except ValueError as error:
    raise ValueError(f"{_reason(error)}: draw white vessels on black, without greys") from None


def _reason(error: ValueError) -> str:
  """What is wrong, without the advice, which is for files in folders."""
  return str(error).split(": ")[0].split("; ")[0]
