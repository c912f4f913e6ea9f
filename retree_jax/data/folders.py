"""Folders of eyes on disk: which photograph belongs to which mask, and their pixels.

A *pair folder* holds `images/`, `masks/` and optionally `fov/`; files pair by stem. A stem may end in one of the suffixes that
the public sets append (`SUFFIXES`): files with equal stems pair first, the rest pair by the stem without suffixes, so that
DRIVE's `21_training.tif`, `21_manual1.gif` and `21_training_mask.gif` are one eye. A flat folder (without these subfolders)
holds masks or photographs, whichever is asked for. Names are compared in Unicode's composed form (NFC), so that files from
different systems pair.
"""

import json
import os
import pathlib
import re
import unicodedata

import numpy as np

from retree_jax.data import field_of_view, image_io, masks, notices

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ppm", ".gif", ".bmp")
_BLACK = 8  # grey levels that no pixel of a black photograph reaches
_NOT_READ = (".webp", ".jp2", ".j2k", ".heic", ".heif", ".avif", ".jfif", ".dcm", ".svg", ".pgm", ".pbm", ".npy")
SUFFIXES = (
  "1stho",
  "2ndho",
  "manual1",
  "manual2",
  "manual",
  "training",
  "test",
  "mask",
  "fov",
  "vessels",
  "vessel",
  "label",
  "gt",
  "seg",
  "ah",
  "vk",
)
LABELS = ("expert", "predicted", "phantom", "generated")
_SUFFIX = re.compile(r"[_.\-](" + "|".join(SUFFIXES) + r")$", re.IGNORECASE)


def pairing_key(stem: str) -> str:
  """The stem without the suffixes in `SUFFIXES`, composed, lower case: `"21_training_mask"` -> `"21"`."""
  stem = composed(stem)
  while True:
    shorter = _SUFFIX.sub("", stem)
    if shorter == stem or not shorter:
      return stem.lower()
    stem = shorter


def composed(name: str) -> str:
  """A name in Unicode's composed form (NFC): macOS and archives made there give decomposed names, e.g. e + U+0301 for é."""
  return unicodedata.normalize("NFC", name)


def expanded(path) -> pathlib.Path:
  """A path with "~" or "~user" replaced by the home folder.

  Raises:
    ValueError: there is no such user.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError:
    raise ValueError(f"{path} starts with a home folder that is unknown: write the whole path.") from None


def some(names, limit: int = 3) -> str:
  """A few names for an error message: `"a, b, c and 4 more"`."""
  names = list(names)
  return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def check_utf8(path: pathlib.Path) -> None:
  """Refuses a path that cannot be written into manifests and splits.

  Raises:
    ValueError: it is not UTF-8.
  """
  try:
    str(path).encode()
  except UnicodeEncodeError:
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    raise ValueError(f"The name {shown} is not UTF-8: rename it with plain letters.") from None


def find_pictures(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Picture files of one folder by stem (composed), sorted; hidden files and other types are skipped. {} where there are none.

  Raises:
    ValueError: two pictures share a stem, a name is not UTF-8, or the folder cannot be listed.
  """
  found: dict[str, pathlib.Path] = {}
  try:
    entries = sorted(folder.iterdir())
  except OSError as error:
    raise ValueError(f"Cannot list the folder {folder} ({error.strerror or error}): check its permissions.") from None
  if skipped := [path.name for path in entries if path.suffix.lower() in _NOT_READ and not path.name.startswith(".")]:
    notices.once(str(folder), "skipped", f"Skipped in {folder}, since files of such types are not read: {some(skipped)}")
  for path in entries:
    if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS or not path.is_file():
      continue
    check_utf8(path)
    stem = composed(path.stem)
    if stem in found:
      raise ValueError(f"{found[stem]} and {path.name} have the same stem: keep one of the two.")
    found[stem] = path
  return found


def list_pictures(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """`find_pictures` of a folder that must hold some.

  Raises:
    ValueError: as `find_pictures`, or there are none.
  """
  found = find_pictures(folder)
  if not found:
    raise ValueError(f"No pictures in {folder}: put files there that end in {' '.join(e[1:] for e in EXTENSIONS)}.")
  return found


def match(first: dict[str, pathlib.Path], second: dict[str, pathlib.Path]) -> dict[str, pathlib.Path]:
  """Finds for each stem of `first` its file of `second`: equal stems first, then equal `pairing_key`s.

  Returns:
    {stem of first: path of second}, without the stems that found nothing.

  Raises:
    ValueError: a key fits several files, so that the pairing would be a guess.
  """
  pairs = {stem: second[stem] for stem in first if stem in second}
  rest: dict[str, list[pathlib.Path]] = {}
  for stem, path in second.items():
    if stem not in pairs:
      rest.setdefault(pairing_key(stem), []).append(path)
  taken: dict[str, str] = {}
  for stem in first:
    if stem in pairs or not (candidates := rest.get(pairing_key(stem))):
      continue
    key = pairing_key(stem)
    if len(candidates) > 1 or key in taken:
      clash = [p.name for p in candidates] if len(candidates) > 1 else [taken[key], stem]
      raise ValueError(
        f"Cannot tell which file belongs to {stem} in {candidates[0].parent}: {some(clash)} all fit; "
        "keep one file per eye and give both files of a pair the same stem."
      )
    taken[key] = stem
    pairs[stem] = candidates[0]
  return pairs


def read_text(path: pathlib.Path) -> str:
  """The text of a JSON file: UTF-8 or UTF-16, with or without a byte-order mark (as Windows' editors and PowerShell write).

  Raises:
    ValueError: it cannot be opened, or is in another encoding.
  """
  try:
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data))
  except UnicodeDecodeError:
    raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8.") from None
  except OSError as error:
    raise ValueError(f"Cannot open {path} ({error.strerror or error}): check its permissions.") from None


