"""The segmenter from training to labels: true windows, a net that learns, folders labelled once, scores that add up."""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import checkpoint, keys, models, tasks, train
from retree_jax.data import field_of_view, phantom, sources, writing
from retree_jax.inference import segmenter, tiling, vessel_map
from retree_jax.metrics import segmentation as metrics
from retree_jax.tasks import segmentation

ROOT = pathlib.Path(__file__).resolve().parents[2]


def get_config(variant=""):
  spec = importlib.util.spec_from_file_location("segmentation_config", ROOT / "configs" / "segmentation.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def small(**changes):
  c = get_config("tiny")
  c.data.update(source="phantom:5", image_size=(64, 64), num_threads=1)
  c.crop.update(size=32, num=4)
  c.model.update(widths=(8,), bottleneck=(12,), patch=1)
  c.train.update(num_steps=3, batch_size=1, ema_decay=0.5)
  c.optimizer.update(warmup_steps=2, decay_steps=40)
  c.sampler.update(overlap=8, flips=1)
  c.evaluate.update(every=0, num=2)
  c.preview.update(every=0, num=2)
  c.checkpoint.every = 1000
  c.log.update(every=1, tensorboard=False)
  for name, value in changes.items():
    *path, field = name.split("__")
    functools.reduce(lambda node, key: node[key], path, c)[field] = value
  return c


@functools.cache
def eyes(count=2, size=64):
  drawn = [phantom.eye(seed, (size, size)) for seed in range(count)]
  return {f: np.stack([eye[f] for eye in drawn]) for f in ("image", "tree", "fov")}


def untrained(config):
  """What `checkpoint.load` gives, for a network that never learnt."""
  network = models.build(config.model)
  tile = vessel_map.tile_size(config)
  made = network.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *tile, 3), jnp.float32))
  return checkpoint.Loaded(config, made, network, 0, "nowhere")


class Darkness:
  """Stands for a network: vessel is what is dark in green, whatever lies around it."""

  settings = {"name": "darkness"}

  def apply(self, params, x, t=None, cond=None, *, key=None):
    return -params["gain"] * (x[..., 1:2] + 0.2)


class Lopsided(Darkness):
  """The same, surer on the left."""

  def apply(self, params, x, t=None, cond=None, *, key=None):
    return super().apply(params, x) * jnp.linspace(1.0, 0.1, x.shape[2])[:, None]


def lopsided(config):
  return checkpoint.Loaded(config, {"gain": jnp.float32(3.0)}, Lopsided(), 0, "nowhere")


def darkness(config):
  return checkpoint.Loaded(config, {"gain": jnp.float32(20.0)}, Darkness(), 7, "nowhere")


# --- the task ------------------------------------------------------------------------------------------------------------


