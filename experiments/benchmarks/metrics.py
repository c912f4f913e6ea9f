"""How long the slow metrics take, on real vessel masks, and what that makes for 10,000 images.

    python -m experiments.benchmarks.metrics --real PATH [--size 512] [--num 16] [--out results.json]

PATH is a pair folder (its masks/ is read), or a folder of masks. Each mask is area-averaged to size x size,
as trees are in this project, and cut at one half. Times are processor time of one process (set
OPENBLAS_NUM_THREADS=1), which other work on the machine does not lengthen; images are independent, so n
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

from retree_jax.data import folders
from retree_jax.metrics import alignment, images, segmentation, skeleton, topology, vessels


def read_masks(folder, size: int, num: int) -> list[np.ndarray]:
  """Up to `num` masks of a folder, [size, size] bool.

  Raises:
    ValueError: there are no masks, or one cannot be read.
  """
  source = folders.FolderSource(folder, ("tree",))
  # Spread over the folder, so that several kinds of eyes are among them.
  chosen = np.unique(np.linspace(0, len(source) - 1, min(num, len(source))).astype(int))
  trees = (Image.fromarray(source[i]["tree"][..., 0]) for i in chosen)
  return [np.asarray(tree.resize((size, size), Image.Resampling.BOX)) >= 128 for tree in trees]


def measure(function, cases) -> dict[str, float]:
  """Milliseconds per call: median and 95th percentile over the cases, and minutes for 10,000 images."""
  function(cases[0])
  taken = []
  for case in cases:
    start = time.process_time()
    function(case)
    taken.append(1e3 * (time.process_time() - start))
  return {
    "median_ms": float(np.median(taken)),
    "p95_ms": float(np.percentile(taken, 95)),
    "minutes_per_10000": float(np.mean(taken)) * 10_000 / 60_000,
  }


def nearest_neighbours(num: int = 256, num_train: int = 1000, num_features: int = 512) -> dict[str, float]:
  """Seconds that searches in sets of pictures take, and what they make for 10,000 generated ones.

  Measured on `num` smooth random pictures of 256 x 256 and as many random features; preparing and aligning grow with
  the number of pictures, searching and the distances of features with the number of pairs.

  Args:
    num: pictures on either side.
    num_train: training images, and held-out ones, that 10,000 are searched in.
    num_features: of the image distances.
  """
  rng = np.random.default_rng(0)
  field = ndimage.gaussian_filter(rng.normal(size=(num, 256, 256)), (0, 4, 4))
  disc = np.hypot(*(np.mgrid[:256, :256] - 127.5)) < 124
  grey = np.clip(110 + 25 * field / field.std(), 0, 255) * disc
  pictures = np.round(grey[..., None] * np.array([1.0, 0.6, 0.3])).astype(np.uint8)

  def seconds(function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - start

  prepared, preparing = seconds(alignment.prepare, pictures)
  alignment.nearest(prepared, prepared, 1)  # compiles
  _, both = seconds(alignment.nearest, prepared, prepared)
  # Against few references nearly all of the time is alignment.
  few = alignment.Prepared(*(getattr(prepared, name)[:4] for name in ("spectra", "searched", "coarse", "fine")))
  _, aligning = seconds(alignment.nearest, prepared, few)
  searching = max(both - aligning, 0)
  a, b = rng.normal(size=(2, 4 * num, num_features))
  _, neighbours = seconds(images.precision_recall_density_coverage, a, b)
  _, kernel = seconds(images.kernel_distance, a, b, len(a))
  pairs = 10_000 * 2 * num_train / num**2  # training and held-out images
  scale = (10_000 / (4 * num)) ** 2
  return {
    "prepare_ms_per_picture": 1e3 * preparing / num,
    "search_us_per_pair": 1e6 * searching / num**2,
    "align_ms_per_picture": 1e3 * aligning / num,
    "num_train": num_train,
    "audit_minutes_per_10000": (preparing * 10_000 / num + searching * pairs + 2 * aligning * 10_000 / num) / 60,
    "num_features": num_features,
    "precision_recall_minutes_per_10000": neighbours * scale / 60,
    "kernel_distance_minutes_per_10000": kernel * scale / 60,
  }


def run(folder, size: int = 512, num: int = 16) -> dict:
  """All timings as a JSON-able dict."""
  masks = read_masks(folder, size, num)
  # A prediction like a network's: smooth, with ties where it saturates, and off by a pixel here and there.
  predictions = [np.clip(ndimage.gaussian_filter(np.roll(m, 1, 0).astype(np.float32), 1), 0, 1) for m in masks]
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
  many = [{name: value * (1 + 0.001 * i) for name, value in found[i % len(found)].items()} for i in range(10_000)]
  start = time.process_time()
  vessels.distances(many, many[:1000])
  return {
    "size": size,
    "num_masks": len(masks),
    "cpu": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
    "per_image": timings,
    "distances_10000_vs_1000_s": time.process_time() - start,
    "nearest_neighbours": nearest_neighbours(),
  }


def main(arguments=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--real", required=True, help="pair folder or folder of masks")
  parser.add_argument("--size", type=int, default=512, help="side of the square masks, pixels")
  parser.add_argument("--num", type=int, default=16, help="how many masks to time")
  parser.add_argument("--out", help="JSON file to write")
  options = parser.parse_args(arguments)
  result = run(options.real, options.size, options.num)
  print(f"{result['num_masks']} masks of {options.size} x {options.size}, one process of {result['cores']} cores")
  for name, row in result["per_image"].items():
    print(
      f"{name:48s} {row['median_ms']:8.1f} ms  (95 %: {row['p95_ms']:.1f})   {row['minutes_per_10000']:6.1f} min for 10,000"
    )
  print(f"vessels.distances, 10,000 trees against 1,000: {result['distances_10000_vs_1000_s']:.2f} s")
  found = result["nearest_neighbours"]
  print(
    f"privacy audit in pixels: {found['prepare_ms_per_picture']:.1f} ms to prepare a picture, "
    f"{found['search_us_per_pair']:.1f} us to compare a pair at all rotations, {found['align_ms_per_picture']:.1f} ms "
    f"to align its nearest: {found['audit_minutes_per_10000']:.1f} min for 10,000 against {found['num_train']} "
    "training and as many held-out images"
  )
  print(
    f"10,000 against 10,000 of {found['num_features']} features: precision, recall, density, coverage "
    f"{found['precision_recall_minutes_per_10000']:.1f} min, kernel distance "
    f"{found['kernel_distance_minutes_per_10000']:.1f} min"
  )
  if options.out:
    pathlib.Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
