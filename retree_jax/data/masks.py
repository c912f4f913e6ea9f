"""Masks of vessels and of the field of view: which pixels of a file are drawn, and which files are refused.

Accepted are files with two values; class labels 0 to 3 and colour codes (vessel where above 0); drawings with grey edges (JPEG,
anti-aliasing), cut at half of their greatest value. All but the first are reported once per folder. Other files are refused by
name: masks of many grey levels, empty or nearly full masks, and fields of view that do not fit their eye. A network that learns
from misread masks raises no error.
"""

import pathlib
import shlex

import numpy as np
from PIL import Image

from retree_jax.data import image_io, notices

# Of a photograph, vessels cover 5 to 12 %. One vessel across a tenth of the frame covers a ten-thousandth of it.
_LEAST_VESSEL, _MOST_VESSEL = 1e-4, 0.5
_LEAST_FOV = 0.01
# A mask is accepted when at most this share of its pixels is neither background nor the greatest value (with a tolerance of 5
# of 255), or when of the drawn pixels (above a quarter of the greatest value) at most `_GREY` lie in the middle half of the
# range. Measured on CHASE_DB1 and HRF: 0.01 for JPEG of quality 50 and above, 0.03 to 0.27 for drawings resized by a factor of
# 0.75 to 2, 0.36 for a network's probabilities.
_BETWEEN, _GREY = 0.02, 0.25
_MACHINE_MADE = ("generated", "predicted")


def read_tree(data: bytes | pathlib.Path, name: str, label: str = "expert", source: str | None = None) -> np.ndarray:
  """Reads a vessel mask.

  Args:
    data: a path or the file's bytes.
    name: what messages call the file.
    label: who drew it. Masks labelled "generated" or "predicted" may be empty or full.
    source: what log lines call the set it belongs to; the folder of a path by default.

  Returns:
    uint8 0/255 [H, W, 1].

  Raises:
    ValueError: not readable, not binary, empty, or more than half vessel (as where vessels are drawn black on white).
  """
  mask, half = _read(data, name, "vessel", source)
  share = mask.mean() / 255
  if share < _LEAST_VESSEL and label in _MACHINE_MADE:
    notices.once(source or image_io.source_of(data, name), "empty", f"{name}, a {label} mask, is empty.")
  elif share < _LEAST_VESSEL:
    raise ValueError(
      f"{name} is empty: draw the vessels white on black, or remove the file and its photograph (a generated set may hold "
      'empty masks, with "label": "generated" in manifest.jsonl).'
    )
  elif share > _MOST_VESSEL and label not in _MACHINE_MADE:
    raise ValueError(
      f"{name} says that {100 * share:.0f} % of its pixels are vessel: draw vessels white on black; where they are black on "
      f"white, {_recipe(data, half, ' --invert')}{_kept(data)}."
    )
  return mask