def test_windows_are_pieces_of_their_own_picture_inside_the_field_of_view():
  config = small(crop__num=16, crop__turns=False)
  task = tasks.make(config)
  y, x = np.mgrid[:64, :64].astype(np.uint8)
  middle = (((y - 32.0) ** 2 + (x - 32.0) ** 2 < 14**2) * np.uint8(255))[..., None]
  batch = {
    "image": np.stack([np.stack([y, x, np.full_like(y, k)], -1) for k in range(2)]),
    "tree": np.stack([y[..., None]] * 2),
    "fov": np.stack([middle] * 2),
  }
  draw = jax.jit(task.prepare)(batch, jax.random.key(3))
  image, tree = np.asarray(draw["image"]), np.asarray(draw["tree"])
  assert image.shape == (32, 32, 32, 3) and draw["key"].shape == (32,)
  for k, window in enumerate(image):
    top, left, _ = window[0, 0]
    np.testing.assert_array_equal(window[..., 0], top + np.arange(32)[:, None] + np.zeros((32, 32)))
    np.testing.assert_array_equal(window[..., 1], left + np.arange(32)[None, :] + np.zeros((32, 32)))
    assert (window[..., 2] == k // 16).all()
  np.testing.assert_array_equal(tree[..., 0], image[..., 0])  # cut together
  assert len({tuple(w[0, 0]) for w in image}) > 25  # all over the place
  centres = image[:, 16, 16, :2].astype(float) - 32
  # A lone random corner lands inside the disc with probability .56; the first of four that does, with .96.
  assert np.mean((centres**2).sum(1) < 14**2) > 0.85


def test_turned_windows_keep_photograph_and_tree_together():
  task = tasks.make(small(crop__num=32, crop__turns=True))
  y, x = np.mgrid[:64, :64].astype(np.uint8)
  batch = {"image": np.stack([y, x, y], -1)[None], "tree": y[None, ..., None], "fov": np.full((1, 64, 64, 1), 255, np.uint8)}
  draw = task.prepare(batch, jax.random.key(3))
  image, tree = np.asarray(draw["image"]).astype(int), np.asarray(draw["tree"])
  np.testing.assert_array_equal(tree[..., 0], image[..., 0])
  seen = {
    (int(w[1, 0, 0] - w[0, 0, 0]), int(w[0, 1, 0] - w[0, 0, 0]), int(w[1, 0, 1] - w[0, 0, 1]), int(w[0, 1, 1] - w[0, 0, 1]))
    for w in image
  }
  assert len(seen) == 8  # rows and columns swapped or not, each running either way


def test_pixels_outside_the_field_of_view_do_not_count():
  task = tasks.make(small())
  logits = jax.random.normal(jax.random.key(0), (2, 16, 16, 1)) * 3
  tree = (jax.random.uniform(jax.random.key(1), (2, 16, 16, 1)) < 0.3).astype(jnp.float32)
  fov = jnp.zeros((2, 16, 16, 1)).at[:, 4:12, 2:14].set(1.0)
  changed = jnp.where(fov > 0, logits, -logits * 7)
  np.testing.assert_allclose(task._example_losses(logits, tree, fov), task._example_losses(changed, tree, fov), rtol=1e-6)
  p = jax.nn.sigmoid(logits)
  entropy = -(tree * jnp.log(p) + (1 - tree) * jnp.log(1 - p))[:, 4:12, 2:14].mean((1, 2, 3))
  np.testing.assert_allclose(task._example_losses(logits, tree, fov), entropy, rtol=1e-4)
  want = [
    metrics.scores(np.asarray(jax.nn.sigmoid(q)), np.asarray(t), np.asarray(f))["f1"]
    for q, t, f in zip(logits, tree, fov, strict=True)
  ]
  np.testing.assert_allclose(segmentation._f1(logits, tree, fov), want, rtol=1e-6)


def test_every_term_of_the_loss_can_be_chosen_and_gives_gradients():
  batch = eyes()
  whole = tasks.make(small(loss__bce=0.0, loss__dice=0.5, loss__jaccard=0.25, loss__cldice=0.5, loss__cldice_iterations=2))
  state = jax.jit(whole.init)(keys.stream(0, "test"))
  after, scores = jax.jit(whole.train_step)(state, batch)
  assert 0 < float(scores["loss"]) < 1.25 and int(after.step) == 1
  again, _ = jax.jit(whole.train_step)(after, batch)  # the first step of the warm-up has the rate 0
  before, now = jax.tree.leaves(state.params), jax.tree.leaves(again.params)
  assert all(np.isfinite(x).all() for x in now)
  assert sum(not np.array_equal(a, b) for a, b in zip(before, now, strict=True)) > len(now) // 2


def test_it_learns_dark_lines_and_finds_them_in_a_photograph_of_another_size():
  rng = np.random.default_rng(0)

  def lines(height, width):
    tree = np.zeros((height, width, 1), np.uint8)
    for _ in range(3):
      tree[(at := rng.integers(4, height - 6)) : at + 2] = 255
      tree[:, (at := rng.integers(4, width - 6)) : at + 2] = 255
    grey = rng.normal(150, 8, (height, width, 3)) - 50 * (tree / 255.0)
    return {"image": np.clip(grey, 0, 255).astype(np.uint8), "tree": tree, "fov": np.full_like(tree, 255)}

  drawn = [lines(64, 64) for _ in range(4)]
  batch = {f: np.stack([d[f] for d in drawn]) for f in drawn[0]}
  task = tasks.make(config := small(optimizer__learning_rate=2e-2, optimizer__decay_steps=1000, train__ema_decay=0.9))
  state, step = jax.jit(task.init)(keys.stream(0, "test")), jax.jit(task.train_step)
  for _ in range(60):
    state, scores = step(state, batch)
  assert float(scores["f1"]) > 0.9
  result = jax.jit(task.evaluate)(state.ema, batch, np.arange(4))
  assert result["loss"].shape == result["f1"].shape == (4,) and float(result["f1"].min()) > 0.9
  # At its own scale: the view is the whole frame, 64 pixels high.
  config.data.image_size, other = (64, 96), lines(64, 96)
  found = segmenter.Segmenter(config, task.network)(state.ema, [other["image"]], [other["fov"]])[0]
  assert metrics.scores(found, other["tree"])["f1"] > 0.9


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"data__target": ("image",)}, "write .'tree',"),
    ({"data__condition": ("tree",)}, "write .'image',."),
    ({"crop__size": 128}, "use a smaller crop"),
    ({"crop__size": 33}, "multiples of .*; change config.crop.size"),
    ({"sampler__overlap": 64}, "does not fit tiles of .* pixels .config.crop.size.: use 0 to"),
    ({"sampler__flips": 3}, "flips=3 is unknown: use 1, 2, 4"),
    ({"crop__num": 0}, "1 or more"),
    ({"loss__bce": 0.0}, "loss.bce=1.0"),
  ],
)
def test_impossible_configs_say_what_to_write(change, sentence):
  with pytest.raises(ValueError, match=sentence):
    tasks.make(small(**change))


