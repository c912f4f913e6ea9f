"""The books of a data set that is written piece by piece: whose folder it is, which pairs are done, and their manifest.

    OUT/run.json                         what was asked for (`claim`): the same command goes on, another is refused
    OUT/manifest.parts/START-STOP.jsonl  the lines of pairs START..STOP-1, written after their files
    OUT/manifest.jsonl                   all lines in order; written when the last pair is done, and the parts go

Every file appears whole (`retree_jax.data.writing`), so a kill at any moment loses at most the pairs in flight. Nothing here
holds more than one part in memory.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from retree_jax.data import writing

_FOLDERS = ("", "images", "masks", "fov", "coverage", "manifest.parts")  # where a kill may leave half a file


class Ledger:
  """The books of one folder. One process claims and merges; any number add, each its own pairs.

  Args:
    out: the folder, local or bucket.
  """

  def __init__(self, out):
    self.out = epath.Path(out)
    self._parts = self.out / "manifest.parts"
    self._manifest = self.out / "manifest.jsonl"

  def claim(self, identity: Mapping, num: int) -> None:
    """Makes the folder ours, or finds that it is, and clears away half-written files.

    Args:
      identity: JSON-able: everything that a pair depends on besides its number.
      num: pairs wanted; a greater number than before extends the set.

    Raises:
      ValueError: the folder holds something else, or a set made otherwise; the sentence says what differs.
    """
    path, identity = self.out / "run.json", json.loads(json.dumps(identity))
    if path.exists():
      try:
        found = json.loads(path.read_text())
        theirs, num = found["identity"], max(num, int(found["num"]))
      except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: use another --out, or remove the folder") from error
      differ = difference(theirs, identity)
      if differ:
        raise ValueError(f"{self.out} holds another run ({differ}): use another --out, or that run's models and settings")
      if found["num"] == num:
        self._clear()
        return
    elif self.out.exists() and not self.out.is_dir():
      raise ValueError(f"{self.out} is a file: use another --out")
    elif self.out.exists() and any(not p.name.startswith(".run.json.") for p in self.out.iterdir()):
      raise ValueError(f"{self.out} is not empty and holds no generated set: use another --out, or empty it")
    writing.write_json(path, {"num": num, "identity": identity})
    self._clear()

  def num(self) -> int:
    """The pairs that the folder is to hold."""
    return int(json.loads((self.out / "run.json").read_text())["num"])

  def missing(self, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """The pieces [a, b) of [start, stop) that are not done, cut at the multiples of `size`."""
    for a, b in [*self._done(), (stop, stop)]:
      while start < min(a, stop):
        end = min((start // size + 1) * size, a, stop)
        yield start, end
        start = end
      start = max(start, b)

  def add(self, start: int, rows: Sequence[Mapping]) -> None:
    """Books the pairs start, start + 1, ...; their files must be there."""
    name = f"{start:010d}-{start + len(rows):010d}.jsonl"
    writing.write_text(self._parts / name, "".join(json.dumps(row) + "\n" for row in rows))

  def merge(self) -> None:
    """Writes manifest.jsonl from the parts, and removes them. All pairs must be done."""
    parts = self._listed()
    if not parts:
      return

    def pieces():
      at = self._merged()
      if at:
        with self._manifest.open("rb") as file:
          while block := file.read(2**20):
            yield block
      for start, stop, path in parts:
        if start == at:  # not one that was merged before a kill left it behind
          yield path.read_bytes()
          at = stop
        elif stop > at:
          raise ValueError(f"{path} does not follow pair {at - 1}: remove {self._parts}, and run the same command again")

    if parts[-1][1] > self._merged():
      writing.write_stream(self._manifest, pieces())
    for *_, path in parts:
      path.unlink()
    self._parts.rmdir()

  def rows(self) -> Iterator[dict]:
    """The merged manifest's lines, one at a time."""
    with self._manifest.open("r") as file:
      for line in file:
        yield json.loads(line)

  def finished(self) -> bool:
    """Whether every pair is in the merged manifest."""
    return self._merged() >= self.num() and not self._listed()

  def _merged(self) -> int:
    if not self._manifest.exists():
      return 0
    count = 0
    with self._manifest.open("rb") as file:
      while block := file.read(2**20):
        count += block.count(b"\n")
    return count

  def _listed(self) -> list[tuple[int, int, epath.Path]]:
    found = []
    for path in self._parts.iterdir() if self._parts.exists() else ():
      start, _, stop = path.name.removesuffix(".jsonl").partition("-")
      if start.isdigit() and stop.isdigit():
        found.append((int(start), int(stop), path))
    return sorted(found, key=lambda part: part[:2])

  def _done(self) -> list[tuple[int, int]]:
    return [(0, self._merged()), *((start, stop) for start, stop, _ in self._listed())]

  def _clear(self) -> None:
    for name in _FOLDERS:
      writing.remove_unfinished(self.out / name)


def difference(theirs, ours, name: str = "") -> str:
  """The first place where two JSON values differ, in words; "" where they are equal."""
  if isinstance(theirs, dict) and isinstance(ours, dict):
    for key in sorted({*theirs, *ours}):
      if found := difference(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key):
        return found
    return ""
  return "" if theirs == ours else f"{name} is {theirs!r} there and {ours!r} here"