def read_fov(data: bytes | pathlib.Path, name: str, source: str | None = None) -> np.ndarray:
  """Reads a mask of the field of view.

  Args:
    data, name, source: as for `read_tree`.

  Returns:
    uint8 0/255 [H, W, 1].

  Raises:
    ValueError: not readable, not binary, empty, or the middle of the photograph lies outside, as in an inverted mask.
  """
  mask, half = _read(data, name, "field of view", source)
  remove = "or remove the file to have the field of view found in the photograph"
  if mask.mean() < 255 * _LEAST_FOV:
    raise ValueError(f"{name} is an empty field of view: draw the visible disc white on black, {remove}.")
  height, width = mask.shape[:2]
  middle = mask[height // 4 : -(-3 * height // 4), width // 4 : -(-3 * width // 4)].mean()
  frame = np.concatenate([mask[[0, -1]].ravel(), mask[:, [0, -1]].ravel()]).mean()
  if middle < min(127.5, frame):
    raise ValueError(
      f"{name} is an inverted field of view, with the middle of the photograph outside: {_recipe(data, half, ' --invert')}, "
      f"{remove}{_kept(data)}."
    )
  return mask


def check_fov(tree: np.ndarray, fov: np.ndarray, label: str, tree_name: str, fov_name: str) -> None:
  """Refuses a field of view that lacks most of the vessels: outside, the photograph is blackened while its vessels stay.

  Args:
    tree, fov: uint8 0/255 [H, W, 1].
    label: who drew the vessels; machine-made ones are not checked.
    tree_name, fov_name: what messages call them.

  Raises:
    ValueError: less than half of the vessel pixels lie inside.
  """
  if label in _MACHINE_MADE or tree.shape != fov.shape:
    return
  inside = np.count_nonzero(tree & fov) / max(1, np.count_nonzero(tree))
  if inside < 0.5:
    raise ValueError(
      f"{fov_name} holds only {100 * inside:.0f} % of the vessels of {tree_name}: check that the mask is white on black and "
      "belongs to this photograph, and draw the visible disc white on black in fov/."
    )


def drawing(picture: image_io.Picture) -> np.ndarray:
  """What a file draws, as the greatest colour channel or, where it carries the drawing, the opacity; [H, W], any type.

  The opacity carries the drawing where everything visible has one shade, such as black strokes on a transparent ground.
  """
  shade = picture.shade()
  if picture.alpha is None:
    return shade
  visible = shade[picture.alpha >= 128]
  spread = np.ptp(visible) if visible.size else 0
  is_label = visible.size and 0 < spread <= visible.max() <= 3
  if spread <= 16 / 255 * max(1.0, float(shade.max())) and not is_label or not visible.size:
    return picture.alpha
  if shade.dtype == np.uint8:
    return image_io.on_black(shade, picture.alpha)
  return shade * (picture.alpha >= 128)


def _read(data, name: str, what: str, source: str | None):
  """(uint8 0/255 [H, W, 1], half of the range of the file's values)."""
  source = source or image_io.source_of(data, name)
  picture = image_io.read(data, name, source)
  return (_binary(picture, data, name, what, source) * np.uint8(255))[..., None], half_range(picture.values)


def _binary(picture: image_io.Picture, data, name: str, what: str, source: str) -> np.ndarray:
  """bool [H, W]."""
  values = drawing(picture)
  if values is picture.alpha and not picture.shade()[values >= 128].max(initial=0):
    notices.once(
      source, "opacity", f"{name} draws black on a transparent background: in {source}, what is opaque is read as {what}."
    )
  values = np.nan_to_num(values) if values.dtype.kind == "f" else values
  top, low = values.max(), values.min()
  if low < 0:
    raise ValueError(f"{name} holds negative values: a mask is 0 for background and above 0 for {what}.")
  if top == 0 or (picture.is_lossy and top < 32):  # what JPEG makes of black
    return np.zeros(values.shape, bool)
  whole = values.dtype.kind != "f" or not (values % 1).any()
  if low == 0 and 2 <= top <= 3 and whole and not picture.is_lossy:
    return _classes(values, name, what, source, f"class labels 0 to {top:.0f}")
  grey = values if values.dtype == np.uint8 else np.rint(values * (255.0 / top)).astype(np.uint8)
  counts = np.array(Image.fromarray(grey).histogram())  # several times faster than np.bincount
  used = np.flatnonzero(counts)
  several = 0 if picture.is_lossy or values is picture.alpha else _colours(picture)
  if low == 0 and 2 <= several <= 6:
    return _classes(values, name, what, source, f"{several} colours besides black")
  if len(used) == 2 and not picture.is_lossy:
    return grey > used[0]
  top8 = int(used[-1])
  slack = 5 * top8 // 255
  between = 1 - (counts[: slack + 1].sum() + counts[top8 - slack :].sum()) / grey.size
  quarter = top8 // 4
  is_drawn, is_middle = counts[quarter + 1 :].sum(), counts[quarter + 1 : top8 - quarter].sum()
  if between > _BETWEEN and is_middle > _GREY * is_drawn:
    raise ValueError(
      f"{name} is not a binary mask ({100 * between:.0f} % of its pixels are neither background nor {what}): "
      f"{_recipe(data, half_range(values))} (--above 0 where the values are class labels){_kept(data)}."
    )
  if between > 0:
    notices.once(
      source,
      "grey",
      f"{name} has grey edges ({100 * between:.1f} % of its pixels are neither background nor {what}): masks in {source} are "
      "cut at half of their greatest value.",
    )
  return grey.astype(np.int32) * 2 > top8


def _colours(picture: image_io.Picture) -> int:
  """Number of colours besides black in an 8-bit colour picture; 0 where all are shades of grey."""
  values = picture.values
  if values.ndim != 3 or values.dtype != np.uint8 or not (values.max(axis=-1) > values.min(axis=-1)).any():
    return 0
  packed = (values[..., :3].astype(np.uint32) << np.arange(0, 24, 8, dtype=np.uint32)[: values.shape[-1]]).sum(axis=-1)
  return np.count_nonzero(np.unique(packed))


def _classes(values: np.ndarray, name: str, what: str, source: str, labels: str) -> np.ndarray:
  notices.once(source, "classes", f"{name} holds {labels}: in {source}, whatever is above 0 is read as {what}.")
  return values > 0


def half_range(values: np.ndarray) -> float | int:
  """Half of the range of a file's values, in its own units: 127 for 8 bits, 32767 for 16, 0.5 for floats up to 1."""
  top = values.max(initial=0)
  return 0.5 if values.dtype.kind == "f" and top <= 1 else 2 ** max(0, int(top).bit_length() - 1) - 1


def _recipe(data, above, more: str = "") -> str:
  """The command that makes the masks of a folder binary; for masks that lie in no folder, what to do with their source."""
  if not isinstance(data, pathlib.Path):
    return "correct the files and build the set again"
  return f"run python -m retree_jax.data.binarise {shlex.quote(str(data.parent))} --above {above}{more}"


def _kept(data) -> str:
  return f"; the old files are kept in {data.parent / 'originals'}" if isinstance(data, pathlib.Path) else ""
