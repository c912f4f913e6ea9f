"""Power is that of the octave it lies in; blurred photographs have less, grainy ones more."""

import numpy as np
import pytest
from scipy import ndimage

from experiments import octaves

SIDE = 320


@pytest.mark.parametrize("period, octave", [(3.0, 0), (6.0, 1), (12.0, 2)])
def test_a_wave_has_its_power_in_its_own_octave(period, octave):
  x = np.arange(octaves.WINDOW)
  wave = np.tile(np.sin(2 * np.pi * x / period), (1, octaves.WINDOW, 1))
  power = octaves.power(wave)
  assert np.argmax(power) == octave and power[octave] > 0.95 * power.sum()
  # Parseval: the sum over all frequencies is the number of pixels times the windowed wave's energy.
  hann = np.hanning(octaves.WINDOW + 2)[1:-1]
  energy = ((wave - wave.mean()) * np.outer(hann, hann)) ** 2
  assert power.sum() == pytest.approx(energy.sum() * wave.size, rel=0.05)


def _eyes(count, seed, change=lambda x: x):
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
  fov = np.tile(np.where(np.hypot(x, y) < SIDE / 2, 255, 0).astype(np.uint8)[..., None], (count, 1, 1, 1))
  tree = np.zeros_like(fov)
  tree[:, 150:170, 150:170] = 255
  texture = np.stack([change(rng.normal(0, 12, (SIDE, SIDE))) for _ in range(count)]) + 128
  return {"image": np.repeat(np.clip(texture, 0, 255).astype(np.uint8)[..., None], 3, -1), "tree": tree, "fov": fov}


def test_blur_lowers_and_grain_raises_the_power_of_generated_photographs():
  real = _eyes(8, 0)
  rows = {}
  for name, change in (
    ("same", lambda x: x),
    ("blurred", lambda x: ndimage.gaussian_filter(x, 1.0)),
    ("grainy", lambda x: 2 * x),
  ):
    text = octaves.table(_eyes(8, 1, change), real)
    rows[name] = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
  values = {name: np.array([[float(c.split()[0]) for c in row[4:]] for row in table[:2]]) for name, table in rows.items()}
  assert [row[:4] for row in rows["same"][:2]] == [["whole", "disc", "8", "8"], ["whole", "elsewhere", "8", "8"]]
  assert all(cell == "too few" for row in rows["same"][2:] for cell in row[4:])
  np.testing.assert_allclose(values["same"], 1, atol=0.12)
  np.testing.assert_allclose(values["grainy"], 4, rtol=0.12)
  # Of a Gaussian blur of standard deviation 1, exp(-(2 pi f)²) is left at frequency f: below .1 in the finest octave.
  assert (values["blurred"][:, 0] < 0.1).all() and (values["blurred"][:, 2] > 0.6).all()


def test_ratios_have_intervals_and_few_eyes_none():
  rng = np.random.default_rng(0)
  value, low, high = octaves.ratio(rng.normal(3, 0.3, 50), np.append(rng.normal(2, 0.2, 50), np.nan))
  assert low < 1.5 < high and value == pytest.approx(1.5, rel=0.05) and high - low < 0.15
  assert np.isnan(octaves.ratio(np.ones(3), np.ones(9))).all()
