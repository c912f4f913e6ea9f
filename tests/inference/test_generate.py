"""The generator on arrays, with networks whose answer is known: each pair is its own, and its photograph obeys its tree."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from scipy import ndimage

from retree_jax import checkpoint, generate, sharding
from retree_jax.cli import errors
from retree_jax.data import field_of_view
from retree_jax.inference import superres, tree_filter
from tests import small, stages


class Draws:
  """A tree network whose x0 is the noise's own pattern: blobs that differ from sample to sample."""

  settings = {"name": "draws"}

  def cpu_block(self, height, width):
    return 1

  def apply(self, params, x, t, cond=None):
    return jnp.tanh(params["scale"] * (x + jnp.roll(x, 1, 1) + jnp.roll(x, 1, 2)))


class Paints:
  """A fundus network whose x0 is the tree in red, its negative in green, and the field of view in blue."""

  settings = {"name": "paints"}

  def cpu_block(self, height, width):
    return 1

  def apply(self, params, x, t, cond=None):
    tree, fov = cond[..., :1], cond[..., 1:]
    return params["scale"] * jnp.concatenate([tree, -tree, fov], -1)


def loaded(stage, network, target, condition=(), size=(16, 16), **sampler):
  config = small.config(data__image_size=size, data__target=target, data__condition=condition, diffusion__prediction="x0")
  config.stage = stage
  config.sampler.update(batch_size=2, **sampler)
  return checkpoint.Loaded(config, {"scale": jnp.float32(1.0)}, network, 7, "")


def models(judge=None, **sampler):
  return generate.Models(
    loaded("tree", Draws(), ("tree",), **sampler),
    loaded("fundus", Paints(), ("image",), ("tree", "fov"), **sampler),
    None,
    judge,
  )


def judge_by(score, least):
  """A filter whose score is any function of a tree."""

  def verdicts(tree, fov):
    scores = [float(score(t)) for t in tree]
    return [tree_filter.Verdict(s >= least, s, "" if s >= least else f"score {s} is low") for s in scores]

  return verdicts


def mesh_of(devices):
  return sharding.make_mesh(devices=jax.devices()[:devices])


def same(a, b):
  assert a["records"] == b["records"]
  for name in ("image", "tree", "fov"):
    np.testing.assert_array_equal(a[name], b[name])


def test_the_photograph_obeys_its_own_tree():
  out = generate.pairs(models(), num=5)
  assert out["image"].shape == (5, 16, 16, 3) and out["image"].dtype == np.uint8
  inside = out["fov"][..., 0] > 0
  assert 0.75 < inside.mean() < 0.82  # a disc in a square: π/4
  np.testing.assert_allclose(out["image"][inside][:, 0], out["tree"][inside][:, 0], atol=1)
  np.testing.assert_allclose(out["image"][inside][:, 1], 255.0 - out["tree"][inside][:, 0], atol=1)
  assert (out["image"][inside][:, 2] == 255).all()
  assert not out["image"][~inside].any() and not out["tree"][~inside].any()
  assert len({t.tobytes() for t in out["tree"]}) == 5


def test_pair_k_is_the_same_pair_whatever_the_batch_the_devices_and_the_order():
  share = lambda tree: tree.mean() / 255.0  # noqa: E731
  shares = [share(tree) for tree in generate.pairs(models(), num=9, seed=3)["tree"]]
  judge = judge_by(share, sorted(shares)[-3])
  whole = generate.pairs(models(judge), num=9, seed=3)
  attempts = [r["attempts"] for r in whole["records"]]
  assert max(attempts) > 2 and min(attempts) == 1  # both ways through the filter are taken
  some = generate.pairs(models(judge), seed=3, indices=[7, 2])
  for name in ("image", "tree", "fov"):
    np.testing.assert_array_equal(some[name], whole[name][[7, 2]])
  assert some["records"] == [whole["records"][7], whole["records"][2]]
  same(generate.pairs(models(judge), num=9, seed=3, mesh=mesh_of(8)), whole)
  # Two samples to a block and eight devices: later attempts are drawn beside the earlier ones, and change nothing.
  blocks = models(judge, block=2)
  by_two = generate.pairs(blocks, num=9, seed=3)
  same(generate.pairs(blocks, num=9, seed=3, mesh=mesh_of(4)), by_two)
  some = generate.pairs(blocks, seed=3, indices=[8, 2, 5])
  same(some, {name: [by_two[name][k] for k in (8, 2, 5)] for name in by_two})
  other = generate.pairs(models(judge), num=9, seed=4)
  assert not np.array_equal(other["tree"], whole["tree"])


