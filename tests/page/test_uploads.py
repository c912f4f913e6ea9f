"""Uploads are refused by their header where they are too large or of another kind, and by their pixels where no trees."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from retree_jax.page import uploads


def encoded(pixels, kind="PNG", **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind, **options)
  return buffer.getvalue()


def vessel(size=64) -> np.ndarray:
  out = np.zeros((size, size), np.uint8)
  out[10:-10, 30:34] = 255
  return out


def giant(width, height) -> bytes:
  """A PNG file of a few bytes that claims to be large."""
  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  data = zlib.compress(b"\0" * 100)
  parts = [
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    for kind, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
  ]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM"])
def test_every_accepted_kind_is_read(kind):
  data = encoded(vessel(), kind)
  uploads.check(data)
  assert uploads.photograph(data).shape == (64, 64, 3)
  tree = uploads.tree(data)
  assert tree.shape == (64, 64, 1) and np.mean(tree[..., 0] == vessel()) > 0.99


@pytest.mark.parametrize(
  "data, words",
  [
    (b"", "the upload is empty"),
    (b"hello", "not a picture that can be read"),
    (POSTSCRIPT, "not a picture that can be read"),
    (encoded(vessel(), "WEBP"), "not a picture that can be read"),
    (encoded(vessel())[:20], "not a picture that can be read"),
    (giant(6000, 6000), "more than 25 million pixels"),
    (giant(10000, 10000), "more than 25 million pixels"),
    (giant(60000, 60000), "more than 25 million pixels"),
    (b"\x89PNG" + b"\0" * uploads.MAX_BYTES, "more than 16 MB"),
    (encoded(vessel(), "TIFF", save_all=True, append_images=[Image.fromarray(vessel())] * 9), "more than 8 pages"),
  ],
)
def test_other_files_are_refused_by_their_header(data, words):
  with pytest.raises(ValueError, match=words) as caught:
    uploads.check(data)
  assert str(caught.value).count("\n") == 0


def test_a_damaged_picture_is_refused_when_it_is_decoded():
  data = encoded(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
  data = data[: len(data) // 2]
  uploads.check(data)
  for read in (uploads.photograph, uploads.tree):
    with pytest.raises(ValueError, match="^Cannot read this picture"):
      read(data)


@pytest.mark.parametrize(
  "pixels, words",
  [
    (np.zeros((64, 64), np.uint8), "this picture is empty: draw white vessels on black"),
    (255 - vessel(), "of its pixels are vessel: draw white vessels on black"),
    (np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)), "is not a binary mask .*: draw white vessels on black"),
  ],
)
def test_pictures_that_are_no_trees_say_what_to_draw(pixels, words):
  with pytest.raises(ValueError, match=words):
    uploads.tree(encoded(pixels))


def test_the_largest_page_of_a_tiff_counts():
  pages = [Image.new("L", (10, 10)), Image.new("L", (7000, 7000))]
  buffer = io.BytesIO()
  pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
  with pytest.raises(ValueError, match="more than 25 million pixels"):
    uploads.check(buffer.getvalue())
