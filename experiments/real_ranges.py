"""The ranges of vessel measures over real eyes, beside which the page of `retree-jax demo` shows those of generated ones.

    python -m experiments.real_ranges --real folder:data/CHASE_DB1+folder:data/HRF_native --out retree_jax/page/real_ranges.json

Only training eyes are read. Each is fitted to every size that `retree-jax evaluate` chooses from, and its mask reduced by the
same rule.
"""

import argparse
import sys

from retree_jax.cli import errors
from retree_jax.data import reduction, sources, writing
from retree_jax.page import measures
from retree_jax.report import measure


def collect(real: str) -> dict:
  """What `page.measures.ranges` reads, of the train split of a data source."""
  source = sources.open_source(real, split="train", fields=("image", "tree"))
  parts = getattr(source, "parts", [source])
  return {
    "what": "5th, 50th and 95th percentile of vessel measures over real eyes, by the side in pixels of the fitted disc",
    "eyes": " and ".join(f"{len(part)} of {part.title}" for part in parts),
    "split": "train",
    "mask_rule": reduction.RULE,
    "sizes": {str(side): measures.spread(source, (side, side)) for side in measure.SIZES},
  }


def main() -> None:
  """Writes the ranges."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--real", required=True, help="data source of real pairs")
  parser.add_argument("--out", required=True, help="file to write")
  arguments = parser.parse_args()
  found = collect(arguments.real)
  command = f"python -m experiments.real_ranges --real {arguments.real} --out {arguments.out}"
  writing.write_json(arguments.out, {"command": command, **found})


if __name__ == "__main__":
  sys.exit(errors.run(main))
