"""nnU-Net's raw folders as sources: which file is which, the split, and what is refused with a way out that works."""

import numpy as np
import pytest

from retree_jax.data import sources, writing

RNG = np.random.default_rng(0)
LABELS = {"background": 0, "vessel": 1}


def description(folder, labels=LABELS, channels=("R", "G", "B"), ending=".png"):
  content = {
    "channel_names": {str(k): name for k, name in enumerate(channels)},
    "labels": labels,
    "numTraining": 1,
    "file_ending": ending,
  }
  writing.write_json(folder / "dataset.json", content)


def eye(size=(40, 48)):
  mask = np.zeros(size, np.uint8)
  mask[10:14, 5:40] = 1
  return RNG.integers(60, 200, (*size, 3), np.uint8), mask


def dataset(folder, train=("a", "b", "c"), test=(), three_files=False, labelled_tests=True, **described):
  """A drawn raw folder; {case: (photograph, mask)}."""
  description(folder, **described)
  eyes = {}
  for part, cases in (("Tr", train), ("Ts", test)):
    for case in cases:
      image, mask = eyes[case] = eye()
      for k in range(3) if three_files else (0,):
        writing.write_png(folder / f"images{part}/{case}_{k:04d}.png", image[..., k] if three_files else image)
      if part == "Tr" or labelled_tests:
        writing.write_png(folder / f"labels{part}/{case}.png", mask)
  return eyes


@pytest.mark.parametrize("three_files", [False, True])
def test_cases_are_read_and_split_as_they_lie(tmp_path, three_files):
  eyes = dataset(tmp_path / "Dataset001_Eyes", test=("t1", "t2"), three_files=three_files)
  parts = {s: sources.open_source(f"folder:{tmp_path / 'Dataset001_Eyes'}", split=s) for s in ("train", "test", "all")}
  assert parts["train"].names == ["a", "b", "c"] and parts["test"].names == ["t1", "t2"] and len(parts["all"]) == 5
  for source in parts.values():
    for example in source:
      np.testing.assert_array_equal(example["image"], eyes[example["name"]][0])
      np.testing.assert_array_equal(example["tree"][..., 0], 255 * eyes[example["name"]][1])
      assert example["label"] == "expert"
  assert len(parts["all"].files("a")) == (4 if three_files else 2)


def test_photographs_to_predict_are_no_test_split(tmp_path):
  dataset(tmp_path, train=[f"{k:02d}" for k in range(12)], test=("t",), labelled_tests=False)
  train, test = (sources.open_source(f"folder:{tmp_path}", split=s) for s in ("train", "test"))
  assert test.names and "t" not in test.names and len(train) + len(test) == 12
  assert "t" in sources.open_source(f"folder:{tmp_path}", split="all", fields=("image",)).names
  writing.write_json(tmp_path / "splits.json", {"train": ["01"], "test": ["02"]})
  assert sources.open_source(f"folder:{tmp_path}", split="test").names == ["02"]


@pytest.mark.parametrize(
  "described, words",
  [
    ({"ending": ".nii.gz"}, "files end in .nii.gz: photographs in .png, .bmp or .tif"),
    ({"channels": ("T1", "T2", "FLAIR")}, "names the channels T1, T2, FLAIR: photographs have R, G and B"),
    ({"channels": ("CT",)}, "names the channels CT"),
    ({"channels": ("B", "G", "R")}, "names the channels B, G, R"),
    ({"labels": {"background": 0, "vessel": 1, "optic disc": 2}}, "names the labels optic disc, which are not called vessels"),
    ({"labels": {"background": 0}}, "names the labels no vessels"),
    ({"labels": ["vessel"]}, "no description of an nnU-Net v2 set"),
  ],
)
def test_other_sets_are_refused_until_the_sentence_is_obeyed(tmp_path, described, words):
  dataset(tmp_path, **described)
  with pytest.raises(ValueError, match=words):
    sources.open_source(f"folder:{tmp_path}", split="all")
  description(tmp_path)
  assert len(sources.open_source(f"folder:{tmp_path}", split="all")) == 3


@pytest.mark.parametrize(
  "described",
  [{"channels": ("rgb_to_0_1",) * 3}, {"channels": ("red", "green", "blue")}, {"labels": {"bg": 0, "artery": 1, "vein": 2}}],
)
def test_other_names_of_the_same_are_accepted(tmp_path, described):
  dataset(tmp_path, **described)
  assert sources.open_source(f"folder:{tmp_path}", split="all")[0]["tree"].max() == 255


def test_incomplete_folders_are_refused(tmp_path):
  dataset(tmp_path / "one", three_files=True)
  (tmp_path / "one/imagesTr/b_0001.png").unlink()
  with pytest.raises(ValueError, match="has 2 of the channels of b: give one file b_0000 in colour, or"):
    sources.open_source(f"folder:{tmp_path / 'one'}")
  dataset(tmp_path / "two")
  (tmp_path / "two/labelsTr/b.png").unlink()
  with pytest.raises(ValueError, match="No mask in .* for the photographs b_0000.png"):
    sources.open_source(f"folder:{tmp_path / 'two'}")
  dataset(tmp_path / "three")
  (tmp_path / "three/imagesTr/b_0000.png").rename(tmp_path / "three/imagesTr/b.png")
  with pytest.raises(ValueError, match="b.png has no channel in its name: call it b_0000.png"):
    sources.open_source(f"folder:{tmp_path / 'three'}")
  (tmp_path / "three/dataset.json").unlink()
  with pytest.raises(ValueError, match="dataset.json is missing"):
    sources.open_source(f"folder:{tmp_path / 'three'}")
  dataset(tmp_path / "four", test=("a",))
  with pytest.raises(ValueError, match="has a in both imagesTr and imagesTs"):
    sources.open_source(f"folder:{tmp_path / 'four'}")
  dataset(tmp_path / "five", three_files=True)
  writing.write_png(tmp_path / "five/imagesTr/c_0002.png", eye()[0])
  with pytest.raises(ValueError, match="c_0002.png is no channel of 8 bits"):
    sources.open_source(f"folder:{tmp_path / 'five'}", split="all")[2]