def read_labels(folder: pathlib.Path) -> dict[str, str]:
  """Who drew each mask, from the folder's `manifest.jsonl`: {stem: one of `LABELS`}; {} where there is no manifest.

  Each line is a JSON object with "name" (a stem) and "label"; a line without "label" means "generated".

  Raises:
    ValueError: a line is not such an object or has an unknown label.
  """
  path = folder / "manifest.jsonl"
  if not path.is_file():
    return {}
  labels = {}
  for number, line in enumerate(read_text(path).split("\n"), 1):
    if not line.strip():
      continue
    try:
      entry = json.loads(line)
      name, label = entry["name"], entry.get("label", "generated")
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError):
      raise ValueError(
        f'{path}, line {number}: expected a JSON object such as {{"name": "eye_1", "label": "expert"}}.'
      ) from None
    if label not in LABELS:
      raise ValueError(f"{path}, line {number}: unknown label {label!r}; write one of {', '.join(LABELS)}.")
    labels[composed(str(name))] = label
  return labels


def _label_of_unlisted(folder: pathlib.Path) -> str:
  """Label of the masks that no manifest lists: "expert", unless this project writes the folder, which a killed run leaves
  without a whole manifest.
  """
  for name, label in (("run.json", "generated"), ("labels.json", "predicted")):
    try:
      if "checkpoint" in (folder / name).read_text(encoding="utf-8"):
        return label
    except (OSError, UnicodeDecodeError):
      continue
  return "expert"


