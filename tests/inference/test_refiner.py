"""The refinement stage: trains on crops, resumes to the bit, samples the same bits anywhere, is told what it is told."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import checkpoint, models, sharding, tasks, train
from retree_jax.data import pipeline, sources, transforms
from retree_jax.data.examples import Examples
from retree_jax.diffusion import conditioning
from retree_jax.inference.refiner import Refiner
from tests import small

refine = importlib.import_module("configs.refine")


config = functools.partial(small.cascade, refine)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A finished run and its state, with evaluation and previews."""
  workdir = tmp_path_factory.mktemp("refine") / "whole"
  return workdir, train.train(config(evaluate__every=4, preview__every=4), workdir, devices=jax.devices()[:1])


def test_it_trains_on_crops_resumes_to_the_bit_and_loads(whole, tmp_path):
  workdir, state = whole
  train.train(config(train__num_steps=2), tmp_path, devices=jax.devices()[:1])
  resumed = train.train(config(), tmp_path, devices=jax.devices()[:1])
  small.assert_same(resumed.params, state.params)
  small.assert_same(resumed.ema, state.ema)
  pictures = {path.stem.rsplit("_", 1)[0] for path in (workdir / "previews").iterdir()}
  assert pictures == {"given_tree", "samples_vessels", "samples_tree", "real_vessels", "real_tree"}
  loaded = checkpoint.load(workdir, stage="refine")
  small.assert_same(loaded.params, state.ema)


def test_it_is_scored_on_masks_of_the_rule_it_learns_from():
  """Phantoms are drawn at twice the size for both: their masks have no other resolution."""
  c = config()
  eyes = Examples(c, None, ("vessels", "tree", "fov"))
  (scored,) = eyes.fixed("train", 2, 2)
  source = sources.open_source(c.data.source, split="fit", seed=c.seed, size=(32, 32))
  (direct,) = pipeline.evaluation_batches(
    source, size=(32, 32), batch_size=3, fit=c.data.fit, fields=("vessels", "tree", "fov")
  )
  np.testing.assert_array_equal(scored["vessels"], direct["vessels"][:2])


def test_previews_compile_once(whole):
  _, state = whole
  c = config()
  task, mesh = tasks.make(c), sharding.make_mesh(devices=jax.devices()[:1])
  (batch,) = Examples(c, None, task.fields).fixed("train", 2, 2)
  task.preview(state.ema, batch, mesh)
  with small.compilations() as found:
    task.preview(state.ema, batch, mesh)
  assert not found


def test_learnt_is_the_mask_beside_the_coverage_of_the_same_crop():
  c = config(data__turns=False, diffusion__condition_noise=0.0, diffusion__condition_blur=0.0)
  task = tasks.make(c)
  rng = np.random.default_rng(0)
  tree = rng.integers(0, 256, (2, 32, 32, 1), np.uint8)
  batch = {"tree": tree, "vessels": transforms.binarise(tree), "fov": np.full_like(tree, 255)}
  given = task._given(batch, jax.random.key(0))
  assert given["x0"].shape == (4, 16, 16, 2) and given["cond"].shape == (4, 16, 16, 3)
  vessels, coverage = np.asarray(given["x0"][..., 0]), np.asarray(given["x0"][..., 1])
  np.testing.assert_array_equal(vessels > 0, coverage > 0)
  # Each crop is somewhere in its eye, and its condition is the enlarged half-size coverage of that place.
  low = np.stack([transforms.area_resize(t, (16, 16)) for t in tree]).astype(np.float32) / 127.5 - 1
  large = np.asarray(jax.image.resize(low, (2, 32, 32, 1), "linear"))[..., 0]
  signed = tree[..., 0].astype(np.float32) / 127.5 - 1
  for i in range(4):
    eye, found = i // 2, []
    for y in range(17):
      for x in range(17):
        if np.allclose(signed[eye, y : y + 16, x : x + 16], coverage[i], atol=1e-6):
          found.append((y, x))
    ((y, x),) = found
    np.testing.assert_allclose(given["cond"][i, ..., 0], large[eye, y : y + 16, x : x + 16], atol=1e-5)
  # Both crops of an eye are told its level, and the levels' roots are half of the range apart.
  told = np.asarray(given["cond"][..., 2])[:, 0, 0]
  assert told[0] == told[1] and told[2] == told[3]
  assert abs(np.sqrt((told[2] + 1) / 2) - np.sqrt((told[0] + 1) / 2)) == pytest.approx(0.5, abs=1e-5)


def test_the_condition_is_degraded_as_much_as_it_says():
  rng = np.random.default_rng(1)
  low = jnp.zeros((3, 64, 64, 1)).at[:, 32, 32].set(1.0)
  noise = jnp.asarray(rng.standard_normal(low.shape), jnp.float32)
  level = jnp.array([0.0, 0.5, 1.0])
  untouched, half, full = np.asarray(conditioning.degrade(low, level, jnp.zeros_like(noise), 1.2, 0.5))[..., 0]
  np.testing.assert_allclose(untouched, low[0, ..., 0], atol=1e-6)
  at = np.arange(64) - 32
  for picture, sigma in ((half, 0.6), (full, 1.2)):
    assert picture.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.sqrt((picture.sum(0) * at**2).sum()) == pytest.approx(sigma, rel=0.03)
  noisy = np.asarray(conditioning.degrade(jnp.zeros_like(low), level, noise, 1.2, 0.5))
  np.testing.assert_allclose(noisy.std(axis=(1, 2, 3)), 0.5 * np.asarray(level) * float(noise.std()), rtol=0.05)
  fov = jnp.ones((3, 128, 128, 1))
  given = conditioning.condition(low, fov, level, noise, {"condition_blur": 1.2, "condition_noise": 0.5})
  assert given.shape == (3, 128, 128, 3)
  np.testing.assert_array_equal(given[..., 2][:, 5, 7], [-1.0, 0.0, 1.0])


