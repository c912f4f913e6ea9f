"""Sets from their downloads: the files of each archive, standard splits, and reading back without TensorFlow."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow_datasets")

from retree_jax.data import image_io, manifest, notices, sources
from retree_jax.data.builders import __main__ as command
from retree_jax.data.builders import fundus, generated, layouts
from tests.data import test_image_io

SIZE = (48, 64)


@pytest.fixture(autouse=True, scope="module")
def quiet():
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()


def shade(number):
  """A photograph with a bright disc on black, known by its green value."""
  y, x = np.mgrid[: SIZE[0], : SIZE[1]]
  disc = (y - 24) ** 2 + (x - 32) ** 2 < 22**2
  return disc[..., None] * np.array([200, number, 40], np.uint8)


def vessel(number):
  mask = np.zeros(SIZE, np.uint8)
  mask[10:40, 12 + number % 40] = 255  # within the disc of `shade`
  return mask


def encoded(array, form):
  data = io.BytesIO()
  Image.fromarray(array).save(data, form, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}))
  return data.getvalue()


def chase_files():
  files = {}
  for i in range(28):
    eye = f"Image_{i // 2 + 1:02d}{'LR'[i % 2]}"
    files[f"{eye}.jpg"] = encoded(shade(60 + i), "JPEG")
    files[f"{eye}_1stHO.png"] = encoded(vessel(i + 10), "PNG")
    files[f"{eye}_2ndHO.png"] = encoded(vessel(i + 11), "PNG")
  return files


def hrf_files():
  files, disc = {}, (shade(100)[..., 0] > 0) * np.uint8(255)
  for i in range(45):
    eye, upper = f"{i // 3 + 1:02d}_{('dr', 'g', 'h')[i % 3]}", i % 3 == 0
    files[f"images/{eye}.{'JPG' if upper else 'jpg'}"] = encoded(shade(60 + i), "JPEG")
    files[f"manual1/{eye}.tif"] = encoded(vessel(i), "TIFF")
    files[f"mask/{eye}_mask.tif"] = encoded(np.repeat(disc[..., None], 3, -1), "TIFF")
  return files


def drive_files(test_masks=True):
  files, disc = {}, (shade(100)[..., 0] > 0) * np.uint8(255)
  for i in range(1, 41):
    part = "test" if i <= 20 else "training"
    files[f"{part}/images/{i:02d}_{part}.tif"] = encoded(shade(60 + i), "TIFF")
    files[f"{part}/mask/{i:02d}_{part}_mask.gif"] = encoded(disc, "GIF")
    if part == "training" or test_masks:
      files[f"{part}/1st_manual/{i:02d}_manual1.gif"] = encoded(vessel(i), "GIF")
  return files


def zipped(path, files, prefix=""):
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in files.items():
      archive.writestr(prefix + name, data)
  return path


def unfolded(path, files):
  for name, data in files.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(data)
  return path


def test_chase_from_its_archive(tmp_path):
  built = fundus.prepare("chase_db1", zipped(tmp_path / "CHASEDB1.zip", chase_files()), tmp_path / "sets")
  assert json.loads((built / "dataset_info.json").read_text())["fileFormat"] == "array_record"
  train, test = (sources.open_source(f"tfds:chase_db1:{tmp_path / 'sets'}", split=s) for s in ("train", "test"))
  assert (len(train), len(test)) == (20, 8)
  assert train.names[:3] == ["Image_01L", "Image_01R", "Image_02L"] and test.names[-1] == "Image_14R"
  eye = test[1]  # number 21: 11R
  assert eye["name"] == "Image_11R" and eye["label"] == "expert"
  np.testing.assert_array_equal(eye["tree"][..., 0], vessel(31))
  # The photograph is the very JPEG, not one compressed again.
  np.testing.assert_array_equal(eye["image"], image_io.decode(chase_files()["Image_11R.jpg"], "it"))
  disc = shade(9)[..., 0] > 0
  found = eye["fov"][..., 0] > 0
  assert (found & disc).sum() / (found | disc).sum() > 0.85  # one pixel more all round
  fit, validation = (sources.open_source(f"tfds:chase_db1:{tmp_path / 'sets'}", split=s) for s in ("fit", "validation"))
  assert validation.names and sorted(fit.names + validation.names) == train.names
  np.testing.assert_array_equal(validation[0]["tree"], train[train.names.index(validation.names[0])]["tree"])
  # A set that is there already is neither asked for again nor changed.
  before = {p: p.stat().st_mtime_ns for p in built.iterdir()}
  assert fundus.prepare("chase_db1", tmp_path / "CHASEDB1.zip", tmp_path / "sets") == built
  assert {p: p.stat().st_mtime_ns for p in built.iterdir()} == before


def test_second_observer(tmp_path):
  fundus.prepare("chase_db1/second", unfolded(tmp_path / "chase", chase_files()), tmp_path / "sets")
  source = sources.open_source(f"tfds:chase_db1/second:{tmp_path / 'sets'}", split="all", fields=("tree",))
  assert len(source) == 28 and "image" not in source[0]
  np.testing.assert_array_equal(source[0]["tree"][..., 0], vessel(11))


def test_hrf(tmp_path):
  fundus.prepare("hrf", zipped(tmp_path / "all.zip", hrf_files()), tmp_path / "sets")
  train, test = (sources.open_source(f"tfds:hrf:{tmp_path / 'sets'}", split=s) for s in ("train", "test"))
  assert (len(train), len(test)) == (15, 30)
  assert set(train.names) == {f"{i:02d}_{kind}" for i in range(1, 6) for kind in ("dr", "g", "h")}
  eye = test[test.names.index("15_g")]
  np.testing.assert_array_equal(eye["tree"][..., 0], vessel(43))
  np.testing.assert_array_equal(eye["fov"][..., 0], (shade(1)[..., 0] > 0) * np.uint8(255))


def test_drive_is_archives_in_an_archive(tmp_path):
  every = drive_files()
  inner = {}
  for part in ("training", "test"):
    path = zipped(tmp_path / "inner" / f"{part}.zip", {n: d for n, d in every.items() if n.startswith(part)})
    inner[f"DRIVE/{path.name}"] = path.read_bytes()
  fundus.prepare("drive", zipped(tmp_path / "datasets.zip", inner), tmp_path / "sets")
  train, test = (sources.open_source(f"tfds:drive:{tmp_path / 'sets'}", split=s) for s in ("train", "test"))
  assert train.names == [f"{i}_training" for i in range(21, 41)] and test.names[0] == "01_test"
  np.testing.assert_array_equal(train[4]["image"], shade(85))  # TIFF to PNG loses nothing
  np.testing.assert_array_equal(test[4]["tree"][..., 0], vessel(5))


def test_drive_without_the_test_masks(tmp_path):
  fundus.prepare("drive", unfolded(tmp_path / "drive", drive_files(test_masks=False)), tmp_path / "sets")
  spec = f"tfds:drive:{tmp_path / 'sets'}"
  assert "tree" in sources.open_source(spec)[0]
  with pytest.raises(ValueError, match="no vessel masks for 01_test"):
    sources.open_source(spec, split="test")
  unlabelled = sources.open_source(spec, split="test", fields=("image", "tree?"))
  assert len(unlabelled) == 20 and "tree" not in unlabelled[0]


def test_stare_is_gzipped_files_in_two_archives(tmp_path):
  folder = tmp_path / "stare"
  folder.mkdir()
  for name, ending in (("stare-images.tar", ".ppm.gz"), ("labels-ah.tar", ".ah.ppm.gz"), ("labels-vk.tar", ".vk.ppm.gz")):
    with tarfile.open(folder / name, "w") as archive:
      for i in range(20):
        picture = shade(60 + i) if ending == ".ppm.gz" else vessel(i + (ending == ".vk.ppm.gz"))
        data = gzip.compress(encoded(picture, "PPM"))
        entry = tarfile.TarInfo(f"im{i + 1:04d}{ending}")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
  fundus.prepare("stare", folder, tmp_path / "sets")
  train, test = (sources.open_source(f"tfds:stare:{tmp_path / 'sets'}", split=s) for s in ("train", "test"))
  assert train.names == [f"im{i:04d}" for i in range(1, 11)] and len(test) == 10
  np.testing.assert_array_equal(test[3]["tree"][..., 0], vessel(13))


def test_unlabelled_photographs_keep_patients_together(tmp_path):
  files = {f"{i}_{side}.jpeg": encoded(shade(60 + i), "JPEG") for i in range(12) for side in ("left", "right")}
  fundus.prepare("eyepacs", zipped(tmp_path / "train.zip", files, "train/"), tmp_path / "sets")
  spec = f"tfds:eyepacs:{tmp_path / 'sets'}"
  train, test = (sources.open_source(spec, split=s, fields=("image",)) for s in ("train", "test"))
  assert len(train) + len(test) == 24 and len(test) >= 2
  assert not {n.split("_")[0] for n in train.names} & {n.split("_")[0] for n in test.names}
  with pytest.raises(ValueError, match="has no tree"):
    sources.open_source(spec)
  mixed = sources.open_source(f"{spec}+phantom:2", fields=("image", "tree?"), size=(64, 64))
  assert "tree" not in mixed[0] and "tree" in mixed[-1]


def test_folders_named_train_and_test_are_the_split():
  import pathlib

  files = [pathlib.Path(p) for p in ("set/train/1_left.jpeg", "set/train/2_left.jpeg", "set/test/1_right.jpeg")]
  splits = layouts.photographs(files)
  assert {s: [e.name for e in eyes] for s, eyes in splits.items()} == {"train": ["1_left", "2_left"], "test": ["1_right"]}


def test_eyeq_lists_choose_and_split(tmp_path):
  files = {f"images/{i}_left.jpeg": encoded(shade(60 + i), "JPEG") for i in range(6)}
  files["Label_EyeQ_train.csv"] = b",image,quality,DR_grade\n0,0_left.jpeg,0,0\n1,1_left.jpeg,1,0\n2,2_left.jpeg,2,4\n"
  files["Label_EyeQ_test.csv"] = b",image,quality,DR_grade\n0,3_left.jpeg,0,0\n1,4_left.jpeg,0,0\n2,5_left.jpeg,2,4\n"
  folder = unfolded(tmp_path / "eyeq", files)
  for name, train in (("eyeq", ["0_left"]), ("eyeq/usable", ["0_left", "1_left"])):
    fundus.prepare(name, folder, tmp_path / "sets")
    spec = f"tfds:{name if '/' in name else 'eyeq/good'}:{tmp_path / 'sets'}"
    assert sources.open_source(spec, fields=("image",)).names == train
    assert sources.open_source(spec, split="test", fields=("image",)).names == ["3_left", "4_left"]
  (folder / "images/4_left.jpeg").unlink()
  with pytest.raises(ValueError, match="names 4_left, for which there is no photograph"):
    fundus.prepare("eyeq", folder, tmp_path / "other")
  (folder / "Label_EyeQ_test.csv").write_text("a,b\n1,2\n")
  with pytest.raises(ValueError, match="needs the columns image and quality"):
    fundus.prepare("eyeq", folder, tmp_path / "other")


def test_the_lists_of_eyeq_may_come_from_a_spreadsheet(tmp_path):
  """Spreadsheets write a byte-order mark, which belongs to no column's name."""
  files = {f"images/{i}_left.jpeg": encoded(shade(60 + i), "JPEG") for i in range(2)}
  for i, split in enumerate(("train", "test")):
    files[f"Label_EyeQ_{split}.csv"] = f"\ufeffimage,quality\n{i}_left.jpeg,0\n".encode()
  fundus.prepare("eyeq", unfolded(tmp_path / "eyeq", files), tmp_path / "sets")
  assert sources.open_source(f"tfds:eyeq/good:{tmp_path / 'sets'}", fields=("image",)).names == ["0_left"]


