"""Which files belong together, in every layout that public sets use, and one sentence for every folder that is none."""

import json
import os
import pathlib
import unicodedata

import numpy as np
import pytest
from PIL import Image

from retree_jax.data import folders, sources

PHOTO = np.zeros((20, 24, 3), np.uint8)
PHOTO[3:17, 4:20] = (180, 80, 30)
MASK = np.zeros((20, 24), np.uint8)
MASK[5:15, 10] = 255


def put(root, files):
  for name, array in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(array, str):
      path.write_text(array)
    else:
      Image.fromarray(array).save(path)
  return root


@pytest.mark.parametrize(
  "stem, key",
  [
    ("21_training", "21"),
    ("21_manual1", "21"),
    ("21_training_mask", "21"),
    ("Image_01L_1stHO", "image_01l"),
    ("im0001.ah", "im0001"),
    ("01_dr_mask", "01_dr"),
    ("mask", "mask"),
    ("test", "test"),
    ("best", "best"),
    ("10_left", "10_left"),
  ],
)
def test_pairing_key(stem, key):
  assert folders.pairing_key(stem) == key


@pytest.mark.parametrize(
  "image, mask, fov",
  [
    ("21_training.tif", "21_manual1.gif", "21_training_mask.gif"),  # DRIVE
    ("Image_01L.jpg", "Image_01L_1stHO.png", "Image_01L.png"),  # CHASE_DB1
    ("01_dr.JPG", "01_dr.tif", "01_dr_mask.tif"),  # HRF
    ("im0001.ppm", "im0001.ah.ppm", "im0001.png"),  # STARE
  ],
)
def test_layouts_of_the_public_sets(tmp_path, image, mask, fov):
  other = {"21": "22", "01L": "01R", "01_dr": "02_dr", "0001": "0002"}
  key = next(k for k in other if k in image)
  for old, new in ((key, key), (key, other[key])):
    put(
      tmp_path,
      {
        f"images/{image.replace(old, new)}": PHOTO,
        f"masks/{mask.replace(old, new)}": MASK,
        f"fov/{fov.replace(old, new)}": np.full_like(MASK, 255),
      },
    )
  put(tmp_path, {"images/Thumbs.db": "x", "images/.hidden.png": "x", "masks/readme.txt": "x"})
  source = folders.FolderSource(tmp_path)
  assert source.names == sorted([image.rpartition(".")[0], image.replace(key, other[key]).rpartition(".")[0]])
  eye = source[1]
  np.testing.assert_array_equal(eye["tree"][..., 0], MASK)
  assert (eye["fov"] == 255).all() and eye["image"].shape == PHOTO.shape and eye["label"] == "expert"


def test_equal_stems_pair_before_similar_ones(tmp_path):
  """1.png goes to 1.png though 1_mask.png would fit as well."""
  put(tmp_path, {"images/1.png": PHOTO, "images/1_mask.png": PHOTO, "masks/1.png": MASK, "masks/1_mask.png": MASK[::-1]})
  source = folders.FolderSource(tmp_path)
  for example, mask in zip(source, (MASK, MASK[::-1]), strict=True):
    np.testing.assert_array_equal(example["tree"][..., 0], mask)


def test_flat_folders_hold_the_one_thing_that_is_asked_for(tmp_path):
  put(tmp_path, {"a.png": MASK, "b.png": MASK})
  trees = folders.FolderSource(tmp_path, fields=("tree",))
  np.testing.assert_array_equal(trees[0]["tree"][..., 0], MASK)
  assert (trees[0]["fov"] == 255).all() and "image" not in trees[0]
  assert folders.FolderSource(tmp_path, fields=("image", "tree?"))[0]["image"].shape == PHOTO.shape
  with pytest.raises(ValueError, match="has no images/ and masks/: put the photographs in images/"):
    folders.FolderSource(tmp_path)


def test_optional_masks(tmp_path):
  put(tmp_path, {"images/a.png": PHOTO, "images/b.png": PHOTO, "masks/b.png": MASK})
  source = folders.FolderSource(tmp_path, fields=("image", "tree?"))
  assert source.names == ["a", "b"] and "tree" not in source[0] and "tree" in source[1]
  assert folders.FolderSource(tmp_path, fields=("tree",)).names == ["b"]
  with pytest.raises(ValueError, match=r"No mask in .*masks for the photographs a.png"):
    folders.FolderSource(tmp_path)


