"""Files written whole or not at all, locally and in buckets."""

import contextlib
import errno
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath
from PIL import Image, PngImagePlugin

UNFINISHED = ".part"  # ends the names of files that are being written


def write_bytes(path, data: bytes) -> None:
  """Writes a file so that a reader, or a kill at any moment, finds the old content or the new, never half of it.

  Folders are made as needed. The content goes to a file beside its place, which is renamed at the end: in a bucket too, where
  an object appears even if an exception ends its upload.

  Args:
    path: local path or bucket URL.
    data: the whole content.
  """
  write_stream(path, (data,))


def write_stream(path, pieces: Iterable[bytes]) -> None:
  """`write_bytes` of content that comes in pieces, of which only one at a time is in memory."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}{UNFINISHED}"
  try:
    with beside.open("wb") as file:
      for piece in pieces:
        file.write(piece)
      if "://" not in str(path):
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):  # the network that failed may still be down
      beside.unlink(missing_ok=True)
    raise


def remove_unfinished(folder) -> None:
  """Deletes the files that killed processes left half-written in a folder, local or in a bucket.

  Nobody else may be writing there: hold the folder (`retree_jax.data.claim`).
  """
  folder = epath.Path(folder)
  if folder.is_dir():
    for path in folder.iterdir():
      if path.name.startswith(".") and path.name.endswith(UNFINISHED):
        path.unlink(missing_ok=True)


def check_writable(folder) -> None:
  """Raises OSError if files could not be written to a folder, which need not exist yet. Leaves nothing behind; buckets pass."""
  folder = epath.Path(folder)
  if "://" in str(folder):
    return
  while not folder.exists() and folder != folder.parent:
    folder = folder.parent
  if not folder.is_dir():
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
  probe = folder / f".{uuid.uuid4().hex}"
  probe.mkdir()
  probe.rmdir()


def write_text(path, text: str) -> None:
  """`write_bytes` of UTF-8 text."""
  write_bytes(path, text.encode())


def json_values(value):
  """Nested dicts, lists and tuples as JSON can hold them: NumPy scalars become Python's, NaN and infinity None."""
  if isinstance(value, dict):
    return {str(key): json_values(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [json_values(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, value) -> None:
  """`write_bytes` of indented JSON.

  Raises:
    ValueError: NaN or infinity somewhere in it, which JSON cannot hold; see `json_values`.
  """
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_png(path, pixels: np.ndarray, text: Mapping[str, str] | None = None) -> None:
  """Writes an 8-bit PNG.

  Args:
    path: local path or bucket URL.
    pixels: uint8 [H, W, 3], [H, W, 1] or [H, W].
    text: as for `png_bytes`.

  Raises:
    ValueError: another type or shape.
  """
  write_bytes(path, png_bytes(pixels, text))


def png_bytes(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
  """The PNG file of uint8 pixels [H, W, 3], [H, W, 1] or [H, W]; the same pixels and text always give the same bytes.

  Args:
    pixels: the picture.
    text: UTF-8 text chunks (iTXt) by keyword, e.g. `provenance.text`; they come before the pixels.

  Raises:
    ValueError: another type or shape.
  """
  pixels = np.asarray(pixels)
  if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
    raise ValueError(f"a picture must be uint8 of shape [H, W], [H, W, 1] or [H, W, 3], not {pixels.dtype} {pixels.shape}")
  if pixels.ndim == 3 and pixels.shape[2] == 1:
    pixels = pixels[..., 0]
  buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
  for keyword, value in (text or {}).items():
    chunks.add_itxt(keyword, value)
  # Level 4 is half the time of the default 6 for 3 % more bytes.
  Image.fromarray(pixels).save(buffer, "PNG", compress_level=4, pnginfo=chunks)
  return buffer.getvalue()