def test_turned_and_deep_photographs_are_stored_as_every_reader_shows_them(tmp_path):
  """TFDS' own decoding, and other readers of the set, obey neither EXIF nor the range of 16-bit files."""
  import tensorflow_datasets as tfds

  turned, data = Image.Exif(), io.BytesIO()
  turned[274] = 6
  stored = np.rot90(shade(90))  # counter-clockwise; the tag turns it back
  Image.fromarray(stored).save(data, "JPEG", quality=95, subsampling=0, exif=turned)
  deep = test_image_io.png16(shade(120).astype(np.uint16))
  files = {"1_left.jpg": data.getvalue(), "2_left.png": deep, "3_left.jpg": encoded(shade(150), "JPEG")}
  built = fundus.prepare("eyepacs", unfolded(tmp_path / "photos", files), tmp_path / "sets")
  records = tfds.builder_from_directory(built)
  found = {
    record["name"].decode() if isinstance(record["name"], bytes) else record["name"]: record["image"]
    for split in records.info.splits
    for record in records.as_data_source(split)
  }
  assert np.abs(found["1_left"].astype(int) - shade(90)).mean() < 3
  np.testing.assert_array_equal(found["2_left"], shade(120))
  source = sources.open_source(f"tfds:eyepacs:{tmp_path / 'sets'}", split="all", fields=("image",))
  for i, name in enumerate(source.names):
    np.testing.assert_array_equal(source[i]["image"], found[name])


