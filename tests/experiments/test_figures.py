"""The pictures of README.md and docs/results.md: what is in which cell."""

import sys

import numpy as np
import pytest
from PIL import Image

from experiments import figures
from retree_jax.cli import errors
from retree_jax.data import writing

SIDE, FULL = 32, 64


@pytest.fixture
def generated(tmp_path):
  """A folder of two pairs whose discs fill the frame, and their photographs."""
  y, x = np.mgrid[:FULL, :FULL] - (FULL - 1) / 2
  fov = np.uint8(255) * (np.hypot(x, y) < FULL / 2)[..., None]
  rng, photographs = np.random.default_rng(0), []
  for name in ("a", "b"):
    image = np.where(fov > 0, rng.integers(60, 200, (FULL, FULL, 3)), 0).astype(np.uint8)
    tree = np.zeros_like(fov)
    tree[10:50, 30:34] = 255
    for folder, pixels in (("images", image), ("masks", tree), ("fov", fov)):
      writing.write_png(tmp_path / "pairs" / folder / f"{name}.png", pixels)
    photographs.append(image)
  return tmp_path / "pairs", photographs


def _draw(monkeypatch, *arguments) -> int:
  monkeypatch.setattr(sys, "argv", ["figures", *map(str, arguments)])
  monkeypatch.setattr(figures, "FULL", FULL)
  return errors.run(figures.main)


def _cell(picture, row: int, column: int):
  step = SIDE + figures.GAP
  return picture[row * step : row * step + SIDE, column * step : column * step + SIDE]


def test_middles_are_shown_pixel_by_pixel_below_real_ones(generated, tmp_path, monkeypatch):
  folder, photographs = generated
  assert not _draw(monkeypatch, "--generated", folder, "--real", "phantom:20", "--side", SIDE, "--out", tmp_path / "out")
  shown = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "out").iterdir()}
  wide = 2 * SIDE + figures.GAP  # two pairs, so two columns
  assert {name: picture.shape for name, picture in shown.items()} == {
    name: (rows * (SIDE + figures.GAP) - figures.GAP, wide, 3)
    for name, rows in (("pairs", 2), ("detail", 2), ("closest", 2), ("real_and_generated", 4))
  }
  for column, photograph in enumerate(photographs):
    np.testing.assert_array_equal(_cell(shown["detail"], 1, column), photograph[16:48, 16:48])
  tree = _cell(shown["pairs"], 1, 0)
  assert tree[15, 16].min() > 200 and tree[15, 4].max() < 50 and tree[30, 16].max() < 50
  np.testing.assert_array_equal(_cell(shown["real_and_generated"], 3, 0), tree)


@pytest.mark.parametrize("flags", [("--num", 0), ("--side", 4), ("--side", FULL + 1)])
def test_sizes_that_cannot_be_are_refused(flags, generated, tmp_path, monkeypatch, capsys):
  assert _draw(monkeypatch, "--generated", generated[0], "--out", tmp_path / "out", *flags)
  assert "must be at least 1, and --side from 8 to 64 pixels" in capsys.readouterr().err and not (tmp_path / "out").exists()
