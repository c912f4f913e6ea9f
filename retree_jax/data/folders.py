"""Folders of eyes on disk: which photograph belongs to which mask, how a file becomes an array, and where the
retina is.

A *pair folder* holds `images/`, `masks/` and optionally `fov/`; files pair by stem. A stem may carry one of
the suffixes the public sets put on it (`SUFFIXES`): files whose stems are equal pair first, the rest pair by
the stem without suffixes, so DRIVE's `21_training.tif`, `21_manual1.gif` and `21_training_mask.gif` are one
eye. A flat folder (no such subfolders) is a folder of masks or of photographs, whichever single thing is
asked for.
"""

import json
import pathlib
import re

import numpy as np

from retree_jax.data import field_of_view, image_io

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ppm", ".gif", ".bmp")
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
  """The stem without the suffixes in `SUFFIXES`, lower case: `"21_training_mask"` -> `"21"`."""
  while True:
    shorter = _SUFFIX.sub("", stem)
    if shorter == stem or not shorter:
      return stem.lower()
    stem = shorter


def some(names, limit: int = 3) -> str:
  """A few names for an error message: `"a, b, c and 4 more"`."""
  names = list(names)
  return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def list_pictures(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Picture files of one folder by stem, sorted; hidden files and other types are passed over.

  Raises:
    ValueError: two pictures share a stem, the folder holds none, or cannot be read.
  """
  found: dict[str, pathlib.Path] = {}
  try:
    entries = sorted(folder.iterdir())
  except OSError as error:
    raise ValueError(f"Cannot list the folder {folder} ({error.strerror or error}): check its permissions.") from None
  for path in entries:
    if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS or not path.is_file():
      continue
    if path.stem in found:
      raise ValueError(f"{found[path.stem]} and {path.name} have the same stem: keep one of the two.")
    found[path.stem] = path
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


def read_labels(folder: pathlib.Path) -> dict[str, str]:
  """Who drew each mask, from the folder's `manifest.jsonl`: {stem: one of `LABELS`}; {} where there is no
  manifest.

  Each line is a JSON object with "name" (a stem) and "label"; a line without "label" means "generated".

  Raises:
    ValueError: a line is no such object or names an unknown label.
  """
  path = folder / "manifest.jsonl"
  if not path.is_file():
    return {}
  labels = {}
  lines = path.read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines, 1):
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
    labels[str(name)] = label
  return labels


class FolderSource:
  """Eyes of one folder as a random-access sequence of examples; see `sources.open_source` for the usual way
  in.

  Attributes:
    names: stems, sorted; the photographs' where there are photographs, otherwise the masks'.
    title: the folder's name.

  Raises:
    ValueError: missing or empty folder, files without partner, unreadable headers, a mask of another size
    than its photograph.
  """

  # headers of bigger folders are checked when read: a million opens at start would cost minutes
  max_checked = 2000

  def __init__(self, path, fields=("image", "tree")):
    self.path = pathlib.Path(path).expanduser()
    self.title = self.path.resolve().name
    needs_image, needs_tree = "image" in fields, "tree" in fields
    takes_image, takes_tree = needs_image or "image?" in fields, needs_tree or "tree?" in fields
    if not (takes_image or takes_tree):
      raise ValueError(f"fields is {tuple(fields)}: ask for 'image', 'tree' or both.")
    if not self.path.is_dir():
      what = "is a file, not a folder" if self.path.exists() else "does not exist"
      raise ValueError(f"The folder {self.path} {what}: give a folder with images/ and masks/ as folder:PATH.")
    inner = {kind: self.path / kind for kind in ("images", "masks", "fov") if (self.path / kind).is_dir()}
    listed = {kind: list_pictures(folder) for kind, folder in inner.items()}
    if "images" not in inner and "masks" not in inner:
      if takes_image and takes_tree and (needs_image or needs_tree) and not (needs_image ^ needs_tree):
        raise ValueError(
          f"{self.path} has no images/ and masks/: put the photographs in images/ and the vessel masks in "
          "masks/, paired by stem."
        )
      kind = "images" if needs_image or not takes_tree else "masks"
      listed[kind] = list_pictures(self.path)
    images, masks = listed.get("images", {}), listed.get("masks", {})
    if needs_image and not images:
      raise ValueError(f"{self.path} has no images/: put the photographs there, with the stems of the masks.")
    if needs_tree and not masks:
      raise ValueError(f"{self.path} has no masks/: put the vessel masks there, with the stems of the photographs.")
    if not takes_tree:
      masks = {}
    self._images, self._masks = self._pair(images, masks, takes_image, needs_image, needs_tree)
    self.names = sorted(self._images if takes_image and images else self._masks)
    self._fov = match(dict.fromkeys(self.names, self.path), listed["fov"]) if "fov" in listed else {}
    self._takes_image = takes_image
    known = read_labels(self.path)
    self._labels = {name: known.get(name, "expert") for name in self.names}
    for name in self.names[: self.max_checked]:
      self._check_sizes(name)

  def _pair(self, images, masks, takes_image, needs_image, needs_tree):
    """Returns (photographs, masks) by the names this source uses, and refuses lonely files where both are
    needed.
    """
    if not images or not masks:
      return images, masks
    if not takes_image:  # photographs only help to find the FOV, where they are
      return match(masks, images), masks
    pairs = match(images, masks)
    used = set(pairs.values())
    lonely_masks = [path.name for path in masks.values() if path not in used]
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

  def _files(self, name):
    return [files[name] for files in (self._images, self._masks, self._fov) if name in files]

  def _check_sizes(self, name):
    files = self._files(name)
    sizes = [image_io.picture_size(path) for path in files]
    for path, size in zip(files, sizes, strict=True):
      if size != sizes[0]:
        raise ValueError(
          f"{path} is {size[0]}x{size[1]} (height x width) but {files[0]} is {sizes[0][0]}x{sizes[0][1]}: "
          "a mask must have the size of its photograph; resize it or replace it."
        )

  def keep(self, names) -> "FolderSource":
    """Narrows the source to these names, in this order; returns itself."""
    self.names = list(names)
    return self

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict:
    name = self.names[index]
    example = {"name": name, "label": self._labels[name]}
    image = (
      image_io.as_photograph(image_io.decode(self._images[name], str(self._images[name])))
      if name in self._images and (self._takes_image or name not in self._fov)
      else None
    )
    if self._takes_image and image is not None:
      example["image"] = image
    if name in self._masks:
      example["tree"] = image_io.as_tree(image_io.decode(self._masks[name], str(self._masks[name])), str(self._masks[name]))
    if name in self._fov:
      example["fov"] = image_io.as_mask(image_io.decode(self._fov[name], str(self._fov[name])), str(self._fov[name]))
    elif image is not None:
      example["fov"] = field_of_view.find_fov(image)
    else:
      example["fov"] = np.full_like(example["tree"], 255)
    shapes = {key: example[key].shape[:2] for key in ("image", "tree", "fov") if key in example}
    if len(set(shapes.values())) > 1:
      self._check_sizes(name)
    return example
