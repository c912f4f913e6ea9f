"""Sharpness of generated photographs: their power in the three finest octaves over that of real photographs.

    python -m experiments.octaves --generated pairs --real folder:data/CHASE_DB1+folder:data/HRF_native --out octaves.md

The power is that of the green channel in windows of 64×64 pixels (Hann window, mean removed), summed over rings of spatial
frequency: 1/4 to 1/2 cycles per pixel (details of 2 to 4 pixels), 1/8 to 1/4 and 1/16 to 1/8. One window lies on the optic
disc, where the vessels meet (`attributes.root`); the others tile the rest of the field of view. A ratio of 1 is the sharpness
of real photographs, below 1 they are blurred, above 1 grainy. Brackets hold 95 % bootstrap intervals over eyes. The test split
of --real is used.
"""

import sys

import numpy as np
from einops import rearrange

from experiments.by_outline import LEAST, OUTLINES, compare
from retree_jax.cli import errors
from retree_jax.data import attributes

WINDOW = 64
OCTAVES = ("2–4 px", "4–8 px", "8–16 px")
PLACES = ("disc", "elsewhere")


def power(windows: np.ndarray) -> np.ndarray:
  """Mean power of windows [N, WINDOW, WINDOW] in each of `OCTAVES`, float [3]."""
  hann = np.hanning(WINDOW + 2)[1:-1]
  centred = windows - windows.mean((1, 2), keepdims=True)
  spectrum = np.abs(np.fft.fft2(centred * np.outer(hann, hann))) ** 2
  frequency = np.fft.fftfreq(WINDOW)
  radius = np.hypot(frequency[:, None], frequency)
  rings = [(radius >= 0.5 ** (k + 2)) & (radius < 0.5 ** (k + 1)) for k in range(len(OCTAVES))]
  return np.array([spectrum[:, ring].sum(1).mean() for ring in rings])


def eye_power(image: np.ndarray, tree: np.ndarray, fov: np.ndarray) -> np.ndarray:
  """Power of one photograph in each of `PLACES` and `OCTAVES`, float [2, 3]; NaN where no window fits.

  Args:
    image: uint8 [H, W, 3].
    tree, fov: uint8 0/255 [H, W, 1].
  """
  green, inside = image[..., 1].astype(float), fov[..., 0] >= 128
  out = np.full((len(PLACES), len(OCTAVES)), np.nan)
  if not inside.any() or min(inside.shape) < WINDOW:
    return out
  root = attributes.root(tree[..., 0] >= 128, inside)
  y, x = (int(np.clip(at - WINDOW // 2, 0, side - WINDOW)) for at, side in zip(root, inside.shape, strict=True))
  disc = np.zeros_like(inside)
  disc[y : y + WINDOW, x : x + WINDOW] = True
  if inside[disc].all():
    out[0] = power(green[disc].reshape(1, WINDOW, WINDOW))
  rows, columns = (n // WINDOW * WINDOW for n in inside.shape)
  tile = lambda x: rearrange(x[:rows, :columns], "(y h) (x w) -> (y x) h w", h=WINDOW, w=WINDOW)  # noqa: E731
  rest = tile(inside & ~disc).all((1, 2))
  if rest.any():
    out[1] = power(tile(green)[rest])
  return out


def ratio(generated: np.ndarray, real: np.ndarray, num_bootstrap: int = 1000, seed: int = 0) -> tuple[float, float, float]:
  """(ratio of means, low, high) of two lists of values, NaN left out; 95 % bootstrap interval over both lists."""
  generated, real = (np.asarray(x)[np.isfinite(x)] for x in (generated, real))
  if min(len(generated), len(real)) < LEAST:
    return (np.nan,) * 3
  rng = np.random.default_rng(seed)
  draws = [rng.choice(x, (num_bootstrap, len(x))).mean(1) for x in (generated, real)]
  return (float(generated.mean() / real.mean()), *map(float, np.quantile(draws[0] / draws[1], (0.025, 0.975))))


def table(generated: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> str:
  """The comparison as a Markdown table, one row for each outline and place.

  Args:
    generated, real: as `by_outline.fitted` returns them.
  """
  lines = [f"| {' | '.join(('outline', 'place', 'generated', 'real', *OCTAVES))} |", "|" + "---|" * (4 + len(OCTAVES))]
  sides = []
  for eyes in (generated, real):
    values = np.stack([eye_power(*eye) for eye in zip(eyes["image"], eyes["tree"], eyes["fov"], strict=True)])
    sides.append((values, np.array([attributes.is_whole(fov) for fov in eyes["fov"]])))
  for name, wanted in OUTLINES.items():
    made, known = (values[whole == wanted] for values, whole in sides)
    for p, place in enumerate(PLACES):
      found = [ratio(made[:, p, k], known[:, p, k]) for k in range(len(OCTAVES))]
      cells = ["too few" if np.isnan(r[0]) else "{:.2f} [{:.2f}, {:.2f}]".format(*r) for r in found]
      counts = [str(int(np.isfinite(values[:, p, 0]).sum())) for values in (made, known)]
      lines.append("| " + " | ".join([name, place, *counts, *cells]) + " |")
  return "\n".join(lines) + "\n"


def main() -> None:
  """Runs the command line."""
  compare("octaves", __doc__.split("\n\n")[0], table, resample=False)


if __name__ == "__main__":
  sys.exit(errors.run(main))