def test_tfds_own_way_finds_the_manual_folder(tmp_path):
  import tensorflow_datasets as tfds

  zipped(tmp_path / "downloads/manual/CHASEDB1.zip", chase_files())
  builder = tfds.builder("chase_db1", data_dir=str(tmp_path))
  builder.download_and_prepare()
  assert len(builder.as_data_source("test")) == 8


def test_what_is_wrong_is_said_in_a_sentence(tmp_path, capsys):
  files = chase_files()
  incomplete = {name: data for name, data in files.items() if name != "Image_03L_1stHO.png"}
  few = {name: data for name, data in files.items() if not name.startswith("Image_14")}
  broken = {**files, "Image_05R.jpg": b"\xff\xd8 no more"}
  small = {**files, "Image_05R_1stHO.png": encoded(np.eye(5, dtype=np.uint8), "PNG")}
  inverted = {**files, "Image_05R_1stHO.png": encoded(255 - vessel(3), "PNG")}
  (tmp_path / "half.zip").write_bytes(zipped(tmp_path / "whole.zip", files).read_bytes()[:5000])
  (tmp_path / "note.txt").write_text("nothing")
  for name, path, words in (
    ("chase", tmp_path, "There is no builder for 'chase': write one of chase_db1/first, chase_db1/second, hrf"),
    ("hrf/third", tmp_path, "There is no builder for 'hrf/third'"),
    ("chase_db1", tmp_path / "absent", "does not exist: download CHASE_DB1 from https://"),
    ("chase_db1", tmp_path / "note.txt", "is not an archive"),
    ("chase_db1", tmp_path / "half.zip", "half.zip is damaged or locked"),
    ("chase_db1", unfolded(tmp_path / "a", incomplete), "has no first observer's mask for Image_03L"),
    ("chase_db1", unfolded(tmp_path / "b", few), "has 28 photographs, but 26 were found"),
    ("chase_db1", unfolded(tmp_path / "c", broken), "Image_05R.jpg"),
    ("chase_db1", unfolded(tmp_path / "d", small), r"vessel mask of Image_05R has the size"),
    ("chase_db1", unfolded(tmp_path / "e", inverted), "draw vessels white on black"),
    ("hrf", tmp_path / "a", "No photographs of HRF found"),
  ):
    sets = tmp_path / "sets"
    assert command.main([name, str(path), "--data_dir", str(sets)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in said, said
    assert not list(sets.rglob("dataset_info.json"))
  with pytest.raises(ValueError, match=r"There is no TFDS set 'chase_db1'.*build it with python -m retree_jax.data.builders"):
    sources.open_source(f"tfds:chase_db1:{tmp_path / 'sets'}")


def test_generated_sets_are_sources(tmp_path):
  out = tmp_path / "generated"
  manifest.Journal(out).claim({}, 12, 16)
  trees = np.stack([vessel(i)[..., None] for i in range(12)])
  fields = {
    "images": np.stack([shade(60 + i) for i in range(12)]),
    "masks": trees,
    "fov": np.full((12, *SIZE, 1), 255, np.uint8),
  }
  generated.write_shard(out, 0, [{"name": f"{i:07d}", "label": "generated"} for i in range(12)], fields)
  generated.finish(out)
  source = sources.open_source(f"tfds:retree:{out}", split="all")
  assert source.names == [f"{i:07d}" for i in range(12)] and source[5]["label"] == "generated"
  np.testing.assert_array_equal(source[5]["image"], shade(65))
  np.testing.assert_array_equal(source[5]["tree"][..., 0], vessel(5))
  # Without a split of its own, some are held out.
  train, test = (sources.open_source(f"tfds:retree:{out}", split=s).names for s in ("train", "test"))
  assert test and sorted(train + test) == source.names


def test_masks_of_a_tfds_set_are_checked_like_those_of_a_folder(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(notices, "_said", set())
  monkeypatch.setattr(notices.logging, "warning", lambda form, *values: said.append(form % values))
  disc = (shade(100)[..., :1] > 0) * np.uint8(255)
  labels = [np.where(vessel(i) > 0, 1 + i % 2, 0)[..., None].astype(np.uint8) for i in range(4)]
  labels += [0 * labels[0], 255 - vessel(1)[..., None], vessel(2)[..., None], vessel(2)[..., None]]
  fovs = [disc] * 6 + [255 - disc, 0 * disc]
  fields = {"images": np.stack([shade(60)] * 8), "masks": np.stack(labels), "fov": np.stack(fovs)}
  out = tmp_path / "theirs"
  manifest.Journal(out).claim({}, 8, 16)
  generated.write_shard(out, 0, [{"name": f"{i}", "label": "expert"} for i in range(8)], fields)
  generated.finish(out)
  source = sources.open_source(f"tfds:retree:{out}", split="all")
  for i in range(4):
    np.testing.assert_array_equal(source[i]["tree"][..., 0], vessel(i))
  assert len(said) == 1 and "holds class labels 0 to 2: in retree, whatever is above 0 is read as vessel" in said[0]
  for i, words in (
    (4, "is empty"),
    (5, "draw vessels white on black"),
    (6, "inverted field of view"),
    (7, "empty field of view"),
  ):
    with pytest.raises(ValueError, match=rf"of the eye 000000{i} of the TFDS set retree .*{words}"):
      source[i]


def test_an_archive_cannot_write_elsewhere(tmp_path):
  with pytest.raises(ValueError, match="outside its folder"):
    fundus.prepare("chase_db1", zipped(tmp_path / "bad.zip", {"../../outside.jpg": b"x"}), tmp_path / "sets")
  assert not list(tmp_path.rglob("outside.jpg"))


def test_a_damaged_or_foreign_set(tmp_path):
  built = fundus.prepare("chase_db1", unfolded(tmp_path / "chase", chase_files()), tmp_path / "sets")
  assert len(sources.open_source(f"tfds:chase_db1:{built}", split="all")) == 28  # the set's own folder will do
  next(built.glob("*train.array_record*")).unlink()
  with pytest.raises(ValueError, match="copy its missing files|damaged"):
    sources.open_source(f"tfds:chase_db1:{built}")[0]
  (built / "dataset_info.json").write_text("{")
  with pytest.raises(ValueError, match="is a damaged TFDS set"):
    sources.open_source(f"tfds:chase_db1:{built}")


def test_neither_tensorflow_nor_torch_is_needed(tmp_path):
  built = fundus.prepare("chase_db1", unfolded(tmp_path / "chase", chase_files()), tmp_path / "sets")
  code = f"""
import importlib.machinery, sys
class Refused:  # found, as packages that look for it want it, but not importable
  def find_spec(self, name, path=None, target=None):
    return importlib.machinery.ModuleSpec(name, self) if name in ("tensorflow", "torch") else None
  def create_module(self, spec):
    raise ModuleNotFoundError(spec.name)
  def exec_module(self, module):
    pass
sys.meta_path.insert(0, Refused())
from retree_jax.data import pipeline, sources
source = sources.open_source("tfds:chase_db1:{built}+phantom:2", size=(32, 32))
batch = next(pipeline.train_iterator(source, size=(32, 32), batch_size=4))
assert batch["tree"].shape == (4, 32, 32, 1)
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