def test_the_first_tree_that_passes_is_taken_and_the_best_where_none_does():
  share = lambda tree: tree.mean() / 255.0  # noqa: E731
  strict = generate.pairs(models(judge_by(share, 2.0)), num=2)
  drawn = [generate.pairs(models(judge_by(lambda tree, k=k: share(tree), 0.0)), num=2) for k in range(1)][0]
  for i, record in enumerate(strict["records"]):
    assert record["attempts"] == generate.MAX_ATTEMPTS == len(record["dropped"]) and not record["accepted"]
    scores = [float(reason.split()[1]) for reason in record["dropped"]]
    assert record["filter_score"] == round(max(scores), 6) == round(share(strict["tree"][i]), 6)
    assert scores[0] == pytest.approx(share(drawn["tree"][i]))  # a lenient filter takes the first
    # A bound between the best and the rest: the best is found at its place, and all before it are dropped.
    second = sorted(scores)[-2]
    found = generate.pairs(models(judge_by(share, (max(scores) + second) / 2)), indices=[i])
    assert found["records"][0]["accepted"] and found["records"][0]["attempts"] == 1 + int(np.argmax(scores))
    np.testing.assert_array_equal(found["tree"][0], strict["tree"][i])


def test_given_trees_of_any_size_are_framed_as_in_training():
  generator = generate.Generator(generate.Models(fundus=models().fundus))
  square = np.zeros((64, 64, 1), np.uint8)
  square[:, 30:34] = 255  # a vessel of 4 px across 64 is one of 1 px across 16
  wide = np.zeros((32, 64, 1), np.uint8)
  wide[14:18] = 255
  fields = generator.given([square, wide])
  assert fields["tree"].shape == fields["fov"].shape == (2, 16, 16, 1)
  np.testing.assert_array_equal(fields["tree"][0, 8, :, 0], [0] * 7 + [128, 128] + [0] * 7)
  # A frame wider than it is high is cut from a disc as wide as it: no vessel below and above, and none is stretched.
  assert not fields["fov"][1, :4].any() and not fields["fov"][1, 12:].any() and fields["fov"][1, 5:11, 8].all()
  np.testing.assert_array_equal(fields["tree"][1, :, 8, 0], [0] * 7 + [128, 128] + [0] * 7)
  # The frame's corners are no part of the eye.
  full = generator.given([np.full((16, 16, 1), 255, np.uint8)])
  assert not full["tree"][0, 0, 0, 0] and np.array_equal(full["tree"] > 0, full["fov"] >= 128)
  # With a disc of its own, the tree is cropped to it.
  fov = np.zeros((64, 64, 1), np.uint8)
  fov[16:48, 16:48] = 255
  np.testing.assert_array_equal(generator.given([square], [fov])["tree"][0, 8, :, 0], [0] * 7 + [255, 255] + [0] * 7)
  painted = generate.pairs(generate.Models(fundus=models().fundus), trees=np.stack([square, square]))
  assert painted["image"].shape == (2, 16, 16, 3) and painted["records"] == [{}, {}]


def test_the_sampled_disc_is_cleaned():
  y, x = np.mgrid[:40, :40]
  disc = ((y - 20) ** 2 + (x - 20) ** 2 < 18**2) * 200
  soft = disc.copy()
  soft[18:22, 18:22] = 0  # a hole
  soft[0, 0] = 255  # a speck
  soft[:, 30] = np.minimum(soft[:, 30], 140)
  fields, tilts = field_of_view.with_fov(
    {"tree": np.full((2, 40, 40, 1), 90, np.uint8), "fov": np.stack([soft, soft * 0])[..., None].astype(np.uint8)}
  )
  found = fields["fov"][0, ..., 0]
  assert np.mean((found >= 128) != (disc > 0)) < 0.02  # a pixel of the rim here or there
  assert found[20, 20] == 255 and found[0, 0] == 0
  np.testing.assert_array_equal(fields["tree"][0, ..., 0], (found >= 128) * 90)
  assert 0.75 < (fields["fov"][1] >= 128).mean() < 0.82  # none was drawn: the frame's own disc
  assert tilts == [0, 0]