def test_who_drew_the_masks(tmp_path):
  put(tmp_path, {f"{kind}/{name}.png": array for name in "abc" for kind, array in (("images", PHOTO), ("masks", MASK))})
  put(tmp_path, {"manifest.jsonl": '{"name": "a", "label": "predicted"}\n\n{"name": "b"}\n'})
  source = folders.FolderSource(tmp_path)
  assert [source[i]["label"] for i in range(3)] == ["predicted", "generated", "expert"]
  for text, words in (("{", "line 1: expected a JSON object"), ('{"name": "a", "label": "me"}', "unknown label 'me'")):
    put(tmp_path, {"manifest.jsonl": text})
    with pytest.raises(ValueError, match=words):
      folders.FolderSource(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_manifest_with_a_byte_order_mark(tmp_path, encoding):
  put(tmp_path, {"images/é.png": PHOTO, "masks/é.png": MASK})
  text = json.dumps({"name": "é", "label": "predicted"}, ensure_ascii=False)
  (tmp_path / "manifest.jsonl").write_text(f"{text}\r\n", encoding=encoding)
  assert folders.FolderSource(tmp_path)[0]["label"] == "predicted"
  (tmp_path / "manifest.jsonl").write_bytes(text.encode("latin-1"))
  with pytest.raises(ValueError, match="manifest.jsonl is not UTF-8 text: save it as UTF-8"):
    folders.FolderSource(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_pair(tmp_path, form):
  """Photographs copied from a Mac have decomposed names, masks drawn elsewhere composed ones, and lists either."""
  names = {"NFC": "Müller_é", "NFD": unicodedata.normalize("NFD", "Müller_é")}
  other = names["NFD" if form == "NFC" else "NFC"]
  put(tmp_path, {f"images/{names[form]}.png": PHOTO, f"masks/{other}_manual1.png": MASK, f"fov/{other}.png": 0 * MASK + 255})
  put(tmp_path, {"images/b.png": PHOTO, "masks/b.png": MASK, "fov/b.png": 0 * MASK + 255})
  put(tmp_path, {"splits.json": json.dumps({"train": [other], "test": ["b"]})})
  put(tmp_path, {"manifest.jsonl": json.dumps({"name": names[form], "label": "predicted"})})
  source = sources.open_source(f"folder:{tmp_path}")
  assert source.names == [names["NFC"]] and source[0]["label"] == "predicted" and source[0]["tree"].any()
  put(tmp_path, {f"images/{other}.png": PHOTO})
  with pytest.raises(ValueError, match="have the same stem: keep one of the two"):
    folders.FolderSource(tmp_path)


def test_names_that_are_not_utf8_are_refused_in_a_sentence(tmp_path):
  put(tmp_path, {"images/a.png": PHOTO, "masks/a.png": MASK})
  name = os.fsencode(tmp_path / "images") + b"/caf\xe9.png"
  try:
    os.rename(tmp_path / "images/a.png", name)
  except OSError:
    pytest.skip("this file system takes UTF-8 names only")
  with pytest.raises(ValueError, match=r"The name .*/images/caf\\xe9.png is not UTF-8: rename it with plain letters"):
    folders.FolderSource(tmp_path)
  os.rename(name, tmp_path / "images/a.png")
  put(tmp_path, {"images/notes.txt": "x"})
  os.rename(tmp_path / "images/notes.txt", name.replace(b"png", b"txt"))
  assert folders.FolderSource(tmp_path).names == ["a"]  # other files may be called anything
  root = os.fsencode(tmp_path) + b"/f\xfcnf"
  os.rename(tmp_path / "images", root)
  with pytest.raises(ValueError, match=r"The name .*/f\\xfcnf is not UTF-8"):
    folders.FolderSource(os.fsdecode(root), ("image",))


def test_folders_that_may_not_be_opened(tmp_path, monkeypatch):
  put(tmp_path, PAIR)

  def refuse(path, *_):
    raise PermissionError(13, "Permission denied", str(path))

  for method in ("is_dir", "iterdir"):
    with monkeypatch.context() as patch:
      patch.setattr(pathlib.Path, method, refuse)
      with pytest.raises(ValueError, match=r"Permission denied.*: check its permissions"):
        folders.FolderSource(tmp_path)


def test_turned_photographs_pair_with_masks_drawn_upright(tmp_path):
  exif = Image.Exif()
  exif[274] = 6
  put(tmp_path, {"masks/a.png": MASK})
  (tmp_path / "images").mkdir()
  Image.fromarray(PHOTO).transpose(Image.Transpose.ROTATE_90).save(
    tmp_path / "images/a.jpg", exif=exif, quality=100, subsampling=0
  )
  eye = folders.FolderSource(tmp_path)[0]
  assert np.abs(eye["image"].astype(int) - PHOTO).mean() < 6
  # Drawn over the stored pixels instead: refused, and the sentence says why.
  Image.fromarray(np.rot90(MASK)).save(tmp_path / "masks/a.png")
  with pytest.raises(
    ValueError, match=r"masks/a.png is 24x20 .* but .*a.jpg is 20x24, upright by its EXIF orientation: .* turn it"
  ):
    folders.FolderSource(tmp_path)


PAIR = {"images/a.png": PHOTO, "masks/a.png": MASK}


@pytest.mark.parametrize(
  "files, words",
  [
    ({}, "has no images/ and masks/"),
    ({"images/readme.txt": "x", "masks/a.png": MASK}, "No pictures in .*images: put files there that end in png jpg"),
    ({**PAIR, "masks/b.png": MASK}, "No photograph in .* for the masks b.png: files pair by stem"),
    ({**PAIR, "fov/disc_0.png": 0 * MASK + 255}, "No photograph or mask in .* for the fields of view disc_0.png: files"),
    ({**PAIR, "images/b.png": PHOTO}, "No mask in .* for the photographs b.png"),
    ({**PAIR, "images/a.jpg": PHOTO}, "have the same stem: keep one of the two"),
    ({"images/a.png": PHOTO, "masks/a_mask.png": MASK, "masks/a_manual1.png": MASK}, "Cannot tell which file belongs to a"),
    ({"images/a.png": PHOTO}, "has no masks/"),
    ({"masks/a.png": MASK}, "has no images/"),
    ({"images/a.png": PHOTO, "masks/a.png": MASK[:10]}, "masks/a.png is 10x24 .* must have the size of its photograph"),
    ({"images/a.png": "no picture", "masks/a.png": MASK}, "Cannot read .*images/a.png .not a picture that Pillow can read"),
  ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, files, words):
  put(tmp_path, files)
  with pytest.raises(ValueError, match=words) as found:
    folders.FolderSource(tmp_path)
  assert "\n" not in str(found.value)


def test_a_path_that_is_no_folder(tmp_path):
  with pytest.raises(ValueError, match="absent does not exist: give the path of a folder with images/ and masks/"):
    folders.FolderSource(tmp_path / "absent")
  put(tmp_path, {"a.png": MASK})
  with pytest.raises(ValueError, match="is a file, not a folder: give the folder that it lies in"):
    folders.FolderSource(tmp_path / "a.png")


def test_a_black_photograph_has_no_vessels_to_learn_from(tmp_path):
  put(tmp_path, {**PAIR, "images/a.png": PHOTO // 40})
  with pytest.raises(ValueError, match="images/a.png is black: replace it, or remove it and its mask"):
    folders.FolderSource(tmp_path)[0]
  assert "image" in folders.FolderSource(tmp_path / "images", ("image",))[0]  # to be labelled, it is a photograph


def test_grey_masks_are_refused_when_read(tmp_path):
  put(tmp_path, {"images/a.png": PHOTO, "masks/a.png": np.arange(480, dtype=np.uint16).reshape(20, 24).astype(np.uint8)})
  with pytest.raises(ValueError, match=r"masks/a.png is not a binary mask"):
    folders.FolderSource(tmp_path)[0]


@pytest.mark.parametrize("name, train, test, size", [("CHASE_DB1", 20, 8, (960, 999)), ("HRF", 15, 30, (683, 1024))])
def test_real_sets_keep_their_splits(real_eyes, name, train, test, size):
  folder = real_eyes / name
  opened = {split: sources.open_source(f"folder:{folder}", split=split) for split in ("train", "test", "all")}
  assert (len(opened["train"]), len(opened["test"]), len(opened["all"])) == (train, test, train + test)
  lists = json.loads((folder / "splits.json").read_text())
  assert opened["train"].names == lists["train"] and opened["test"].names == lists["test"]
  patient = (lambda n: n[:-1]) if name == "CHASE_DB1" else (lambda n: n)
  assert not {patient(n) for n in lists["train"]} & {patient(n) for n in lists["test"]}
  eye = opened["test"][0]
  assert eye["image"].shape == (*size, 3) and eye["tree"].shape == eye["fov"].shape == (*size, 1)
  # Vessels are dark in the green channel, so the mask is this photograph's.
  inside, tree = eye["fov"][..., 0] > 0, eye["tree"][..., 0] > 0
  green = eye["image"][..., 1].astype(float)
  assert 0.05 < (tree & inside).sum() / inside.sum() < 0.15
  assert green[tree & inside].mean() < green[~tree & inside].mean() - 5


def test_real_photographs_without_masks(real_eyes):
  spec = f"folder:{real_eyes / 'IDRiD'}"
  train, test = (sources.open_source(spec, split=split, fields=("image", "tree?")) for split in ("train", "test"))
  assert len(train) == 44 and len(test) == 10 and not set(train.names) & set(test.names)
  assert "tree" not in train[0] and 0.7 < train[0]["fov"].mean() / 255 < 0.95
  with pytest.raises(ValueError, match="has no masks/: put the vessel masks there"):
    sources.open_source(spec)


def test_files_that_are_not_read_are_named_once(tmp_path, caplog):
  put(tmp_path, {**PAIR, "images/b.webp": PHOTO, "images/c.webp": PHOTO})
  for _ in range(2):
    assert folders.FolderSource(tmp_path).names == ["a"]
  assert [line for line in caplog.messages if "Skipped in" in line and "b.webp and c.webp" in line.replace(", ", " and ")]


def test_eyes_without_a_mask_are_counted(tmp_path):
  put(tmp_path / "one", {**PAIR, "images/b.png": PHOTO})
  put(tmp_path / "two", {"images/c.png": PHOTO})
  fields = ("image", "tree?")
  assert sources.number_of_trees(sources.open_source(f"folder:{tmp_path / 'one'}", split="all", fields=fields)) == 1
  assert sources.number_of_trees(sources.open_source(f"folder:{tmp_path / 'two'}", split="all", fields=fields)) == 0
  both = f"folder:{tmp_path / 'one'}+folder:{tmp_path / 'two'}+phantom:5"
  assert sources.number_of_trees(sources.open_source(both, split="all", fields=fields)) == 7  # 1, 0 and 6
