"""The report's table in Markdown, from the rows of `results.json`."""

_COLUMNS = (
  "program",
  "chips",
  "images",
  "shared by",
  "peak memory, GiB of",
  "TFLOP model / done",
  "HBM, GB: buffers / XLA",
  "sent, MB / least",
  "ms: arithmetic, memory, links",
  "MFU ≤",
  "images/s ≤",
)
BEGIN, END = "<!-- tpu: begin -->", "<!-- tpu: end -->"


def table(rows: list[dict]) -> str:
  """Rows of one chip and one run, sorted by chip, config and program."""
  lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
  for r in sorted(rows, key=lambda r: (r["config"], r["program"], r["topology"], r["fsdp"], r["images"], r["parts"])):
    name = r["config"].removeprefix("configs/").replace(".py", "")
    images = f"{r['images']}" + f" in {r['parts']} parts" * (r["parts"] > 1)
    start = f"| {name}, {r['program']} | {r['topology']} | {images} | {r['fsdp']} | "
    size = f"{r['chip_bytes'] / 2**30:.0f}"
    if "error" in r:
      lines.append(f"{start}does not fit {size} |" + f" {r['model_flops'] / 1e12:.2f} |" + " |" * 5)
      continue
    cells = (
      f"{r['peak_bytes'] / 2**30:.2f} of {size}",
      f"{r['model_flops'] / 1e12:.2f} / {r['executed_flops'] / 1e12:.2f}",
      f"{r['hbm_bytes'] / 1e9:.1f} / {r['xla_bytes'] / 1e9:.1f}",
      f"{r['sent_bytes'] / 1e6:.0f} / {r['least_sent_bytes'] / 1e6:.0f}",
      ", ".join(f"{1e3 * r['seconds'][part]:.1f}" for part in ("arithmetic", "memory", "interconnect")),
      f"{r['mfu']:.2f}",
      f"{r['images_per_second']:.0f}",
    )
    lines.append(start + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def inserted(document: str, rows: list[dict]) -> str:
  """A Markdown document with the table renewed; raises ValueError where it has no marks."""
  return between(document, BEGIN, END, table(rows))


def between(document: str, begin: str, end: str, text: str) -> str:
  """A document with the text between two marks replaced.

  Raises:
    ValueError: a document without the marks.
  """
  if begin not in document or end not in document:
    raise ValueError(f"the document has no place for the table: write {begin} and {end} on lines of their own")
  before, rest = document.split(begin, 1)
  return f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}"
