"""Sets in forms that other programs read: the same pixels in each, whatever happens on the way, accepted by their own checkers.

The checkers run in processes of their own where they are installed: `pip install nnunetv2 mlcroissant datasets`.
"""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from retree_jax import generate, sharding
from retree_jax.cli import errors
from retree_jax.data import formats, manifest, sources, writing
from retree_jax.inference import dataset_writer
from tests import stages
from tests.data import test_provenance
from tests.inference import test_generate
from tests.inference.conftest import ALL, Judge

SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
OTHERS = ("nnunet", "imagefolder")


def place(root, form):
  """A folder for a set of this form."""
  return root / ("Dataset501_ReTree" if form == "nnunet" else form)


def needs(package):
  return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def in_a_process(code: str, *arguments) -> str:
  """What a program prints that must succeed, in a process without this project's settings of warnings."""
  ran = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300)
  assert ran.returncode == 0, ran.stdout + ran.stderr
  return ran.stdout


def test_the_command_knows_every_form():
  assert tuple(formats.FORMS) == generate.FORMATS


@pytest.mark.parametrize("form", ["png", *OTHERS])
def test_a_set_comes_back_as_the_same_pixels(toys, tmp_path, form):
  out = place(tmp_path, form)
  dataset_writer.write(ALL, out, num=5, seed=3, form=form)
  pairs = generate.pairs(test_generate.models(Judge()), num=5, seed=3)
  source = sources.open_source(f"folder:{out}", split="all")
  assert source.names == [f"{k:07d}" for k in range(5)]
  for k, example in enumerate(source):
    np.testing.assert_array_equal(example["image"], pairs["image"][k])
    np.testing.assert_array_equal(example["tree"], 255 * (pairs["tree"][k] >= 128))
    np.testing.assert_array_equal(example["fov"], pairs["fov"][k])
    assert example["label"] == "generated"
  rows = stages.manifest(out)
  assert all(row["synthetic"] is True and row["software"].startswith("retree_jax ") for row in rows)
  assert "All pictures are synthetic" in (card := (out / "DATA_CARD.md").read_text()) and "trainedAlgorithmicMedia" in card
  named = [line.split("`")[1].rstrip("/") for line in card.splitlines() if line.startswith("- `")]
  assert len(named) >= 5 and all((out / name).exists() for name in named)
  for path in out.rglob("*.png"):
    source_type, note = test_provenance.packet_and_note(path.read_bytes())
    assert source_type == SYNTHETIC and note["seed"] == 3
    assert path.name == "contact_sheet.png" or note["number"] == int(path.name[:7])
  with Image.open(out / "contact_sheet.png") as sheet:
    assert sheet.size == (8 * 18 - 2, 2 * 18 - 2)
    reference = np.asarray(sheet)
  dataset_writer.write(ALL, tmp_path / "reference", num=5, seed=3)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "reference/contact_sheet.png")), reference)


def test_of_painted_pairs_the_given_trees_are_not_called_synthetic(toys, tmp_path):
  mask = np.zeros((48, 48, 1), np.uint8)
  mask[20:24, 10:40] = 255
  writing.write_png(tmp_path / "mine/a_0001.png", mask)
  out = place(tmp_path, "nnunet")
  dataset_writer.write({"fundus": "f"}, out, trees=tmp_path / "mine", form="nnunet")
  for file, expected in (("imagesTr/a_0001_0000.png", SYNTHETIC), ("labelsTr/a_0001.png", None), ("fov/a_0001.png", None)):
    source_type, note = test_provenance.packet_and_note((out / file).read_bytes())
    assert source_type == expected and note["synthetic"] == (expected is not None)
  assert sources.open_source(f"folder:{out}", split="all").names == ["a_0001"]
  card = (out / "DATA_CARD.md").read_text()
  assert "The photographs are synthetic" in card and "All pictures" not in card


def test_records_of_tfds_say_it_too(toys, tmp_path):
  from retree_jax.data.builders import generated

  dataset_writer.write(ALL, tmp_path / "set", num=2, seed=4, form="tfds")
  record = generated._parse(generated._records(generated.shard_path(tmp_path / "set", 0))[1])
  for field in ("image", "tree", "fov"):
    source_type, note = test_provenance.packet_and_note(record[field])
    assert source_type == SYNTHETIC and (note["seed"], note["number"]) == (4, 1)


