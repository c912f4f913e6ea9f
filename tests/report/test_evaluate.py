"""evaluate on phantom eyes: similar sets pass, spoiled ones do not, planted copies are found, bad input is one sentence."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from retree_jax import checkpoint, evaluate, models
from retree_jax.cli import errors
from retree_jax.data import phantom, sources, writing
from retree_jax.inference.segmenter import Segmenter
from retree_jax.metrics import features, segmentation, vessels
from retree_jax.report import files, measure
from retree_jax.report.sets import ArraySource

SIDE = 96
COUNT = 12


def _eyes(seeds):
  eyes = [phantom.eye(seed, (SIDE, SIDE), view="disc") for seed in seeds]
  return {field: np.stack([eye[field] for eye in eyes]) for field in ("image", "tree", "fov")}


@pytest.fixture(scope="module")
def sets():
  """Three sets of different phantom eyes."""
  return {name: _eyes(range(start, start + COUNT)) for name, start in (("a", 0), ("b", 100), ("c", 200))}


def _verdicts(result):
  return {verdict["id"]: verdict["level"] for verdict in result["verdicts"]}


@pytest.fixture(scope="module")
def alike(sets):
  """One set against another of the same kind, with a third as training set and two planted copies."""
  generated = {field: pixels.copy() for field, pixels in sets["a"].items()}
  for row, source in ((2, 5), (7, 0)):
    for field in generated:
      generated[field][row] = sets["c"][field][source][:, ::-1]
  generated["image"][2] = (generated["image"][2] * 0.85).astype(np.uint8)
  return evaluate.evaluate(generated, sets["b"], sets["c"], size=(SIDE, SIDE))


def test_alike_sets_pass(alike):
  levels = _verdicts(alike)
  assert (levels["photographs"], levels["trees"], levels["vessels"], levels["labels"]) == ("good",) * 4
  assert alike["fidelity"]["shift"]["generated"] == [0, 0]
  assert alike["fidelity"]["measures"]["separation"]["position"] == pytest.approx(1, abs=0.1)


def test_planted_copies_are_found(alike):
  assert _verdicts(alike)["privacy of photographs"] == "bad"
  audit = alike["privacy"]["photographs"]
  assert set(audit["copied"]) >= {2, 7} and audit["spaces"]["pixels"]["copied"]["hits"] == 2
  shown = alike["pictures"]["closest"]["photographs"]
  assert {(p["generated_name"], p["train_name"]) for p in shown if p["copied"]} == {("00002", "00005"), ("00007", "00000")}
  # The pose lays the training eye on its copy.
  pair = shown[0]
  middle = (slice(64, 192), slice(64, 192), 1)
  assert np.corrcoef(pair["generated"][middle].ravel(), pair["train"][middle].ravel())[0, 1] > 0.9


def test_copied_trees_are_found_where_a_training_eye_has_none(sets):
  class Partly(ArraySource):
    """The first training eye has no mask, as photographs that nobody has labelled yet."""

    def __getitem__(self, index):
      example = super().__getitem__(index)
      return {k: v for k, v in example.items() if k != "tree"} if index == 0 else example

  generated = {field: pixels[:4].copy() for field, pixels in sets["a"].items()}
  generated["tree"][1] = sets["c"]["tree"][5]
  result = evaluate.evaluate(generated, sets["b"], Partly(sets["c"], "partly"), size=(SIDE, SIDE))
  assert result["privacy"]["trees"]["copied"] == [1]
  shown = result["pictures"]["closest"]["trees"][0]
  assert (shown["generated_name"], shown["train_name"], shown["copied"]) == ("00001", "00005", True)


def test_equal_sets_settings_and_seed_give_equal_files(sets, tmp_path):
  part = {field: pixels[:5] for field, pixels in sets["a"].items()}
  for folder in ("one", "two"):
    files.write(evaluate.evaluate(part, sets["b"], sets["c"], size=(SIDE, SIDE), num=4, seed=3), tmp_path / folder)
  names = ["report.html", "report.json", "report.md"]
  assert sorted(p.name for p in (tmp_path / "one").iterdir()) == names
  for name in names:
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_json_file(alike, tmp_path):
  files.write(alike, tmp_path)

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  found = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
  assert found["format"] == files.FORMAT and "pictures" not in found
  assert found["sets"]["generated"]["count"] == COUNT and len(found["vessels"]["trees"]["real"]) == COUNT


def test_spoiled_sets_are_found_out(sets):
  """Labels of other eyes, photographs of another colour, vessels twice as many."""
  spoiled = {
    "image": sets["a"]["image"][..., ::-1].copy(),
    "tree": np.roll(sets["a"]["tree"], 1, axis=0),
    "fov": sets["a"]["fov"],
  }
  spoiled["tree"] = np.maximum(spoiled["tree"], spoiled["tree"][:, :, ::-1])
  levels = _verdicts(evaluate.evaluate(spoiled, sets["b"], size=(SIDE, SIDE), pictures=False))
  assert (levels["photographs"], levels["trees"], levels["vessels"], levels["labels"]) == ("bad",) * 4
  assert levels["privacy"] == "unknown"


def test_without_pictures_nothing_names_or_shows_an_eye(sets, tmp_path):
  part = {field: pixels[:4] for field, pixels in sets["a"].items()}
  source = ArraySource(part, "own")
  source.names = [f"Miller_{i}" for i in range(4)]
  for pictures in (True, False):
    result = evaluate.evaluate(source, source, size=(SIDE, SIDE), pictures=pictures)
    files.write(result, tmp_path)
    text = "".join((tmp_path / name).read_text() for name in ("report.html", "report.md", "report.json"))
    assert ("Miller" in text) == ("data:image" in text) == pictures
  assert (
    "4 generated photographs equal real ones, pixel for pixel: check that the folders are the right ones." in result["notes"]
  )


def test_one_pair_is_refused_where_a_distance_would_need_more(sets, tmp_path):
  one = {field: pixels[:1] for field, pixels in sets["a"].items()}
  result = evaluate.evaluate(one, sets["b"], size=(SIDE, SIDE))
  assert "too few" in result["distances"]["photographs"]["refused"] and "too few" in result["vessels"]["refused"]
  assert set(_verdicts(result).values()) == {"unknown"}
  files.write(result, tmp_path)
  assert "too few" in (tmp_path / "report.md").read_text()


def test_empty_trees_are_no_crash(sets, tmp_path):
  empty = {**sets["a"], "tree": np.zeros_like(sets["a"]["tree"])}
  result = evaluate.evaluate(empty, sets["b"], size=(SIDE, SIDE), pictures=False)
  levels = _verdicts(result)
  assert levels["vessels"] == "bad" and levels["labels"] == "unknown"
  files.write(result, tmp_path)


def test_a_segmenter_scores_both_sets(sets):
  from configs import segmentation as stage

  config = stage.get_config("tiny")
  config.data.image_size = (32, 32)
  config.crop.size = 32
  config.sampler.update(overlap=0, flips=1)
  config.model.update(widths=(8,), bottleneck=(8,))
  network = models.build(config.model)
  params = network.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
  loaded = checkpoint.Loaded(config, params, network, 7, "nowhere")
  parts = {name: {field: pixels[:count] for field, pixels in sets[name].items()} for name, count in (("a", 3), ("b", 4))}
  result = evaluate.evaluate(parts["a"], parts["b"], size=(SIDE, SIDE), segmenter=loaded, pictures=False)
  segmenter = Segmenter(loaded.config, loaded.network)
  for side, part in (("generated", parts["a"]), ("real", parts["b"])):
    scores = []
    for example in measure.fitted(ArraySource(part, side), range(len(part["image"])), (SIDE, SIDE)):
      probability = segmenter(loaded.params, [example["image"]], [example["fov"]])[0]
      scores.append(segmentation.scores(probability, example["tree"] >= 128, example["fov"] > 0, segmenter.threshold))
    for name, entry in result["segmenter"][side].items():
      values = [score[name] for score in scores if np.isfinite(score[name])]
      assert entry["count"] == len(values) and entry["mean"] == pytest.approx(np.mean(values), rel=1e-6), (side, name)
  assert result["settings"]["features"]["photographs by segmenter"] == f"segmenter {loaded.identity()} encoder"
  assert _verdicts(result)["segmenter"] == "unknown"  # it is untrained, so its scores say nothing


def test_floors():
  """A shift by one standard deviation is a distance of about one; sets of one kind score what halves of it do."""
  rng = np.random.default_rng(0)

  def trees(values):
    return [dict.fromkeys(vessels.BIOMARKERS, float(v)) for v in values]

  real = trees(rng.standard_normal(400))
  shifted = evaluate.vessel_floors(trees(rng.standard_normal(300) + 1), real)["density"]
  assert shifted["count"] == 200 and shifted["matched"]["value"] == pytest.approx(1, abs=0.15)
  assert shifted["floor"]["value"] < 0.2
  same = evaluate.vessel_floors(trees(rng.standard_normal(300)), real)["density"]
  assert same["floor"]["low"] < same["matched"]["value"] < 2 * same["floor"]["high"]
  assert evaluate.vessel_floors(trees([1.0, 2.0]), trees([1.0] * 9))["width"]["count"] == 0


@pytest.mark.parametrize(("side", "expected"), [(700, 512), (250, 256), (140, 128), (40, 64)])
def test_common_size_enlarges_no_set(side, expected):
  fov = np.zeros((side + 8, side + 30, 1), np.uint8)
  fov[4:-4, 15:-15] = 255
  one, big = [{"fov": fov}] * 3, [{"fov": np.full((900, 900, 1), 255, np.uint8)}] * 2
  assert measure.common_size(one, big) == measure.common_size(big, one) == (expected, expected)


def test_bad_arrays(sets):
  good = sets["a"]
  broken = good["image"].astype(np.float32)
  broken[3, 4, 5] = np.nan
  for arrays, sentence in (
    ({**good, "image": broken}, "The generated set's image holds NaN or infinity: remove these pairs."),
    (
      {**good, "image": good["image"] / 255.0},
      "The generated set's image must be uint8 [N, H, W, 3], not float64 (12, 96, 96, 3):",
    ),
    ({"tree": good["tree"]}, "The generated set has no 'image': give photographs"),
    ({**good, "tree": good["tree"][:5]}, "The generated set's arrays do not belong together:"),
    ({f: v[:0] for f, v in good.items()}, "The generated set is empty: give at least one pair."),
    ({"image": good["image"]}, "generated has no vessel mask for 00000: give a folder with images/ and masks/."),
  ):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
      evaluate.evaluate(arrays, good, size=(SIDE, SIDE))
  with pytest.raises(ValueError, match="^--num=1 leaves nothing to compare: give at least 2.$"):
    evaluate.evaluate(good, good, num=1)
  with pytest.raises(
    ValueError, match="^12 of the 12 real eyes are training eyes too, the first is 00000: held-out eyes must be"
  ):
    evaluate.evaluate(good, sets["b"], sets["b"], size=(SIDE, SIDE))


def _folder(path, eyes, fields=(("image", "images"), ("tree", "masks"), ("fov", "fov"))):
  for i in range(len(eyes["image"])):
    for field, name in fields:
      pixels = eyes[field][i] if field == "image" else (eyes[field][i] >= 128) * np.uint8(255)
      writing.write_png(path / name / f"eye{i}.png", pixels)
  return path


def _run(*arguments):
  return errors.run(lambda: evaluate.main(["evaluate", *map(str, arguments)]))


def test_command(sets, tmp_path, capsys):
  generated = _folder(tmp_path / "generated", sets["a"])
  real = _folder(tmp_path / "real", {f: np.concatenate([sets["b"][f], sets["c"][f]]) for f in sets["b"]})
  names = [f"eye{i}" for i in range(2 * COUNT)]
  writing.write_json(real / "splits.json", {"train": names[COUNT:], "test": names[:COUNT]})
  out = tmp_path / "out"
  # One folder for both: its splits tell held-out from training eyes.
  assert _run("--generated", generated, "--real", real, "--train", real, "--size", SIDE, "--out", out) == 0
  found = json.loads((out / "report.json").read_text())
  assert (found["sets"]["real"]["count"], found["sets"]["train"]["count"]) == (COUNT, COUNT)
  assert found["privacy"]["photographs"]["spaces"]["pixels"]["copied"]["hits"] == 0
  assert "report.html" in capsys.readouterr().out


def test_one_set_of_folders_is_known_however_it_is_written(sets, tmp_path, capsys):
  one, two = (_folder(tmp_path / name, {f: v[:4] for f, v in sets[name].items()}) for name in ("b", "c"))
  for folder in (one, two):
    writing.write_json(folder / "splits.json", {"train": ["eye0", "eye1"], "test": ["eye2", "eye3"]})
  generated = _folder(tmp_path / "generated", {f: v[:4] for f, v in sets["a"].items()})
  cases = (
    (f"folder:{one}+folder:{two}", f"folder:{two}*2+folder:{one}*0.5", 3, 4),  # all training eyes, whatever --num is
    (f"folder:{one}", one, 2, 2),
    (f"folder:{one}", f"folder:{one}[:1]", 2, 1),
  )
  for i, (real, train, reals, trains) in enumerate(cases):
    out = tmp_path / f"out{i}"
    assert _run("--generated", generated, "--real", real, "--train", train, "--size", SIDE, "--num", "3", "--out", out) == 0
    found = json.loads((out / "report.json").read_text())["sets"]
    assert (found["real"]["count"], found["train"]["count"]) == (reals, trains)
  capsys.readouterr()
  # Otherwise every eye counts, also those that --num leaves out.
  assert (
    _run(
      "--generated",
      generated,
      "--real",
      f"folder:{one}",
      "--train",
      f"folder:{one}+folder:{two}",
      "--num",
      "2",
      "--out",
      tmp_path / "no",
    )
    == 2
  )
  assert "4 of the 4 real eyes are training eyes too" in capsys.readouterr().err
  assert not (tmp_path / "no").exists()


def test_command_takes_features_of_a_network_whose_weights_the_user_has(sets, tmp_path):
  """VGG19's first block with random weights: set "b" against itself with every colour inverted is further off than "a"."""
  rng = np.random.default_rng(0)
  layers = {}
  for name, channels, scale in (("block1_conv1", 3, 0.01), ("block1_conv2", 64, 1.0)):
    layers[f"{name}/kernel"] = (scale * rng.normal(0, np.sqrt(2 / (9 * channels)), (3, 3, channels, 64))).astype(np.float32)
    layers[f"{name}/bias"] = np.zeros(64, np.float32)
  np.savez(tmp_path / "vgg19.npz", **layers)
  real, distances = _folder(tmp_path / "real", sets["b"]), {}
  for name, eyes in (("alike", sets["a"]), ("inverted", {**sets["b"], "image": 255 - sets["b"]["image"]})):
    folder, out = _folder(tmp_path / name, eyes), tmp_path / f"report_{name}"
    assert (
      _run(
        "--generated",
        folder,
        "--real",
        real,
        "--size",
        SIDE,
        "--features",
        "vgg19",
        "--feature_weights",
        tmp_path / "vgg19.npz",
        "--nopictures",
        "--out",
        out,
      )
      == 0
    )
    found = json.loads((out / "report.json").read_text())
    assert found["settings"]["features"]["photographs"] == "vgg19 means of relu1_2"
    distances[name] = found["distances"]["photographs"]["kernel"]["value"]
  assert distances["alike"] < 0.1 * distances["inverted"]


