"""Photographs as cameras store them are labelled as they are seen: turned by their EXIF tag, and with more than 8 bits."""

import numpy as np
from PIL import Image

from retree_jax.data import phantom, sources
from retree_jax.inference import segmenter
from tests.data import test_image_io
from tests.inference.test_segmentation import darkness, small


def test_turned_and_deep_photographs_get_masks_that_fit(tmp_path):
  (tmp_path / "photos").mkdir()
  seen = phantom.eye(3, (60, 80))["image"]
  Image.fromarray(seen).save(tmp_path / "photos/1_upright.png")
  for tag, back in ((6, 8), (3, 3)):
    exif = Image.Exif()
    exif[274] = tag
    stored = Image.fromarray(seen).transpose(test_image_io.image_io._UPRIGHT[back])
    stored.save(tmp_path / f"photos/2_turned{tag}.png", exif=exif)
  (tmp_path / "photos/3_deep.png").write_bytes(test_image_io.png16(seen.astype(np.uint16)))
  out = tmp_path / "labelled"
  assert segmenter.label_folder(darkness(small(data__image_size=(96, 96))), tmp_path / "photos", out) == 4
  source = sources.open_source(f"folder:{out}", split="all", fields=("image", "tree"))
  assert len(source) == 4 and source[0]["tree"].any()
  for i in range(4):
    for field in ("image", "tree", "fov"):
      np.testing.assert_array_equal(source[i][field], source[0][field])
