"""From a picture file to pixels: upright, the largest page, 8 bits.

`read` gives the values that the file holds, `decode` the picture as uint8, `picture_size` the size alone. All three obey the
EXIF orientation tag, as viewers and drawing programs do.
"""

import contextlib
import dataclasses
import io
import pathlib
import struct
import sys
import warnings

import einops
import numpy as np
from PIL import ExifTags, Image

from retree_jax.data import notices

# EyePACS, the largest photographs in the field, stay below 20 million pixels; a file that claims more than this is a mistake or
# a decompression bomb.
MAX_PIXELS = 64_000_000

_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Pillow reads the high byte of 16-bit colours. Read with the other byte order, the same file gives the low byte.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_TAGS = {"BitsPerSample": 258, "PlanarConfiguration": 284}  # of TIFF files
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras deliver


@dataclasses.dataclass(frozen=True)
class Picture:
  """The values of a picture file.

  Attributes:
    values: [H, W] or [H, W, 3] (red, green, blue); uint8, or the uint16, int32 or float32 values of a deeper file.
    alpha: uint8 [H, W], the opacity; None where the file has none or the same everywhere, which hides nothing.
    is_lossy: whether the file is a JPEG, so that values differ a little from what was drawn.
  """

  values: np.ndarray
  alpha: np.ndarray | None = None
  is_lossy: bool = False

  def shade(self) -> np.ndarray:
    """The greatest of the colour channels, [H, W]."""
    return self.values.max(axis=-1) if self.values.ndim == 3 else self.values


def read(data: bytes | pathlib.Path, name: str, source: str | None = None) -> Picture:
  """Reads one picture file, upright.

  Args:
    data: a path or the file's bytes.
    name: what messages call the file.
    source: what log lines call the set it belongs to; the folder of a path by default.

  Raises:
    ValueError: not a picture, damaged, not permitted to be read, or more than `MAX_PIXELS` pixels.
  """
  with _one_sentence(name):
    with _open(data) as picture:
      if picture.width * picture.height > MAX_PIXELS:
        raise _Refused(_too_big(name))
      raw_mode = _raw_mode(picture)
      if raw_mode == "R" and 16 in _tag(picture, "BitsPerSample"):  # uncompressed planes, which Pillow takes for 8 bits
        raise _Refused(_unreadable(name))
      is_lossy, is_turned = picture.format in ("JPEG", "MPO"), orientation(picture) != 1
      is_scaled = bool(picture.tile) and picture.tile[0].codec_name == "ppm" and picture.mode == "RGB"
      values, alpha = _pixels(_upright(picture))
      if is_scaled and values.max() < 16:  # Pillow has scaled them by the range in the header
        raise _Refused(_unreadable(name))
    if raw_mode[-3:] in _OTHER_BYTE and values.dtype == np.uint8:
      values, alpha = _with_low_byte(data, name, values, alpha)
  if is_turned:
    notices.once(source or source_of(data, name), "orientation", f"{name} is turned upright, as its EXIF orientation says.")
  if alpha is not None and alpha.min() == alpha.max():
    alpha = None
  return Picture(values, alpha, is_lossy)


def decode(data: bytes | pathlib.Path, name: str, source: str | None = None) -> np.ndarray:
  """Reads one picture file to uint8 [H, W] (grey, palettes of grey included) or [H, W, 3].

  Values of more than 8 bits are scaled by the least of 8, 10, 12, 14 and 16 bits that holds the file's greatest value, floats
  by 1, 255 or those; a log line says so once per source. What is transparent becomes black.

  Args:
    data: a path or the file's bytes.
    name: what messages call the file.
    source: what log lines call the set it belongs to; the folder of a path by default.

  Raises:
    ValueError: as `read`; or values whose range is unclear (negative, or above 65535).
  """
  source = source or source_of(data, name)
  picture = read(data, name, source)
  pixels = _to_8_bits(picture.values, name, source)
  return pixels if picture.alpha is None else on_black(pixels, picture.alpha)