@pytest.mark.parametrize("variant", ["", "tiny", "cpu", "paper", "diffusion"])
def test_every_variant_makes_a_task(variant):
  config = get_config(variant)
  task = tasks.make(config)
  assert {"image", "tree", "fov"} >= set(task.fields) and "image" in task.fields
  shapes = jax.eval_shape(lambda: task.init(keys.stream(0, "x")))
  count = sum(x.size for x in jax.tree.leaves(shapes.params))
  if variant == "paper":
    assert abs(count / 1e6 - 64.8) < 0.1  # CBAM-UNet's count
  assert config.checkpoint.keep_best == 0 and config.checkpoint.keep_latest == 1  # nothing is chosen on the test split
  with pytest.raises(ValueError, match=":tiny"):
    get_config("huge")


def test_a_run_is_scored_shown_and_loaded(tmp_path):
  config = small(evaluate__every=2, preview__every=2, train__num_steps=2)
  train.train(config, tmp_path, devices=jax.devices()[:1])
  loaded = checkpoint.load(tmp_path, stage="segmentation")
  assert loaded.step == 2 and loaded.network.size_multiple == 2
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert any(0 <= line.get("heldout_f1", -1) <= 1 for line in lines)
  assert len(list(tmp_path.rglob("*predicted_tree*.png"))) == 1


# --- in use --------------------------------------------------------------------------------------------------------------


def finding(loaded, mesh=None):
  """The segmenter of a loaded checkpoint with its parameters filled in."""
  return functools.partial(segmenter.Segmenter(loaded.config, loaded.network, mesh), loaded.params)


def test_photographs_of_any_size_and_their_mirror_images():
  config = small(sampler__flips=4)
  finder = finding(lopsided(config))
  drawn = [phantom.eye(seed, size) for seed, size in enumerate([(50, 90), (128, 96), (33, 40)])]
  found = finder([d["image"] for d in drawn])
  for eye, p in zip(drawn, found, strict=True):
    assert p.shape == eye["image"].shape[:2] and p.dtype == np.float32 and p.min() >= 0 and p.max() <= 1
    assert (p[field_of_view.find_fov(eye["image"])[..., 0] == 0] == 0).all()
  # With all mirror images averaged, mirroring the photograph mirrors the answer.
  eye = eyes()
  photo, fov = eye["image"][0], eye["fov"][0]
  straight, mirrored = finder([photo, np.ascontiguousarray(photo[:, ::-1])], [fov, np.ascontiguousarray(fov[:, ::-1])])
  np.testing.assert_allclose(straight, mirrored[:, ::-1], atol=1e-5)
  # Whatever else is in the list, and on however many devices.
  from retree_jax import sharding

  np.testing.assert_array_equal(finder([drawn[1]["image"]])[0], found[1])
  spread = finding(lopsided(config), sharding.make_mesh(devices=jax.devices()[:2]))
  np.testing.assert_allclose(spread([d["image"] for d in drawn])[2], found[2], atol=1e-6)


def test_the_view_is_put_back_where_it_came_from():
  # The "network" answers where it is dark: a dark bar in an off-centre disc must come back on the same pixels.
  image = np.zeros((150, 220, 3), np.uint8)
  y, x = np.mgrid[:150, :220]
  disc = (y - 70) ** 2 + (x - 130) ** 2 < 60**2
  bar = disc & (abs(x - 130) < 6) & (abs(y - 70) < 40)
  image[disc], image[bar] = 200, 20
  config = small(data__image_size=(96, 96))
  found = finding(darkness(config))([image], [disc])[0]
  # A soft edge makes the bar a little thinner, but must not move it.
  assert metrics.scores(found, bar, disc)["auc"] > 0.999 and found[~disc].max() == 0
  middle = [(found * grid).sum() / found.sum() for grid in (y, x)]
  np.testing.assert_allclose(middle, (70, 130), atol=0.05)


