"""The detail stage: learns what half the size loses, resumes to the bit, keeps what is coarse, and stands between fundus and
superres."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import checkpoint, tasks, train
from retree_jax.data import field_of_view, phantom, transforms
from retree_jax.diffusion import conditioning
from retree_jax.inference import pairs, stages
from retree_jax.inference.detailer import Detailer
from tests import small
from tests import stages as made

detail = importlib.import_module("configs.detail")


config = functools.partial(small.cascade, detail)


def eyes(count=3, size=(32, 32)):
  drawn = [phantom.eye(i, size) for i in range(count)]
  return {name: np.stack([eye[name] for eye in drawn]) for name in ("image", "tree", "fov")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A finished run and its state, with evaluation and previews."""
  workdir = tmp_path_factory.mktemp("detail") / "whole"
  return workdir, train.train(config(evaluate__every=4, preview__every=4), workdir, devices=jax.devices()[:1])


def test_it_trains_on_crops_resumes_to_the_bit_and_loads(whole, tmp_path):
  workdir, state = whole
  train.train(config(train__num_steps=2), tmp_path, devices=jax.devices()[:1])
  resumed = train.train(config(), tmp_path, devices=jax.devices()[:1])
  small.assert_same(resumed.params, state.params)
  small.assert_same(resumed.ema, state.ema)
  assert {path.stem.rsplit("_", 1)[0] for path in (workdir / "previews").iterdir()} == {"samples_image", "real_image"}
  small.assert_same(checkpoint.load(workdir, stage="detail").params, state.ema)


def test_learnt_is_what_half_the_size_loses():
  task = tasks.make(config(data__turns=False, data__crop=0, data__crops=1))
  batch = eyes(2)
  given = task._given(batch, jax.random.key(0))
  assert given["x0"].shape == (2, 32, 32, 3) and given["cond"].shape == (2, 32, 32, 6)
  truth = batch["image"].astype(np.float32) / 127.5 - 1
  kept = np.abs(np.asarray(given["x0"])) < 1
  assert kept.mean() > 0.9
  np.testing.assert_allclose(np.asarray(conditioning.with_detail(given["x0"], given["cond"]))[kept], truth[kept], atol=1e-5)
  np.testing.assert_allclose(given["cond"][..., 3], batch["tree"][..., 0] / 127.5 - 1, atol=1e-6)
  # Held-out photographs are scored on the same, with the level 0.
  cond = task._condition(batch, jnp.ones(2))
  low = np.stack([transforms.area_resize(image, (16, 16)) for image in batch["image"]]) / 127.5 - 1
  np.testing.assert_allclose(cond[..., :3], jax.image.resize(low, (2, 32, 32, 3), "linear"), atol=1e-5)
  assert np.all(np.asarray(cond[..., 5]) == -1)
  scores = task.evaluate(task.init(jax.random.key(0)).params, batch, np.arange(2))
  assert np.isfinite(scores["loss"]).all()


def test_it_keeps_what_is_coarse_and_depends_on_the_seed_alone(whole):
  c, (_, state) = config(), whole
  loaded = checkpoint.load(whole[0], stage="detail")
  batch = eyes()
  detailer = Detailer(c, loaded.network)
  drawn = detailer(state.ema, np.arange(3), batch, seed=1)["image"]
  assert drawn.shape == batch["image"].shape and not drawn[np.broadcast_to(batch["fov"] < 128, drawn.shape)].any()
  inside = np.broadcast_to(batch["fov"] >= 128, drawn.shape)
  # At most 32 grey levels of detail, and 1 of rounding, beyond the reduced photograph.
  low = np.stack([transforms.area_resize(image, (16, 16)) for image in batch["image"]]).astype(np.float32)
  large = np.asarray(jax.image.resize(low, drawn.shape, "linear"))
  assert np.abs(drawn - large)[inside].max() <= 127.5 / 4 + 1
  alone = detailer(state.ema, np.array([2]), {name: part[2:] for name, part in batch.items()}, seed=1)["image"]
  np.testing.assert_array_equal(alone[0], drawn[2])
  assert (detailer(state.ema, np.arange(3), batch, seed=2)["image"] != drawn).any()
  larger = Detailer(c, loaded.network, size=(48, 48))(state.ema, np.arange(1), eyes(1, (48, 48)))["image"]
  assert larger.shape == (1, 48, 48, 3)


def test_pairs_take_it_between_painting_and_super_resolution(whole, tmp_path):
  made.denoiser(tmp_path / "fundus", "fundus", ("image",), ("tree", "fov"), size=(32, 32))
  trees = eyes(2)["tree"]
  plain = pairs.pairs(pairs.load_models(fundus=str(tmp_path / "fundus")), trees=trees)
  models = pairs.load_models(fundus=str(tmp_path / "fundus"), detail=str(whole[0]))
  sharp = pairs.pairs(models, trees=trees)
  (stage,) = models.detail
  given = {name: plain[name] for name in ("image", "tree", "fov")}
  wanted = Detailer(stage.config, stage.network)(stage.params, np.arange(2), given, seed=0, stream="photographs detail_32")
  coverage = pairs.Generator(models).given(trees)["fov"]
  np.testing.assert_array_equal(sharp["image"], field_of_view.fade_at_rim(plain["image"], wanted["image"], coverage))
  assert (sharp["image"] != plain["image"]).any() and (sharp["tree"] == plain["tree"]).all()
  with pytest.raises(ValueError, match="sharpens painted photographs, and there is no fundus stage"):
    stages.check_fit(stages.Models(tree=models.fundus, detail=models.detail))


def test_two_of_them_draw_at_half_the_size_and_then_at_the_whole(whole, tmp_path):
  made.denoiser(tmp_path / "fundus", "fundus", ("image",), ("tree", "fov"), size=(32, 32))
  half, changes = tmp_path / "half", dict(data__image_size=(16, 16), data__crop=0, data__crops=1)
  train.train(config(train__num_steps=1, **changes), half, devices=jax.devices()[:1])
  fundus, trees = str(tmp_path / "fundus"), eyes(2)["tree"]
  drawn = plain = pairs.pairs(pairs.load_models(fundus=fundus), trees=trees)
  models = pairs.load_models(fundus=fundus, detail=f"{half},{whole[0]}")
  for stage, side in zip(models.detail, (16, 32), strict=True):
    given = {name: np.stack([transforms.area_resize(p, (side, side)) for p in plain[name]]) for name in ("tree", "fov")}
    given |= {"image": drawn["image"], "fov": transforms.binarise(given["fov"])}
    detailer = Detailer(stage.config, stage.network)
    assert detailer.size == (side, side)
    drawn = detailer(stage.params, np.arange(2), given, seed=0, stream=f"photographs detail_{side}")
  coverage = pairs.Generator(models).given(trees)["fov"]
  wanted = field_of_view.fade_at_rim(plain["image"], drawn["image"], coverage)
  np.testing.assert_array_equal(pairs.pairs(models, trees=trees)["image"], wanted)
  with pytest.raises(ValueError, match="draws at 32x32 pixels here and was trained at 16x16"):
    stages.check_fit(stages.Models(fundus=models.fundus, detail=models.detail[::-1]))


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(data__target=("tree",)), "the detail stage learns config.data.target=.'image',. from"),
    (dict(data__condition=("tree", "fov")), "the detail stage learns"),
    (dict(loss__outside_fov=0.1), "the detail stage needs config.loss.outside_fov=1"),
    (dict(data__crop=64), "crop=64 does not fit into"),
  ],
)
def test_what_cannot_be_learnt_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    tasks.make(config(**changes))
