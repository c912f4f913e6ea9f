"""Generated pictures say so in words that others read, and are noticed where real ones are asked for."""

import io
import json
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import retree_jax
from retree_jax.data import examples, notices, provenance, sources, writing
from retree_jax.report import evaluation, sets
from tests import small

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def chunks(png: bytes) -> list[tuple[str, bytes]]:
  """(type, data) of a PNG's chunks, read by the format's definition (PNG specification, section 5)."""
  assert png[:8] == b"\x89PNG\r\n\x1a\n"
  found, at = [], 8
  while at < len(png):
    length, kind = struct.unpack(">I4s", png[at : at + 8])
    data = png[at + 8 : at + 8 + length]
    assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + data)
    found.append((kind.decode(), data))
    at += 12 + length
  return found


def packet_and_note(png: bytes) -> tuple[str | None, dict]:
  """(DigitalSourceType of the XMP packet, the project's own note) of a PNG."""
  texts = {}
  for kind, data in chunks(png):
    assert kind in ("IHDR", "iTXt", "IDAT", "IEND")  # no tIME: bytes must not depend on the day
    if kind == "iTXt":
      keyword, rest = data.split(b"\0", 1)
      assert rest[:4] == b"\0\0\0\0"  # not compressed, no language, no translation
      texts[keyword.decode()] = rest[4:].decode()
  source_type = None
  if packet := texts.get("XML:com.adobe.xmp"):
    (description,) = ElementTree.fromstring(packet.encode()).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    source_type = description.get(IPTC)
  return source_type, json.loads(texts["retree_jax"])


@pytest.fixture
def said(monkeypatch):
  """The warnings of a test."""
  found = []
  monkeypatch.setattr(notices, "_said", set())
  monkeypatch.setattr(notices.logging, "warning", lambda form, *values: found.append(form % values))
  return found


def folder(path, text=None, number=4, manifest=False):
  """A pair folder of drawn eyes."""
  rng = np.random.default_rng(1)
  for k in range(number):
    mask = np.zeros((64, 64, 1), np.uint8)
    mask[20 + k : 24 + k, 5:60] = 255
    writing.write_png(path / f"images/{k}.png", rng.integers(60, 200, (64, 64, 3), np.uint8), text)
    writing.write_png(path / f"masks/{k}.png", mask, text)
  if manifest:
    writing.write_text(path / "manifest.jsonl", "".join(json.dumps({"name": str(k)}) + "\n" for k in range(number)))
  return path


def test_a_png_says_that_it_is_synthetic_and_keeps_its_pixels():
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  png = writing.png_bytes(pixels, provenance.text(3, 17))
  assert png == writing.png_bytes(pixels, provenance.text(3, 17)) != writing.png_bytes(pixels, provenance.text(3, 18))
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)
  source_type, note = packet_and_note(png)
  assert source_type == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
  version = retree_jax.__version__
  assert note == {"software": "retree_jax", "version": version, "synthetic": True, "seed": 3, "number": 17}
  kinds = [kind for kind, _ in chunks(png)]
  assert kinds.index("IDAT") > max(k for k, kind in enumerate(kinds) if kind == "iTXt")  # read without the pixels
  assert packet_and_note(writing.png_bytes(pixels, provenance.text(3, 17, synthetic=False)))[0] is None


def test_headers_are_read_of_whatever_program_wrote_them(tmp_path):
  picture = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
  packet = provenance.text()["XML:com.adobe.xmp"].replace("CreatorTool", "Label").encode()
  picture.save(tmp_path / "other.jpg", xmp=packet)
  picture.save(tmp_path / "plain.jpg")
  writing.write_png(tmp_path / "ours.png", np.asarray(picture), provenance.text(0, 1))
  writing.write_png(tmp_path / "given.png", np.asarray(picture), provenance.text(0, 1, synthetic=False))
  (tmp_path / "damaged.png").write_bytes((tmp_path / "ours.png").read_bytes()[:12])
  found = [p.name for p in sorted(tmp_path.iterdir()) if provenance.is_synthetic(p)]
  assert found == ["other.jpg", "ours.png"] and not provenance.is_synthetic(tmp_path / "gone.png")


def test_training_on_generated_pictures_is_said_once_for_each_folder(tmp_path, said):
  real, copied = folder(tmp_path / "real"), folder(tmp_path / "copied", provenance.text(0, 1))
  listed = folder(tmp_path / "listed", manifest=True)
  config = small.config(data__source=f"folder:{real}")
  examples.Examples(config, None, ("tree",))
  assert said == []
  config.data.source = f"folder:{real}+folder:{copied}*3+folder:{listed}"
  for _ in range(2):
    examples.Examples(config, None, ("tree",))
  assert len(said) == 2 and str(copied) in said[0] and str(listed) in said[1]
  assert "holds generated pictures, which are training data of the tree stage: leave it out of config.data.source" in said[0]
  # The folder whose role is to be generated.
  config.data.source, config.data.generated = f"folder:{real}", str(copied)
  examples.Examples(config, None, ("tree",))
  assert len(said) == 2


def test_generated_pictures_given_as_real_ones_are_said_in_the_log_and_the_report(tmp_path, said):
  real, made = folder(tmp_path / "real"), folder(tmp_path / "made", provenance.text(0, 1))
  result = evaluation.evaluate(**sets.open_sets(str(made), str(real)), size=(64, 64), pictures=False)
  assert said == [] and not any("holds generated" in note for note in result["notes"])
  result = evaluation.evaluate(**sets.open_sets(str(real), str(made)), size=(64, 64), pictures=False)
  assert len(said) == 1 and f"{made} holds generated pictures, which are given as the real set" in said[0]
  assert result["notes"][0].startswith("made holds generated pictures")


def test_phantoms_and_arrays_are_no_files():
  assert provenance.generated_parts(sources.open_source("phantom:3")) == []
  arrays = {"image": np.zeros((2, 64, 64, 3), np.uint8)}
  assert provenance.generated_parts(sets.ArraySource(arrays, "real")) == []
