"""The forms in which generated pairs are written. Each says where its files lie, which are lost, and what belongs beside them.

    png          images/ masks/ fov/ NAME.png, or coverage/ in place of images/ where trees are drawn alone
    imagefolder  the same with metadata.jsonl, for `datasets.load_dataset("imagefolder", data_dir=OUT)`
    nnunet       imagesTr/NAME_0000.png, labelsTr/NAME.png (0/1), dataset.json: nnU-Net v2's raw layout; fov/ besides
    tfds         ArrayRecord shards, see `builders.generated`

`inference.dataset_writer` holds the one loop, and knows of a form only what is in `FORMS`.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from retree_jax.data import croissant, provenance, writing
from retree_jax.data.builders import generated

_PAIR = ("images", "masks", "fov")
_PLACES = {kind: (kind, ".png") for kind in _PAIR}
_NNUNET_PLACES = {"images": ("imagesTr", "_0000.png"), "masks": ("labelsTr", ".png"), "fov": ("fov", ".png")}
_CONTENTS = {
  "images": "photographs, RGB, 8 bits",
  "coverage": "trees, 0..255, the share of each pixel that is vessel",
  "fov": "field of view, 0 or 255",
}


class PngFolders:
  """Pairs as PNG files that say that they are synthetic, one folder for each kind of picture.

  Args:
    places: by kind, its folder and how its files' names end after the pair's name.
    vessel: value of vessels in masks.
    metadata: from (places that are there, journal) to the further files {name: pieces of text}, written when all pairs are.
    names: of these files.
  """

  unit = 1  # pairs that are written as one piece

  def __init__(self, places: Mapping, vessel: int, metadata: Callable, names: Sequence[str]):
    self._places, self.vessel, self._metadata = places, vessel, metadata
    self.documents = ("DATA_CARD.md", "contact_sheet.png", *names)

  def path(self, out, kind: str, name: str) -> epath.Path:
    """Where the picture of one pair lies."""
    folder, ending = self._places[kind]
    return out / folder / f"{name}{ending}"

  def kinds(self, out) -> tuple[str, ...]:
    """The kinds of pictures in a folder."""
    return ("coverage", *_PAIR[1:]) if "coverage" in self._places and (out / "coverage").exists() else _PAIR

  def check(self, out, has_photographs: bool) -> None:
    """Refuses what this form cannot hold, before anything is written.

    Raises:
      ValueError: a folder of another name than readers expect, or trees without photographs.
    """
    if not has_photographs and "coverage" not in self._places:
      raise ValueError("this --format holds photographs: give --fundus too, or use --format png for trees alone")

  def jobs(self, out, start: int, rows: Sequence[Mapping], fields: Mapping[str, np.ndarray]) -> list[Callable[[], None]]:
    """What has to run, in any order and in any threads, to write some pairs.

    Args:
      out: the folder.
      start: number of the first pair.
      rows: manifest lines.
      fields: {"images" or "coverage", "masks", "fov"}: uint8 [N, H, W, C].
    """
    return [functools.partial(self.write, out, row, {k: v[i] for k, v in fields.items()}) for i, row in enumerate(rows)]

  def write(self, out, row: Mapping, pixels: Mapping[str, np.ndarray]) -> None:
    """Writes the pictures of one pair."""
    for kind, picture in pixels.items():
      if kind == "masks" and self.vessel != 255:
        picture = (picture > 0) * np.uint8(self.vessel)
      writing.write_png(self.path(out, kind, row["name"]), picture, provenance.of_pair(kind, row))

  def lost(self, journal, num: int, number_of: Callable[[str], int | None]) -> np.ndarray:
    """[num] bool: pairs that are recorded as done although a file of theirs is gone."""
    return journal.lost(self._numbers(journal.out, number_of), num)

  def remove_beyond(self, out, num: int, number_of: Callable[[str], int | None]) -> None:
    """Removes what a killed run wrote of pairs from `num` on."""
    for folder, number in self._numbers(out, number_of).items():
      for path in list((out / folder).iterdir()) if (out / folder).exists() else ():
        if (k := number(path.name)) is not None and k >= num:
          path.unlink()

  def _numbers(self, out, number_of) -> dict[str, Callable[[str], int | None]]:
    """For each folder, from the name of a file to the number of its pair, or None."""

    def reader(ending):
      return lambda file: number_of(file.removesuffix(ending)) if file.endswith(ending) else None

    return {self._places[kind][0]: reader(self._places[kind][1]) for kind in self.kinds(out)}

  def finish(self, journal) -> None:
    """Writes the further files of a complete set."""
    places = {kind: self._places[kind] for kind in self.kinds(journal.out)}
    for name, pieces in self._metadata(places, journal).items():
      writing.write_stream(journal.out / name, (piece.encode() for piece in pieces))

  def contents(self, has_photographs: bool, mask_rule: str) -> list[str]:
    """What lies where, as lines of the data card."""
    kinds = ("images" if has_photographs else "coverage", *_PAIR[1:])
    described = _CONTENTS | {"masks": f"vessels, 0 or {self.vessel} ({mask_rule})"}
    lines = [f"- `{self._places[kind][0]}/`: {described[kind]}" for kind in kinds]
    lines.append("- `manifest.jsonl`: one line per pair: seed, number, filter score, models and settings")
    others = {"metadata.json": "Croissant metadata", "metadata.jsonl": "the files of each pair", "dataset.json": "for nnU-Net"}
    return lines + [f"- `{name}`: {others[name]}" for name in self.documents if name in others]


class Nnunet(PngFolders):
  """nnU-Net v2's raw layout (nnU-Net, documentation/dataset_format.md), in a folder DatasetXXX_NAME."""

  def check(self, out, has_photographs: bool) -> None:
    super().check(out, has_photographs)
    name = epath.Path(out).name
    if not re.fullmatch(r"Dataset\d{3}_\w+", name):
      raise ValueError(
        f"nnU-Net reads folders that are called DatasetXXX_NAME, with three digits, and not {name!r}: "
        f"use --out={epath.Path(out) / 'Dataset501_ReTree'}"
      )


