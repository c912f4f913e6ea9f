"""Folders of photographs labelled by a segmenter: training sets whose labels are known for what they are."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from retree_jax.data import claim, image_io, phantom, sources, writing
from retree_jax.inference import segmenter
from tests.inference.test_segmentation import darkness, finding, small


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """A folder of three photographs of different sizes, without masks."""
  folder = tmp_path_factory.mktemp("photographs")
  for seed, size in enumerate([(60, 72), (90, 80), (64, 64)]):
    writing.write_png(folder / "images" / f"eye_{seed}.png", phantom.eye(seed, size)["image"])
  writing.write_json(folder / "splits.json", {"train": ["eye_0", "eye_1"], "test": ["eye_2"]})
  return folder


def test_a_labelled_folder_is_a_training_set_and_a_rerun_does_nothing(photographs, tmp_path):
  loaded = darkness(small(data__image_size=(96, 96)))
  out = tmp_path / "labelled"
  assert segmenter.label_folder(loaded, photographs, out, probabilities=True) == 3
  source = sources.open_source(f"folder:{out}", split="train", fields=("image", "tree"))
  assert source.names == ["eye_0", "eye_1"]  # the split came along
  assert {source[i]["label"] for i in range(2)} == {"predicted"}
  original = (photographs / "images" / "eye_1.png").read_bytes()
  assert (out / "images" / "eye_1.png").read_bytes() == original
  photo = image_io.decode(photographs / "images" / "eye_1.png", "eye_1")
  want = finding(loaded)([photo])[0]
  np.testing.assert_array_equal(source[1]["tree"][..., 0], (want > 0.5) * 255)
  kept = image_io.decode(out / "probabilities" / "eye_1.png", "eye_1")
  np.testing.assert_allclose(kept / 255, want, atol=0.5 / 255 + 1e-6)
  lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
  assert [line["name"] for line in lines] == ["eye_0", "eye_1", "eye_2"] and lines[0]["step"] == 7
  # A rerun does nothing; after a loss it makes the lost one again, the same.
  lost = out / "masks" / "eye_0.png"
  before = lost.read_bytes()
  assert segmenter.label_folder(loaded, photographs, out) == 0
  lost.unlink()
  assert segmenter.label_folder(loaded, photographs, out) == 1 and lost.read_bytes() == before
  with pytest.raises(ValueError, match=r"labelled holds another run .threshold is 0.5 there and 0.3 here"):
    segmenter.label_folder(loaded, photographs, out, threshold=0.3)
  turned = darkness(small(data__image_size=(96, 96), sampler__flips=3 - loaded.config.sampler.flips))
  with pytest.raises(ValueError, match="labelled holds another run .sampler.flips is"):
    segmenter.label_folder(turned, photographs, out)


def test_labels_of_one_folder_are_not_taken_for_those_of_another(photographs, tmp_path):
  loaded = darkness(small(data__image_size=(96, 96)))
  more, out = tmp_path / "more", tmp_path / "labelled"
  shutil.copytree(photographs, more)
  photo = more / "images" / "eye_0.png"
  writing.write_png(more / "images" / "eye_3.png", image_io.decode(photo, "eye_0"))
  assert segmenter.label_folder(loaded, photographs, out) == 3
  # A photograph more is labelled too; another one under a known name is refused, before anything is written.
  assert segmenter.label_folder(loaded, more, out) == 1
  before = {p: p.read_bytes() for p in sorted(out.rglob("*.*"))}
  writing.write_png(photo, 255 - image_io.decode(photo, "eye_0"))
  with pytest.raises(ValueError, match=r"eye_0.png is another photograph than .*more.*--out"):
    segmenter.label_folder(loaded, more, out)
  assert {p: p.read_bytes() for p in sorted(out.rglob("*.*"))} == before


def test_labels_of_photographs_that_are_gone_stay_predicted(photographs, tmp_path):
  loaded, fewer, out = darkness(small(data__image_size=(96, 96))), tmp_path / "fewer", tmp_path / "labelled"
  shutil.copytree(photographs, fewer)
  segmenter.label_folder(loaded, fewer, out)
  (fewer / "images" / "eye_1.png").unlink()
  (fewer / "splits.json").unlink()
  assert segmenter.label_folder(loaded, fewer, out) == 0
  source = sources.open_source(f"folder:{out}", split="all", fields=("tree",))
  assert [source[i]["label"] for i in range(len(source))] == ["predicted"] * 3


def test_a_folder_that_is_being_labelled_is_refused(photographs, tmp_path):
  with claim.hold(tmp_path / "out", "labelling"), pytest.raises(ValueError, match="has been labelling there since"):
    segmenter.label_folder(darkness(small()), photographs, tmp_path / "out")


def test_masks_of_experts_are_never_overwritten(photographs, tmp_path):
  loaded = darkness(small())
  mask = tmp_path / "masks" / "eye_0.png"
  writing.write_png(mask, np.zeros((4, 4), np.uint8))
  with pytest.raises(ValueError, match="holds files that this command did not write, and it never overwrites any"):
    segmenter.label_folder(loaded, photographs, tmp_path)
  with pytest.raises(ValueError, match="does not exist"):
    segmenter.label_folder(loaded, tmp_path / "none", tmp_path / "out")
  with pytest.raises(ValueError, match="give one from 0"):
    segmenter.label_folder(loaded, photographs, tmp_path / "out", threshold=1.0)


def test_photographs_of_another_folder_are_never_mixed_in(photographs, tmp_path):
  writing.write_png(tmp_path / "images" / "other.png", np.zeros((4, 4, 3), np.uint8))
  with pytest.raises(ValueError, match="holds files that this command did not write"):
    segmenter.label_folder(darkness(small()), photographs, tmp_path)


def test_a_flat_folder_is_not_labelled_in_place(photographs, tmp_path):
  """A rerun would find images/ there, and never see the photographs beside it."""
  flat = tmp_path / "flat"
  shutil.copytree(photographs / "images", flat)
  with pytest.raises(ValueError, match=r"use another --out, or move them to .*images first"):
    segmenter.label_folder(darkness(small()), flat, flat)
  (flat / "images").mkdir()
  for path in flat.glob("*.png"):
    path.rename(flat / "images" / path.name)
  assert segmenter.label_folder(darkness(small()), flat, flat) == 3


def test_fields_of_view_that_are_there_stay(photographs, tmp_path):
  shutil.copytree(photographs, tmp_path, dirs_exist_ok=True)
  fov = sources.open_source(f"folder:{photographs}", split="all", fields=("image",))[0]["fov"]
  (tmp_path / "fov").mkdir()
  Image.fromarray(fov[..., 0]).save(tmp_path / "fov" / "eye_0.gif")
  assert segmenter.label_folder(darkness(small()), tmp_path, tmp_path) == 3
  assert sorted(path.name for path in (tmp_path / "fov").iterdir()) == ["eye_0.gif", "eye_1.png", "eye_2.png"]
  assert segmenter.label_folder(darkness(small()), tmp_path, tmp_path) == 0


def test_probabilities_can_be_added_and_leave_corrected_masks_alone(photographs, tmp_path):
  loaded, out = darkness(small()), tmp_path / "labelled"
  segmenter.label_folder(loaded, photographs, out)
  corrected = out / "masks" / "eye_1.png"
  writing.write_png(corrected, 255 - image_io.decode(corrected, "eye_1"))
  before = corrected.read_bytes()
  assert segmenter.label_folder(loaded, photographs, out, probabilities=True) == 3
  assert len(list((out / "probabilities").iterdir())) == 3 and corrected.read_bytes() == before
