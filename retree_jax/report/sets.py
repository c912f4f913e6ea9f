"""The sets of an evaluation: opened from folders, specs or arrays, and checked to be disjoint."""

import pathlib

import numpy as np

from retree_jax.data import field_of_view, folders, sources

_CHANNELS = {"image": 3, "tree": 1, "fov": 1}


class ArraySource:
  """Pairs in memory as a source, see `retree_jax.data.sources`.

  Args:
    arrays: {"image": uint8 [N, H, W, 3], "tree": uint8 [N, H, W, 1] coverage 0..255, optional "fov": uint8 [N, H, W, 1]}.
    title: name of the set in the report.

  Raises:
    ValueError: a field is missing, has another type or shape, holds NaN, or the fields differ in number or size.
  """

  def __init__(self, arrays: dict, title: str):
    self._arrays, self.title = {}, title
    for key, channels in _CHANNELS.items():
      if key in arrays:
        value = np.asarray(arrays[key])
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
          raise ValueError(f"The {title} set's {key} holds NaN or infinity: remove these pairs.")
        if value.dtype != np.uint8 or value.ndim != 4 or value.shape[-1] != channels:
          raise ValueError(
            f"The {title} set's {key} must be uint8 [N, H, W, {channels}], not {value.dtype} {value.shape}: scale it to "
            "0..255 and convert it."
          )
        self._arrays[key] = value
    if "image" not in self._arrays:
      raise ValueError(f"The {title} set has no 'image': give photographs, uint8 [N, H, W, 3].")
    shapes = {key: value.shape[:3] for key, value in self._arrays.items()}
    if len(set(shapes.values())) > 1:
      raise ValueError(
        f"The {title} set's arrays do not belong together: their [N, H, W] are {shapes}. Give as many trees as photographs, of "
        "the same height and width."
      )
    self.names = [f"{i:05d}" for i in range(len(self._arrays["image"]))]

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict:
    example = {key: value[index] for key, value in self._arrays.items()} | {"name": self.names[index]}
    if "fov" not in example:
      example["fov"] = field_of_view.find_fov(example["image"])
    return example


def open_set(given, side: str, needs_tree: bool = True):
  """A source of one set.

  Args:
    given: a source, a spec ("folder:PATH"), a folder, or the arrays of an `ArraySource`.
    side: "generated", "real" or "train", for messages.
    needs_tree: whether examples without a tree are refused.

  Raises:
    ValueError: no such set, a set without a single example, or unsuitable arrays.
  """
  if isinstance(given, dict):
    source = ArraySource(given, side)
  elif isinstance(given, str | pathlib.PurePath):
    source = _open_spec(str(given), "all", needs_tree)
  else:
    source = given
  if not len(source):
    raise ValueError(f"The {side} set is empty: give at least one pair.")
  return source


def open_sets(
  generated: str, real: str, train: str | None = None, real_split: str | None = None, train_split: str | None = None
) -> dict:
  """Opens the sets that a command line names.

  Args:
    generated, real, train: specs of sources, or plain folders.
    real_split, train_split: which parts of them; by default all, or test and train where both are the same folder, and train
      where the training set is the first eyes of one, "[:N]".

  Returns:
    {"generated", "real" and, if given, "train": source}, as arguments of `evaluation.evaluate`.

  Raises:
    ValueError: as `sources.open_source`.
  """
  same = bool(train) and _locations(train) == _locations(real)
  splits = {
    "generated": "all",
    "real": real_split or ("test" if same else "all"),
    "train": train_split or ("train" if same or (train and sources.names_first_eyes(train)) else "all"),
  }
  specs = {"generated": generated, "real": real, "train": train}
  return {side: _open_spec(spec, splits[side], side != "train") for side, spec in specs.items() if spec}


def check_files_disjoint(train, real) -> None:
  """Raises a ValueError if a file of the held-out source is a file of the training source."""
  shared = sorted(_files(train) & _files(real))
  if shared:
    _refuse_shared([f"{folder}, {name}" for folder, name in shared], len(real))


def check_photographs_disjoint(train, real) -> None:
  """Raises a ValueError if two measured sets, `measure.MeasuredSet`, share a photograph, pixel for pixel."""
  known = set(train.digests)
  shared = [name for name, digest in zip(real.names, real.digests, strict=True) if digest in known]
  if shared:
    _refuse_shared(shared, len(real))


def _refuse_shared(shared: list[str], count: int) -> None:
  raise ValueError(
    f"{len(shared)} of the {count} real eyes are training eyes too, the first is {shared[0]}: held-out eyes must be ones that "
    "the generator never saw. Give others with --real, or for both a folder with splits.json."
  )


def as_spec(text: str) -> str:
  """The data source that a text names: one, or a folder."""
  is_spec = text.startswith(("folder:", "phantom", "tfds:")) and not folders.expanded(text).exists()
  return text if is_spec else f"folder:{text}"


def _open_spec(text: str, split: str, needs_tree: bool):
  return sources.open_source(as_spec(text), split=split, fields=("image", "tree" if needs_tree else "tree?"))


def _files(source) -> set[tuple[str, str]]:
  """(folder, name) of those examples of a source that are files."""
  if hasattr(source, "parts"):
    return set().union(*map(_files, source.parts))
  return {(str(source.path.resolve()), name) for name in source.names} if hasattr(source, "path") else set()


def _locations(text: str) -> set[str]:
  """The parts that a spec or path names, the same for every way to write them: folders resolved, weights and order ignored."""
  if folders.expanded(text).exists():
    return {str(folders.expanded(text).resolve())}
  parts = [sources.without_number(part) for part, _ in sources.weighted_parts(text)]
  return {
    str(folders.expanded(part.removeprefix("folder:")).resolve()) if part.startswith("folder:") else part for part in parts
  }