def test_haze_goes_and_vessels_stay():
  share = jnp.tile(jnp.array([0.0, 0.02, 0.05, 0.075, 0.1, 0.4, 1.0]), (2, 1))[..., None, None]
  found = (conditioning.without_haze(2 * share - 1, jnp.array([0.05, 0.0]))[..., 0, 0] + 1) / 2
  np.testing.assert_allclose(found[0], [0, 0, 0, 0.0375, 0.1, 0.4, 1.0], atol=1e-6)
  np.testing.assert_allclose(found[1], share[1, :, 0, 0], atol=1e-6)


def random_weights(c):
  network = models.build({**c.model, "out_channels": 2})
  params = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 2)), jnp.zeros(1), jnp.zeros((1, 16, 16, 3)))
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  drawn = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return network, jax.tree.unflatten(structure, drawn)


def test_refined_trees_are_the_same_bits_in_any_batch_on_one_and_on_eight_devices():
  c = config()
  network, params = random_weights(c)
  rng = np.random.default_rng(2)
  given = {"tree": rng.integers(0, 256, (9, 32, 32, 1), np.uint8), "fov": np.full((9, 64, 64, 1), 255, np.uint8)}
  refiner = Refiner(c, network, size=(64, 64))  # not the size it was trained at
  every = refiner(params, np.arange(9), given)
  assert {k: (v.shape, v.dtype) for k, v in every.items()} == {
    "vessels": ((9, 64, 64, 1), np.uint8),
    "tree": ((9, 64, 64, 1), np.uint8),
  }
  assert len({picture.tobytes() for picture in every["vessels"]}) == 9
  few = refiner(params, [7, 2], {name: pixels[[7, 2]] for name, pixels in given.items()})
  mesh = sharding.make_mesh(devices=jax.devices()[:8])
  spread = Refiner(c, network, mesh, (64, 64))(jax.device_put(params, sharding.replicated(mesh)), np.arange(9), given)
  for name, pixels in every.items():
    np.testing.assert_array_equal(few[name], pixels[[7, 2]])
    np.testing.assert_array_equal(spread[name], pixels)
  with pytest.raises(ValueError, match="'tree' has shape .* resize it"):
    refiner(params, [0], {"tree": given["tree"][:1, :16], "fov": given["fov"][:1]})
  with pytest.raises(ValueError, match="needs the condition 'fov'"):
    refiner(params, [0], {"tree": given["tree"][:1]})


class Repeats:
  """A network whose x0 is what it was given: the enlarged coverage, and the level."""

  def cpu_block(self, height, width):
    return 1

  def check_size(self, height, width, field="", factor=1):
    pass

  def apply(self, params, x, t, cond=None):
    return jnp.concatenate([cond[..., :1], cond[..., 2:]], -1)


def test_the_level_of_the_config_is_what_the_network_is_told_and_given():
  c = config(
    diffusion__prediction="x0", diffusion__condition_noise=0.5, diffusion__condition_blur=1.2, sampler__condition_level=0.0
  )
  c.sampler.condition_haze = 0.0
  tree = transforms.area_resize(np.random.default_rng(3).integers(0, 256, (16, 16, 1), np.uint8), (32, 32))[None]
  given = {"tree": tree, "fov": np.full((1, 64, 64, 1), 255, np.uint8)}
  out = Refiner(c, Repeats(), size=(64, 64))({}, [4], given)
  large = transforms.area_resize(tree[0], (64, 64))
  np.testing.assert_allclose(out["vessels"][0].astype(int), large.astype(int), atol=1)
  assert (out["tree"] == 0).all()
  c.sampler.condition_level = 0.5
  worse = Refiner(c, Repeats(), size=(64, 64))({}, [4], given)
  assert (np.abs(worse["tree"].astype(int) - 128) <= 1).all()
  assert np.abs(worse["vessels"].astype(int) - out["vessels"]).mean() > 5


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data__target": ("tree",)}, "set them so"),
    ({"data__crop": 64}, "make it smaller"),
    ({"data__crop": 0}, "needs config.data.crop above 0"),
    ({"loss__outside_fov": 0.5}, "outside_fov=1"),
    ({"sampler__condition_level": 1.5}, "from 0 to 1"),
    ({"data__attributes": ("density",)}, "set config.data.attributes=..$"),
    ({"data__crop": 18}, "multiples of 4, for instance 16x16; change config.data.crop"),
  ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changes, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(config(**changes))


def test_every_variant_describes_a_network():
  for variant in ("", "cpu", "tiny"):
    tasks.make(refine.get_config(variant))
  with pytest.raises(ValueError, match="the paper has no refinement stage"):
    refine.get_config("paper")
