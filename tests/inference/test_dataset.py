"""Sets on disk: the same bytes whatever happens on the way, read back by the project itself, and nobody else's folder."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from retree_jax import generate, sharding
from retree_jax.cli import errors
from retree_jax.data import formats, sources, writing
from retree_jax.inference import dataset_writer
from tests import small, stages
from tests.inference import test_generate
from tests.inference.conftest import ALL, Judge


def test_what_is_written_is_what_the_arrays_say(toys, tmp_path):
  summary = dataset_writer.write(ALL, tmp_path / "set", num=5, seed=3)
  pairs = generate.pairs(test_generate.models(Judge()), num=5, seed=3)
  rows = stages.manifest(tmp_path / "set")
  assert [r["name"] for r in rows] == [f"{k:07d}" for k in range(5)] and summary["made"] == summary["pairs"] == 5
  for k, (row, record) in enumerate(zip(rows, pairs["records"], strict=True)):
    assert {key: row[key] for key in record} == record
    assert row["index"] == k and row["seed"] == 3 and row["label"] == "generated" and row["trees"] == "sampled"
    assert row["sampler"] == {"tree": "dpmpp_2m", "fundus": "dpmpp_2m"} and row["steps"] == {"tree": 2, "fundus": 2}
    assert row["checkpoint"]["tree"] == test_generate.models().tree.identity() and set(row["config"]) == set(row["checkpoint"])
    read = {f: np.asarray(Image.open(tmp_path / f"set/{f}/{row['name']}.png")) for f in ("images", "masks", "fov")}
    np.testing.assert_array_equal(read["images"], pairs["image"][k])
    np.testing.assert_array_equal(read["masks"], 255 * (pairs["tree"][k, ..., 0] >= 128))
    np.testing.assert_array_equal(read["fov"], pairs["fov"][k, ..., 0])
  names = set(stages.files(tmp_path / "set"))
  assert names == {f"{f}/{r['name']}.png" for f in ("images", "masks", "fov") for r in rows} | {
    "manifest.jsonl",
    "metadata.json",
    "run.json",
    "DATA_CARD.md",
    "contact_sheet.png",
  }
  # The project reads it back as a source of pairs.
  source = sources.open_source(f"folder:{tmp_path / 'set'}", split="all")
  assert len(source) == 5 and source[2]["label"] == "generated"
  np.testing.assert_array_equal(source[2]["image"], pairs["image"][2])
  np.testing.assert_array_equal(source[2]["fov"], pairs["fov"][2])
  # The card says what the filter did, in the manifest's numbers.
  drawn, kept = sum(r["attempts"] for r in rows), sum(r["accepted"] for r in rows)
  assert drawn > kept
  card = (tmp_path / "set/DATA_CARD.md").read_text()
  assert f"{drawn} trees were sampled and {kept} kept, an acceptance rate of {kept / drawn:.1%}." in card
  assert "score of at least 0.5000 (by hand, for a test) were kept" in card and "density from 0.1" in card
  assert f"Reasons for rejection: score {drawn - kept}." in card
  with Image.open(tmp_path / "set/contact_sheet.png") as sheet:
    assert sheet.size == (8 * 18 - 2, 2 * 18 - 2)  # 5 photographs, 5 overlays, 8 to a row


def test_the_same_bytes_on_eight_devices_in_two_goes_and_by_two_hosts(toys, tmp_path, monkeypatch, capsys):
  dataset_writer.write(ALL, tmp_path / "one", num=7, mesh=sharding.make_mesh(devices=jax.devices()[:1]))
  whole = stages.files(tmp_path / "one")
  dataset_writer.write(ALL, tmp_path / "eight", num=7)  # all eight
  assert stages.files(tmp_path / "eight") == whole
  dataset_writer.write(ALL, tmp_path / "grown", num=3)
  dataset_writer.write(ALL, tmp_path / "grown", num=7)
  assert stages.files(tmp_path / "grown") == whole
  capsys.readouterr()
  assert dataset_writer.write(ALL, tmp_path / "grown", num=5)["made"] == 0  # as it is, and it says so
  assert "begun with 7 pairs" in (text := capsys.readouterr().err) and "is finished: 7 pairs" in text
  assert stages.files(tmp_path / "grown") == whole
  # Two hosts, one after the other: each makes its own half, the first also the papers, when the second is done.
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(sharding, "on_first_process", lambda function: None if jax.process_index() else function())
  made_by_first = "pairs made"
  monkeypatch.setattr(
    sharding, "wait_for_all", lambda name: second() if name == made_by_first and not jax.process_index() else None
  )

  def second():
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert dataset_writer.write(ALL, tmp_path / "hosts", num=7)["made"] == 4
    monkeypatch.setattr(jax, "process_index", lambda: 0)

  assert dataset_writer.write(ALL, tmp_path / "hosts", num=7)["made"] == 3
  assert stages.files(tmp_path / "hosts") == whole


def test_trees_alone_keep_their_coverage(toys, tmp_path):
  dataset_writer.write({"tree": "t"}, tmp_path / "trees", num=3)
  names = {p.split("/")[0] for p in stages.files(tmp_path / "trees")}
  assert names == {
    "masks",
    "fov",
    "coverage",
    "manifest.jsonl",
    "metadata.json",
    "run.json",
    "DATA_CARD.md",
    "contact_sheet.png",
  }
  soft = np.asarray(Image.open(tmp_path / "trees/coverage/0000001.png"))
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "trees/masks/0000001.png")), 255 * (soft >= 128))
  assert len(np.unique(soft)) > 10
  assert [r["attempts"] for r in stages.manifest(tmp_path / "trees")] == [1, 1, 1]


def test_given_trees_are_painted_under_their_names(toys, tmp_path):
  for i, name in enumerate(("anna", "zoe", "mid")):
    mask = np.zeros((40 + 8 * i, 48, 1), np.uint8)
    mask[20:24, 10:40] = 255
    writing.write_png(tmp_path / f"mine/{name}.png", mask)
  dataset_writer.write({"fundus": "f"}, tmp_path / "painted", trees=tmp_path / "mine")
  rows = stages.manifest(tmp_path / "painted")
  assert [r["name"] for r in rows] == ["anna", "mid", "zoe"] and {r["trees"] for r in rows} == {"given"}
  image, mask = (np.asarray(Image.open(tmp_path / f"painted/{f}/mid.png")) for f in ("images", "masks"))
  assert image.shape == (16, 16, 3) and mask.any() and (image[mask > 0][:, 0] >= 128).all()
  assert "Given by the user" in (tmp_path / "painted/DATA_CARD.md").read_text()
  with pytest.raises(ValueError, match="holds 3 trees, not --num=4"):
    dataset_writer.write({"fundus": "f"}, tmp_path / "more", num=4, trees=tmp_path / "mine")
  with pytest.raises(ValueError, match="give --fundus too"):
    dataset_writer.write({"tree": "t"}, tmp_path / "more", trees=tmp_path / "mine")
  grey = np.arange(2304, dtype=np.uint16).reshape(48, 48, 1).astype(np.uint8)
  writing.write_png(tmp_path / "mine/grey.png", grey)
  with pytest.raises(ValueError, match=r"grey.png is not a binary mask .*run python -m retree_jax.data.binarise"):
    dataset_writer.write({"fundus": "f"}, tmp_path / "more", trees=tmp_path / "mine")
  assert not (tmp_path / "more").exists()


def test_tfds_reads_the_shards(toys, tmp_path, monkeypatch):
  from retree_jax.data.builders import generated

  monkeypatch.setattr(generated, "SHARD", 4)
  dataset_writer.write(ALL, tmp_path / "set", num=3, form="tfds")
  dataset_writer.write(ALL, tmp_path / "set", num=6, form="tfds")  # the first shard is filled up, a second begun
  dataset_writer.write(ALL, tmp_path / "again", num=6, form="tfds")
  assert stages.files(tmp_path / "set") == stages.files(tmp_path / "again")
  import tensorflow_datasets as tfds

  pairs = generate.pairs(test_generate.models(Judge()), num=6)
  data = tfds.builder_from_directory(tmp_path / "set").as_data_source("train")
  assert len(data) == 6 == len(stages.manifest(tmp_path / "set"))
  for k, example in enumerate(data):
    assert example["name"] == b"%07d" % k
    np.testing.assert_array_equal(example["image"], pairs["image"][k])
    np.testing.assert_array_equal(example["tree"], 255 * (pairs["tree"][k] >= 128))
  assert "tensorflow" not in sys.modules


def test_threads_write_while_devices_work_and_little_waits(toys, tmp_path, monkeypatch):
  """Slow disk, slow devices: their times overlap, and no more than three chunks are in memory."""
  alive, most, chunks = 0, 0, 0
  real, make = formats.PngFolders.write, dataset_writer.make_chunk

  def slow_make(*args):
    nonlocal alive, most, chunks
    alive, chunks = alive + 1, chunks + 1
    most = max(most, alive)
    time.sleep(0.2)
    return make(*args)

  def slow_write(self, out, row, pixels):
    nonlocal alive
    time.sleep(0.2)
    real(self, out, row, pixels)
    alive -= row["index"] % 2  # two pairs to a chunk

  monkeypatch.setattr(dataset_writer, "make_chunk", slow_make)
  monkeypatch.setattr(formats.PngFolders, "write", slow_write)
  one = sharding.make_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(generate.Generator, "batch_size", 2)
  summary = dataset_writer.write({"tree": "t"}, tmp_path / "set", num=24, mesh=one)
  assert chunks == 12 and most <= 4
  assert summary["waited"] < 0.4 * 12 * 0.2  # one after the other it would be all of 2.4 s


def test_a_failed_write_stops_the_run_and_leaves_it_ready(toys, tmp_path, monkeypatch):
  real = formats.PngFolders.write

  def full(self, out, row, pixels):
    if row["name"] == "0000004":
      raise OSError(28, "No space left on device")
    real(self, out, row, pixels)

  dataset_writer.write(ALL, tmp_path / "whole", num=6)
  with monkeypatch.context() as m:
    m.setattr(formats.PngFolders, "write", full)
    with pytest.raises(OSError, match="No space"):
      dataset_writer.write(ALL, tmp_path / "set", num=6)
  assert not (tmp_path / "set/manifest.jsonl").exists()
  dataset_writer.write(ALL, tmp_path / "set", num=6)
  assert stages.files(tmp_path / "set") == stages.files(tmp_path / "whole")


def test_nothing_is_shipped_is_said(monkeypatch):
  from retree_jax import checkpoint

  monkeypatch.setattr(checkpoint, "shipped_names", list)
  with pytest.raises(ValueError, match="ships no weights: give --tree and --fundus"):
    dataset_writer.shipped()
  monkeypatch.setattr(checkpoint, "shipped_names", lambda: ["filter", "fundus", "tree"])
  found = {stage: f"shipped:{stage}" for stage in ("tree", "fundus")} | {"filter_path": "shipped:filter"}
  assert dataset_writer.shipped() == {"refine": None, "detail": None, "superres": None} | found


# --- the command itself, killed ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  return stages.chain(tmp_path_factory.mktemp("models"))


def start(chain, out, num=40):
  """The command in a process of its own, on one device, with the compilations of earlier ones."""
  environment = {
    **os.environ,
    "RETREE_JAX_CPU_SETTINGS": "off",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": small._CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  flags = [f"--{name}={path}" for name, path in chain.items()]
  return subprocess.Popen(
    [sys.executable, "-m", "retree_jax.generate", *flags, f"--num={num}", f"--out={out}", "--seed=5"],
    env=environment,
    cwd=small.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process) -> str:
  text = process.communicate(timeout=300)[1]
  assert process.returncode == 0, text
  return text


def test_killed_three_times_it_gives_the_same_bytes(chain, tmp_path):
  finish(start(chain, tmp_path / "whole"))
  whole = stages.files(tmp_path / "whole")
  assert len(whole) == 3 * 40 + 5
  rng, out, seen = np.random.default_rng(), tmp_path / "killed", []
  for _ in range(3):
    process = start(chain, out)
    before = len(list(out.rglob("*.png")))
    # At a random moment after its first file, so that the kills fall into the writing and not into the imports.
    while process.poll() is None and len(list(out.rglob("*.png"))) <= before:
      time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.08))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    seen.append(len(list(out.rglob("*.png"))))
  assert seen[1] < 3 * 40, seen  # two kills at least came before the end
  finish(start(chain, out))
  killed = stages.files(out)
  assert set(killed) == set(whole), seen
  assert killed == whole, seen


def test_bad_input_is_one_sentence_and_code_2(chain, tmp_path, capsys, monkeypatch):
  monkeypatch.delenv("RETREE_JAX_TRACEBACK", raising=False)
  (tmp_path / "other").mkdir()
  (tmp_path / "other/notes.txt").write_text("")
  writing.write_png(tmp_path / "grey/a.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
  for flags, words in (
    ([f"--tree={chain['fundus']}"], "is a checkpoint of the fundus stage, not of the tree stage"),
    ([f"--tree={chain['tree']}", f"--filter={chain['tree']}"], "not of the filter stage"),
    ([f"--tree={chain['tree']}", f"--out={tmp_path / 'other'}"], "holds files that this command did not write"),
    ([f"--fundus={chain['fundus']}"], "no trees to paint"),
    ([f"--fundus={chain['fundus']}", f"--trees={tmp_path / 'grey'}"], "not a binary mask"),
    ([f"--fundus={chain['fundus']}", f"--trees={tmp_path / 'other'}"], "No pictures"),
    ([f"--tree={tmp_path / 'other'}"], "holds no checkpoint"),
  ):
    arguments = ["generate", f"--out={tmp_path / 'out'}", *flags]
    assert errors.run(lambda a=arguments: generate.main(a)) == 2
    text = capsys.readouterr().err
    assert words in text and text.startswith("error: ") and text.count("\n") == 1, text