def as_photograph(picture: np.ndarray) -> np.ndarray:
  """Decoded picture -> uint8 [H, W, 3]; grey ones are repeated."""
  return einops.repeat(picture, "h w -> h w c", c=3) if picture.ndim == 2 else picture


def picture_size(path: pathlib.Path) -> tuple[int, int]:
  """(height, width) of the upright picture, from the header alone.

  Raises:
    ValueError: there is no readable header.
  """
  with _one_sentence(str(path)), warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with _open(path) as picture:
      width, height = picture.size
      # Pillow swaps the sides of turned TIFF files itself.
      return (width, height) if orientation(picture) >= 5 and picture.format != "TIFF" else (height, width)


def orientation(picture: Image.Image) -> int:
  """The EXIF orientation of an opened file, 1 (upright) to 8, from its header; 1 where there is none or it cannot be read."""
  try:
    # The method of PNG files reads the whole picture, to look for tags behind the pixels.
    tag = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
  except (ValueError, SyntaxError, OSError, KeyError, IndexError, TypeError, struct.error):
    return 1
  return tag if tag in _UPRIGHT else 1


def is_plain(data: bytes) -> bool:
  """Whether any reader shows these bytes as `decode` does: an upright JPEG or PNG file of 8-bit colours, without
  transparency."""
  with Image.open(io.BytesIO(data)) as picture:
    raw_mode = _raw_mode(picture)
    picture.load()
    return (
      picture.format in ("JPEG", "PNG")
      and picture.mode == "RGB"
      and raw_mode[-3:] not in _OTHER_BYTE
      and "transparency" not in picture.info
      and orientation(picture) == 1
    )


class _Refused(Exception):
  """A sentence that is complete as it is."""


@contextlib.contextmanager
def _one_sentence(name: str):
  """Turns what Pillow raises into a `ValueError` of one sentence."""
  try:
    yield
  except _Refused as error:
    raise ValueError(str(error)) from None
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise ValueError(_too_big(name)) from None
  except FileNotFoundError:
    raise ValueError(f"{name} is gone: it was there when the folder was listed; start again.") from None
  except PermissionError:
    raise ValueError(
      f"{name} cannot be opened: you have no permission to read it; allow it (chmod u+r) or remove it."
    ) from None
  except Image.UnidentifiedImageError:
    raise ValueError(
      f"Cannot read {name} (not a picture that Pillow can read): replace it, save it as an 8-bit PNG, or remove it."
    ) from None
  except (OSError, ValueError, SyntaxError, EOFError, MemoryError, TypeError, IndexError, KeyError, struct.error) as error:
    reason = " ".join(str(error).split()) or "damaged"
    raise ValueError(f"Cannot read {name} ({reason}): replace the damaged file or remove it.") from None


def _too_big(name: str) -> str:
  return f"{name} has more than {MAX_PIXELS // 10**6} million pixels: shrink it, or remove it if it is not a photograph."


def _unreadable(name: str) -> str:
  return f"{name} stores 16-bit colours in a way that cannot be read: save it as an 8-bit PNG."


def source_of(data: bytes | pathlib.Path, name: str) -> str:
  """What log lines call the set that a file belongs to: its folder; of bytes, the name itself."""
  return str(data.parent) if isinstance(data, pathlib.Path) else name


@contextlib.contextmanager
def _open(data: bytes | pathlib.Path):
  """A picture file at its largest page: the first page of a TIFF file can be a thumbnail."""
  # Not by its name: Pillow would map it into memory, and Pillow 13 scrambles the pixels of turned TIFF files that are mapped.
  with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as file, Image.open(file) as picture:
    if picture.format == "TIFF" and picture.n_frames > 1:
      areas = []
      for page in range(picture.n_frames):
        picture.seek(page)
        areas.append(picture.width * picture.height)
      picture.seek(areas.index(max(areas)))
    yield picture


def _tag(picture: Image.Image, tag: str) -> tuple:
  """The values of a TIFF file's tag; () where it has none."""
  found = picture.tag_v2.get(_TAGS[tag], ()) if picture.format == "TIFF" else ()
  return found if isinstance(found, tuple) else (found,)