def test_command_says_what_is_wrong_in_one_line(sets, tmp_path, capsys):
  part = {field: pixels[:3] for field, pixels in sets["a"].items()}
  pairs = _folder(tmp_path / "pairs", part)
  alone = _folder(tmp_path / "alone", part, (("image", "images"),))
  (tmp_path / "empty").mkdir()
  odd = _folder(tmp_path / "odd", part)
  writing.write_png(odd / "masks" / "eye1.png", np.zeros((50, 60), np.uint8))
  for arguments, sentence in (
    ((), "--generated is missing: give the folder of generated pairs, with images/ and masks/ inside"),
    (("--generated", pairs), "--real is missing: give the folder of real pairs, with images/ and masks/ inside"),
    (("--generated", pairs, "--real", tmp_path / "nowhere"), f"{tmp_path}/nowhere does not exist"),
    (("--generated", alone, "--real", pairs), f"{alone} has no masks/: "),
    (("--generated", tmp_path / "empty", "--real", pairs), f"{tmp_path}/empty has no images/"),
    (("--generated", odd, "--real", pairs), f"{odd}/masks/eye1.png is 50x60"),
    (
      ("--generated", pairs, "--real", pairs, "--features", "inception"),
      "needs its weights: give their file with --feature_weights",
    ),
    (("--generated", pairs, "--real", pairs, "--features", "odd"), "--features=odd: value should be one of <scattering|"),
    (("--generated", pairs, "--real", pairs, "--size", "9"), "at 64 to 2048 pixels a side, not at 9x9: change --size."),
    (("--generated", pairs, "--real", pairs, "--segmenter", tmp_path / "empty"), f"{tmp_path}/empty holds no checkpoint"),
    (("--generated", pairs, "--real", pairs, "--out", odd / "masks/eye1.png"), "eye1.png is a file: name a folder"),
    (("--generated", pairs, "--real", pairs, "stray"), "'stray' is not a flag: write --flag=value; see --help"),
    (("--generated", pairs, "--real", pairs, "--sice", "64"), "Unknown command line flag 'sice'"),
  ):
    assert _run("--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert sentence in error[-1] and error[-1].startswith("error: ") and "Traceback" not in "".join(error), error
  assert not (tmp_path / "out").exists()


def test_importing_defines_no_global_flags():
  from absl import flags

  assert not set(evaluate.define_flags()) & set(flags.FLAGS) - {"help", "helpfull", "helpshort", "helpxml", "version"}


def test_help_loads_neither_jax_nor_scipy():
  """Their import takes longer than everything else that --help does."""
  code = (
    "import sys, retree_jax.evaluate; print(sorted({m.partition('.')[0] for m in sys.modules} & {'jax', 'scipy', 'numpy'}))"
  )
  root = pathlib.Path(evaluate.__file__).parents[1]
  assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_flags_offer_what_the_library_has():
  assert evaluate.SPLITS == sources.SPLITS and set(evaluate.FEATURES) == set(features.EXTRACTORS)