class TiltedDiscs:
  """Draws every eye's tree as 200 and its field of view as a disc with two straight cuts, turned by 12 degrees."""

  def __init__(self):
    y, x = np.mgrid[:64, :64] - 31.5
    along = y * np.cos(np.deg2rad(12)) + x * np.sin(np.deg2rad(12))
    self.fov = (np.hypot(x, y) < 30) & (np.abs(along) < 19)

  def __call__(self, params, numbers, seed, stream, slots, ask):
    return {
      "tree": np.full((len(numbers), 64, 64, 1), 200, np.uint8),
      "fov": np.repeat(np.uint8(255) * self.fov[None, ..., None], len(numbers), 0),
    }


def test_finished_pairs_are_upright(monkeypatch):
  chain = generate.Models(
    loaded("tree", Paints(), ("tree", "fov"), size=(64, 64)),
    loaded("fundus", Paints(), ("image",), ("tree", "fov"), size=(64, 64)),
  )
  generator, drawn = generate.Generator(chain), TiltedDiscs()
  for name in ("config", "size", "block", "mesh", "condition", "batch_size"):
    setattr(drawn, name, getattr(generator.samplers["tree"], name))
  generator.samplers["tree"] = drawn
  fields, records = generator.trees(np.arange(2), seed=0)
  assert [abs(r["tilt"] - 12) <= 1 for r in records] == [True, True]
  left = generator.photographs(fields, np.arange(2), seed=0)
  upright = generator.photographs(fields, np.arange(2), seed=0, tilts=generate.tilts(records))
  tops = {
    name: [np.flatnonzero(out["fov"][0, :, x, 0])[0] for x in (16, 24, 32, 40, 48)]
    for name, out in (("left", left), ("upright", upright))
  }
  assert np.ptp(tops["left"]) > 5 and np.ptp(tops["upright"]) <= 1
  # Photograph and tree were turned with it, and end where it ends.
  for name, pixels in upright.items():
    assert pixels.dtype == np.uint8 and not pixels[upright["fov"][..., 0] == 0].any(), name
  inside = ndimage.binary_erosion(upright["fov"][0, ..., 0] > 0, iterations=3)
  assert (np.abs(upright["tree"][0, ..., 0][inside].astype(int) - 200) <= 1).all()
  untouched = generator.photographs(fields, np.arange(2), seed=0, tilts=[0, 0])
  for name, pixels in left.items():
    np.testing.assert_array_equal(untouched[name], pixels)


def test_stages_of_other_sizes_follow_one_another():
  chain = generate.Models(models().tree, loaded("fundus", Paints(), ("image",), ("tree", "fov"), size=(32, 32)))
  out = generate.pairs(chain, num=2)
  assert out["image"].shape == (2, 32, 32, 3) and out["tree"].shape == (2, 32, 32, 1)
  assert set(np.unique(out["fov"])) == {0, 255}


@pytest.mark.parametrize(
  ("stages_given", "options", "sentence"),
  [
    ({}, {}, "nothing to generate with"),
    ({"tree": "tree", "superres": "fundus"}, {}, "give --fundus"),
    ({"tree": "fundus"}, {}, "makes no trees"),
    ({"fundus": "asks"}, {}, "asks for 'image'"),
    ({"fundus": "fundus"}, {"guidance": 2.0}, "condition_dropout"),
    ({"fundus": "fundus"}, {}, "no tree stage"),
  ],
)
def test_stages_that_do_not_fit_are_refused(stages_given, options, sentence):
  every = {"tree": models().tree, "fundus": models().fundus, "asks": loaded("fundus", Paints(), ("image",), ("image",))}
  with pytest.raises(ValueError, match=sentence):
    generate.pairs(generate.Models(**{k: every[v] for k, v in stages_given.items()}), **options)


