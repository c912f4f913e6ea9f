"""The pictures of README.md and docs/results.md.

    python -m experiments.figures --generated out --real folder:data/CHASE_DB1+folder:data/HRF_native --out docs

pairs.png: generated photographs above their trees. real_and_generated.png: held-out real pairs above generated pairs. The
pairs are not selected by eye: the first pairs of the generated set, and evenly spaced held-out pairs. detail.png: the centres
of the same photographs at full resolution. closest.png: the generated photographs nearest to a training eye above those eyes,
rotated and scaled to the best match (`retree_jax.metrics.privacy`).
"""

import argparse
import pathlib
import sys

import numpy as np
from PIL import Image

from retree_jax.cli import errors
from retree_jax.data import pipeline, sources, writing
from retree_jax.metrics import privacy
from retree_jax.report import measure

GAP = 4  # white pixels between images
FULL = 512  # side in pixels of the photographs whose centres are shown at full resolution


def sheet(rows: list[list[np.ndarray]], side: int) -> np.ndarray:
  """Combines rows of images, uint8 [H, W, 1 or 3], into one uint8 image of side × side cells."""

  def cell(picture):
    grey = picture[..., 0] if picture.shape[-1] == 1 else picture
    small = Image.fromarray(grey).resize((side, side), Image.Resampling.LANCZOS).convert("RGB")
    return np.pad(np.asarray(small), ((0, GAP), (0, GAP), (0, 0)), constant_values=255)

  return np.concatenate([np.concatenate([cell(p) for p in row], axis=1) for row in rows])[:-GAP, :-GAP]


def load(spec: str, split: str, num: int, side: int, spread: bool) -> tuple[list, list]:
  """(photographs, trees) of the first `num` pairs, or of `num` evenly spaced pairs with `spread`."""
  source = sources.open_source(spec, split=split, fields=("image", "tree"))
  count = min(num, len(source))
  rows = np.linspace(0, len(source) - 1, count).astype(int) if spread else np.arange(count)
  chosen = sources.ChosenSource(source, [source.names[i] for i in rows])
  batch = next(iter(pipeline.evaluation_batches(chosen, size=(side, side), batch_size=count, fields=("image", "tree"))))
  return list(batch["image"]), list(batch["tree"])


def closest(generated: str, real: str, num: int, side: int) -> list[list[np.ndarray]]:
  """Two rows: the `num` generated photographs nearest to a training eye, nearest first, and those training eyes."""
  opened = [
    sources.open_source(spec, split=split, fields=("image",))
    for spec, split in ((generated, "all"), (real, "train"), (real, "test"))
  ]
  thumbnails = [measure.photographs(s, np.arange(len(s)), (side, side)).thumbnails["image"] for s in opened]
  pairs = privacy.audit(*thumbnails).spaces["pixels"].closest(num)
  made, known = (
    list(measure.fitted(source, rows, (side, side)))
    for source, rows in ((opened[0], [p.generated for p in pairs]), (opened[1], [p.train for p in pairs]))
  )
  return [[eye["image"] for eye in made], [pair.pose(eye["image"], side) for pair, eye in zip(pairs, known, strict=True)]]


def middles(pictures: list[np.ndarray], side: int) -> list[np.ndarray]:
  """The central side × side pixels of each image."""
  corner = [(s - side) // 2 for s in pictures[0].shape[:2]]
  return [p[corner[0] : corner[0] + side, corner[1] : corner[1] + side] for p in pictures]


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.figures", description=__doc__.split("\n\n")[0])
  p.add_argument("--generated", required=True, help="folder of generated pairs")
  p.add_argument("--real", help="source of real pairs: the test split is shown, and the train split searched for nearest eyes")
  p.add_argument("--num", type=int, default=6, help="largest number of pairs in a row")
  p.add_argument("--side", type=int, default=192, help="side of a cell in pixels")
  p.add_argument("--out", required=True, help="folder to write")
  args = p.parse_args()
  out = pathlib.Path(args.out)
  if args.num < 1 or not 8 <= args.side <= FULL:
    raise ValueError(f"--num must be at least 1, and --side from 8 to {FULL} pixels")
  num = min(
    [args.num, len(sources.open_source(f"folder:{args.generated}", split="all"))]
    + ([len(sources.open_source(args.real, split="test"))] if args.real else [])
  )
  photographs, trees = load(f"folder:{args.generated}", "all", num, 2 * args.side, spread=False)
  writing.write_png(out / "pairs.png", sheet([photographs, trees], args.side))
  if args.real:
    real_photographs, real_trees = load(args.real, "test", num, 2 * args.side, spread=True)
    writing.write_png(out / "real_and_generated.png", sheet([real_photographs, real_trees, photographs, trees], args.side))
    full = [
      load(spec, split, num, FULL, spread)[0]
      for spec, split, spread in ((args.real, "test", True), (f"folder:{args.generated}", "all", False))
    ]
    writing.write_png(out / "detail.png", sheet([middles(photographs, args.side) for photographs in full], args.side))
    rows = closest(f"folder:{args.generated}", args.real, num, args.side)
    writing.write_png(out / "closest.png", sheet(rows, args.side))


if __name__ == "__main__":
  sys.exit(errors.run(main))
