"""Layouts of the downloaded public sets: the photograph, mask and field of view of each eye, and the splits that the literature
uses. Files are found by name, in any folder.
"""

import csv
import dataclasses
import pathlib
import re
from collections.abc import Sequence

from retree_jax.data import folders, splits


@dataclasses.dataclass(frozen=True)
class Eye:
  """The files of one eye; `tree` and `fov` are None where the set has none.

  Attributes:
    name: stem of the photograph.
  """

  name: str
  image: pathlib.Path
  tree: pathlib.Path | None = None
  fov: pathlib.Path | None = None


Splits = dict[str, list[Eye]]


def _found(files: Sequence[pathlib.Path], pattern: str) -> dict[str, pathlib.Path]:
  """Files whose path ends in the pattern, by its group "eye", sorted by eye.

  Raises:
    ValueError: two different files for one eye, or a name that is not UTF-8.
  """
  regex, found = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE), {}
  for path in files:
    if match := regex.search(path.as_posix()):
      folders.check_utf8(path)
      eye = folders.composed(match["eye"])
      if eye in found:
        raise ValueError(f"{found[eye]} and {path} are the same eye: give a folder that holds the set once.")
      found[eye] = path
  return dict(sorted(found.items()))


def _complete(what: str, number: int, images: dict, **parts: dict) -> None:
  """Refuses an incomplete set: results on a split are comparable only if it is complete."""
  if not images:
    raise ValueError(f"No photographs of {what} found: give the archive or folder downloaded from its page.")
  if len(images) != number:
    raise ValueError(f"{what} has {number} photographs, but {len(images)} were found: download it again.")
  for part, found in parts.items():
    lonely = [eye for eye in images if eye not in found]
    if lonely:
      raise ValueError(f"{what} has no {part} for {folders.some(lonely)}: download it again, with that part.")


def chase_db1(files: Sequence[pathlib.Path], observer: str = "first") -> Splits:
  """Image_01L.jpg with Image_01L_1stHO.png and _2ndHO.png; customary split: first 20 to train, last 8 to test, which leaves the
  two eyes of a child on one side. No FOV masks.

  Raises:
    ValueError: the set is incomplete.
  """
  images = _found(files, r"(?P<eye>Image_\d\d[LR])\.jpe?g")
  trees = _found(files, r"(?P<eye>Image_\d\d[LR])_" + {"first": "1st", "second": "2nd"}[observer] + r"HO\.png")
  _complete("CHASE_DB1", 28, images, **{f"{observer} observer's mask": trees})
  eyes = [Eye(name, path, trees[name]) for name, path in images.items()]
  return {"train": eyes[:20], "test": eyes[20:]}


def hrf(files: Sequence[pathlib.Path], observer: str = "first") -> Splits:
  """images/01_dr.JPG, manual1/01_dr.tif, mask/01_dr_mask.tif; split: the first five healthy, diabetic and glaucomatous eyes to
  train (15), the rest to test (30).

  Raises:
    ValueError: the set is incomplete.
  """
  del observer  # there is one
  images = _found(files, r"(?P<eye>\d\d_(?:dr|g|h))\.jpe?g")
  trees = _found(files, r"(?:manual1|masks)/(?P<eye>\d\d_(?:dr|g|h))\.(?:tif|png)")
  fovs = _found(files, r"(?:mask/(?P<eye>\d\d_(?:dr|g|h))_mask)\.(?:tif|png)")
  _complete("HRF", 45, images, **{"vessel mask (manual1)": trees, "field of view (mask)": fovs})
  eyes = [Eye(name, path, trees[name], fovs[name]) for name, path in images.items()]
  return {"train": [eye for eye in eyes if int(eye.name[:2]) <= 5], "test": [eye for eye in eyes if int(eye.name[:2]) > 5]}


def drive(files: Sequence[pathlib.Path], observer: str = "first") -> Splits:
  """training/ and test/, each with images/21_training.tif, 1st_manual/21_manual1.gif, mask/21_training_mask.gif; the official
  split, 20 to 20. Some copies come without the test eyes' 1st_manual; these eyes then have no tree.

  Raises:
    ValueError: the set is incomplete.
  """
  del observer
  images = _found(files, r"images/(?P<eye>\d\d_(?:training|test))\.tif")
  trees = _found(files, r"1st_manual/(?P<eye>\d\d)_manual1\.gif")
  fovs = _found(files, r"mask/(?P<eye>\d\d_(?:training|test))_mask\.gif")
  training = {eye: path for eye, path in images.items() if eye.endswith("training")}
  _complete("DRIVE", 40, images, **{"field of view (mask)": fovs})
  _complete(
    "DRIVE's training part", 20, training, **{"vessel mask (1st_manual)": {eye: 0 for eye in training if eye[:2] in trees}}
  )
  eyes = [Eye(name, path, trees.get(name[:2]), fovs[name]) for name, path in images.items()]
  return {"train": [eye for eye in eyes if eye.name in training], "test": [eye for eye in eyes if eye.name not in training]}


