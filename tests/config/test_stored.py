"""Configs of earlier versions: the same names for the same weights, and fields under their former names."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from retree_jax import checkpoint, models
from retree_jax.config import stored
from tests import small

# (identity of the weights, digest of their config), as the version that shipped them computed them: they stand in manifests.
SHIPPED = {
  "detail_128": ("7651358b82034113", "a9bb6ab8d6db98e0"),
  "detail_256": ("a64950e37720c0cd", "672210cabb09e90a"),
  "filter": ("f40c929e94872f37", "20b4b4533acf230e"),
  "fundus": ("4b393c33e436d40f", "12147e6afe5cb224"),
  "refine": ("78aa1abdac0e116c", "a76d14318c6154b7"),
  "refine_512": ("2cb538787b18237b", "8a4800ca0078d6a1"),
  "segmentation": ("a4b3fb3a4e8299b3", "f59eafbd20a2d092"),
  "superres": ("3d068da9034d338e", "6724056147c292b3"),
  "tree": ("3adfe950190ec4e4", "42b978b41a62648b"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_keep_their_names(name):
  loaded = checkpoint.load(name)
  assert (loaded.identity(), stored.digest(loaded.config)) == SHIPPED[name]


def test_a_renamed_field_is_read_under_its_former_name(tmp_path):
  former = shutil.copytree(small.ROOT / "retree_jax" / "weights" / "superres", tmp_path / "former")
  metadata = json.loads((former / "_CHECKPOINT_METADATA").read_text())
  sampler = metadata["custom_metadata"]["config"]["sampler"]
  sampler["tree_cut"] = sampler.pop("mask_threshold") + 0.125
  (former / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
  shipped = checkpoint.load("superres").config.sampler.mask_threshold
  assert checkpoint.load(former).config.sampler.mask_threshold == shipped + 0.125
  config = {"sampler": {"block": 0, "tree_cut": 0.3}, "seed": 1}
  assert stored.upgrade(config) == {"sampler": {"block": 0, "mask_threshold": 0.3}, "seed": 1}
  assert stored.digest(config) == stored.digest(stored.upgrade(config))


def test_settings_written_out_name_the_same_weights():
  """Of a variant that named few settings: as it was stored, and with all of them."""
  for settings in (
    {"name": "denoiser", "patch": 2, "widths": [32, 64], "blocks": [1], "attention": [2], "dtype": "float32", "middle": 3},
    {"name": "paper_denoiser", "dim": 4096, "time_dim": 256},
    {
      "name": "superres",
      "factor": 2,
      "width": 96,
      "depth": 12,
      "vit_blocks": 1,
      "vit_patch": 8,
      "noise": True,
      "dtype": "bfloat16",
    },
    {"name": "discriminator", "width": 64, "heads": 4, "head_width": 32, "depth": 1, "dtype": "bfloat16"},
  ):
    complete = {**models.defaults(settings["name"]), **settings}
    assert stored.counted_settings(complete) == stored.counted_settings(settings) == settings
  changed = {**models.defaults("denoiser"), "dropout": 0.1}
  assert stored.counted_settings(changed) != stored.counted_settings(models.defaults("denoiser"))


@pytest.mark.parametrize("adversarial, start, wanted", [(0.01, 2400, 2401), (0.01, 0, 1), (0.0, 2400, 0)])
def test_a_gan_is_scored_once_its_discriminator_has_joined(adversarial, start, wanted):
  config = _config("superres", "cpu")
  config.loss.update(adversarial=adversarial, adversarial_start=start)
  assert stored.first_scored_step(config) == stored.first_scored_step(stored.to_json(config)) == wanted
  assert stored.first_scored_step(small.config()) == 0


def test_of_a_gan_the_latest_checkpoint_is_taken(tmp_path, monkeypatch):
  """Of a run of an earlier version too, which kept the score of an earlier state."""
  from tests import test_checkpoint

  monkeypatch.setattr(models, "build", small.Toy)
  config = _config("superres", "tiny")
  config.loss.adversarial_start = 2
  losses = {1: 0.1, 2: 0.2, 3: 0.5, 4: 0.4, 5: 0.6}
  test_checkpoint.save(tmp_path / "old", losses, keep_latest=9, config=config)
  assert checkpoint.load(tmp_path / "old").step == 5  # of a GAN the latest, whatever its score
  assert checkpoint.load(tmp_path / "old", step=1).step == 1
  # Nothing qualifies: the latest.
  test_checkpoint.save(tmp_path / "young", {1: 0.1, 2: 0.2}, keep_latest=9, config=config)
  assert checkpoint.load(tmp_path / "young").step == 2
  # A run of this version keeps none for a score that does not count.
  checkpoints = checkpoint.Checkpoints(tmp_path / "new", 1, 1, stored.first_scored_step(config))
  for step, loss in losses.items():
    checkpoints.save(test_checkpoint.make_state(step), {}, config, loss)
  checkpoints.close()
  assert test_checkpoint.kept(tmp_path / "new") == [4, 5]
  assert checkpoint.load(tmp_path / "new").step == 5
  np.testing.assert_array_equal(checkpoint.load(tmp_path / "new").params["w"], test_checkpoint.make_state(5).ema["w"])


def _config(stage: str, variant: str):
  spec = importlib.util.spec_from_file_location(stage, small.ROOT / "configs" / f"{stage}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)