@pytest.mark.parametrize("form", OTHERS)
def test_the_same_bytes_when_grown_damaged_killed_and_made_by_two_hosts(toys, tmp_path, monkeypatch, form):
  whole = place(tmp_path / "whole", form)
  dataset_writer.write(ALL, whole, num=6, form=form)
  expected = stages.files(whole)
  # Grown, then with lost files.
  grown = place(tmp_path / "grown", form)
  dataset_writer.write(ALL, grown, num=3, form=form)
  dataset_writer.write(ALL, grown, num=6, form=form)
  assert stages.files(grown) == expected and dataset_writer.write(ALL, grown, form=form)["made"] == 0
  photograph = "imagesTr/0000001_0000.png" if form == "nnunet" else "images/0000001.png"
  for name in (photograph, "fov/0000004.png", "metadata.json"):
    (grown / name).unlink()
  assert dataset_writer.write(ALL, grown, form=form)["made"] == 2
  assert stages.files(grown) == expected
  # Killed at pair 4 of many with files of later pairs written, then lowered.
  killed, real = place(tmp_path / "killed", form), manifest.Journal.add

  def add(self, start, rows):
    if start >= 4:
      raise KeyboardInterrupt
    real(self, start, rows)

  with monkeypatch.context() as m:
    m.setattr(manifest.Journal, "add", add)
    m.setattr(generate.Generator, "batch_size", 1)
    with pytest.raises(KeyboardInterrupt):
      dataset_writer.write(ALL, killed, num=1000, form=form)
  assert len(stages.files(killed)) > 3 * 4 + 2
  folder = killed / ("imagesTr" if form == "nnunet" else "images")
  (folder / ".0000009.png.0123456789ab.part").write_text("half")
  dataset_writer.write(ALL, killed, num=6, form=form)
  assert stages.files(killed) == expected
  # Two hosts, one after the other.
  hosts = place(tmp_path / "hosts", form)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(sharding, "on_first_process", lambda function: None if jax.process_index() else function())

  def barrier(name):
    if name == "pairs made" and not jax.process_index():
      monkeypatch.setattr(jax, "process_index", lambda: 1)
      assert dataset_writer.write(ALL, hosts, num=6, form=form)["made"] == 3
      monkeypatch.setattr(jax, "process_index", lambda: 0)

  monkeypatch.setattr(sharding, "wait_for_all", barrier)
  assert dataset_writer.write(ALL, hosts, num=6, form=form)["made"] == 3
  assert stages.files(hosts) == expected


def test_what_a_form_cannot_hold_is_one_sentence_whose_advice_works(toys, tmp_path, capsys, monkeypatch):
  monkeypatch.delenv("RETREE_JAX_TRACEBACK", raising=False)

  def run(*flags):
    code = errors.run(lambda: generate.main(["generate", "--tree=t", *flags]))
    text = capsys.readouterr().err
    assert code == 0 or text.startswith("error: ") and text.count("\n") == 1
    return code, text

  code, text = run("--fundus=f", "--num=2", "--format=nnunet", f"--out={tmp_path / 'out'}")
  assert code == 2 and "folders that are called DatasetXXX_NAME" in text
  assert not (tmp_path / "out").exists()
  advice = text.split("--out=")[1].strip()
  assert run("--fundus=f", "--num=2", "--format=nnunet", f"--out={advice}")[0] == 0
  for form in OTHERS:
    code, text = run(f"--format={form}", f"--out={place(tmp_path / 'trees', form)}")
    assert code == 2 and "holds photographs: give --fundus too, or use --format png for trees alone" in text
  assert run("--format=png", "--num=2", f"--out={tmp_path / 'trees/png'}")[0] == 0


# --- read by others ---------------------------------------------------------------------------------------------------

VERIFY = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
if __name__ == "__main__":
  verify_dataset_integrity(sys.argv[1], num_processes=1)