class Shards:
  """ArrayRecord shards for TFDS."""

  documents = ("DATA_CARD.md", "dataset_info.json", "features.json")

  @property
  def unit(self) -> int:
    return generated.SHARD

  def check(self, out, has_photographs: bool) -> None:
    """Holds everything, anywhere."""

  def jobs(self, out, start, rows, fields) -> list[Callable[[], None]]:
    return [functools.partial(generated.write_shard, out, start, rows, fields)]

  def lost(self, journal, num: int, number_of) -> np.ndarray:
    shards = [not generated.shard_path(journal.out, i).exists() for i in range(-(-num // self.unit))]
    return np.repeat(shards, self.unit)[:num] & ~journal.todo(num)

  def remove_beyond(self, out, num: int, number_of) -> None:
    last = num // self.unit  # a shard that is cut short is written again
    while (path := generated.shard_path(out, last)).exists():
      path.unlink()
      last += 1

  def finish(self, journal) -> None:
    generated.finish(journal.out)

  def contents(self, has_photographs: bool, mask_rule: str) -> list[str]:
    return [
      "ArrayRecord shards for TFDS: `tfds.builder_from_directory(FOLDER).as_data_source('train')`; `manifest.jsonl` has "
      "one line per pair."
    ]


def _croissant(places, journal) -> dict[str, Iterator[str]]:
  return {"metadata.json": iter([json.dumps(croissant.metadata(places, journal.num()), indent=1) + "\n"])}


def _imagefolder(places, journal) -> dict[str, Iterator[str]]:
  """Hugging Face's convention: "file_name" becomes the column "image", "mask_file_name" the column "mask"."""
  columns = {"images": "file_name", "masks": "mask_file_name", "fov": "fov_file_name"}

  def lines():
    for row in journal.rows():
      files = {columns[kind]: f"{folder}/{row['name']}{ending}" for kind, (folder, ending) in places.items()}
      yield json.dumps({**files, **{key: row[key] for key in ("name", "index", "seed", "synthetic")}}) + "\n"

  return {"metadata.jsonl": lines(), **_croissant(places, journal)}


def _nnunet(places, journal) -> dict[str, Iterator[str]]:
  content = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "vessel": 1},
    "numTraining": journal.num(),
    "file_ending": ".png",
    "overwrite_image_reader_writer": "NaturalImage2DIO",
    "name": "retree",
    "description": f"Synthetic photographs of the retina and their vessels, generated by {provenance.SOFTWARE}",
  }
  return {"dataset.json": iter([json.dumps(content, indent=1) + "\n"]), **_croissant(places, journal)}


FORMS = {
  "png": PngFolders({**_PLACES, "coverage": ("coverage", ".png")}, 255, _croissant, ("metadata.json",)),
  "tfds": Shards(),
  "nnunet": Nnunet(_NNUNET_PLACES, 1, _nnunet, ("dataset.json", "metadata.json")),
  "imagefolder": PngFolders(_PLACES, 255, _imagefolder, ("metadata.jsonl", "metadata.json")),
}