def test_superres_follows_a_fundus_stage_of_its_size(monkeypatch):
  class Twice:
    """A super-resolution that repeats pixels."""

    def __init__(self, config, network, mesh):
      self.input_size = config.input_size

    def __call__(self, params, fields):
      assert params == "weights"
      return {name: pixels.repeat(2, 1).repeat(2, 2) for name, pixels in fields.items()}

  monkeypatch.setattr(superres, "Enlarger", Twice)
  m = models()

  def enlarged(size):
    stage = types.SimpleNamespace(config=types.SimpleNamespace(input_size=size), network=None, params="weights")
    return generate.pairs(generate.Models(m.tree, m.fundus, stage), num=1)

  small_pair, large = generate.pairs(m, num=1), enlarged((16, 16))
  np.testing.assert_array_equal(large["tree"][:, ::2, 1::2], small_pair["tree"])
  inside = ndimage.binary_erosion(small_pair["fov"][0, ..., 0] > 0, iterations=3)  # the rim fades
  assert inside.sum() > 40
  np.testing.assert_array_equal(large["image"][0, ::2, 1::2][inside], small_pair["image"][0][inside])
  # Super-resolution is given how much of each pixel the disc covers, for a rim without steps.
  np.testing.assert_array_equal(large["fov"][:, ::2, 1::2] >= 128, small_pair["fov"] > 0)
  with pytest.raises(ValueError, match="enlarges 8x8 pixels and the fundus stage makes 16x16"):
    enlarged((8, 8))


@pytest.mark.parametrize("nothing", [{"num": 0}, {"num": -1}, {"indices": []}, {"trees": np.zeros((0, 8, 8, 1), np.uint8)}])
def test_nothing_to_generate_is_said(nothing):
  with pytest.raises(ValueError, match="nothing to generate: give num of at least 1"):
    generate.pairs(models(), **nothing)


def test_trees_of_another_kind_are_refused():
  with pytest.raises(ValueError, match="1 trees and 2 indices do not go together"):
    generate.pairs(models(), trees=np.zeros((1, 8, 8, 1), np.uint8), indices=[0, 1])
  with pytest.raises(ValueError, match=r"uint8 of shape \[H, W, 1\], not float64"):
    generate.pairs(models(), trees=np.zeros((1, 8, 8, 1)))
  with pytest.raises(ValueError, match="no fundus stage"):
    generate.pairs(generate.Models(tree=models().tree), trees=np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["--nmu=3"], "Unknown command line flag 'nmu'"),
    (["--num=0"], "--num=0"),
    (["--num", "many"], "--num=many"),
    (["--format=zip"], "png|tfds"),
    (["somewhere"], "'somewhere' is not a flag"),
    (["--tree=nowhere"], "nowhere does not exist"),
    (["--trees=nowhere", "--fundus=nothing"], "nowhere does not exist"),
    (["--trees=nowhere", "--tree=x"], "--tree is for sampling trees, but --trees gives them"),
    (["--trees=nowhere", "--filter=x"], "--filter is for sampling trees"),
    (["--tree=x", "--filter_threshold=0.5"], "--filter_threshold needs a tree filter: give --filter"),
    (["--tree=x", "--guidance=2"], "--guidance needs a fundus stage: give --fundus"),
  ],
)
def test_bad_flags_are_one_sentence_and_code_2(arguments, sentence, capsys, monkeypatch):
  monkeypatch.delenv("RETREE_JAX_TRACEBACK", raising=False)
  assert errors.run(lambda: generate.main(["generate", *arguments])) == 2
  text = capsys.readouterr().err
  assert sentence in text and text.count("\n") == 1 and text.startswith("error: ")


def test_help_and_flags_of_its_own(capsys):
  with pytest.raises(SystemExit) as stop:
    generate.main(["generate", "--help"])
  assert stop.value.code == 0
  text = capsys.readouterr().out
  assert "--filter_threshold" in text and "paint your own trees" in text
  # Importing it leaves the global flags alone, which other commands define by the same names.
  assert not {"trees", "fundus", "guidance"} & set(flags.FLAGS)


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
  stages.denoiser(tmp_path / "tree", "tree", ("tree",))
  with pytest.raises(ValueError, match="checkpoint of the tree stage, not of the fundus stage"):
    generate.load_models(fundus=tmp_path / "tree")
  with pytest.raises(ValueError, match="checkpoint of the tree stage, not of the filter stage"):
    generate.load_models(filter_path=tmp_path / "tree")
  assert isinstance(generate.load_models(tree=tmp_path / "tree").tree, checkpoint.Loaded)