"""


@needs("nnunetv2")
def test_nnunet_accepts_it(toys, tmp_path):
  out = place(tmp_path, "nnunet")
  dataset_writer.write(ALL, out, num=3, form="nnunet")
  script = tmp_path / "verify.py"
  script.write_text(VERIFY)

  def verify():
    return subprocess.run([sys.executable, script, out], capture_output=True, text=True, timeout=300)

  ran = verify()
  assert ran.returncode == 0 and "verify_dataset_integrity Done" in ran.stdout, ran.stdout + ran.stderr
  Image.fromarray(np.full((16, 16), 255, np.uint8)).save(out / "labelsTr/0000001.png")
  assert verify().returncode != 0  # it would have noticed


CROISSANT = """
import json, sys
import mlcroissant, numpy
data = mlcroissant.Dataset(sys.argv[1] + "/metadata.json")
found = {}
for kind in data.metadata.record_sets:
  for record in data.records(kind.id):
    name = record.pop(f"{kind.id}/name").decode()
    (pixels,) = record.values()
    pixels = numpy.asarray(pixels)  # mlcroissant gives everything in colour
    found.setdefault(kind.id, {})[name] = (pixels if kind.id == "images" else pixels[..., 0]).tolist()
print(json.dumps(found))
"""


@needs("mlcroissant")
@pytest.mark.parametrize("form", ["png", *OTHERS])
def test_mlcroissant_reads_the_pixels(toys, tmp_path, form):
  out = place(tmp_path, form)
  dataset_writer.write(ALL, out, num=3, form=form)
  found = json.loads(in_a_process(CROISSANT, out))
  assert set(found) == {"images", "masks", "fov"}
  for example in sources.open_source(f"folder:{out}", split="all"):
    np.testing.assert_array_equal(found["images"][example["name"]], example["image"])
    mask = np.asarray(found["masks"][example["name"]]) * (255 if form == "nnunet" else 1)
    np.testing.assert_array_equal(mask, example["tree"][..., 0])
    np.testing.assert_array_equal(found["fov"][example["name"]], example["fov"][..., 0])


@needs("mlcroissant")
def test_mlcroissant_reads_trees_alone(toys, tmp_path):
  dataset_writer.write({"tree": "t"}, tmp_path / "trees", num=2)
  found = json.loads(in_a_process(CROISSANT, tmp_path / "trees"))
  coverage = np.asarray(Image.open(tmp_path / "trees/coverage/0000001.png"))
  np.testing.assert_array_equal(found["coverage"]["0000001"], coverage)


def test_imagefolder_names_every_file(toys, tmp_path):
  out = place(tmp_path, "imagefolder")
  dataset_writer.write(ALL, out, num=3, seed=2, form="imagefolder")
  lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
  assert [(line["name"], line["index"], line["seed"], line["synthetic"]) for line in lines] == [
    (f"{k:07d}", k, 2, True) for k in range(3)
  ]
  assert all((out / line[f"{column}file_name"]).is_file() for line in lines for column in ("", "mask_", "fov_"))


IMAGEFOLDER = """
import json, sys
import datasets, numpy
found = [datasets.load_dataset(*a, split="train", cache_dir=sys.argv[2], **k)
         for a, k in ((("imagefolder",), {"data_dir": sys.argv[1]}), ((sys.argv[1],), {}))]
print(json.dumps([[{k: numpy.asarray(v).tolist() for k, v in row.items()} for row in data] for data in found]))
"""


@needs("datasets")
def test_hugging_face_reads_the_pixels(toys, tmp_path):
  out = place(tmp_path, "imagefolder")
  dataset_writer.write(ALL, out, num=3, form="imagefolder")
  for rows in json.loads(in_a_process(IMAGEFOLDER, out, tmp_path / "cache")):
    assert len(rows) == 3
    for row, example in zip(rows, sources.open_source(f"folder:{out}", split="all"), strict=True):
      assert row["name"] == example["name"]
      np.testing.assert_array_equal(row["image"], example["image"])
      np.testing.assert_array_equal(row["mask"], example["tree"][..., 0])
      np.testing.assert_array_equal(row["fov"], example["fov"][..., 0])
