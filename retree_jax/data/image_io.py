"""From an image file to an array of 8-bit pixels."""

import io
import pathlib
import warnings

import numpy as np
from PIL import Image

# EyePACS, the largest photographs in the field, stay below 20 million pixels; a file that claims more than
# this is a mistake or a bomb.
MAX_PIXELS = 64_000_000


def decode(data: bytes | pathlib.Path, name: str) -> np.ndarray:
  """Reads one picture file, 8 or 16 bits, to uint8 [H, W] (grey, palettes of grey included) or [H, W, 3].

  Args:
    data: a path or the file's bytes.  name: what messages call the file.

  Raises:
    ValueError: not a picture, damaged, or more than `MAX_PIXELS` pixels.
  """
  limit = MAX_PIXELS // 10**6
  too_big = f"{name} has more than {limit} million pixels: shrink it, or remove it if it is no photograph."
  try:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as picture:
      if picture.size[0] * picture.size[1] > MAX_PIXELS:
        raise ValueError(too_big)
      picture.load()
      if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
      if picture.mode.startswith("I") or picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, np.float64))
        # 16-bit files hold 0..65535; ones whose values stay below 256 are 8-bit pictures in a wide container
        scale = 257.0 if values.max(initial=0) > 255 else 1.0
        return np.clip(np.round(values / scale), 0, 255).astype(np.uint8)
      if "A" in picture.getbands() or "transparency" in picture.info:
        picture = _on_black(picture)
      colour = np.asarray(picture.convert("RGB"))
      is_grey = picture.mode == "P" and (colour[..., 0] == colour[..., 1]).all() and (colour[..., 1] == colour[..., 2]).all()
      return np.ascontiguousarray(colour[..., 0]) if is_grey else colour
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise ValueError(too_big) from None
  except FileNotFoundError:
    raise ValueError(f"{name} is gone: it was there when the folder was listed; start again.") from None
  except ValueError as error:
    if str(error) == too_big:
      raise
    raise ValueError(f"Cannot read {name} ({error}): replace or remove it.") from None
  except (OSError, SyntaxError, EOFError, MemoryError, TypeError, IndexError) as error:
    what = "not a picture Pillow can read" if isinstance(error, Image.UnidentifiedImageError) else str(error) or "damaged"
    raise ValueError(f"Cannot read {name} ({what}): replace the damaged file or remove it.") from None


def _on_black(picture: Image.Image) -> Image.Image:
  """What is transparent shows nothing: black. An alpha channel of one value hides nothing; grey pictures stay grey."""
  grey = picture.mode in ("LA", "La")
  picture = picture.convert("RGBA")
  low, high = picture.getchannel("A").getextrema()
  if low == high:
    return picture.convert("RGB").convert("L" if grey else "RGB")
  flat = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
  return flat.convert("L" if grey else "RGB")


def as_photograph(picture: np.ndarray) -> np.ndarray:
  """Decoded picture -> uint8 [H, W, 3]; grey ones are repeated."""
  return np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture


def as_mask(picture: np.ndarray, name: str) -> np.ndarray:
  """Decoded picture -> uint8 0/255 [H, W, 1].

  A mask is binary when more than 98 % of its pixels lie within 5 (of 255) of zero or of its maximum, which
  lets masks that went through JPEG pass and stops grey-level maps, probability maps and files with several
  classes.

  Raises:
    ValueError: it is not binary; the sentence says how to make it so.
  """
  grey = picture.max(axis=-1) if picture.ndim == 3 else picture
  top = int(grey.max(initial=0))
  if top == 0:
    return np.zeros((*grey.shape, 1), np.uint8)
  slack = 5 * top // 255
  counts = np.bincount(grey.ravel(), minlength=256)
  share = (counts[: slack + 1].sum() + counts[top - slack :].sum()) / grey.size
  if share <= 0.98:
    raise ValueError(
      f"{name} is no binary mask ({100 * (1 - share):.0f} % of its pixels are neither background nor "
      "vessel): binarise it first, "
      "e.g. with Pillow: Image.open(f).convert('L').point(lambda v: 255 * (v >= 128)).save(f)."
    )
  return ((grey.astype(np.int32) * 2 > top) * np.uint8(255))[..., None]


def as_tree(picture: np.ndarray, name: str) -> np.ndarray:
  """Decoded vessel mask -> uint8 0/255 [H, W, 1].

  Raises:
    ValueError: it is not binary, or over three quarters of it are vessel, as where vessels are drawn black on white.
  """
  mask = as_mask(picture, name)
  if mask.mean() > 0.75 * 255:  # of a retina, a tenth is
    raise ValueError(
      f"{name} says that {100 * mask.mean() / 255:.0f} % of its pixels are vessel: draw vessels white on black, "
      "e.g. with Pillow: ImageOps.invert(Image.open(f).convert('L')).save(f)."
    )
  return mask


def picture_size(path: pathlib.Path) -> tuple[int, int]:
  """(height, width) from the header alone; `ValueError` where there is no readable header."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      with Image.open(path) as picture:
        return picture.size[1], picture.size[0]
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    raise ValueError(f"Cannot read {path}: it is no picture or it is damaged; replace or remove it.") from None
