"""Progress journal of a data set that is written in pieces and can be resumed: whose it is, which pairs are done, the manifest.

    OUT/run.json                         what was asked for: the same command continues, another one is refused
    OUT/manifest.parts/START-STOP.jsonl  the lines of pairs START..STOP-1, written after their files
    OUT/manifest.jsonl                   all lines in order; written when the last pair is done, and the parts are removed

Every file appears whole (`retree_jax.data.writing`), so a kill at any moment loses at most the pairs in flight. At most one
part is in memory.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from retree_jax.data import claim, writing

# Where a kill may leave a half-written file.
_FOLDERS = ("", "images", "masks", "fov", "coverage", "imagesTr", "labelsTr", "manifest.parts")


class Journal:
  """The journal of one folder. One process claims and merges; any number of them add, each its own pairs.

  Args:
    out: the folder, local or bucket. Hold it (`claim.hold`) before anything is written.
  """

  def __init__(self, out):
    self.out = epath.Path(out).expanduser()
    self._parts = self.out / "manifest.parts"
    self._manifest = self.out / "manifest.jsonl"

  def claim(self, identity: Mapping, num: int | None, default: int) -> tuple[int, int | None]:
    """Makes the folder this run's, or finds that it is, and removes half-written files.

    Args:
      identity: JSON-able: everything that a pair depends on besides its number.
      num: pairs wanted. More than before extends the set; fewer shorten it while no pair beyond is done, and leave a finished
        set as it is. None keeps the number that the folder has.
      default: pairs of a new set where `num` is None.

    Returns:
      The number of pairs that the folder is to hold, and the one that it was begun with (None for a new one).

    Raises:
      ValueError: the folder holds something else, or pairs that `num` would leave out.
    """
    stored = claim.check(self.out, identity)
    try:
      begun = None if stored is None else int(stored["num"])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"{self.out / 'run.json'} is damaged: use another --out, or remove the folder") from error
    total = num or begun or default
    if begun is not None and total < begun:
      if self._merged() >= begun:
        total = begun
      elif total < (last := max([self._merged(), *(stop for _, stop, _ in self._listed())])):
        raise ValueError(
          f"{self.out} was begun with {begun} pairs and holds some up to number {last}, which --num={num} would leave out: use "
          f"--num={last} or more, or another --out"
        )
    if total != begun:
      claim.record(self.out, identity, num=total)
    for name in _FOLDERS:
      writing.remove_unfinished(self.out / name)
    return total, begun

  def num(self) -> int:
    """The number of pairs that the folder is to hold."""
    return int(json.loads((self.out / "run.json").read_text())["num"])

  def missing(self, start: int, stop: int, size: int, lost: np.ndarray | None = None) -> Iterator[tuple[int, int]]:
    """The pieces [a, b) of [start, stop) that are not done, cut at the multiples of `size`.

    Args:
      start, stop: range of pairs.
      size: most pairs of a piece.
      lost: [num] bool: pairs that are recorded as done and have to be made again.
    """
    todo = self.todo(stop) if lost is None else self.todo(stop) | lost[:stop]
    todo = start + np.flatnonzero(todo[start:])
    begins = np.flatnonzero((np.diff(todo, prepend=-2) != 1) | (todo % size == 0))
    for begin, end in itertools.pairwise([*begins, len(todo)]):
      yield int(todo[begin]), int(todo[end - 1]) + 1

  def todo(self, num: int) -> np.ndarray:
    """[num] bool: which pairs are not recorded as done."""
    todo = np.arange(num) >= self._merged()
    for start, stop, _ in self._listed():
      todo[start:stop] = False
    return todo

  def lost(self, folders: Mapping[str, Callable[[str], int | None]], num: int) -> np.ndarray:
    """Which pairs are recorded as done although one of their files is gone.

    Args:
      folders: in which each pair has one file, each with what leads from a file's name to the number of its pair, or None.
      num: pairs of the set.

    Returns:
      [num] bool.
    """
    done, lost = ~self.todo(num), np.zeros(num, bool)
    for folder, number_of in folders.items() if done.any() else ():
      there = np.zeros(num, bool)
      for path in (self.out / folder).iterdir() if (self.out / folder).exists() else ():
        k = number_of(path.name)
        if k is not None and k < num:
          there[k] = True
      lost |= done & ~there
    return lost

  def add(self, start: int, rows: Sequence[Mapping]) -> None:
    """Records the pairs start, start + 1, ... as done; their files must be there."""
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
        if start > at:
          raise ValueError(f"{path} does not follow pair {at - 1}: remove {self._parts}, and run the same command again")
        if stop > at:  # otherwise merged before, or made again because a file was lost
          yield b"".join(path.read_bytes().splitlines(keepends=True)[at - start :])
          at = stop

    if max(stop for _, stop, _ in parts) > self._merged():
      writing.write_stream(self._manifest, pieces())
    for *_, path in parts:
      path.unlink()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # a bucket's folder is gone with its last file
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
    """Number of lines in the merged manifest."""
    if not self._manifest.exists():
      return 0
    count = 0
    with self._manifest.open("rb") as file:
      while block := file.read(2**20):
        count += block.count(b"\n")
    return count

  def _listed(self) -> list[tuple[int, int, epath.Path]]:
    """(start, stop, path) of the parts, in order."""
    parts = []
    for path in self._parts.iterdir() if self._parts.exists() else ():
      start, _, stop = path.name.removesuffix(".jsonl").partition("-")
      if start.isdigit() and stop.isdigit():
        parts.append((int(start), int(stop), path))
    return sorted(parts, key=lambda part: part[:2])
