"""What the page makes: the bytes of `generate`, the tree that was given, the vessels that the segmenter finds."""

import io
import json
import types
import zipfile

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from retree_jax import checkpoint, generate, sharding
from retree_jax.data import phantom, sources, transforms
from retree_jax.inference import dataset_writer
from retree_jax.inference.segmenter import Segmenter
from retree_jax.page import studio
from tests import small, stages
from tests.page.conftest import silent, stage_paths
from tests.page.test_uploads import encoded


def pixels(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


def one_device():
  """A mesh for which the programs are compiled already."""
  return sharding.make_mesh(devices=jax.devices()[:1])


def settings(loaded, **given):
  return loaded.settings({name: str(value) for name, value in given.items()})


@pytest.mark.parametrize("given", [{}, {"num_steps": 1, "guidance": 2.0}])
def test_pairs_are_those_of_generate_to_the_byte(loaded, paths, tmp_path, given):
  names = {"num_steps": "steps", "guidance": "guidance"}
  made = loaded.generate(settings(loaded, seed=5, num=3, **{names[k]: v for k, v in given.items()}), silent)
  dataset_writer.write(stage_paths(paths), tmp_path, num=3, seed=5, mesh=one_device(), **given)
  written = stages.files(tmp_path)
  pictures = {name: data for name, data in written.items() if name.endswith(".png") and "/" in name}
  assert len(pictures) == 9
  with zipfile.ZipFile(io.BytesIO(made.files["retree_seed5_3.zip"])) as archive:
    held = {name: archive.read(name) for name in archive.namelist()}
  assert held == {**pictures, "manifest.jsonl": written["manifest.jsonl"]}
  assert all(made.files[name] == data for name, data in held.items())
  assert made.files["manifest.jsonl"].count(b"\n") == 3
  assert [eye["name"] for eye in made.result["eyes"]] == ["0000000", "0000001", "0000002"]
  for eye in made.result["eyes"]:
    assert set(eye["pictures"]) == {"tree", "photograph", "overlay"} and len(eye["measures"]["rows"]) == 12
    assert set(eye["pictures"].values()) | set(eye["downloads"].values()) | {eye["nearest"]["picture"]} <= set(made.files)
  json.dumps(made.result, allow_nan=False)


def test_the_archive_is_a_pair_folder(loaded, tmp_path):
  made = loaded.generate(settings(loaded, num=2), silent)
  with zipfile.ZipFile(io.BytesIO(made.files["retree_seed0_2.zip"])) as archive:
    archive.extractall(tmp_path)
  source = sources.open_source(f"folder:{tmp_path}", split="all")
  assert source.names == ["0000000", "0000001"] and source[1]["label"] == "generated"
  np.testing.assert_array_equal(source[1]["image"], pixels(made.files["images/0000001.png"]))


def test_the_same_request_gives_the_same_bytes_and_other_settings_others(loaded):
  once, again, other = (loaded.generate(settings(loaded, seed=seed, num=1), silent) for seed in (1, 1, 2))
  assert once.files == again.files
  assert once.files["images/0000000.png"] != other.files["images/0000000.png"]


def test_models_are_loaded_once_and_only_the_last_settings_stay_compiled(loaded, monkeypatch):
  loaded.generate(settings(loaded), silent)
  loads = []
  monkeypatch.setattr(checkpoint, "load", lambda *a, **k: loads.append(a))
  with small.compilations() as compiled:
    loaded.generate(settings(loaded, seed=3), silent)
  assert not loads and not compiled
  first = loaded._generator(settings(loaded))
  for steps in range(1, 9):
    loaded._generator(settings(loaded, steps=steps))
  assert len(loaded._generators) == studio._MAX_GENERATORS
  assert loaded._generator(settings(loaded, steps=8)) is loaded._generator(settings(loaded, steps=8))
  assert loaded._generator(settings(loaded)) is not first


def test_progress_grows_and_says_what_is_done(loaded):
  said = []
  loaded.generate(settings(loaded, num=4), lambda text, share: said.append((share, text)))
  assert said == sorted(said, key=lambda item: item[0]) and said[0][0] == 0 and said[-1][0] < 1
  first = "compiling the model and "
  stages = {text.split(" (")[0].removeprefix(first) for _, text in said}
  assert stages == {"drawing the tree", "painting the photograph", "measuring"}
  assert "of 4)" in said[0][1]
  said.clear()
  loaded.generate(settings(loaded), lambda text, share: said.append(text))
  assert said == ["drawing the tree", "painting the photograph", "measuring"]  # nothing to compile any more


def test_a_given_tree_is_painted_as_the_library_paints_it(loaded, paths):
  tree = np.zeros((40, 40, 1), np.uint8)
  tree[4:36, 18:23] = 255
  made = loaded.paint(encoded(tree[..., 0]), settings(loaded, num=2, seed=4), silent)
  models = generate.load_models(**stage_paths(paths))
  wanted = generate.pairs(models, mesh=one_device(), trees=np.stack([tree] * 2), seed=4)
  for k in range(2):
    np.testing.assert_array_equal(pixels(made.files[f"images/painted_{k}.png"]), wanted["image"][k])
    np.testing.assert_array_equal(pixels(made.files[f"masks/painted_{k}.png"]), transforms.binarise(wanted["tree"][k])[..., 0])
  assert made.files["images/painted_0.png"] != made.files["images/painted_1.png"]
  rows = [json.loads(line) for line in made.files["manifest.jsonl"].splitlines()]
  assert [row["name"] for row in rows] == ["painted_0", "painted_1"] and rows[0]["trees"] == "given"


def test_the_vessels_of_a_photograph_are_those_of_the_segmenter(loaded, paths):
  image = phantom.eye(9, (90, 120))["image"]
  made = loaded.segment(encoded(image), silent)
  stage = checkpoint.load(paths["segmenter"])
  segmenter = Segmenter(stage.config, stage.network)
  (probability,) = segmenter(stage.params, [image])
  np.testing.assert_array_equal(pixels(made.files["vessels.png"]) > 0, probability > segmenter.threshold)
  np.testing.assert_array_equal(pixels(made.files["shown/photograph.png"]), image)
  (eye,) = made.result["eyes"]
  assert set(eye["pictures"].values()) | set(eye["downloads"].values()) == set(made.files)


def test_large_photographs_are_shown_smaller_and_labelled_at_their_own_size(loaded):
  image = np.repeat(np.repeat(phantom.eye(9, (120, 150))["image"], 10, 0), 10, 1)
  made = loaded.segment(encoded(image, "JPEG"), silent)
  assert pixels(made.files["vessels.png"]).shape == (1200, 1500)
  assert pixels(made.files["shown/photograph.png"]).shape == (819, 1024, 3)


@pytest.mark.parametrize(
  "asked, words",
  [
    ({"seed": "x"}, "seed is 'x': give a whole number from 0 to 4294967295"),
    ({"seed": "-1"}, "seed is '-1': give a whole number"),
    ({"num": "17"}, "pairs is '17': give a whole number from 1 to 16"),
    ({"num": "1.5"}, "pairs is '1.5': give a whole number"),
    ({"steps": "0"}, "steps is '0'"),
    ({"guidance": "nan"}, "guidance is 'nan': give a number from 1.0 to 10.0"),
    ({"colour": "red"}, "there is no setting 'colour': use seed, num, steps, guidance"),
  ],
)
def test_settings_out_of_bounds_are_refused(loaded, asked, words):
  with pytest.raises(ValueError, match=words):
    loaded.settings(asked)


def test_the_page_offers_what_the_models_can_do(loaded, paths, tmp_path):
  assert loaded.actions() == ["generate", "paint", "segment"]
  assert loaded.settings({}) == {"seed": 0, "num": 1, "steps": None, "guidance": None}
  assert [c.own for c in loaded.controls] == ["", "", "2", "1"]
  alone = studio.Studio({"tree": paths["tree"]})
  assert alone.actions() == ["generate"]
  assert [c.name for c in alone.controls] == ["seed", "num", "steps"]  # nothing to guide
  said = []
  made = alone.generate(alone.settings({}), lambda text, share: said.append(text))
  assert said[0] == "compiling the model and drawing the tree"
  assert set(made.result["eyes"][0]["pictures"]) == {"tree"} and "coverage/0000000.png" in made.files
  painter = studio.Studio({"fundus": paths["fundus"]}, paths["segmenter"])
  assert painter.actions() == ["paint", "segment"]
  with pytest.raises(ValueError, match="nothing to generate with"):
    studio.Studio({})


def test_trees_can_be_asked_for_where_the_stage_knows_attributes(loaded, paths, tmp_path, monkeypatch):
  known = studio.pairs.Generator(loaded._models)
  known.samplers["tree"].attributes = ("side", "density")
  controls = {c.name: c for c in studio.controls(known)}
  assert controls["side"].read("left") == -1.0 and controls["side"].read("") is None
  assert controls["density"].read("0.11") == 0.11
  with pytest.raises(ValueError, match="density is '2': give a number from 0.05 to 0.13"):
    controls["density"].read("2")
  monkeypatch.setattr(loaded, "controls", list(controls.values()))
  monkeypatch.setattr(loaded, "_generator", lambda settings, ask: known)
  asked = []
  monkeypatch.setattr(
    studio.dataset_writer, "make_chunk", lambda generator, *rest: asked.append(dict(generator.ask)) or ([], {})
  )
  loaded.generate(loaded.settings({"side": "right"}), lambda text, share: None)
  loaded.generate(loaded.settings({}), lambda text, share: None)
  assert asked == [{"side": 1.0}, {}]


def test_the_page_names_every_stage_of_the_generator():
  stage = types.SimpleNamespace(identity=lambda: "abc", step=7)
  page = object.__new__(studio.Studio)
  page._models, page._eyes = studio.pairs.Models(tree=stage, refine=(stage, stage), fundus=stage), None
  assert list(page.facts()["stages"]) == ["tree", "refinement 1", "refinement 2", "fundus"]
  assert set(page.facts()["stages"].values()) == {"abc, step 7"}


def test_attributes_are_asked_for_where_trees_are_drawn_alone():
  sampler = types.SimpleNamespace(config=ConfigDict({"sampler": {"num_steps": 4, "spacing": "trailing"}}))
  generator = types.SimpleNamespace(samplers={"tree": sampler}, attributes=("density", "side"))
  assert {c.name: c.only for c in studio.controls(generator)} == {
    "seed": "",
    "num": "",
    "steps": "",
    "density": "generate",
    "side": "generate",
  }
