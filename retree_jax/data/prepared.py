"""A data source fitted to one size, kept in memory as far as there is room: what augmentation starts from."""

import threading

from retree_jax.data import attributes, sources, transforms
from retree_jax.data.centreline import centreline


def drawn(source, size, lines):
  """The source drawn for `size`; where centrelines are to be found, at twice that: masks have them, coverages do not."""
  return sources.at_size(source, tuple(side * (2 if lines else 1) for side in size))


class Prepared:
  """A source fitted to one size; keeps what fits into a memory budget.

  The first examples that come stay and the rest is read anew each time: with shuffled epochs over a set
  larger than the budget, replacing the oldest would never hit.

  With `lines`, examples that have a tree get their vessels' centrelines as "line", found at native size, in pixels of `size`;
  with `measured`, their "attributes" (`retree_jax.data.attributes.encode`).
  """

  def __init__(self, source, size, mode, cache_bytes, lines=False, measured=False):
    self._source, self._size, self._mode = drawn(source, size, lines or measured), size, mode
    self._lines, self._measured = lines, measured
    self._kept, self._room, self._lock = {}, cache_bytes, threading.Lock()

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    example = self._kept.get(index)
    if example is None:
      native = self._source[index]
      example = transforms.fit(native, self._size, self._mode)
      if (self._lines or self._measured) and "tree" in native:
        line = centreline(transforms.binarise(native["tree"]))
        if self._lines:
          example["line"] = line.to_box(transforms.fit_box(native["fov"], self._size, self._mode), self._size)
        if self._measured:
          example["attributes"] = attributes.of_example(native, self._mode, line)
      cost = sum(getattr(value, "nbytes", 0) for value in example.values())
      with self._lock:
        if index not in self._kept and cost <= self._room:
          self._kept[index] = example
          self._room -= cost
    return example

  def __getstate__(self) -> dict:
    """What another process needs: it reads and keeps examples of its own."""
    return self.__dict__ | {"_kept": {}, "_lock": None}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state, _lock=threading.Lock())
