"""TFDS data sets as sources: any set in ArrayRecord files with the features "image" and "tree", and optionally "fov" and
"label". TensorFlow is not needed.
"""

import numpy as np

from retree_jax.data import field_of_view, folders, image_io, masks, splits


class TfdsSource:
  """Eyes of a TFDS data set as a random-access sequence of examples; see `sources.open_source` for the usual way in.

  Args:
    spec: NAME[/CONFIG], or NAME:DIR where DIR is TFDS' data folder or the folder of one set (with dataset_info.json in it).
    split: "train", "test" or "all"; a set that has not both splits is split by a hash of its names.
    fields: as for `open_source`.

  Attributes:
    names: the eyes' names where the set's metadata lists them, otherwise their numbers.
    title: the set's name.

  Raises:
    ValueError: no such set, files without random access, missing features or masks; from indexing, a picture or mask that
      `image_io` or `masks` refuses.
  """

  def __init__(self, spec: str, split: str = "train", fields=("image", "tree")):
    name, _, folder = spec.partition(":")
    builder = _builder(name, folder)
    self.title = builder.name
    features = builder.info.features
    needed = [field for field in ("image", "tree") if field in fields]
    missing = [field for field in needed if field not in features]
    if missing:
      raise ValueError(
        f"The TFDS set {name} has no {' and no '.join(missing)}, only {', '.join(sorted(features))}: use a set "
        "that has it, or rename its feature."
      )
    self._keys = [
      field
      for field in ("image", "tree", "fov")
      if field in features and (field == "fov" or field in fields or f"{field}?" in fields)
    ]
    if "fov" not in self._keys and "image" in features and "image" not in self._keys:
      self._keys.append("image")  # to find the FOV in it
    self._takes_image = "image" in fields or "image?" in fields
    self._extra = [key for key in ("label",) if key in features]
    self._splits = _data(builder, features)
    listed = (builder.info.metadata or {}).get("names", {})
    several = len(self._splits) > 1
    everything = [
      (part, i, listed[part][i] if part in listed else f"{part}-{i:07d}" if several else f"{i:07d}")
      for part, data in self._splits.items()
      for i in range(len(data))
    ]
    if split == "all":
      chosen = everything
    elif {"train", "test"} <= set(self._splits):
      chosen = [eye for eye in everything if eye[0] == split]
    else:
      side = set(splits.hold_out([eye[2] for eye in everything])[split == "test"])
      chosen = [eye for eye in everything if eye[2] in side]
    if not chosen:
      raise ValueError(f"The {split} split of the TFDS set {name} is empty: use another split or set.")
    self._where = [(part, i) for part, i, _ in chosen]
    self.names = [eye for *_, eye in chosen]
    bare = set((builder.info.metadata or {}).get("unlabelled", ())) & set(self.names)
    if "tree" in needed and bare:
      raise ValueError(
        f"The {split} split of the TFDS set {name} has no vessel masks for {folders.some(sorted(bare))}: "
        "build it from a copy that has them, or use another split."
      )

  def has_tree(self, name) -> bool:
    """Whether an example may have a vessel mask."""
    return "tree" in self._keys

  def __len__(self) -> int:
    return len(self.names)

  def is_labelled_generated(self) -> bool:
    """Whether the first example's label says that it was generated: this project writes sets of one kind."""
    part, position = self._where[0]
    return bool(self._extra) and _text(self._splits[part][position]["label"]) == "generated"

  def __getitem__(self, index: int) -> dict:
    part, position = self._where[index]
    name = self.names[index]
    title = f"the eye {name} of the TFDS set {self.title}"
    try:
      record = self._splits[part][position]
    except (RuntimeError, OSError, IndexError) as error:
      raise ValueError(f"Cannot read {title} ({error}): build or copy the set again.") from None
    label = _text(record["label"]) if self._extra else "expert"
    keys = [key for key in self._keys if key != "tree" or label != "none"]
    label = "expert" if label == "none" else label
    example = {"name": name, "label": label}
    if "image" in keys:
      image = image_io.as_photograph(image_io.decode(record["image"], f"image of {title}", self.title))
      if self._takes_image:
        example["image"] = image
    if "tree" in keys:
      example["tree"] = masks.read_tree(record["tree"], f"tree of {title}", label, self.title)
    if "fov" in keys:
      example["fov"] = masks.read_fov(record["fov"], f"fov of {title}", self.title)
    else:
      example["fov"] = field_of_view.find_fov(image) if "image" in keys else np.full_like(example["tree"], 255)
    shapes = {example[key].shape[:2] for key in ("image", "tree", "fov") if key in example}
    if len(shapes) > 1:
      raise ValueError(f"In {title} photograph, mask and field of view differ in size: build the set again.")
    if "tree" in example:
      masks.check_fov(example["tree"], example["fov"], label, f"tree of {title}", f"The field of view of {title}")
    return example


def _text(value) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _builder(name: str, folder: str):
  """TFDS' read-only builder of a set on disk."""
  import tensorflow_datasets as tfds
  from google.protobuf import json_format
  from tensorflow_datasets.core import read_only_builder

  where = folders.expanded(folder) if folder and "://" not in folder else folder
  direct = bool(folder) and tfds.core.Path(where).joinpath("dataset_info.json").exists()
  try:
    if direct:
      return tfds.builder_from_directory(where)
    return read_only_builder.builder_from_files(name, **({"data_dir": str(where)} if folder else {}))
  except (ValueError, OSError, KeyError, json_format.Error) as error:
    if direct:
      raise ValueError(f"{where} is a damaged TFDS set ({error}): build or copy it again.") from None
    raise ValueError(
      f"There is no TFDS set {name!r} in {where or '~/tensorflow_datasets'}: build it with "
      f"python -m retree_jax.data.builders {name} DOWNLOADED{f' --data_dir {where}' if folder else ''}, "
      "or correct the name or folder."
    ) from None


def _data(builder, features) -> dict:
  """{split: random-access records}; pictures are left encoded, because `image_io` names a damaged one."""
  import tensorflow_datasets as tfds

  skip = {key: tfds.decode.SkipDecoding() for key in features if isinstance(features[key], tfds.features.Image)}
  try:
    lost = [path for split in builder.info.splits.values() for path in split.filepaths if not path.exists()]
    if lost:
      raise ValueError(f"{lost[0]} is missing")
    return {split: builder.as_data_source(split, decoders=skip) for split in builder.info.splits}
  except (NotImplementedError, ValueError, OSError) as error:
    reason = (str(error).strip().splitlines() or ["unreadable"])[0]
    raise ValueError(
      f"The TFDS set {builder.name} cannot be read at random ({reason}): build it with "
      "file_format='array_record', or copy its missing files."
    ) from None