class FolderSource:
  """Eyes of one folder as a random-access sequence of examples; usually opened by `sources.open_source`.

  Args:
    path: the folder; "~" is the home folder.
    fields: as for `sources.open_source`.

  Attributes:
    names: stems, sorted; the photographs' where there are photographs, otherwise the masks'.
    title: the folder's name.
    split: (train, test) names where the folder's layout has such parts (`nnunet`), otherwise None.

  Raises:
    ValueError: a missing or empty folder, a file without partner, an unreadable header, a mask of another size than its
      photograph; from indexing, a picture or mask that `image_io` or `masks` refuses.
  """

  # Of larger folders the headers are checked when the pictures are read: opening a million files takes minutes.
  max_checked = 2000
  split: tuple[list[str], list[str]] | None = None

  def __init__(self, path, fields=("image", "tree")):
    self.path = expanded(path)
    self.title = composed(self.path.resolve().name)
    needs_image, needs_tree = "image" in fields, "tree" in fields
    takes_image, takes_tree = needs_image or "image?" in fields, needs_tree or "tree?" in fields
    if not (takes_image or takes_tree):
      raise ValueError(f"fields is {tuple(fields)}: ask for 'image', 'tree' or both.")
    check_utf8(self.path.resolve())
    listed = self._list(takes_image, takes_tree, needs_image, needs_tree)
    images, masks_ = listed.get("images", {}), listed.get("masks", {})
    if needs_image and not images:
      raise ValueError(f"{self.path} has no images/: put the photographs there, with the stems of the masks.")
    if needs_tree and not masks_:
      raise ValueError(f"{self.path} has no masks/: put the vessel masks there, with the stems of the photographs.")
    if not takes_tree:
      masks_ = {}
    self._images, self._masks = self._pair(images, masks_, takes_image, needs_tree)
    self.names = sorted(self._images if takes_image and images else self._masks)
    self._fov = match(dict.fromkeys(self.names, self.path), listed["fov"]) if "fov" in listed else {}
    used = {*self._fov.values(), *match(images, listed.get("fov", {})).values()}
    if lonely := [path.name for path in listed.get("fov", {}).values() if path not in used]:
      raise ValueError(
        f"No photograph or mask in {self.path} for the fields of view {some(lonely)}: files pair by stem; "
        "rename, add or remove files."
      )
    self._takes_image = takes_image
    known = read_labels(self.path)
    unlisted = _label_of_unlisted(self.path)
    self._labels = {name: known.get(name, unlisted) for name in self.names}
    for name in self.names[: self.max_checked]:
      self._check_sizes(name)

  def _list(self, takes_image, takes_tree, needs_image, needs_tree) -> dict[str, dict[str, pathlib.Path]]:
    """The pictures of each subfolder, or of a flat folder as the one kind that is asked for."""
    try:
      if not self.path.is_dir():
        if self.path.exists():
          raise ValueError(f"{self.path} is a file, not a folder: give the folder that it lies in.")
        raise ValueError(f"The folder {self.path} does not exist: give the path of a folder with images/ and masks/.")
      inner = {kind: self.path / kind for kind in ("images", "masks", "fov") if (self.path / kind).is_dir()}
    except PermissionError as error:
      raise ValueError(f"The folder {self.path} cannot be opened ({error.strerror}): check its permissions.") from None
    listed = {kind: list_pictures(folder) for kind, folder in inner.items()}
    if "images" not in inner and "masks" not in inner:
      if takes_image and takes_tree and needs_image == needs_tree and needs_image:
        raise ValueError(
          f"{self.path} has no images/ and masks/: put the photographs in images/ and the vessel masks in masks/, "
          "paired by stem."
        )
      listed["images" if needs_image or not takes_tree else "masks"] = list_pictures(self.path)
    return listed

  def _pair(self, images, masks_, takes_image, needs_tree):
    """(photographs, masks) by the names that this source uses; refuses files without partner where both are needed."""
    if not images or not masks_:
      return images, masks_
    if not takes_image:  # photographs only help to find the FOV, where they are
      return match(masks_, images), masks_
    pairs = match(images, masks_)
    used = set(pairs.values())
    lonely_masks = [path.name for path in masks_.values() if path not in used]
    lonely_images = [path.name for stem, path in images.items() if stem not in pairs]
    if lonely_masks:
      raise ValueError(
        f"No photograph in {self.path / 'images'} for the masks {some(lonely_masks)}: files pair by stem; "
        "rename, add or remove files."
      )
    if lonely_images and needs_tree:
      raise ValueError(
        f"No mask in {self.path / 'masks'} for the photographs {some(lonely_images)}: files pair by stem; "
        "rename, add or remove files."
      )
    return images, pairs

  def has_tree(self, name) -> bool:
    """Whether an example has a vessel mask."""
    return name in self._masks

  def files(self, name) -> list[pathlib.Path]:
    """The files of one example: photograph, mask and field of view, as far as there are any."""
    return [files[name] for files in (self._images, self._masks, self._fov) if name in files]

  def has_fov(self, name: str) -> bool:
    """Whether there is a file of an example's field of view."""
    return name in self._fov

  def _photograph(self, name: str) -> np.ndarray:
    """The pixels of one photograph, uint8 [H, W, 3]."""
    return image_io.as_photograph(image_io.decode(self._images[name], str(self._images[name])))

  def is_labelled_generated(self) -> bool:
    """Whether the manifest, or who writes the folder, says of any example that it was generated."""
    return any(self._labels[name] == "generated" for name in self.names)

  def _check_sizes(self, name, size=image_io.picture_size):
    files = self.files(name)
    sizes = [size(path) for path in files]
    if len(set(sizes)) == 1:
      return
    if size is image_io.picture_size:  # a tag behind the pixels can turn a picture too: look at the pixels before refusing
      self._check_sizes(name, lambda path: image_io.read(path, str(path)).values.shape[:2])
      return
    wrong = next(k for k, size in enumerate(sizes) if size != sizes[0])
    (height, width), first = sizes[wrong], sizes[0]
    turned = (height, width) == first[::-1]
    raise ValueError(
      f"{files[wrong]} is {height}x{width} (height x width) but {files[0]} is {first[0]}x{first[1]}"
      f"{', upright by its EXIF orientation' if turned else ''}: a mask must have the size of its photograph; "
      f"{'turn' if turned else 'resize'} it or replace it."
    )

  def keep(self, names) -> "FolderSource":
    """Narrows the source to these names, in this order; returns itself."""
    self.names = list(names)
    return self

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict:
    name = self.names[index]
    label = self._labels[name]
    photo, mask, fov = (files.get(name) for files in (self._images, self._masks, self._fov))
    example = {"name": name, "label": label}
    image = None
    if photo is not None and (self._takes_image or fov is None):
      image = self._photograph(name)
    if self._takes_image and image is not None:
      example["image"] = image
    if mask is not None:
      if image is not None and image.max() < _BLACK:
        raise ValueError(f"{photo} is black: replace it, or remove it and its mask.")
      example["tree"] = masks.read_tree(mask, str(mask), label)
    if fov is not None:
      example["fov"] = masks.read_fov(fov, str(fov))
    elif image is not None:
      example["fov"] = field_of_view.find_fov(image)
    else:
      example["fov"] = np.full_like(example["tree"], 255)
    shapes = {key: example[key].shape[:2] for key in ("image", "tree", "fov") if key in example}
    if len(set(shapes.values())) > 1:
      self._check_sizes(name)
    if mask is not None:
      shown = str(fov) if fov is not None else f"The visible disc found in {photo}"
      masks.check_fov(example["tree"], example["fov"], label, str(mask), shown)
    return example
