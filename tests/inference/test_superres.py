"""Super-resolution: a run through the loop, and the enlarger."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from retree_jax import checkpoint, sharding, train
from retree_jax.cli import stages
from retree_jax.data import provenance, writing
from retree_jax.inference import superres
from tests import small, superres_stage


def enlarging(loaded, mesh=None):
  """The super-resolution of a loaded checkpoint with its parameters filled in."""
  return functools.partial(superres.Enlarger(loaded.config, loaded.network, mesh), loaded.params)


def test_a_run_goes_through_the_loop_resumes_and_loads_as_a_generator(tmp_path):
  # Adam divides by the gradient's size: with its usual epsilon, gradients that are all rounding become whole steps.
  smooth = dict(optimizer__eps=1e-3, discriminator_optimizer__eps=1e-3)
  whole = train.train(superres_stage.config(**smooth), tmp_path / "whole", devices=jax.devices()[:1])
  train.train(superres_stage.config(**smooth, train__num_steps=2), tmp_path / "stopped", devices=jax.devices()[:1])
  stopped = train.train(superres_stage.config(**smooth), tmp_path / "stopped", devices=jax.devices()[:1])
  small.assert_same(stopped, whole)
  loaded = checkpoint.load(tmp_path / "whole", stage="superres")
  small.assert_same(loaded.params, whole.ema)
  assert (tmp_path / "whole/previews/enlarged_tree_0000004.png").exists()
  eight = train.train(superres_stage.config(**smooth, mesh__fsdp=2), tmp_path / "eight")
  small.assert_close(eight.params, whole.params, rtol=1e-4, atol=1e-6)
  large = enlarging(loaded)({f: v[:2, ::2, ::2] for f, v in superres_stage.eyes().items()})
  assert large["image"].shape == (2, 32, 32, 3) and large["tree"].shape == (2, 32, 32, 1)
  # `--mode sample --input`: pairs of the small size are enlarged as they are.
  pairs = {
    f: v[:2, ::2, ::2] if f == "image" else np.where(v[:2, ::2, ::2] >= 128, 255, 0).astype(np.uint8)
    for f, v in superres_stage.eyes().items()
  }
  for k in range(2):
    for folder, field in (("images", "image"), ("masks", "tree"), ("fov", "fov")):
      marks = provenance.text() if k == 0 else None
      writing.write_png(tmp_path / f"small/{folder}/{k}.png", pairs[field][k], marks)
  stages.sample("superres", tmp_path / "whole", inputs=str(tmp_path / "small"), out=tmp_path / "enlarged")
  lines = [json.loads(line) for line in (tmp_path / "enlarged/manifest.jsonl").read_text().splitlines()]
  assert [line["name"] for line in lines] == ["0", "1"] and lines[0]["checkpoint"] == loaded.identity()
  for folder in ("images", "masks", "fov"):  # what was marked as synthetic stays so
    marked = [provenance.is_synthetic(tmp_path / f"enlarged/{folder}/{k}.png") for k in range(2)]
    assert marked == [True, False]
  # Fewer pairs than before: all that are there stay, and stay listed.
  before = {p: p.read_bytes() for p in (tmp_path / "enlarged").rglob("*.png")}
  stages.sample("superres", tmp_path / "whole", num=1, inputs=str(tmp_path / "small"), out=tmp_path / "enlarged")
  assert len((tmp_path / "enlarged/manifest.jsonl").read_text().splitlines()) == 2
  assert {p: p.read_bytes() for p in (tmp_path / "enlarged").rglob("*.png")} == before
  shutil.copytree(tmp_path / "enlarged", tmp_path / "other")
  writing.write_json(tmp_path / "other/run.json", {"stage": "superres"})
  with pytest.raises(ValueError, match="other holds another run .checkpoint is None there"):
    stages.sample("superres", tmp_path / "whole", inputs=str(tmp_path / "small"), out=tmp_path / "other")
  wanted = enlarging(loaded)(pairs)
  for k in range(2):
    for folder, field in (("images", "image"), ("masks", "tree")):
      with Image.open(tmp_path / f"enlarged/{folder}/{k}.png") as picture:
        pixels = np.asarray(picture).reshape(wanted[field][k].shape)
      np.testing.assert_array_equal(pixels, wanted[field][k] if field == "image" else np.where(wanted[field][k] >= 128, 255, 0))


@pytest.mark.parametrize("noisy", [False, True])
def test_neither_the_batch_nor_the_number_of_devices_changes_a_bit(noisy):
  loaded = superres_stage.loaded(noisy=noisy)
  rng = np.random.default_rng(1)
  fields = {f: rng.integers(0, 256, (9, 16, 16, n), dtype=np.uint8) for f, n in (("image", 3), ("tree", 1))}
  fields["fov"] = np.ascontiguousarray(superres_stage.eyes(9)["fov"][:, ::2, ::2])
  whole = enlarging(loaded)(fields)
  assert {f: v.shape for f, v in whole.items()} == {"image": (9, 32, 32, 3), "tree": (9, 32, 32, 1), "fov": (9, 32, 32, 1)}
  assert len(np.unique(whole["image"])) > 50 and not whole["tree"][whole["fov"] == 0].any()
  single = enlarging(loaded)
  for k in (0, 8):
    small.assert_same(single({f: v[k : k + 1] for f, v in fields.items()}), {f: v[k : k + 1] for f, v in whole.items()})
  eight = enlarging(loaded, sharding.make_mesh())
  small.assert_same(eight(fields), whole)
  assert eight.func.size == (32, 32) and eight.func.scale == 2
  # The same as the network itself.
  low = jnp.concatenate([fields["image"], fields["tree"]], -1).astype(jnp.float32) / 127.5 - 1
  cut = loaded.config.sampler.mask_threshold
  noise = superres.own_noise(jnp.concatenate([fields["image"], fields["tree"]], -1), 2)
  plain = np.asarray(superres.to_pixels(loaded.network.apply(loaded.params, low, noise=noise), cut), int)
  inside = whole["fov"][..., 0] > 0
  assert np.abs(plain[..., :3] - whole["image"])[inside].max() <= 1
  assert np.abs(plain[..., 3:] - whole["tree"])[inside].max() <= 1
  without = np.asarray(superres.to_pixels(loaded.network.apply(loaded.params, low), cut), int)
  assert (np.abs(without[..., :3] - whole["image"])[inside].max() > 1) == noisy


def test_a_pair_has_a_noise_of_its_own():
  pairs = np.zeros((5, 8, 8, 4), np.uint8)
  pairs[1:] = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
  pairs[2, 3, 4, 1] ^= 1  # one grey level of one pixel
  pairs[3, 0, 0], pairs[3, 7, 7] = pairs[1, 7, 7], pairs[1, 0, 0]  # the same values in other places
  noise = np.asarray(superres.own_noise(jnp.asarray(pairs), 4))
  assert noise.shape == (5, 32, 32, 2)
  np.testing.assert_array_equal(noise[4], noise[1])
  np.testing.assert_array_equal(superres.own_noise(jnp.asarray(pairs[2:3]), 4)[0], noise[2])
  across = np.corrcoef(noise[:4].reshape(4, -1))
  assert np.abs(across - np.eye(4)).max() < 0.1  # 2048 numbers each: a standard error of .02
  assert noise[:4].mean() == pytest.approx(0, abs=0.06) and noise[:4].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("cut", [0.2, 0.4, 0.5])
def test_the_cut_becomes_a_coverage_of_one_half_and_odds_follow(cut):
  probability = np.array([0.0, 0.1, cut - 1e-3, cut + 1e-3, 0.8, 1.0])
  with np.errstate(divide="ignore"):
    logits = np.log(probability / (1 - probability))
    odds = probability / (1 - probability) * (1 - cut) / cut
    wanted = np.where(np.isinf(odds), 1.0, odds / (1 + np.where(np.isinf(odds), 0.0, odds)))
  output = jnp.zeros((1, 1, len(probability), 4)).at[0, 0, :, 3].set(jnp.asarray(logits, jnp.float32))
  found = np.asarray(superres.to_pixels(output, cut))[0, 0]
  np.testing.assert_allclose(found[:, 3], 255 * wanted, atol=0.51)
  assert (found[:, 3] >= 128).tolist() == (probability > cut).tolist()
  assert (found[:, :3] == 128).all()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tree": None}, "there is no 'tree'"),
    ({"tree": np.zeros((1, 8, 8, 1), np.uint8)}, r"needs 'tree' as uint8 \[N, 16, 16, 1\]"),
    ({"image": np.zeros((1, 16, 16, 3))}, "not float64"),
  ],
)
def test_pairs_that_do_not_fit_are_refused(changes, message):
  fields = {"image": np.zeros((1, 16, 16, 3), np.uint8), "tree": np.zeros((1, 16, 16, 1), np.uint8), **changes}
  with pytest.raises(ValueError, match=message):
    enlarging(superres_stage.loaded())({k: v for k, v in fields.items() if v is not None})


@pytest.mark.parametrize("cut", [0.0, 1.0, -2.0])
def test_a_cut_that_is_no_probability_is_refused(cut):
  with pytest.raises(ValueError, match=r"config.sampler.mask_threshold=.* must be above 0 and below 1"):
    superres.Enlarger(superres_stage.config(sampler__mask_threshold=cut), superres_stage.loaded().network)