def test_bad_photographs_are_refused():
  finder = finding(darkness(small()))
  good = np.zeros((40, 40, 3), np.uint8)
  for bad in (good.astype(np.float32), good[..., 0], good[..., :2], good[:0]):
    with pytest.raises(ValueError, match="must be uint8"):
      finder([bad])
  with pytest.raises(ValueError, match="mask of the photograph's size"):
    finder([good], [np.ones((40, 41), bool)])
  with pytest.raises(ValueError, match="do not go together"):
    finder([good], [None, None])
  with pytest.raises(ValueError, match="field of view is empty"):
    finder([good], [np.zeros((40, 40), bool)])


def test_scores_are_those_of_the_metrics_part_by_part(tmp_path):
  for title, seeds in (("first", (0, 1)), ("second", (2,))):
    for seed in seeds:
      eye = phantom.eye(seed, (80, 80), binary=True)
      for kind, field in (("images", "image"), ("masks", "tree"), ("fov", "fov")):
        writing.write_png(tmp_path / title / kind / f"{seed}.png", eye[field])
  source = sources.open_source(f"folder:{tmp_path / 'first'}+folder:{tmp_path / 'second'}", split="all")
  loaded = darkness(small(data__image_size=(80, 80)))
  result = segmenter.score_source(loaded, source)
  finder = finding(loaded)
  found = [finder([source[i]["image"]], [source[i]["fov"]])[0] for i in range(3)]
  for title in ("native", "paper"):
    assert set(result[title]) == {"all", "first", "second"}
    protocol = metrics.protocol(title)
    each = [protocol.scores(p, source[i]["tree"], source[i]["fov"])["f1"] for i, p in enumerate(found)]
    np.testing.assert_allclose(result[title]["all"]["per_image"]["f1"]["mean"], np.mean(each), rtol=1e-9)
    np.testing.assert_allclose(result[title]["first"]["per_image"]["f1"]["std"], np.std(each[:2], ddof=1), rtol=1e-9)
    assert result["images"]["second-2"][title] == round(each[2], 4)
  pooled = metrics.protocol("native").pooled(found, [source[i]["tree"] for i in range(3)], [source[i]["fov"] for i in range(3)])
  assert result["native"]["all"]["pooled"]["auc"] == pooled["auc"]
  assert result["native"]["second"]["per_image"]["f1"]["std"] is None  # one image has no spread; JSON has no NaN
  json.dumps(result, allow_nan=False)


def test_the_diffusion_variant_draws_masks():
  config = get_config("diffusion")
  config.data.update(image_size=(32, 32))
  config.model.update(widths=(8, 16), attention=(), middle=0, head_width=4, time_dim=16, detail=8, dtype="float32", blocks=(1,))
  config.sampler.update(num_steps=2, draws=2)
  task = tasks.make(config)
  assert set(task.fields) == {"tree", "image", "fov"}
  params = jax.jit(task.init)(keys.stream(0, "x")).params
  finder = functools.partial(segmenter.Segmenter(config, task.network), params)
  photos = [phantom.eye(seed, (40, 48))["image"] for seed in range(2)]
  found = finder(photos)
  assert found[0].shape == (40, 48) and found[0].min() >= 0 and found[0].max() <= 1 and found[0].std() > 0
  np.testing.assert_array_equal(finder(photos[1:])[0], found[1])  # labels do not depend on the rest of the folder


def test_tiles_of_the_trained_size_are_what_the_network_sees():
  config = small(data__image_size=(64, 64), crop__size=32)
  loaded, batch = untrained(config), {f: v[:1] for f, v in eyes().items()}
  found = vessel_map.probabilities(config, loaded.network, loaded.params, batch)
  x = batch["image"].astype(np.float32) / 127.5 - 1
  want = tiling.tiled(lambda part: jax.nn.sigmoid(loaded.network.apply(loaded.params, part)), x, (32, 32), 8)
  np.testing.assert_allclose(found, want * (batch["fov"] > 0), atol=1e-5)
