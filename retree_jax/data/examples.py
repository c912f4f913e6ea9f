"""The examples of one training run: endless augmented batches to learn from, and fixed held-out examples to score on."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from retree_jax.data import fingerprint, notices, pipeline, provenance, sources, transforms, workers

_AT_ONCE = 16  # views of `config.data.views` in a batch


class Examples:
  """Training and held-out examples, from `config.data.source` or from arrays.

  Args:
    config: `config.data`, `config.train` and `config.seed` are read.
    arrays: {"train": {"tree": uint8 [N, H, W, 1], ...}, "heldout": {...}} in place of the source; None for the source.
    fields: fields of each example, as `pipeline.train_iterator` takes them.

  Raises:
    ValueError: a source that cannot be used.
  """

  def __init__(self, config, arrays: Mapping | None, fields):
    self._config, self._arrays, self.fields = config, arrays, tuple(fields)
    self._names = [field.rstrip("?") for field in self.fields]  # arrays that are there have no examples without
    self._sources, self.names = {}, {}
    if arrays is not None:
      self._count = {split: len(next(iter(chosen.values()))) for split, chosen in arrays.items()}
      self._count.setdefault("heldout", self._count["train"])
      return
    if config.data.heldout not in ("validation", "test"):
      raise ValueError(f"config.data.heldout={config.data.heldout!r} is unknown: use validation or test")
    size, read = tuple(config.data.image_size), tuple(f for f in self.fields if f != "fov")
    splits = ("train", "test") if config.data.heldout == "test" else ("fit", "validation")
    for name, split in zip(("train", "heldout"), splits, strict=True):
      self._sources[name] = sources.open_source(config.data.source, split=split, fields=read, seed=config.seed, size=size)
    if "tree?" in self.fields:
      trees, eyes = sources.number_of_trees(self._sources["train"]), len(self._sources["train"])
      if not trees:
        raise ValueError(
          f"no photograph of config.data.source={config.data.source} has a vessel mask, and the {config.stage} stage learns to "
          "paint trees: put masks into a folder masks/ beside images/, with the stems of the photographs"
        )
      if trees < eyes:
        notices.once(config.data.source, "trees", f"{eyes - trees} of the {eyes} training photographs have no vessel mask")
    provenance.warn(
      self._sources["train"],
      f"training data of the {config.stage} stage",
      "leave it out of config.data.source unless you mean to train on generated pairs, and test on real eyes alone",
    )
    self._count = {name: len(source) for name, source in self._sources.items()}

  @property
  def num_train(self) -> int:
    """Number of training examples."""
    return self._count["train"]

  @property
  def num_heldout(self) -> int:
    """Number of held-out examples."""
    return self._count["heldout"]

  def fingerprints(self) -> dict[str, str] | None:
    """Fingerprints of the files behind the config's fields, as `config.run_folder` compares them; None for arrays."""
    if self._arrays is not None:
      return None
    found = {"data.source": "-".join(fingerprint.of_source(source) for source in self._sources.values())}
    for section, field in (("data", "generated"), ("loss", "perceptual_weights")):
      if path := self._config.get(section, {}).get(field, ""):
        found[f"{section}.{field}"] = fingerprint.of_path(path)
    return found

  def train_iterator(self) -> pipeline.BatchIterator:
    """Endless shuffled, augmented batches; this host's part of each."""
    c = self._config
    augment = transforms.Augment(**c.data.augment)
    common = dict(
      batch_size=c.train.batch_size,
      seed=c.seed,
      augment=None if augment == transforms.Augment.none() else augment,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    if self._arrays is not None:
      return pipeline.array_iterator({f: self._arrays["train"][f] for f in self._names}, **common)
    views = c.data.get("views", 0)
    if views:
      # In small batches, which the threads prepare side by side; every host prepares all views.
      common |= {"batch_size": _AT_ONCE, "process_index": 0, "process_count": 1}
    iterator = pipeline.train_iterator(
      self._sources["train"],
      size=tuple(c.data.image_size),
      fit=c.data.fit,
      fields=self.fields,
      num_threads=c.data.num_threads if c.data.num_threads >= 0 else min(16, 1 + workers.spare_cores()),
      num_processes=c.data.get("num_processes", 0),
      cache_bytes=round(c.data.get("cache_gib", 1.0) * 2**30),
      **common,
    )
    if not views:
      return iterator
    with iterator:
      batches = [next(iterator) for _ in range(-(-views // _AT_ONCE))]
    prepared = {field: np.concatenate([batch[field] for batch in batches])[:views] for field in batches[0]}
    return pipeline.array_iterator(
      prepared, c.train.batch_size, c.seed, process_index=jax.process_index(), process_count=jax.process_count()
    )

  def fixed(self, split: str, num: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The first `num` examples of "train" or "heldout", unaugmented and in a fixed order, the same on every host.

    Joined sources take turns, so that a few examples show every camera.

    Args:
      split: "train" or "heldout".
      num: greatest number of examples.
      batch_size: greatest number of examples in memory.

    Yields:
      uint8 arrays [n, H, W, C] by field, n at most `batch_size`.
    """
    num = min(num, self._count[split])
    if self._arrays is not None:
      chosen = self._arrays.get(split) or self._arrays["train"]
      for start in range(0, num, batch_size):
        yield {f: np.asarray(chosen[f][start : min(start + batch_size, num)]) for f in self._names}
      return
    c = self._config
    size = tuple(c.data.image_size)
    source = sources.at_size(self._sources[split], size)
    batches = pipeline.evaluation_batches(
      Rows(source, interleaved(source)[:num]), size=size, batch_size=min(batch_size, num), fit=c.data.fit, fields=self.fields
    )
    for batch in batches:
      yield {k: v[batch["valid"]] for k, v in batch.items() if k not in ("valid", "index")}


class Rows:
  """Some examples of a source, in an order of one's own: `names`, `len` and indexing."""

  def __init__(self, source, rows):
    self._source, self._rows = source, list(rows)
    self.names = [source.names[row] for row in self._rows]

  def at_size(self, size) -> "Rows":
    return Rows(sources.at_size(self._source, size), self._rows)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict:
    return self._source[self._rows[index]]


def interleaved(source) -> list[int]:
  """Row numbers of a source, the parts of a joined one in turn: first of each part, second of each part, ..."""
  starts = np.cumsum([0] + [len(part) for part in getattr(source, "parts", [source])])
  places = [(i, start + i) for start, stop in zip(starts, starts[1:], strict=False) for i in range(stop - start)]
  return [int(row) for _, row in sorted(places)]
