"""Generated and real eyes compared within each outline: whole discs, and discs cut by the camera above and below.

    python -m experiments.by_outline --generated pairs --real folder:data/CHASE_DB1+folder:data/HRF_native --out by_outline.md

Cameras differ in what they show, and graders in what they trace. In a set that mixes cameras, distances and means over the
whole set also depend on the proportions of the mixture; within one outline they do not. The test split of --real is used.
Kernel distances use scattering features; the floor is the distance between random halves of the real eyes.
"""

import argparse
import sys

import numpy as np

from experiments.sampling_table import distance, floor, interval
from retree_jax.cli import errors
from retree_jax.data import sources, writing
from retree_jax.data.attributes import is_whole
from retree_jax.metrics import vessels
from retree_jax.report import measure

OUTLINES = {"whole": True, "cut": False}  # the result of `is_whole` for each
MARKS = {
  "density": "{:.3f}",
  "length": "{:.0f}",
  "width": "{:.2f}",
  "branching_angle": "{:.1f}",
  "fractal_dimension": "{:.2f}",
  "components": "{:.0f}",
}
LEAST = 4  # smallest number of eyes on either side for a comparison


def fitted(source: str, split: str, side: int, resample: bool = True) -> dict[str, np.ndarray]:
  """All eyes of a source as `evaluate` measures them, uint8 [N, side, side, C] each of "image", "tree" and "fov".

  Args:
    source, split: see `sources.open_source`.
    side: in pixels.
    resample: False leaves eyes of that size as they are, whether or not their disc fills the frame.
  """
  opened = sources.open_source(source, split=split, fields=("image", "tree"), size=(side, side))
  eyes = [] if resample else [opened[i] for i in range(len(opened))]
  if not eyes or any(eye["image"].shape[:2] != (side, side) for eye in eyes):
    eyes = list(measure.fitted(opened, range(len(opened)), (side, side)))
  return {field: np.stack([eye[field] for eye in eyes]) for field in ("image", "tree", "fov")}


def table(generated: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> str:
  """The comparison as a Markdown table.

  Args:
    generated, real: uint8 "image" [N, H, W, 3], "tree" and "fov" [N, H, W, 1]; N may differ between the two.

  Returns:
    One row for each outline, with numbers where both sides have at least `LEAST` eyes. Vessel measures are given as
    "generated (real)", in pixels and degrees.
  """
  titles = [
    "outline",
    "generated",
    "real",
    "trees: kernel distance",
    "floor",
    "photographs: kernel distance",
    "floor",
    *(name.replace("_", " ") for name in MARKS),
  ]
  lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
  sides = [(eyes, np.array([is_whole(fov) for fov in eyes["fov"]])) for eyes in (generated, real)]
  for name, wanted in OUTLINES.items():
    made, known = ({field: pixels[whole == wanted] for field, pixels in eyes.items()} for eyes, whole in sides)
    counts = len(made["fov"]), len(known["fov"])
    if min(counts) < LEAST:
      lines.append(f"| {name} | {counts[0]} | {counts[1]} |" + " too few |" * (4 + len(MARKS)))
      continue
    distances = [
      text
      for field in ("tree", "image")
      for text in (interval(distance(known[field], made[field])), interval(floor(known[field])))
    ]
    measured = [
      [vessels.biomarkers(tree[..., 0] >= 128, fov[..., 0] >= 128) for tree, fov in zip(eyes["tree"], eyes["fov"], strict=True)]
      for eyes in (made, known)
    ]
    marks = ["{} ({})".format(*(_mean([m[mark] for m in eyes], form) for eyes in measured)) for mark, form in MARKS.items()]
    lines.append("| " + " | ".join([name, *map(str, counts), *distances, *marks]) + " |")
  return "\n".join(lines) + "\n"


def _mean(values, form: str) -> str:
  """The mean of the finite values; a dash if there is none (a tree without forks has no branching angles)."""
  known = [v for v in values if np.isfinite(v)]
  return form.format(np.mean(known)) if known else "–"


def compare(name: str, description: str, table, resample: bool = True) -> None:
  """The command line of a comparison of generated with real eyes.

  Args:
    name: of the module in `experiments`.
    description: for --help.
    table: function of the two sets, as `fitted` returns them, to a Markdown table.
    resample: see `fitted`; of the generated set.
  """
  p = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
  p.add_argument("--generated", required=True, help="folder of generated pairs")
  p.add_argument("--real", required=True, help="source of real pairs (its test split)")
  p.add_argument("--size", type=int, default=512, help="side at which eyes are compared")
  p.add_argument("--out", help="file to write the table to; the table is always printed")
  args = p.parse_args()
  text = table(fitted(f"folder:{args.generated}", "all", args.size, resample), fitted(args.real, "test", args.size))
  print(text)
  if args.out:
    writing.write_text(args.out, text)


def main() -> None:
  """Runs the command line."""
  compare("by_outline", __doc__.split("\n\n")[0], table)


if __name__ == "__main__":
  sys.exit(errors.run(main))
