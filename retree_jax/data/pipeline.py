"""Batches for training and evaluation: shuffled, augmented, sharded over hosts, on the devices, and resumable
to the batch.

Every batch is a function of (source, seed, position) alone: the number of threads and of hosts changes
nothing. Host h of P gets the h-th of P equal parts of each global batch, so the hosts' batches, one after
another, are the batch a single host would see. Grain does the work; it is imported when a source is first
read, so that training on arrays needs none of it.
"""

import collections
import concurrent.futures
import weakref

import numpy as np
from absl import logging

from retree_jax.data import attributes, prepared, reduction, sources, transforms, workers
from retree_jax.data.fields import CHANNELS


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"The batch size {batch_size} cannot be shared by {process_count} processes: make it a multiple of {process_count}."
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f"process_index is {process_index}, but it must lie in 0..{process_count - 1}.")
  return batch_size // process_count


def _check_fields(fields) -> tuple[str, ...]:
  fields = tuple(fields)
  unknown = set(fields) - set(sources.FIELDS)
  if unknown or not fields:
    raise ValueError(f"Unknown fields {sorted(unknown)}: write some of {', '.join(sources.FIELDS)}.")
  return fields


def _to_arrays(example: dict, fields, size) -> dict[str, np.ndarray]:
  """An example as the arrays a batch is made of; "tree?" gives a tree (zeros where none is) and
  "has_tree".
  """
  out = {}
  for field in fields:
    key = field.rstrip("?")
    if field.endswith("?"):
      out[f"has_{key}"] = np.asarray(key in example)
    elif key == "attributes" and key not in example:  # of a photograph without a tree nothing is known
      out[key] = np.full(len(attributes.ATTRIBUTES), np.nan, np.float32)
      continue
    elif key not in example:
      hint = f", or ask for {key + '?'!r}" if key + "?" in sources.FIELDS else ""
      raise ValueError(f"The eye {example.get('name', '?')} has no {key}: use a source that has one{hint}.")
    out[key] = np.ascontiguousarray(example[key]) if key in example else np.zeros((*size, CHANNELS[key]), np.uint8)
  return out


class BatchIterator:
  """Endless batches with a position: the interface of everything in this file that trains.

  `next(it)` -> dict of numpy arrays; `it.get_state()` -> JSON-able position after the last batch taken;
  `it.set_state(state)` goes there; `it.close()` ends its threads (called by itself at exit).
  """

  def __init__(self, inner, tag: int):
    self._inner, self._tag = inner, tag
    # Grain's threads print an exception at interpreter exit unless they were ended before
    self._finish = weakref.finalize(self, inner.close)

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._inner)

  def get_state(self) -> dict:
    return {"position": self._inner.get_state(), "source": self._tag}

  def set_state(self, state: dict) -> None:
    if not isinstance(state, dict) or "position" not in state:
      raise ValueError("This is no position of a data pipeline: start the run anew or give the workdir it was saved in.")
    if state.get("source") != self._tag:
      logging.warning("The data set is not the one this run was saved with: the run goes on, with the eyes in another order.")
    self._inner.set_state(state["position"])

  def close(self) -> None:
    self._finish()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def train_iterator(
  source,
  *,
  size,
  batch_size: int,
  seed: int = 0,
  augment: transforms.Augment | None = None,
  fit: str = "fov",
  fields=("image", "tree", "fov"),
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 4,
  num_processes: int = 0,
  cache_bytes: int = 2**30,
) -> BatchIterator:
  """Endless shuffled, augmented batches of a source.

  Args:
    source: from `sources.open_source`; a joined source's weights are honoured.
    size: (height, width) of the batches.  batch_size: over all hosts.
    seed: order and augmentation depend on it and on nothing else that changes between runs.
    augment: `transforms.Augment(...)`; None for none.  fit: see `transforms.fit`.
    fields: arrays to yield; "tree?" yields zeros and has_tree False for eyes without one.
    process_index, process_count: this host and the number of hosts.
    num_threads: batches are prepared by so many threads ahead of time; 0 for none.
    num_processes: so many processes prepare batches, each with `num_threads` threads and `cache_bytes` of memory; 0 for none.
      A script must then guard what it does with `if __name__ == "__main__":`.
    cache_bytes: memory for fitted examples, so that a few dozen eyes are read from disk only once.

  Returns:
    Iterator over dicts of uint8 arrays image [b, H, W, 3], tree [b, H, W, 1] (coverage 0..255), fov [b, H, W,
    1] and vessels [b, H, W, 1] (the tree as a mask 0/255, by `reduction.RULE`) with b = batch_size / process_count (and bool
    has_tree [b] and float32 attributes [b, 6], `attributes.encode`, where asked for).

  Raises:
    ValueError: the batch cannot be shared by the hosts, an unknown field or mode, an empty source; later,
      from `next`, a damaged file.
  """
  import grain

  local = _local_size(batch_size, process_index, process_count)
  fields, size = _check_fields(fields), tuple(size)
  if not len(source):
    raise ValueError("The data source is empty: give one with at least one eye.")
  augment = augment or transforms.Augment.none()
  # Warping from twice the resolution keeps thin vessels; above 384 pixels they are wide enough for the plain
  # look-up.
  factor = 2 if augment.warps and max(size) <= 384 else 1
  large = (size[0] * factor, size[1] * factor)
  fitted = prepared.Prepared(source, large, fit, cache_bytes, lines="vessels" in fields, measured="attributes" in fields)
  transforms.fit_box(np.ones((1, 1, 1)), size, fit)  # an unknown mode fails here, not in a thread

  weights = getattr(source, "weights", [1.0])
  if len(set(weights)) > 1:
    parts, start = [], 0
    for number, part in enumerate(source.parts):
      parts.append(grain.MapDataset.range(start, start + len(part)).seed(seed + number).shuffle().repeat())
      start += len(part)
    shares = [weight * len(part) for weight, part in zip(weights, source.parts, strict=True)]
    order = grain.MapDataset.mix(parts, weights=[share / sum(shares) for share in shares]).seed(seed)
  else:
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

  def view(index, rng):
    example = augment(fitted[index], rng, size)
    if "line" in example:
      line = example["line"].to_box((0, 0, *large), size)
      example["vessels"] = reduction.threshold_coverage(example["tree"], line)
    if example.get("mirrored"):
      example["attributes"] = attributes.mirrored(example["attributes"])
    return _to_arrays(example, fields, size)

  # Batching before slicing gives host h the h-th part of every global batch.
  # The order has no end, so there is no remainder; without the flag Grain rounds its length past the greatest integer.
  batches = order.random_map(view).batch(local, drop_remainder=True)[process_index::process_count]
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads + 1 if num_threads else 0)
  inner = _ProcessBatches(batches, options, num_processes) if num_processes else iter(batches.to_iter_dataset(options))
  return BatchIterator(inner, sources.fingerprint(source))


