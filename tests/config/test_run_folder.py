"""Which run a workdir belongs to: what may change on resume, what is said of it, and what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from retree_jax import checkpoint, train
from retree_jax.config import run_folder, stored
from retree_jax.data import fingerprint, image_io, phantom, sources, writing
from tests import small

EYES = {"data.source": "1"}


def claimed(tmp_path, data=None, **changes):
  run_folder.claim(tmp_path, small.config(**changes), data)
  (tmp_path / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
  return tmp_path


def test_a_workdir_without_checkpoint_may_be_used_for_another_run(tmp_path):
  """A run that failed on its first mask leaves such a folder."""
  claimed(tmp_path)
  (tmp_path / "checkpoints" / "4").rmdir()
  (note,) = run_folder.check(tmp_path, small.config(model__widths=(16,)))
  assert "holds no checkpoint of it: it is used for this run" in note


def test_a_workdir_belongs_to_one_config(tmp_path):
  assert run_folder.check(tmp_path, small.config()) == []
  claimed(tmp_path)
  # How long, how often and where may change; what is learnt, and on what, may not.
  assert run_folder.check(tmp_path, small.config(train__num_steps=9, log__every=7, mesh__fsdp=2, sampler__num_steps=3)) == []
  with pytest.raises(ValueError, match=r"another config: model.widths \(\[8\] there, \[16\] here\), seed \(0 there, 4 here"):
    run_folder.check(tmp_path, small.config(seed=4, model__widths=(16,)))
  (tmp_path / "config.json").write_text('{"seed": ')
  with pytest.raises(ValueError, match="not readable JSON: restore it, or use another --workdir"):
    run_folder.check(tmp_path, small.config())


@pytest.mark.parametrize(
  "field, value",
  [
    ("optimizer__learning_rate", 1e-5),
    ("optimizer__warmup_steps", 7),
    ("optimizer__weight_decay", 0.0),
    ("optimizer__clip_norm", 0.5),
    ("train__batch_size", 4),
    ("train__accumulate", 2),
    ("model__dtype", "bfloat16"),
    ("model__remat", True),
  ],
)
def test_how_a_run_descends_may_change_and_is_said(tmp_path, field, value):
  (note,) = run_folder.check(claimed(tmp_path), small.config(**{field: value}))
  assert note.startswith(f"config.{field.replace('__', '.')} is now {value!r}, it was ")


@pytest.mark.parametrize("field, there, here", [("clip_norm", 1.0, 0.0), ("name", "adamw", "muon")])
def test_a_change_that_needs_another_optimizer_state_is_refused_with_a_way_out(tmp_path, field, there, here):
  with pytest.raises(ValueError, match=rf"{field} \({there!r} there, {here!r} here\).*--config.train.start_from="):
    run_folder.check(claimed(tmp_path), small.config(**{f"optimizer__{field}": here}))


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
  """It stored only the network settings that its variant named, and some fields under former names."""
  config = small.config(model__mlp_ratio=4)
  old = stored.to_json(config)
  for field in ("mlp_ratio", "remat", "dropout", "dtype"):
    old["model"].pop(field, None)
  del old["optimizer"]["name"]
  (tmp_path / "config.json").write_text(json.dumps(old))
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  assert run_folder.check(tmp_path, config) == []
  with pytest.raises(ValueError, match=r"model.mlp_ratio \(4 there, 2 here\)"):
    run_folder.check(tmp_path, small.config(model__mlp_ratio=2))
  with pytest.raises(ValueError, match=r"data.attributes .*or that config$"):  # its weights have another shape
    run_folder.check(tmp_path, small.config(model__mlp_ratio=4, data__attributes=("density",)))
  with pytest.raises(ValueError, match=r"optimizer.name \('adamw' there, 'muon' here\)"):
    run_folder.check(tmp_path, small.config(model__mlp_ratio=4, optimizer__name="muon"))


@pytest.mark.parametrize(
  "source, data, before, same_names, answer",
  [
    ("folder:there/", {"data.source": "1"}, EYES, False, []),
    ("folder:there/", {"data.source": "2"}, EYES, False, "refused"),
    ("folder:here", {"data.source": "2"}, EYES, False, ["have changed since the run was started"]),
    # A run whose fingerprints were never written: names are all there is.
    ("folder:there", {"data.source": "1"}, None, True, []),
    ("folder:there", {"data.source": "1"}, None, False, "refused"),
    ("folder:here", {"data.source": "1"}, None, False, []),
  ],
)
def test_data_are_what_they_hold_not_what_they_are_called(tmp_path, source, data, before, same_names, answer):
  claimed(tmp_path, before, data__source="folder:here")
  config = small.config(data__source=source)
  if answer == "refused":
    with pytest.raises(ValueError, match=r"data.source \('folder:here' there, 'folder:there/?' here\)"):
      run_folder.check(tmp_path, config, data, same_names)
    return
  notes = run_folder.check(tmp_path, config, data, same_names)
  assert len(notes) == len(answer) and all(words in note for words, note in zip(answer, notes, strict=True))


def eyes(folder: pathlib.Path, numbers=range(6)) -> pathlib.Path:
  for number in numbers:
    eye = phantom.eye(number, (32, 32))
    for kind, field in (("images", "image"), ("masks", "tree")):
      pixels = eye[field] if field == "image" else np.where(eye[field] >= 128, 255, 0).astype(np.uint8)
      writing.write_png(folder / kind / f"eye_{number}.png", pixels)
  return folder


def test_fingerprints_see_contents_and_weights_and_not_places(tmp_path):
  def of(spec):
    return fingerprint.of_source(sources.open_source(spec, fields=("image", "tree")))

  here = eyes(tmp_path / "here")
  shutil.copytree(here, tmp_path / "there")
  whole = of(f"folder:{here}")
  assert of(f"folder:{tmp_path / 'there'}/") == whole
  assert fingerprint.of_path(here) == fingerprint.of_path(tmp_path / "there") != fingerprint.of_path(tmp_path / "none") == ""
  joined = of(f"folder:{here}*2+phantom:5")
  assert of(f"folder:{tmp_path / 'there'}*2+phantom:5") == joined != of(f"folder:{here}*3+phantom:5")
  assert len({whole, joined, of("phantom:5"), of("phantom:6")}) == 4
  some = of(f"folder:{here}[:2]")
  assert of(f"folder:{tmp_path / 'there'}[:2]") == some != whole
  # One vessel pixel of one mask.
  mask = here / "masks" / f"{sources.open_source(f'folder:{here}').names[0]}.png"
  tree = image_io.decode(mask.read_bytes(), "mask").copy()
  tree[16, 16] = 255 - tree[16, 16]
  writing.write_png(mask, tree)
  assert of(f"folder:{here}") != whole and of(f"folder:{here}[:2]") != some
  assert fingerprint.of_path(here) != fingerprint.of_path(tmp_path / "there")


def test_fingerprints_see_a_pixel_of_an_uncompressed_picture(tmp_path):
  pixels = np.zeros((256, 256), np.uint8)
  found = set()
  for value in (0, 255):
    pixels[128, 128] = value
    Image.fromarray(pixels).save(tmp_path / "mask.tif")
    found.add(fingerprint.of_path(tmp_path / "mask.tif"))
  assert len(found) == 2


def test_the_same_eyes_in_another_folder_go_on_and_other_eyes_do_not(tmp_path, capfd):
  def run(folder, steps):
    config = small.config(data__source=f"folder:{folder}", data__image_size=(32, 32), train__num_steps=steps)
    return train.train(config, tmp_path / "run", devices=jax.devices()[:1])

  run(eyes(tmp_path / "job1"), 1)
  shutil.move(tmp_path / "job1", tmp_path / "job2")
  capfd.readouterr()
  run(tmp_path / "job2", 2)
  text = capfd.readouterr().err
  assert "Resumed from step 1" in text and "changed" not in text and "data set is not the one" not in text
  with pytest.raises(ValueError, match=r"belongs to a run with another config: data.source .*start_from"):
    run(eyes(tmp_path / "others", range(10, 16)), 3)
  assert checkpoint.load(tmp_path / "run", step="latest").step == 2
  eyes(tmp_path / "job2", [7])  # one more eye in the folder
  run(tmp_path / "job2", 3)
  assert "have changed since the run was started" in capfd.readouterr().err