def stare(files: Sequence[pathlib.Path], observer: str = "first") -> Splits:
  """im0001.ppm with im0001.ah.ppm (Hoover, first) and im0001.vk.ppm (Kouznetsova, second), all perhaps gzipped; first 10 to
  train, last 10 to test. There is no official split: papers also leave one out. No FOV masks.

  Raises:
    ValueError: the set is incomplete.
  """
  images = _found(files, r"(?P<eye>im\d{4})\.ppm(?:\.gz)?")
  trees = _found(files, r"(?P<eye>im\d{4})\." + {"first": "ah", "second": "vk"}[observer] + r"\.ppm(?:\.gz)?")
  images = {eye: path for eye, path in images.items() if eye in trees}  # 400 photographs, 20 of them labelled
  _complete("STARE", 20, images)
  eyes = [Eye(name, path, trees[name]) for name, path in images.items()]
  return {"train": eyes[:10], "test": eyes[10:]}


def photographs(files: Sequence[pathlib.Path], observer: str = "first") -> Splits:
  """Any photographs without masks. Those below folders train/ and test/ keep that split; otherwise about one patient in five
  goes to test by a hash of the name (`splits.hold_out`), so 10_left and 10_right stay together.

  Raises:
    ValueError: no photographs, or two of one name.
  """
  del observer
  found = _found(files, r"(?P<eye>[^/]+)\.(?:" + "|".join(e[1:] for e in folders.EXTENSIONS) + ")")
  if not found:
    raise ValueError("No photographs found: give a folder of pictures, or an archive of one.")
  side = {name: [part for part in map(str.lower, path.parts) if part in ("train", "test")] for name, path in found.items()}
  if all(side.values()) and {parts[-1] for parts in side.values()} == {"train", "test"}:
    test = {name for name, parts in side.items() if parts[-1] == "test"}
  else:
    test = set(splits.hold_out(found)[1])
  return {
    split: [Eye(name, path) for name, path in found.items() if (name in test) == (split == "test")]
    for split in ("train", "test")
  }


def eyeq(files: Sequence[pathlib.Path], observer: str = "first", worst: int = 0) -> Splits:
  """EyePACS photographs chosen and split by EyeQ's lists Label_EyeQ_train.csv and Label_EyeQ_test.csv (columns image and
  quality: 0 good, 1 usable, 2 reject; Fu et al., MICCAI 2019).

  Args:
    files: photographs and the two lists.
    observer: not used.
    worst: the greatest quality number that is taken.

  Raises:
    ValueError: a list is missing or damaged, or names photographs that are missing.
  """
  del observer
  images = _found(files, r"(?P<eye>\d+_(?:left|right))\.(?:jpe?g|png|tiff?)")
  lists, splits = _found(files, r"(?P<eye>Label_EyeQ_(?:train|test))\.csv"), {}
  for split in ("train", "test"):
    path = next((path for name, path in lists.items() if name.lower().endswith(split)), None)
    if path is None:
      raise ValueError(f"Label_EyeQ_{split}.csv is missing: take it from EyeQ's repository and put it beside the photographs.")
    try:
      with open(path, newline="", encoding="utf-8-sig") as file:
        chosen = [pathlib.Path(row["image"]).stem for row in csv.DictReader(file) if int(row["quality"]) <= worst]
    except (KeyError, ValueError, TypeError):
      raise ValueError(f"{path} is not a list of EyeQ: it needs the columns image and quality (0, 1 or 2).") from None
    missing = [name for name in chosen if name not in images]
    if missing:
      raise ValueError(
        f"{path.name} names {folders.some(missing)}, for which there is no photograph: "
        "unpack EyePACS beside it, or use the set eyepacs, which takes what is there."
      )
    splits[split] = [Eye(name, images[name]) for name in chosen]
  return splits
