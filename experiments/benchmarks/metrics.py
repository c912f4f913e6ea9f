"""How long the slow metrics take, on real vessel masks, and what that makes for 10,000 images.

    python -m experiments.benchmarks.metrics --real PATH [--size 512] [--num 16] [--out results.json]

PATH is a pair folder (its masks/ is read), or a folder of masks. Each mask is area-averaged to size x size,
as trees are in this project, and cut at one half. One process is timed; images are independent, so n
processes take 1/n of it.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import numpy as np
from PIL import Image
from scipy import ndimage

from retree_jax.metrics import segmentation, skeleton, topology, vessels

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".ppm", ".bmp"}


def read_masks(folder, size: int, num: int) -> list[np.ndarray]:
  """Up to `num` masks of a folder, [size, size] bool.

  Raises:
    ValueError: if the folder holds no pictures.
  """
  folder = pathlib.Path(folder)
  inner = folder / "masks"
  paths = sorted(p for p in (inner if inner.is_dir() else folder).glob("*") if p.suffix.lower() in _SUFFIXES)
  if not paths:
    raise ValueError(
      f"{folder} holds no masks; point --real at a pair folder (with masks/) or a folder of masks"
    )
  # Spread over the folder, so that several kinds of eyes are among them.
  chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(num, len(paths))).astype(int))]
  return [
    np.asarray(Image.open(p).convert("L").resize((size, size), Image.Resampling.BOX)) >= 128 for p in chosen
  ]


def measure(function, cases) -> dict[str, float]:
  """Milliseconds per call: median and 95th percentile over the cases, and hours for 10,000 images."""
  function(cases[0])
  taken = []
  for case in cases:
    start = time.perf_counter()
    function(case)
    taken.append(1e3 * (time.perf_counter() - start))
  return {
    "median_ms": float(np.median(taken)),
    "p95_ms": float(np.percentile(taken, 95)),
    "minutes_per_10000": float(np.mean(taken)) * 10_000 / 60_000,
  }


def run(folder, size: int = 512, num: int = 16) -> dict:
  """All timings as a JSON-able dict."""
  masks = read_masks(folder, size, num)
  # A prediction like a network's: smooth, with ties where it saturates, and off by a pixel here and there.
  predictions = [
    np.clip(ndimage.gaussian_filter(np.roll(m, 1, 0).astype(np.float32), 1), 0, 1) for m in masks
  ]
  pairs = list(zip(predictions, masks, strict=True))
  timings = {
    "skeletonize (thinning alone)": measure(skeleton.skeletonize, masks),
    "skeleton.trace (pruned sub-pixel centrelines)": measure(skeleton.trace, masks),
    "topology.betti_numbers": measure(topology.betti_numbers, masks),
    "topology.box_dimension": measure(topology.box_dimension, masks),
    "vessels.biomarkers (all of them)": measure(vessels.biomarkers, masks),
    "segmentation.scores (with AUC, clDice, Betti)": measure(lambda pair: segmentation.scores(*pair), pairs),
  }
  found = [vessels.biomarkers(m) for m in masks[:2]]
  many = [
    {name: value * (1 + 0.001 * i) for name, value in found[i % len(found)].items()} for i in range(10_000)
  ]
  start = time.perf_counter()
  vessels.distances(many, many[:1000])
  return {
    "size": size,
    "num_masks": len(masks),
    "cpu": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
    "per_image": timings,
    "distances_10000_vs_1000_s": time.perf_counter() - start,
  }


def main(arguments=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--real", required=True, help="pair folder or folder of masks")
  parser.add_argument("--size", type=int, default=512, help="side of the square masks, pixels")
  parser.add_argument("--num", type=int, default=16, help="how many masks to time")
  parser.add_argument("--out", help="JSON file to write")
  options = parser.parse_args(arguments)
  result = run(options.real, options.size, options.num)
  print(
    f"{result['num_masks']} masks of {options.size} x {options.size}, one process of {result['cores']} cores"
  )
  for name, row in result["per_image"].items():
    print(
      f"{name:48s} {row['median_ms']:8.1f} ms  (95 %: {row['p95_ms']:.1f})   "
      f"{row['minutes_per_10000']:6.1f} min for 10,000"
    )
  print(f"vessels.distances, 10,000 trees against 1,000: {result['distances_10000_vs_1000_s']:.2f} s")
  if options.out:
    pathlib.Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
