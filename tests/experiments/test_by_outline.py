"""Eyes are compared with those of their own outline."""

import numpy as np
import pytest

from experiments import by_outline
from experiments.benchmarks import superres

SIDE = 64


def _disc(height: float) -> np.ndarray:
  y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
  return np.uint8(255) * ((np.hypot(x, y) < SIDE / 2) & (np.abs(y) < height * SIDE / 2))[..., None]


@pytest.mark.parametrize(("height", "whole"), [(1, True), (0.97, True), (0.9, False), (0.7, False)])
def test_a_disc_that_the_camera_cut_is_not_whole(height, whole):
  assert by_outline.is_whole(_disc(height)) == whole
  assert not by_outline.is_whole(np.zeros((SIDE, SIDE, 1), np.uint8))


def _eyes(count: int, height: float, bar: int, seed: int) -> dict[str, np.ndarray]:
  """Discs with a vertical vessel `bar` pixels wide, each in a place of its own."""
  rng = np.random.default_rng(seed)
  fov = np.stack([_disc(height)] * count)
  tree = np.zeros_like(fov)
  for one, left in zip(tree, rng.integers(20, 40, count), strict=True):
    one[16:48, left : left + bar] = 255
  return {"fov": fov, "tree": tree, "image": np.where(fov > 0, rng.integers(0, 256, (*fov.shape[:3], 3)), 0).astype(np.uint8)}


def test_the_mixture_of_outlines_does_not_enter_the_measures():
  whole, cut = _eyes(9, 1.0, 5, 0), _eyes(9, 0.7, 3, 1)
  join = lambda *sets: {field: np.concatenate([s[field] for s in sets]) for field in whole}  # noqa: E731
  few_whole = {field: pixels[:5] for field, pixels in whole.items()}
  _, _, *rows = by_outline.table(join(few_whole, cut), join(whole, cut)).splitlines()
  cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
  assert [row[:3] for row in cells] == [["whole", "5", "9"], ["cut", "9", "9"]]
  widths = [[float(part.strip("()")) for part in row[9].split()] for row in cells]
  np.testing.assert_allclose(widths, [[5, 5], [3, 3]], atol=0.05)


def test_too_few_eyes_are_not_compared():
  whole, cut = _eyes(6, 1.0, 5, 0), _eyes(6, 0.7, 3, 1)
  rows = by_outline.table(whole, cut).splitlines()[2:]
  assert all("too few" in row and "nan" not in row for row in rows)


def test_photographs_that_lost_their_texture_are_far_from_the_real_ones():
  """PSNR would call the blurred ones the better guess; each outline is compared by itself, and too few eyes are not."""
  whole, cut = _eyes(8, 1.0, 5, 0), _eyes(3, 0.7, 3, 1)
  real = np.concatenate([whole["image"], cut["image"]])
  again = np.concatenate([_eyes(8, 1.0, 5, 7)["image"], cut["image"]])
  blurred = np.full_like(real, 127) * (real.max(-1, keepdims=True) > 0)
  found = superres.looks({"real": real, "superres": again, "bicubic": blurred}, np.arange(11) < 8)
  assert list(found) == ["whole"] and found["whole"]["eyes"] == 8
  scores = {name: found["whole"][name]["value"] for name in ("superres", "bicubic", "floor")}
  assert scores["bicubic"] > 100 * max(scores["superres"], scores["floor"], 0.01)