def _raw_mode(picture: Image.Image) -> str:
  """How the file stores a pixel, in Pillow's words, e.g. "RGB;16B"; "" where that is unknown."""
  arguments = picture.tile[0].args if picture.tile else ""
  arguments = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
  return arguments if isinstance(arguments, str) else ""


def _upright(picture: Image.Image) -> Image.Image:
  """The picture as viewers show it, loaded."""
  picture.load()  # turns TIFF files
  turn = _UPRIGHT.get(orientation(picture)) if picture.format != "TIFF" else None
  return picture if turn is None else picture.transpose(turn)


def _pixels(picture: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
  """(values, alpha) of a loaded picture."""
  if picture.mode.startswith("I") or picture.mode == "F":
    values = np.asarray(picture)
    return values.astype(values.dtype.newbyteorder("=")), None
  mode, alpha = picture.mode, None
  if "A" in picture.getbands() or "transparency" in picture.info:
    picture = picture.convert("RGBA")
    alpha = np.asarray(picture.getchannel("A"))
  if mode in ("1", "L", "LA"):
    grey = picture.getchannel("R") if alpha is not None else picture
    return np.asarray(grey if grey.mode == "L" else grey.convert("L")), alpha
  colour = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))  # not a copy of a copy
  if mode in ("P", "PA") and (colour == colour[..., :1]).all():
    return np.ascontiguousarray(colour[..., 0]), alpha
  return colour, alpha


def _with_low_byte(data, name: str, values: np.ndarray, alpha: np.ndarray | None):
  """The 16-bit values of a colour file, of which Pillow gave the high bytes."""

  def high_alone():  # enough for values of 16 bits, not for 12 and less
    if values.max() < 16:
      raise _Refused(_unreadable(name))
    return values, alpha

  with _open(data) as picture:
    if 2 in _tag(picture, "PlanarConfiguration"):
      return high_alone()

    def swapped(arguments):
      raw, rest = (arguments[0], arguments[1:]) if isinstance(arguments, tuple) else (arguments, None)
      raw = raw[:-3] + _OTHER_BYTE[raw[-3:]]
      return raw if rest is None else (raw, *rest)

    picture.tile = [tile._replace(args=swapped(tile.args)) for tile in picture.tile]
    try:
      low, low_alpha = _pixels(_upright(picture))
    except (ValueError, KeyError, OSError):
      return high_alone()
  wide = values.astype(np.uint16) << 8 | low
  if alpha is not None:
    alpha = _to_8_bits(alpha.astype(np.uint16) << 8 | low_alpha, name, None)
  return wide, alpha


def _to_8_bits(values: np.ndarray, name: str, source: str | None) -> np.ndarray:
  """Values of any depth as uint8, scaled by the file's own range; says so in the log unless `source` is None."""
  if values.dtype == np.uint8:
    return values
  is_float = values.dtype.kind == "f"
  values = np.nan_to_num(values) if is_float else values
  top, low = values.max(), values.min()
  # Resampling leaves floats a little below 0.
  if low < (-0.05 * top if is_float else 0) or top >= 2**16:
    raise ValueError(
      f"{name} holds values from {low:g} to {top:g}, of which the range is unclear: save it with 8 or 16 bits, black at 0."
    )
  if is_float and top <= 1:
    full, known = 1.0, "floats from 0 to 1"
  else:
    bits = next(bits for bits in _DEPTHS if top < 2**bits)
    full = 2.0**bits - 1
    known = None if bits == 16 or (is_float and bits == 8) else f"{bits}-bit values in a file of more bits"
  if known and source and top > 0:
    notices.once(source, known, f"{name} holds {known}: such files are scaled so that {full:g} becomes white.")
  if values.ndim == 3 and full == 2**16 - 1:
    return (values >> 8).astype(np.uint8)
  return np.clip(np.round(values.astype(np.float64) * (255.0 / full)), 0, 255).astype(np.uint8)


def on_black(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """What is transparent shows nothing: black."""
  colour = Image.fromarray(np.dstack([as_photograph(pixels), alpha]))
  flat = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
  return np.asarray(flat.convert("L" if pixels.ndim == 2 else "RGB"))
