"""Made-up results of an evaluation, with known answers."""

import numpy as np

from retree_jax.metrics import fidelity, vessels
from retree_jax.report import files


def measurement(value, low, high, count=40):
  return {"value": value, "low": low, "high": high, "num_a": count, "num_b": count, "note": ""}


def mean(value, count=40):
  return {"mean": value, "std": 0.02, "low": value - 0.01, "high": value + 0.01, "count": count}


def result(count=40, p=0.6, precision=0.9, ks_p=0.8, darker=0.95, position=0.97, shift=(0, 0), names=("one", "two")):
  """A made-up comparison of `count` generated with `count` real eyes."""
  rng = np.random.default_rng(0)
  trees = {
    side: [{"name": names[0], **{n: float(rng.normal(5, 1)) for n in vessels.BIOMARKERS}} for _ in range(count)]
    for side in ("generated", "real")
  }
  entry = {
    "wasserstein": 0.1,
    "wasserstein_normalised": 0.1,
    "ks": 0.2,
    "ks_p": ks_p,
    "mean_a": 5.0,
    "std_a": 1.0,
    "mean_b": 5.1,
    "std_b": 1.0,
    "matched": {"value": 0.2, "low": 0.1, "high": 0.3},
    "floor": {"value": 0.2, "low": 0.1, "high": 0.3},
    "count": count // 2,
  }
  measures = {
    name: {"generated": mean(darker, count), "real": mean(0.97, count), "shuffled": mean(0.45, count), "position": position}
    for name in fidelity.MEASURES
  }
  picture = np.full((64, 64, 3), 90, np.uint8)
  shown = [{"name": name, "image": picture, "tree": picture[..., :1], "fov": picture[..., :1]} for name in names]
  distances = {
    "frechet": measurement(2.0, 1.0, 3.0, count),
    "kernel": measurement(0.1, -0.1, 0.3, count),
    "kernel_floor": measurement(0.0, -0.2, 0.2, count // 2),
    "precision": measurement(precision, 0, 1, count),
    "coverage": measurement(precision, 0, 1, count),
  }
  test = {"energy": 0.1, "p": p, "count_a": count, "count_b": count}
  return {
    "format": files.FORMAT,
    "settings": {
      "size": [256, 256],
      "features": {"photographs": "scattering", "trees": "scattering"},
      "num": None,
      "seed": 0,
      "segmenter": None,
    },
    "sets": {"generated": {"title": "made", "count": count}, "real": {"title": "real", "count": count}},
    "notes": ["Take care."],
    "distances": {"photographs": distances, "trees": distances},
    "tests": {"photographs": test, "trees": test},
    "vessels": {
      "definitions": {n: list(d) for n, d in vessels.BIOMARKERS.items()},
      "trees": trees,
      "distances": {name: dict(entry) for name in vessels.BIOMARKERS},
    },
    "fidelity": {
      "definitions": {n: list(d) for n, d in fidelity.MEASURES.items()},
      "measures": measures,
      "shift": {"generated": list(shift), "real": [0, 0]},
      "pairs": {"generated": [], "real": []},
    },
    "segmenter": None,
    "privacy": None,
    "pictures": {"generated": shown, "real": shown},
  }
