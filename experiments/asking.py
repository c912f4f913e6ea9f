"""What is asked of trees beside what is measured on them.

    python -m experiments.asking --tree tree --refine refine,refine_512 --num 24 --out asking

For each attribute that the tree stage knows, --num trees are asked for it alone: words in turn, numbers evenly spread over two
standard deviations around the middle (`retree_jax.data.attributes`). The drawn trees are measured as training trees are. Writes
PATH.json and PATH.md: Spearman's rank correlation for numbers, the share of right ones for words.
"""

import argparse
import pathlib
import sys

import numpy as np
from scipy import stats

from retree_jax.cli import cpu, errors
from retree_jax.data import attributes, transforms, writing
from retree_jax.inference import host_work, pairs

_SPREAD = 1.0  # standard deviations to either side of the mean


def asked_values(name: str, num: int) -> np.ndarray:
  """The values that are asked for, [num]."""
  if name in attributes.WORDS:
    return np.resize(list(attributes.WORDS[name].values()), num)
  centre, scale = attributes.usual(name)
  return np.linspace(centre - _SPREAD * scale, centre + _SPREAD * scale, num)


def agreement(name: str, asked, measured) -> float:
  """Spearman's rank correlation, or for words the share of trees that are nearer to what was asked than to the other word."""
  asked, measured = np.asarray(asked), np.asarray(measured)
  if name not in attributes.WORDS:
    return float(stats.spearmanr(asked, measured).statistic)
  words = np.array(list(attributes.WORDS[name].values()))
  nearest = words[np.abs(measured[:, None] - words).argmin(axis=1)]
  return float(np.mean((nearest == asked) & np.isfinite(measured)))  # what cannot be measured is wrong


def main() -> None:
  """Runs the command line."""
  p = argparse.ArgumentParser(prog="python -m experiments.asking", description=__doc__.split("\n\n")[0])
  p.add_argument("--tree", default="tree")
  p.add_argument("--refine", default="refine,refine_512")
  p.add_argument("--num", type=int, default=24, help="trees for each attribute")
  p.add_argument("--guidance", type=float, help="guidance scale of the tree stage (default: as for `generate`)")
  p.add_argument("--candidates", type=int, help="trees drawn for each that is taken (default: as for `generate`)")
  p.add_argument("--attributes", nargs="+", choices=list(attributes.ATTRIBUTES), help="by default all that the stage knows")
  p.add_argument("--out", default="asking", help="path without suffix")
  args = p.parse_args()
  models, rows = pairs.load_models(tree=args.tree, refine=args.refine), []
  known = pairs.Generator(models).attributes
  for name in args.attributes or known:
    asked = asked_values(name, args.num)
    options = {"ask_guidance": args.guidance, "candidates": args.candidates}
    generator = pairs.Generator(models, ask={name: float(asked[0])}, **options)
    numbers = known.index(name) * args.num + np.arange(args.num)
    fields, _ = generator.trees(numbers, 0, [{name: float(value)} for value in asked])
    masks = fields["vessels"] if "vessels" in fields else transforms.binarise(fields["tree"])
    measured = [host_work.measure(*tree)[name] for tree in zip(masks, fields["fov"], strict=True)]
    rows.append(
      {"attribute": name, "asked": list(map(float, asked)), "measured": measured, "agreement": agreement(name, asked, measured)}
    )
    print(f"{name}: {rows[-1]['agreement']:.3f}", flush=True)
  lines = ["| attribute | trees | agreement |", "|---|---|---|"]
  for row in rows:
    kind = "right" if row["attribute"] in attributes.WORDS else "rank correlation"
    lines.append(f"| {row['attribute']} | {len(row['asked'])} | {row['agreement']:.2f} ({kind}) |")
  writing.write_json(pathlib.Path(f"{args.out}.json"), rows)
  writing.write_text(pathlib.Path(f"{args.out}.md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
