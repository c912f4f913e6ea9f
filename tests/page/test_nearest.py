"""The nearest training eye: a copy is found whatever its pose, and other eyes are as far as held-out ones."""

import io

import numpy as np
import pytest
from PIL import Image

from retree_jax.data import phantom, writing
from retree_jax.page import nearest
from tests.page.conftest import SIDE


@pytest.fixture(scope="module")
def eyes(paths):
  return nearest.TrainingEyes(paths["train"])


def test_a_mirrored_copy_is_named_and_marked(eyes):
  eye = phantom.eye(2, (SIDE, SIDE))
  told, picture = eyes.nearest(eye["image"][:, ::-1].copy(), eye["fov"][:, ::-1].copy())
  assert told["name"] == "2" and told["distance"] < 0.1 and told["near"] and told["isolated"]
  shown = np.asarray(Image.open(io.BytesIO(picture)).convert("L").resize((SIDE, SIDE))).astype(float)
  seen = eye["image"][:, ::-1].mean(-1)
  assert np.corrcoef(shown.ravel(), seen.ravel())[0, 1] > 0.9  # registered: mirrored as the copy is


def test_another_eye_is_not_marked(eyes):
  eye = phantom.eye(50, (SIDE, SIDE))
  told, _ = eyes.nearest(eye["image"], eye["fov"])
  assert told["name"] in list("0123") and told["distance"] > 0.2 and not told["isolated"]
  assert 0 < told["others"][0] <= told["others"][1]


def test_too_few_eyes_are_refused(tmp_path, paths):
  with pytest.raises(ValueError, match="does not exist"):
    nearest.TrainingEyes(str(tmp_path / "nowhere"))
  for seed in range(3):
    writing.write_png(tmp_path / f"images/{seed}.png", phantom.eye(seed, (SIDE, SIDE))["image"])
  writing.write_json(tmp_path / "splits.json", {"train": ["0", "1"], "test": ["2"]})
  with pytest.raises(ValueError, match="2 training and 1 other eyes, and at least 3 and 2 are needed"):
    nearest.TrainingEyes(str(tmp_path))
