"""nnU-Net v2's raw folders (DatasetXXX_NAME) as sources of eyes, as nnU-Net's documentation/dataset_format.md describes them.

dataset.json        channel_names, labels, file_ending
imagesTr/CASE_0000.png           one RGB or grey file for each case, or one grey file for each of red, green and blue
labelsTr/CASE.png                0 background, above 0 vessel
imagesTs/  labelsTs/             the same: the test split, where it has labels
fov/CASE.png                     fields of view: no part of nnU-Net's layout, and written by `retree-jax generate`
"""

import json
import pathlib
import re

import numpy as np

from retree_jax.data import folders, image_io

_VESSEL = re.compile(r"vessel|vascul|arter|vein|venule|capillar", re.IGNORECASE)
_COLOURS = ("red", "green", "blue")
# Names that say which normalisation nnU-Net uses, or that the channels are those of a picture.
_PICTURE = re.compile(r"rgb|colou?r|gr[ae]y|fundus|photo|image|zscore|nonorm|rescale", re.IGNORECASE)
_CHANNEL = re.compile(r"(.+)_(\d{4})$")


def is_raw(path) -> bool:
  """Whether a folder is laid out as nnU-Net's raw folders are."""
  try:
    return (folders.expanded(path) / "imagesTr").is_dir()
  except OSError:  # the source says what is wrong with such a folder
    return False


class NnunetSource(folders.FolderSource):
  """Eyes of a raw folder; see `folders.FolderSource`.

  Attributes:
    split: (names of the training cases, names of the test cases); None where there are no labelled test cases.

  Raises:
    ValueError: as `folders.FolderSource`; no dataset.json, or one of other pictures or labels; channels that are incomplete.
  """

  def __init__(self, path, fields=("image", "tree")):
    self._channels: dict[str, list[pathlib.Path]] = {}
    self.split = None
    super().__init__(path, fields)

  def _list(self, takes_image, takes_tree, needs_image, needs_tree) -> dict[str, dict[str, pathlib.Path]]:
    ending = _check(self.path / "dataset.json", takes_tree)
    listed: dict[str, dict[str, pathlib.Path]] = {"images": {}, "masks": {}}
    cases = {}
    for part in ("Tr", "Ts"):
      images, labels = (self._pictures(f"{kind}{part}", ending) for kind in ("images", "labels"))
      if part == "Ts" and takes_tree and needs_tree and not labels:
        continue  # nnU-Net's own use of imagesTs: photographs to predict
      cases[part] = self._cases(images, part)
      if both := sorted(cases[part].keys() & listed["images"].keys()):
        raise ValueError(f"{self.path} has {folders.some(both)} in both imagesTr and imagesTs: give each case one name.")
      listed["images"] |= cases[part]
      listed["masks"] |= labels
    if cases.get("Ts"):
      self.split = (sorted(cases["Tr"]), sorted(cases["Ts"]))
    if (self.path / "fov").is_dir():
      listed["fov"] = folders.list_pictures(self.path / "fov")
    return listed

  def _pictures(self, folder: str, ending: str) -> dict[str, pathlib.Path]:
    """The pictures of one subfolder by stem; {} where there is no such folder."""
    if not (self.path / folder).is_dir():
      return {}
    return {stem: path for stem, path in folders.find_pictures(self.path / folder).items() if path.name.endswith(ending)}

  def _cases(self, images: dict[str, pathlib.Path], part: str) -> dict[str, pathlib.Path]:
    """The first file of each case; where a case has three, `_channels` holds them all."""
    channels: dict[str, dict[int, pathlib.Path]] = {}
    for stem, path in images.items():
      found = _CHANNEL.fullmatch(stem)
      if not found:
        raise ValueError(f"{path} has no channel in its name: call it {path.stem}_0000{path.suffix}, as nnU-Net does.")
      channels.setdefault(found[1], {})[int(found[2])] = path
    for case, files in channels.items():
      if sorted(files) not in ([0], [0, 1, 2]):
        raise ValueError(
          f"{self.path / f'images{part}'} has {len(files)} of the channels of {case}: give one file {case}_0000 in colour, or "
          f"{case}_0000, {case}_0001 and {case}_0002 for red, green and blue."
        )
      if len(files) == 3:
        self._channels[case] = [files[k] for k in range(3)]
    return {case: files[0] for case, files in channels.items()}

  def files(self, name) -> list[pathlib.Path]:
    return [*super().files(name), *self._channels.get(name, ())[1:]]

  def _photograph(self, name: str) -> np.ndarray:
    if name not in self._channels:
      return super()._photograph(name)
    planes = [image_io.read(path, str(path)).values for path in self._channels[name]]
    for path, plane in zip(self._channels[name], planes, strict=True):
      if plane.ndim != 2 or plane.dtype != np.uint8 or plane.shape != planes[0].shape:
        raise ValueError(
          f"{path} is no channel of 8 bits and of the size of the others: save the photograph as one RGB file, {name}_0000.png."
        )
    return np.stack(planes, axis=-1)


def _check(path: pathlib.Path, takes_tree: bool) -> str:
  """The ending of the files of a raw folder whose dataset.json describes photographs with vessels.

  Raises:
    ValueError: it describes something else, is damaged or missing.
  """
  if not path.is_file():
    raise ValueError(
      f"{path} is missing: nnU-Net's raw folders have one; copy it too, or use a folder with images/ and masks/."
    )
  try:
    content = json.loads(folders.read_text(path))
    ending, channels, labels = str(content["file_ending"]), content["channel_names"], content["labels"]
    names = [str(channels[key]) for key in sorted(channels, key=int)]
    others = [str(name) for name, value in labels.items() if value != 0]
  except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
    raise ValueError(
      f"{path} is no description of an nnU-Net v2 set: it needs channel_names, labels (name to number) and file_ending."
    ) from None
  if ending.lower() not in folders.EXTENSIONS:
    raise ValueError(
      f"{path} says that the files end in {ending}: photographs in .png, .bmp or .tif files are read; convert them."
    )
  is_rgb = len(names) == 3 and all(colour.startswith(name.lower()) for name, colour in zip(names, _COLOURS, strict=True))
  if not is_rgb and not (len(names) in (1, 3) and all(_PICTURE.search(name) for name in names)):
    raise ValueError(
      f"{path} names the channels {folders.some(names)}: photographs have R, G and B; correct channel_names if these are "
      "photographs."
    )
  if takes_tree and (wrong := [name for name in others if not _VESSEL.search(name)] or ([] if others else ["no vessels"])):
    raise ValueError(
      f"{path} names the labels {folders.some(wrong)}, which are not called vessels, arteries or veins: correct labels if they "
      'are, as in {"background": 0, "vessel": 1}, and otherwise leave them out of the masks.'
    )
  return ending
