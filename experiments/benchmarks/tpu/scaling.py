"""What a training step that was compiled for a few chips costs on more of them, with the same images per chip.

Arithmetic and memory of a chip stay what they are; the gradients are summed over more chips. So one compiled program tells of
data-parallel slices of all sizes, and what it tells can be checked where a larger one was compiled too.
"""

from experiments.benchmarks.tpu import chips, table

SIZES = (8, 32, 256)
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"
_COLUMNS = (
  "step of",
  "chips",
  "images a step",
  "memory, GiB of",
  "sent, MB",
  "ms: chip, links",
  "images/s: links hidden, not hidden",
  "scaling, not hidden",
  "chip-hours for a million images",
)


def on(row: dict, count: int) -> dict:
  """A data-parallel step on `count` chips.

  Args:
    row: of `measure.row`: a training step with fsdp 1, compiled for at least two chips.
    count: number of chips.

  Returns:
    "images" of a step; "sent_bytes" of each chip by a ring; "chip_seconds", the longer of arithmetic and memory;
    "link_seconds"; "hidden" and "exposed", images/s if the links' time is hidden behind the chip's or follows it; "scaling",
    images/s per chip with exposed links over those of one chip alone; "chip_hours" for a million images, with exposed links.
  """
  chip, compiled = chips.parse(row["topology"])
  images = row["images"] // compiled * count
  summed = row["sent_bytes"] / (2 * (compiled - 1) / compiled)
  sent = 2 * (count - 1) / count * summed
  own, links = max(row["seconds"]["arithmetic"], row["seconds"]["memory"]), sent / chip.ring
  return {
    "images": images,
    "sent_bytes": sent,
    "chip_seconds": own,
    "link_seconds": links,
    "hidden": images / max(own, links),
    "exposed": images / (own + links),
    "scaling": own / (own + links),
    "chip_hours": 1e6 / images * (own + links) * count / 3600,
  }


def rows_of(rows: list[dict]) -> list[dict]:
  """The rows that can be scaled, one for each config and chip: of several, that with the config's own batch on fewest chips."""
  chosen = {}
  for r in sorted(rows, key=lambda r: (r["chips"], r["images"])):
    if r["program"] == "train" and r["fsdp"] == r["parts"] == 1 and r["chips"] > 1 and "error" not in r:
      chosen.setdefault((r["config"], r["topology"].partition(":")[0]), r)
  return [chosen[key] for key in sorted(chosen)]


def scaling_table(rows: list[dict]) -> str:
  """Markdown, a line for each config, chip and size."""
  lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
  for r in rows_of(rows):
    for count in SIZES:
      s = on(r, count)
      cells = (
        r["config"].removeprefix("configs/").replace(".py", ""),
        f"{count} {r['topology'].partition(':')[0]}",
        str(s["images"]),
        f"{r['peak_bytes'] / 2**30:.1f} of {r['chip_bytes'] / 2**30:.0f}",
        f"{s['sent_bytes'] / 1e6:.0f}",
        f"{1e3 * s['chip_seconds']:.1f}, {1e3 * s['link_seconds']:.1f}",
        f"{s['hidden']:,.0f}, {s['exposed']:,.0f}",
        f"{s['scaling']:.0%}",
        f"{s['chip_hours']:.2f}",
      )
      lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def inserted(document: str, rows: list[dict]) -> str:
  """A Markdown document with the table of `scaling_table` renewed; raises ValueError where it has no marks."""
  return table.between(document, BEGIN, END, scaling_table(rows))
