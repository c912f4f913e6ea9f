"""Super-resolution: the views it is shown, terms that switch on and off, the run through the loop, and the enlarger."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import superres as config_file
from retree_jax import checkpoint, keys, losses, models, sharding, tasks, train
from retree_jax.cli import stages
from retree_jax.data import phantom, writing
from retree_jax.inference import superres
from retree_jax.models.pretrained import vgg
from retree_jax.tasks import views
from tests import small

OFF = {"probability": 1.0, "blur": 0.0, "noise": 0.0, "compression": 0.0}


def config(**changes):
  """The tiny variant, tinier: 16 → 32 pixels; "loss__l1=0" sets `config.loss.l1`."""
  c = config_file.get_config("tiny")
  c.data.update(source="phantom:8", image_size=(32, 32), crop=16, num_threads=0)
  c.model = ConfigDict({"name": "superres", "factor": 2, "width": 8, "depth": 1, "vit_blocks": 0})
  c.discriminator = ConfigDict({"name": "superres_discriminator", "widths": (8,), "vit_blocks": 0, "spectral_norm": False})
  c.loss.penalty = "none"
  c.train.update(batch_size=8, num_steps=4)
  c.optimizer.warmup_steps = c.discriminator_optimizer.warmup_steps = 0
  c.loss.adversarial_start = 2
  c.evaluate.update(every=4, num=2)
  c.preview.update(every=4, num=2)
  c.checkpoint.update(every=2, keep_latest=9)
  c.log.update(every=1, tensorboard=False)
  for name, value in changes.items():
    *path, field = name.split("__")
    functools.reduce(lambda node, key: node[key], path, c)[field] = value
  return c


@functools.lru_cache
def eyes(num: int = 8, size: int = 32) -> dict[str, np.ndarray]:
  drawn = [phantom.eye(seed, (size, size)) for seed in range(num)]
  return {f: np.stack([eye[f] for eye in drawn]) for f in ("image", "tree", "fov")}


def begin(c):
  task = tasks.make(c)
  return task, jax.jit(lambda: task.init(keys.stream(0, "test")))()


def test_a_crop_is_a_part_of_its_pair_and_a_turn_keeps_the_pixels():
  pair = jnp.arange(6 * 8 * 4, dtype=jnp.float32).reshape(6, 8, 4)
  crops = np.asarray(views.crop(jax.random.key(0), pair, 5, 40))
  corners = {(int(c[0, 0, 0]) // 4 // 8, int(c[0, 0, 0]) // 4 % 8) for c in crops}
  assert corners == {(y, x) for y in range(2) for x in range(4)}  # every place, and no other
  for c in crops:
    y, x = divmod(int(c[0, 0, 0]) // 4, 8)
    np.testing.assert_array_equal(c, pair[y : y + 5, x : x + 5])
  square = pair[:, :6]
  turned = jax.vmap(views.turn, (0, None))(jax.random.split(jax.random.key(1), 100), square)
  eight = {np.rot90(m, k).tobytes() for m in (square, square[:, ::-1]) for k in range(4)}
  assert {np.asarray(t).tobytes() for t in turned} == eight


def test_the_small_pair_is_the_area_average_in_8_bit_steps():
  pixels = np.array([0, 0, 255, 254, 10, 13, 20, 20], np.float32).reshape(1, 2, 4, 1)
  low = views.shrink(pixels / 127.5 - 1, 2)
  # (0 + 0 + 10 + 13) / 4 = 5.75 and (255 + 254 + 20 + 20) / 4 = 137.25
  np.testing.assert_allclose((low[0, 0, :, 0] + 1) * 127.5, [6, 137], atol=1e-4)
  with pytest.raises(ValueError, match="multiples of 3"):
    views.shrink(pixels, 3)


def test_each_degradation_does_what_it_says_and_none_does_nothing():
  low = views.shrink(jnp.asarray(eyes(1)["image"], jnp.float32) / 127.5 - 1, 1)
  low = jnp.concatenate([low, low[..., :1]], -1)[0]
  flat = jnp.full((32, 32, 4), 0.2)
  draws = jax.random.split(jax.random.key(0), 32)

  def degraded(pair, **options):
    return np.asarray(jax.jit(jax.vmap(lambda key: views.degrade(key, pair, {**OFF, **options})))(draws))

  np.testing.assert_allclose(degraded(low), np.stack([low] * 32), atol=1e-6)
  half = degraded(low, noise=50.0, probability=0.5)
  alone = [np.array_equal(x, low) for x in half]
  assert 5 < sum(alone) < 27
  noise = degraded(flat, noise=8.0).std(axis=(1, 2)) * 127.5
  assert noise.max() < 9 and noise.min() < 1 and 3 < noise.mean() < 5  # strengths are uniform from 0 to 8
  np.testing.assert_allclose(noise[:, 0], noise[:, 2], rtol=0.3, atol=0.3)  # one for the photograph, another for the tree
  assert np.abs(noise[:, 0] - noise[:, 3]).max() > 3
  steps = np.abs(np.diff(degraded(low, blur=1.0), axis=1)).mean(axis=(1, 2, 3))
  assert steps.min() < 0.8 * np.abs(np.diff(low, axis=0)).mean() >= 0.79 * steps.max()
  np.testing.assert_allclose(degraded(flat, blur=1.0), np.stack([flat] * 32), atol=4e-3)
  # Rounding coefficients of an orthonormal transform to multiples of s (1 + f + g) moves each by at most half of that.
  packed = views._compress(low[..., :3], jnp.float32(0.05))
  bound = np.mean([(0.05 * (1 + f + g) / 2) ** 2 for f in range(8) for g in range(8)])
  assert 0 < jnp.mean(jnp.square(packed - low[..., :3])) <= bound
  np.testing.assert_allclose(views._compress(low[..., :3], jnp.float32(0)), low[..., :3], atol=1e-4)


def test_what_the_discriminator_sees_is_changed_alike_and_passes_gradients():
  c = config().discriminator_augment
  pair = jax.random.uniform(jax.random.key(0), (16, 16, 4), minval=-1, maxval=1)
  changed = functools.partial(views.augment, jax.random.key(5), options=c)
  still = {**c, "flip": False, "translation": 0.0}
  np.testing.assert_array_equal(views.augment(jax.random.key(5), pair, still)[..., 3], pair[..., 3])  # a tree has no colour
  assert jnp.abs(changed(pair)[..., :3] - pair[..., :3]).max() > 0.1
  none = {**still, "brightness": 0.0, "saturation": 0.0, "contrast": 0.0}
  np.testing.assert_allclose(views.augment(jax.random.key(5), pair, none), pair, atol=1e-6)
  # Affine in the pair with the same key: the change of a difference is the difference of the changes.
  other = pair[::-1]
  twice = 2 * changed((pair + other) / 2)
  np.testing.assert_allclose(changed(pair) + changed(other), twice, atol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(changed(x)[..., 3]))(pair)
  shown = np.asarray(gradient[..., 3])
  assert set(np.unique(shown)) <= {0.0, 1.0} and shown.mean() > 0.7  # all but what moved out


@pytest.mark.parametrize("name", ["l1", "ssim", "bce", "adversarial"])
def test_a_term_of_weight_0_is_not_even_computed(name):
  task = tasks.make(config(**{f"loss__{name}": 0.0}))
  state = jax.eval_shape(lambda: task.init(keys.stream(0, "test")))
  metrics = jax.eval_shape(task.train_step, state, eyes())[1]
  judged = set() if name == "adversarial" else {"discriminator"}
  assert set(metrics) == {"loss", "l1", "ssim", "bce", "adversarial", *judged} - {name}
  assert bool(jax.tree.leaves(state.params["discriminator"])) == bool(judged)


def test_the_loss_is_the_weighted_sum_of_its_terms():
  weights = {"l1": 2.0, "ssim": 0.3, "bce": 0.7, "adversarial": 0.05}
  task, state = begin(config(**{f"loss__{n}": w for n, w in weights.items()}, loss__adversarial_start=0))
  metrics = jax.jit(task.train_step)(state, eyes())[1]
  assert min(float(metrics[n]) for n in weights) > 0
  assert float(metrics["loss"]) == pytest.approx(sum(w * float(metrics[n]) for n, w in weights.items()), rel=1e-5)


def test_terms_of_the_untrained_network_are_those_of_bicubic_enlargement():
  task, state = begin(config(loss__adversarial=0.0, data__crop=0, data__turns=False, data__degradation__probability=0.0))
  batch = eyes()
  metrics = jax.jit(task.train_step)(state, batch)[1]
  high = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1
  low = views.shrink(high, 2)
  large = jax.image.resize(low, high.shape, "cubic")
  assert float(metrics["l1"]) == pytest.approx(float(jnp.abs(large - high).mean()), rel=1e-5)
  assert float(metrics["ssim"]) == pytest.approx(1 - float(losses.ssim(large, high).mean()), rel=1e-4)


def _vgg_file(folder):
  """Two layers of random weights: the reading of real ones is tested in test_vgg.py."""
  rng = np.random.default_rng(0)
  arrays = {
    "block1_conv1/kernel": rng.normal(0, 0.3, (3, 3, 3, 64)),
    "block1_conv1/bias": np.zeros(64),
    "block1_conv2/kernel": rng.normal(0, 0.1, (3, 3, 64, 64)),
    "block1_conv2/bias": np.zeros(64),
  }
  np.savez(folder / "vgg.npz", **{k: v.astype(np.float32) for k, v in arrays.items()})
  return str(folder / "vgg.npz")


def test_the_perceptual_term_compares_features_and_is_off_without_weights(tmp_path, caplog):
  with caplog.at_level("INFO"):
    task, _ = begin(config())
  assert len([r for r in caplog.records if "perceptual loss is off" in r.getMessage()]) == 1
  output = jax.random.uniform(jax.random.key(0), (2, 16, 16, 4))
  high = jax.random.uniform(jax.random.key(1), (2, 16, 16, 4))
  assert set(task._terms(output, high)) == {"l1", "ssim", "bce"}
  path = _vgg_file(tmp_path)
  task, _ = begin(config(loss__perceptual_weights=path, loss__perceptual_layers=("relu1_2",)))
  term = task._terms(output, high)["perceptual"]
  weights = vgg.load_weights(path)
  a, b = (vgg.features(weights, x[..., :3], ("relu1_2",))["relu1_2"] for x in (output, high))
  plain = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
  np.testing.assert_allclose(term / plain, np.full(2, term[0] / plain[0]), rtol=1e-4)  # scaled by one constant
  assert 0 < task._terms(high, high)["perceptual"].max() + 1 <= 1  # zero where nothing differs
  with pytest.raises(ValueError, match="No VGG19 weights"):
    begin(config(loss__perceptual_weights="nowhere.npz"))


@pytest.mark.parametrize(("gan", "penalty", "every"), [("nonsaturating", "r1", 2), ("least_squares", "original", 1)])
def test_the_discriminator_waits_then_learns(gan, penalty, every):
  c = config(loss__gan=gan, loss__penalty=penalty, loss__penalty_every=every, loss__adversarial_start=1)
  task, state = begin(c)
  step = jax.jit(task.train_step)
  first = small.on_host(state.params["discriminator"])
  state, metrics = step(state, eyes())
  small.assert_same(state.params["discriminator"], first)
  assert metrics["adversarial"] == 0 and metrics["discriminator"] == 0
  state, metrics = step(state, eyes())
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), small.on_host(state.params["discriminator"]), first)
  assert max(jax.tree.leaves(moved)) > 0 and float(metrics["discriminator"]) > 0
  for _ in range(5):
    state, metrics = step(state, eyes())
  assert np.isfinite(float(metrics["loss"])) and float(metrics["l1"]) < 1


def test_every_example_is_trained_with_a_noise_of_its_own():
  task, _ = begin(config(model__noise=True))
  params = _loaded(noisy=True).params
  keys = jax.random.split(jax.random.key(0), 2)
  draw = {"high": jnp.zeros((3, 16, 16, 4)), "low": jnp.zeros((3, 8, 8, 4)), "key": keys[jnp.array([0, 1, 0])]}
  out = np.asarray(jax.jit(task._enlarged)(params, draw))
  np.testing.assert_array_equal(out[0], out[2])
  assert np.abs(out[0] - out[1]).max() > 1e-3


def test_training_beats_bicubic_on_what_it_is_trained_on():
  c = config(data__crop=0, data__degradation__probability=0.0, loss__adversarial=0.0, optimizer__learning_rate=3e-3)
  task, state = begin(c)
  step = jax.jit(task.train_step)
  state, first = step(state, eyes())
  for _ in range(120):
    state, last = step(state, eyes())
  assert last["l1"] < 0.9 * first["l1"] and last["bce"] < first["bce"]
  scores = jax.jit(task.evaluate)(state.ema, eyes(), np.arange(8))
  assert scores["psnr"].mean() > scores["psnr_bicubic"].mean() + 0.3
  assert scores["f1"].mean() > scores["f1_bicubic"].mean()


def enlarging(loaded, mesh=None):
  """The super-resolution of a loaded checkpoint with its parameters filled in."""
  return functools.partial(superres.Enlarger(loaded.config, loaded.network, mesh), loaded.params)


def test_without_an_average_the_generator_itself_is_what_is_used():
  task, state = begin(config(train__ema_decay=0.0))
  state, _ = jax.jit(task.train_step)(state, eyes())
  assert state.ema is None and state.averaged is state.params["generator"]
  assert jax.jit(task.evaluate)(state.averaged, eyes(), np.arange(8))["psnr"].shape == (8,)


def test_accumulated_parts_are_the_whole():
  settings = dict(loss__adversarial_start=0, loss__ssim=0.0)
  results = []
  for parts in (1, 2):
    task, state = begin(config(**settings, train__accumulate=parts))
    results.append(jax.jit(task.train_step)(state, eyes())[1])
  small.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_run_goes_through_the_loop_resumes_and_loads_as_a_generator(tmp_path):
  # Adam divides by the gradient's size: with its usual epsilon, gradients that are all rounding become whole steps.
  smooth = dict(optimizer__eps=1e-3, discriminator_optimizer__eps=1e-3)
  whole = train.train(config(**smooth), tmp_path / "whole", devices=jax.devices()[:1])
  train.train(config(**smooth, train__num_steps=2), tmp_path / "stopped", devices=jax.devices()[:1])
  stopped = train.train(config(**smooth), tmp_path / "stopped", devices=jax.devices()[:1])
  small.assert_same(stopped, whole)
  loaded = checkpoint.load(tmp_path / "whole", stage="superres")
  small.assert_same(loaded.params, whole.ema)
  assert (tmp_path / "whole/previews/enlarged_tree_0000004.png").exists()
  eight = train.train(config(**smooth, mesh__fsdp=2), tmp_path / "eight")
  small.assert_close(eight.params, whole.params, rtol=1e-4, atol=1e-6)
  large = enlarging(loaded)({f: v[:2, ::2, ::2] for f, v in eyes().items()})
  assert large["image"].shape == (2, 32, 32, 3) and large["tree"].shape == (2, 32, 32, 1)
  # `--mode sample --input`: pairs of the small size are enlarged as they are.
  pairs = {
    f: v[:2, ::2, ::2] if f == "image" else np.where(v[:2, ::2, ::2] >= 128, 255, 0).astype(np.uint8) for f, v in eyes().items()
  }
  for k in range(2):
    for folder, field in (("images", "image"), ("masks", "tree"), ("fov", "fov")):
      writing.write_png(tmp_path / f"small/{folder}/{k}.png", pairs[field][k])
  stages.sample("superres", tmp_path / "whole", inputs=str(tmp_path / "small"), out=tmp_path / "enlarged")
  lines = [json.loads(line) for line in (tmp_path / "enlarged/manifest.jsonl").read_text().splitlines()]
  assert [line["name"] for line in lines] == ["0", "1"] and lines[0]["checkpoint"] == loaded.identity()
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


def _loaded(seed: int = 0, noisy: bool = False) -> checkpoint.Loaded:
  """Random weights; those of a fresh generator give the bicubic enlargement whatever the rest does."""
  c = config(model__noise=noisy)
  network = models.build(c.model)
  params = network.init(jax.random.key(seed), jnp.zeros((1, 16, 16, 4)))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.05, x.shape), jnp.float32), params)
  return checkpoint.Loaded(c, params, network, 0, "")


@pytest.mark.parametrize("noisy", [False, True])
def test_neither_the_batch_nor_the_number_of_devices_changes_a_bit(noisy):
  loaded = _loaded(noisy=noisy)
  rng = np.random.default_rng(1)
  fields = {f: rng.integers(0, 256, (9, 16, 16, n), dtype=np.uint8) for f, n in (("image", 3), ("tree", 1))}
  fields["fov"] = np.ascontiguousarray(eyes(9)["fov"][:, ::2, ::2])
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


@pytest.mark.parametrize(("changes", "message"), [
  ({"loss__gan": "hinge"}, "use nonsaturating, least_squares"),
  ({"loss__penalty": "r2"}, "use none, r1, original"),
  ({"loss__ssim": -1.0}, "0 switches the term off"),
  ({"loss__l1": 0.0, "loss__ssim": 0.0, "loss__bce": 0.0, "loss__perceptual": 0.0}, "give l1 one"),
  ({"data__crop": 64}, "make it smaller"),
  ({"data__crop": 15}, "multiples of config.model.factor=2"),
  ({"data__crop": 0, "data__crops": 2}, "needs config.data.crop above 0"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused_with_a_remedy(changes, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(config(**changes))


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
    enlarging(_loaded())({k: v for k, v in fields.items() if v is not None})


@pytest.mark.parametrize("variant", ["", "cpu", "tiny", "paper"])
def test_every_variant_makes_its_task(variant):
  task = tasks.make(config_file.get_config(variant))
  state = jax.eval_shape(lambda: task.init(keys.stream(0, "test")))
  assert task.adversarial and jax.tree.leaves(state.params["discriminator"])


@pytest.mark.parametrize("cut", [0.0, 1.0, -2.0])
def test_a_cut_that_is_no_probability_is_refused(cut):
  with pytest.raises(ValueError, match=r"config.sampler.mask_threshold=.* between 0 and 1"):
    superres.Enlarger(config(sampler__mask_threshold=cut), _loaded().network)