class _ProcessBatches:
  """Batches that other processes prepare, in their order; positions are those of an iterator without processes."""

  def __init__(self, batches, options, count):
    self._batches, self._options, self._count = batches, options, count
    self._position, self._running = 0, None

  def __next__(self):
    if self._running is None:
      import grain
      from absl import flags

      if not flags.FLAGS.is_parsed():  # in notebooks; Grain reads flags when it starts processes
        flags.FLAGS.mark_as_parsed()
      ahead = self._batches[self._position :].to_iter_dataset(self._options)
      options = grain.MultiprocessingOptions(self._count, per_worker_buffer_size=2)
      self._running = iter(ahead.mp_prefetch(options, workers.prepare))
    # Copies, because Grain frees the memory that it shares with its processes when an array is no longer referred to.
    batch = {name: np.array(values) for name, values in next(self._running).items()}
    self._position += 1
    return batch

  def get_state(self):
    return {"next_index": self._position}

  def set_state(self, state):
    self.close()
    self._position = int(state["next_index"])

  def close(self):
    if self._running is not None:
      self._running.close()
      self._running = None


class _ArrayBatches:
  """`array_iterator`'s inside: position in, batch out."""

  def __init__(self, arrays, local, start, stride, seed, augment):
    self._arrays, self._count = arrays, len(next(iter(arrays.values())))
    self._local, self._start, self._stride, self._seed, self._augment = local, start, stride, seed, augment
    self._position = 0

  def __next__(self):
    first = self._position * self._stride + self._start
    self._position += 1
    return self._batch(first)

  def _batch(self, first):
    positions = np.arange(first, first + self._local)
    examples = []
    for epoch in np.unique(positions // self._count):
      order = np.random.default_rng([self._seed, 0, int(epoch)]).permutation(self._count)
      examples += [(p, order[p % self._count]) for p in positions[positions // self._count == epoch]]
    if self._augment is None:
      chosen = [index for _, index in examples]
      return {key: value[chosen] for key, value in self._arrays.items()}
    views = []
    for position, index in examples:
      example = {key: value[index] for key, value in self._arrays.items()}
      example.setdefault("fov", np.full((*next(iter(example.values())).shape[:2], 1), 255, np.uint8))
      view = self._augment(example, np.random.default_rng([self._seed, 1, int(position)]))
      views.append({key: view[key] for key in self._arrays})
    return {key: np.stack([view[key] for view in views]) for key in self._arrays}

  def get_state(self):
    return {"next_index": self._position}

  def set_state(self, state):
    self._position = int(state["next_index"])

  def close(self):
    pass


def array_iterator(
  arrays: dict[str, np.ndarray],
  batch_size: int,
  seed: int = 0,
  augment: transforms.Augment | None = None,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> BatchIterator:
  """Endless shuffled batches of arrays in memory, with the same promises as `train_iterator` and without
  Grain.

  Args:
    arrays: {"image": uint8 [n, H, W, 3], "tree": uint8 [n, H, W, 1], "fov": ...}; any other key too while
      `augment` is None.
    batch_size: over all hosts.  seed, augment, process_index, process_count: as for `train_iterator`.

  Raises:
    ValueError: no arrays, arrays of different lengths, a batch that the hosts cannot share, arrays that
      cannot be augmented.
  """
  local = _local_size(batch_size, process_index, process_count)
  arrays = {key: np.asarray(value) for key, value in arrays.items()}
  lengths = {key: len(value) for key, value in arrays.items()}
  if not arrays or 0 in lengths.values() or len(set(lengths.values())) > 1:
    raise ValueError(f"Give arrays that all have the same number of examples, at least one; these have {lengths}.")
  unfit = [key for key, value in arrays.items() if key not in ("image", "tree", "fov") or value.dtype != np.uint8]
  if augment is not None and unfit:
    raise ValueError(
      f"Only uint8 image, tree and fov can be augmented, not {', '.join(unfit)}: leave augment out or convert them."
    )
  tag = next(iter(lengths.values()))
  return BatchIterator(_ArrayBatches(arrays, local, process_index * local, batch_size, seed, augment), tag)


class _DevicePrefetch:
  """See `device_prefetch`."""

  def __init__(self, iterator, sharding, depth):
    self._iterator, self._sharding, self._depth = iterator, sharding, depth
    self._ready = collections.deque()
    self._state = iterator.get_state()

  def __iter__(self):
    return self

  def _fetch(self):
    import jax

    batch = next(self._iterator)
    arrays = {key: jax.make_array_from_process_local_data(self._sharding, value) for key, value in batch.items()}
    self._ready.append((arrays, self._iterator.get_state()))

  def __next__(self):
    while len(self._ready) < self._depth:
      self._fetch()
    arrays, self._state = self._ready.popleft()
    return arrays

  def get_state(self) -> dict:
    return self._state

  def set_state(self, state: dict) -> None:
    self._ready.clear()
    self._iterator.set_state(state)
    self._state = state

  def close(self) -> None:
    self._ready.clear()
    self._iterator.close()


def device_prefetch(iterator, sharding, depth: int = 2):
  """Puts batches on the devices ahead of time: while a step runs, the next batch is already on its way.

  Args:
    iterator: a `BatchIterator`.
    sharding: a `jax.sharding.NamedSharding` of the batch axis; each process hands in its part of the global
      batch.
    depth: batches on the devices at a time, the one handed out included.

  Returns:
    Iterator over dicts of global `jax.Array`s with get_state/set_state/close; get_state is the position after
    the batches *handed out*, not after those already fetched, so that a restored run loses and repeats none.
  """
  if depth < 1:
    raise ValueError(f"depth is {depth}: keep at least one batch on the devices.")
  return _DevicePrefetch(iterator, sharding, depth)


def evaluation_batches(
  source,
  *,
  size,
  batch_size: int,
  fit: str = "fov",
  fields=("image", "tree", "fov"),
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 4,
):
  """Every example exactly once, in order, without augmentation.

  Args: as for `train_iterator`.

  Yields:
    Dicts of arrays as `train_iterator`'s, with "valid" bool [b] (False for the padding that fills the last
    batch; it repeats the last example) and "index" int32 [b] into `source.names`. All hosts get the same
    number of batches.

  Raises:
    ValueError: as `train_iterator`.
  """
  local = _local_size(batch_size, process_index, process_count)
  fields, size = _check_fields(fields), tuple(size)
  transforms.fit_box(np.ones((1, 1, 1)), size, fit)
  drawn = prepared.drawn(source, size, bool({"vessels", "attributes"} & set(fields)))

  def load(index):
    example = drawn[index]
    fitted = transforms.fit(example, size, fit)
    if "vessels" in fields and "tree" in example:
      box = transforms.fit_box(example["fov"], size, fit)
      fitted["vessels"] = reduction.reduce_mask(transforms.binarise(example["tree"]), size, box)[..., None]
    if "attributes" in fields and "tree" in example:
      fitted["attributes"] = attributes.of_example(example, fit)
    return _to_arrays(fitted, fields, size)

  def batches():
    count = len(source)
    with concurrent.futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
      for first in range(0, count, batch_size):
        positions = np.arange(first + process_index * local, first + (process_index + 1) * local)
        valid = positions < count
        indices = np.minimum(positions, count - 1)
        unique = {int(index): pool.submit(load, int(index)) for index in np.unique(indices)}
        examples = [unique[int(index)].result() for index in indices]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        yield {**batch, "valid": valid, "index": indices.astype(np.int32)}

  return batches()
