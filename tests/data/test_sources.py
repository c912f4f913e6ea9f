"""Spec strings, splits that keep patients apart, and joined sources."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from retree_jax.data import pipeline, sources, splits


def folder(root, names, value=200):
  for kind in ("images", "masks"):
    (root / kind).mkdir(parents=True)
  for name in names:
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(root / f"images/{name}.png")
    Image.fromarray(np.uint8(255) * np.eye(16, dtype=np.uint8)).save(root / f"masks/{name}.png")
  return root


def test_phantoms_by_number_seed_and_split():
  train, test, every = (sources.open_source("phantom:10", split=s, size=(32, 32)) for s in ("train", "test", "all"))
  assert (len(train), len(test), len(every)) == (10, 2, 12) and not set(train.names) & set(test.names)
  assert len(sources.open_source("phantom")) == 200
  other = sources.open_source("phantom:10", seed=1, size=(32, 32))
  assert not set(other.names) & set(every.names)
  assert train[0]["image"].shape == (32, 32, 3) and train[0]["name"] == train.names[0] and train[0]["label"] == "phantom"
  larger = sources.at_size(train, (40, 48))
  assert larger.names == train.names and larger[0]["tree"].shape == (40, 48, 1) and train[0]["tree"].shape == (32, 32, 1)
  # More eyes do not change the ones that were there.
  assert sources.open_source("phantom:12").names[:10] == train.names


def test_an_example_can_be_changed_without_harm():
  source = sources.open_source("phantom:2", size=(32, 32))
  source[0]["name"] = "mine"
  assert source[0]["name"] == source.names[0]


def test_the_hold_out_keeps_patients_together_and_never_moves_them():
  names = [f"{i}_{side}" for i in range(100) for side in ("left", "right")]
  train, test = splits.hold_out(names)
  assert sorted(train + test) == sorted(names) and 20 <= len(test) <= 60
  assert not {n.split("_")[0] for n in train} & {n.split("_")[0] for n in test}
  fewer_train, fewer_test = splits.hold_out(names[:100])
  assert set(fewer_test) == set(test) & set(names[:100]) and set(fewer_train) == set(train) & set(names[:100])
  for pair in (
    ["Image_01L", "Image_01R"],
    ["7.left", "7.right"],
    ["12_OD", "12_OS"],
    ["p1 OD", "p1 OS"],
    ["p1(R)", "p1(L)"],
    ["OD_12", "OS_12"],
    ["left_12", "right_12"],
    ["12_OS_2", "12_OD_2"],
    ["12_right_eye", "12_left_eye"],
  ):
    with pytest.raises(ValueError, match="at least two patients, or write splits.json"):
      splits.hold_out(pair)
  assert all(splits.hold_out(["osman", "rodos"]))  # not every "os" is a side
  for count in range(2, 8):
    train, test = splits.hold_out([f"eye{i}" for i in range(count)])
    assert train and test


def test_two_eyes_leave_nothing_to_validate_with(tmp_path):
  root = folder(tmp_path / "set", ["1_left", "2_left"])
  with pytest.raises(ValueError, match="a validation split from .*: add eyes .* or set config.data.heldout=test"):
    sources.open_source(f"folder:{root}", split="fit")


def test_splits_json(tmp_path):
  root = folder(tmp_path / "set", ["1_left", "1_right", "2_left", "3_left"])
  path = root / "splits.json"
  path.write_text(json.dumps({"train": ["3_left", "1_right"], "test": ["2_left"], "note": "x"}))
  opened = {s: sources.open_source(f"folder:{root}", split=s).names for s in ("train", "test", "all")}
  assert opened == {"train": ["3_left", "1_right"], "test": ["2_left"], "all": ["1_left", "1_right", "2_left", "3_left"]}
  path.write_text(json.dumps({"train": ["3_left.png", "1_right", "1_right"], "test": ["2_left.PNG"]}))
  assert sources.open_source(f"folder:{root}").names == ["3_left", "1_right"]
  for text, words in (
    ("{", "is not a split: write"),
    ('{"train": []}', "is not a split"),
    ('{"train": 3, "test": []}', "is not a split"),
    ('{"train": ["9"], "test": []}', "names 9, for which there is no file"),
    ('{"train": ["1_left"], "test": ["1_left"]}', "puts 1_left into both train and test"),
    ('{"train": [], "test": ["1_left"]}', "has an empty train list"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
      sources.open_source(f"folder:{root}")


def test_eyes_that_no_list_names_are_logged(tmp_path, caplog):
  root = folder(tmp_path / "set", ["1", "2", "3", "4", "5"])
  (root / "splits.json").write_text(json.dumps({"train": ["1"], "test": ["2"], "validation": ["3.png"]}))
  for _ in range(2):
    assert sources.open_source(f"folder:{root}").names == ["1"]
  (line,) = [line for line in caplog.messages if "does not name" in line]
  assert "does not name 4, 5, so" in line


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_splits_with_a_byte_order_mark(tmp_path, encoding):
  root = folder(tmp_path / "set", ["1", "é", "3"])
  (root / "splits.json").write_text(json.dumps({"train": ["1", "é"], "test": ["3"]}, ensure_ascii=False), encoding=encoding)
  assert sources.open_source(f"folder:{root}").names == ["1", "é"]


def test_splits_that_cannot_be_read(tmp_path, monkeypatch):
  root = folder(tmp_path / "set", ["1", "2", "3"])
  (root / "splits.json").write_bytes('{"train": ["é"], "test": ["3"]}'.encode("latin-1"))
  with pytest.raises(ValueError, match=r"splits.json is not UTF-8 text: save it as UTF-8"):
    sources.open_source(f"folder:{root}")

  def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
  with pytest.raises(ValueError, match=r"Cannot open .*splits.json \(Permission denied\): check its permissions"):
    sources.open_source(f"folder:{root}")


def test_validation_eyes_come_out_of_the_train_split(tmp_path):
  names = [f"{i}_{side}" for i in range(30) for side in ("left", "right")]
  root = folder(tmp_path / "set", names)
  for spec in (f"folder:{root}", "phantom:20"):
    train, test, fit, validation = (
      set(sources.open_source(spec, split=split).names) for split in ("train", "test", "fit", "validation")
    )
    assert fit and validation and test and not fit & validation and not (fit | validation) & test
    if spec.startswith("folder"):
      assert fit | validation == train and len(validation) >= 6  # about one in five of 24 patients
      assert not {n.split("_")[0] for n in fit} & {n.split("_")[0] for n in validation}
    else:
      assert fit == train and not validation & train


def test_joined_sources_have_all_eyes_under_their_own_names(tmp_path):
  a, b = (folder(tmp_path / p / "eyes", ["1", "2", "3"], v) for p, v in (("a", 10), ("b", 20)))
  joined = sources.open_source(f"folder:{a}*2.5+folder:{b}+phantom:2*1e-1", split="all", size=(16 * 2, 32))
  assert joined.weights == [2.5, 1.0, 0.1] and len(joined) == len(set(joined.names)) == 9
  assert joined.names[0] == "eyes1-1" and joined.names[3] == "eyes2-1" and joined.names[6].startswith("phantom-")
  assert [joined[i]["image"].max() for i in (0, 2, 3, 5)] == [10, 10, 20, 20] and joined[-1]["label"] == "phantom"
  assert joined[-9]["name"] == joined.names[0]
  for index in (9, -10):
    with pytest.raises(IndexError):
      joined[index]
  assert sources.at_size(joined, (48, 48))[6]["image"].shape == (48, 48, 3)


def test_weights_are_how_often_an_eye_is_drawn(tmp_path):
  a, b = folder(tmp_path / "a", ["1", "2"], 10), folder(tmp_path / "b", [str(i) for i in range(6)], 20)
  joined = sources.open_source(f"folder:{a}*3+folder:{b}", split="all")
  with pipeline.train_iterator(joined, size=(16, 16), batch_size=24, fields=("image",), num_threads=0, fit="squash") as batches:
    drawn = np.concatenate([next(batches)["image"].max(axis=(1, 2, 3)) for _ in range(5)])
  assert abs((drawn == 10).mean() - 0.5) < 0.02  # 2 eyes of weight 3 against 6 of weight 1


@pytest.mark.parametrize("name", ["a+b*c", "eyes*2", "a+phantom", "a+folder:b", "a*3+phantom:2*4", "é+ü"])
def test_folders_whose_names_hold_the_signs_of_specs(tmp_path, name):
  root = folder(tmp_path / name, ["1", "2"])
  assert sources.weighted_parts(f"folder:{root}") == [(f"folder:{root}", 1.0)]
  assert len(sources.open_source(f"folder:{root}", split="all")) == 2
  other = folder(tmp_path / "other", ["3"], 20)
  spec = f"folder:{other}*0.5+folder:{root}*2+phantom:3*4"
  assert sources.weighted_parts(spec) == [(f"folder:{other}", 0.5), (f"folder:{root}", 2.0), ("phantom:3", 4.0)]
  assert len(sources.open_source(spec, split="all", size=(16, 16))) == 1 + 2 + 4


def test_the_longest_existing_folder_wins(tmp_path):
  for name in ("a", "a*3", "a+phantom"):
    (tmp_path / name).mkdir()
  path = f"folder:{tmp_path}/a"
  assert sources.weighted_parts(f"{path}*3") == [(f"{path}*3", 1.0)]
  assert sources.weighted_parts(f"{path}*3*2") == [(f"{path}*3", 2.0)]
  assert sources.weighted_parts(f"{path}*4") == [(path, 4.0)]
  assert sources.weighted_parts(f"{path}+phantom") == [(f"{path}+phantom", 1.0)]
  assert sources.weighted_parts(f"{path}+phantom:9") == [(path, 1.0), ("phantom:9", 1.0)]
  # Nothing exists: every sign counts, and the message names the first folder that is missing.
  assert sources.weighted_parts("folder:x*2+folder:y+tfds:z*3") == [("folder:x", 2.0), ("folder:y", 1.0), ("tfds:z", 3.0)]
  assert sources.weighted_parts(f"tfds:set:{tmp_path}/a*3+phantom") == [(f"tfds:set:{tmp_path}/a*3", 1.0), ("phantom", 1.0)]


def test_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  folder(tmp_path / "eyes*2", ["1", "2"])
  assert len(sources.open_source("folder:~/eyes*2", split="all")) == 2
  with pytest.raises(ValueError, match=rf"no TFDS set 'nothing' in {tmp_path}/sets"):
    sources.open_source("tfds:nothing:~/sets")
  with pytest.raises(ValueError, match="~nobody-of-this-name/x starts with a home folder that is unknown"):
    sources.open_source("folder:~nobody-of-this-name/x")


@pytest.mark.parametrize(
  "spec, words",
  [
    ("", "is empty: write phantom"),
    (None, "is empty"),
    ("chase", "Unknown data source 'chase': write phantom"),
    ("phantom:0", "whole number of eyes above 0"),
    ("phantom:many", "whole number of eyes above 0"),
    ("folder:", "Unknown data source"),
    ("phantom:2*0+phantom:2", "must be above 0"),
    ("folder:/no/such/place", "does not exist"),
    ("tfds:", "Unknown data source"),
  ],
)
def test_wrong_specs(spec, words):
  with pytest.raises(ValueError, match=words):
    sources.open_source(spec)


def test_wrong_split_or_fields():
  with pytest.raises(ValueError, match="Unknown split 'val': write one of train, test, all, fit, validation"):
    sources.open_source("phantom:2", split="val")
  for fields in ((), ("mask",)):
    with pytest.raises(ValueError, match="Unknown fields .*: write some of image, tree, fov"):
      sources.open_source("phantom:2", fields=fields)


def test_the_fingerprint_sees_other_eyes(tmp_path):
  a = sources.open_source("phantom:5")
  assert sources.fingerprint(a) == sources.fingerprint(sources.open_source("phantom:5", size=(32, 32)))
  assert sources.fingerprint(a) != sources.fingerprint(sources.open_source("phantom:6"))
