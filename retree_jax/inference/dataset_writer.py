"""Writes generated pairs to disk: streaming, resumable, from any number of hosts, with the papers that belong to a data set.

    OUT/images/NAME.png  masks/NAME.png (0/255)  fov/NAME.png      a pair folder, which `folder:OUT` reads back
    OUT/coverage/NAME.png                                          without a fundus stage: trees as drawn, 0..255
    OUT/manifest.jsonl  run.json  DATA_CARD.md  contact_sheet.png

Devices make one chunk of pairs while threads write the last two; memory does not grow with the number of pairs. Each host makes
its own range. The books are kept by `retree_jax.data.manifest`.
"""

import collections
import concurrent.futures
import hashlib
import json
import os
import sys
import time

import jax
import numpy as np

from retree_jax import checkpoint, sharding
from retree_jax.data import folders, manifest, reduction, sources, transforms, writing
from retree_jax.data.builders import generated
from retree_jax.inference import pairs
from retree_jax.report import data_card

_IN_FLIGHT = 2  # chunks that may wait for the disk while the devices work on the next
_CHECKED_AT_ONCE = 256  # given masks that are looked at before the first is painted
_SHIPPED = {"tree": "tree", "refine": "refine", "fundus": "fundus", "superres": "superres", "filter_path": "filter"}


def shipped() -> dict[str, str | None]:
  """The names of the shipped weights, as `write` takes them.

  Raises:
    ValueError: this installation has none.
  """
  names = checkpoint.shipped_names()
  found = {stage: name if name in names else None for stage, name in _SHIPPED.items()}
  if not (found["tree"] or found["fundus"]):
    raise ValueError(
      "this installation ships no weights: give --tree and --fundus, the workdirs of "
      "`python -m retree_jax.main --config configs/tree.py` and `configs/fundus.py`"
    )
  return found


def write(
  paths: dict,
  out="out",
  num: int | None = None,
  seed: int = 0,
  trees=None,
  form: str = "png",
  guidance: float | None = None,
  num_steps: int | None = None,
  threshold: float | None = None,
  mesh=None,
) -> dict:
  """Generates a data set into a folder, or goes on with one.

  Args:
    paths: {"tree", "refine", "fundus", "superres", "filter_path"}: workdirs or names of shipped weights, None to leave a stage
      out.
    out: folder to write, local or bucket, shared by all hosts.
    num: pairs; 16 by default, or all of `trees`. More than the folder has extends it.
    seed: root of the randomness.
    trees: folder of vessel masks to paint, flat or a pair folder, in place of the tree stage; names are kept.
    form: "png", or "tfds" for ArrayRecord shards that TFDS reads.
    guidance, num_steps: see `pairs.Generator`.
    threshold: least filter score, in place of the one chosen on validation data.
    mesh: devices of this host; all of them by default.

  Returns:
    {"pairs": in the set, "made": by this host now, "wall": seconds, "waited": of them for the disk, "stages": seconds by
    stage}.

  Raises:
    ValueError: models that do not fit, trees that cannot be painted, a folder that holds something else.
  """
  mesh = sharding.make_mesh(devices=jax.local_devices()) if mesh is None else mesh
  given = None if trees is None else _Given(trees)
  if given is not None and not paths.get("fundus"):
    raise ValueError("--trees are painted by the fundus stage: give --fundus too")
  models = pairs.load_models(**paths, threshold=threshold, mesh=mesh)
  generator = pairs.Generator(models, mesh, guidance, num_steps)
  if given is None and models.tree is None:
    raise ValueError("there are no trees to paint: give --tree to draw some, or --trees with a folder of masks")
  if given is not None and num is not None and num > len(given):
    raise ValueError(f"{trees} holds {len(given)} trees, not --num={num}: give at most that, or leave --num out")
  num = num or (16 if given is None else len(given))
  books = manifest.Ledger(out)
  identity = _identity(generator, seed, form, given)
  card = books.out / "DATA_CARD.md"
  if jax.process_index() == 0:
    books.claim(identity, num)
    if not books.finished():
      card.unlink(missing_ok=True)
  _barrier("claimed")
  if books.num() > num:
    _say(f"{out} was begun with {books.num()} pairs, so that is what it gets")
  num = books.num()
  summary = {"pairs": num, "made": 0, "wall": 0.0, "waited": 0.0, "stages": {}}
  if card.exists():
    _say(f"{out} is finished: {num} pairs")
    return summary
  if models.tree_filter is not None:
    _say(f"trees are kept from a score of {models.tree_filter.threshold:.4f} on: {models.tree_filter.how}")
  summary |= _make(generator, books, _facts(identity), given, seed, form, num)
  _barrier("made")
  if jax.process_index() == 0:
    books.merge()
    if form == "tfds":
      generated.finish(books.out)
    data_card.write(books, identity, models)
    _say(f"{out} holds {num} pairs")
  _barrier("finished")
  return summary


class _Given:
  """Trees that the user brings: a folder of masks, read one at a time."""

  def __init__(self, path):
    self._source = folders.FolderSource(path, ("tree",))
    self.names, self.fingerprint = self._source.names, sources.fingerprint(self._source)
    with concurrent.futures.ThreadPoolExecutor() as pool:
      for _ in pool.map(lambda i: self._source[i] and None, range(min(len(self), _CHECKED_AT_ONCE))):
        pass

  def __len__(self):
    return len(self.names)

  def __getitem__(self, rows: range) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """(trees, visible discs) uint8 [H, W, 1]; None where nothing tells the disc."""
    examples = [self._source[i] for i in rows]
    return [e["tree"] for e in examples], [e["fov"] if e["fov"].min() < 255 else None for e in examples]


def _make(generator, books, facts, given, seed, form, num) -> dict:
  """Makes this host's missing pairs."""
  hosts, host = jax.process_count(), jax.process_index()
  # No two hosts write into one shard.
  unit = generated.SHARD if form == "tfds" else 1
  start, stop = (min(num, -(-num // unit) * h // hosts * unit) for h in (host, host + 1))
  size = generator.batch_size if form == "png" else generated.SHARD
  pieces = list(books.missing(start, stop, size))
  made, waited, began = 0, 0.0, time.monotonic()
  progress = _Progress(stop - start, stop - start - sum(b - a for a, b in pieces))
  in_flight: collections.deque = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(max(2, min(16, os.cpu_count() or 2)))

  def settle():
    """Waits until the oldest chunk is on disk, and books it."""
    nonlocal waited, made
    a, rows, files = in_flight.popleft()
    since = time.monotonic()
    for file in files:
      file.result()
    books.add(a, rows)
    waited, made = waited + time.monotonic() - since, made + len(rows)
    progress(len(rows))

  try:
    for a, b in pieces:
      rows, fields = _chunk(generator, facts, given, seed, range(a, b))
      if form == "png":
        files = [
          pool.submit(_write_pngs, books.out, r["name"], {k: v[i] for k, v in fields.items()}) for i, r in enumerate(rows)
        ]
      else:
        files = [pool.submit(generated.write_shard, books.out, a, rows, fields)]
      in_flight.append((a, rows, files))
      if len(in_flight) > _IN_FLIGHT:
        settle()
    while in_flight:
      settle()
  finally:
    pool.shutdown(wait=True, cancel_futures=True)
    progress.close()
  return {"made": made, "wall": time.monotonic() - began, "waited": waited, "stages": dict(generator.seconds)}


def _chunk(generator, facts, given, seed, indices: range) -> tuple[list[dict], dict[str, np.ndarray]]:
  """One chunk of pairs: manifest rows, and the fields as they are stored."""
  numbers = np.arange(indices.start, indices.stop)
  if given is None:
    fields, records = generator.trees(numbers, seed)
    names = [f"{k:07d}" for k in indices]
  else:
    fields, records = generator.given(*given[indices]), [{} for _ in indices]
    names = [given.names[k] for k in indices]
  fields = generator.photographs(fields, numbers, seed, pairs.tilts(records))
  fov = transforms.binarise(fields["fov"])
  masks = transforms.binarise(fields.get("vessels", fields["tree"]))
  stored = {"masks": np.where(fov > 0, masks, 0).astype(np.uint8), "fov": fov}
  stored |= {"images": fields["image"]} if "image" in fields else {"coverage": fields["tree"]}
  rows = [
    {"name": name, "index": k, "seed": seed, "label": "generated", **record, **facts}
    for name, k, record in zip(names, indices, records, strict=True)
  ]
  return rows, stored


def _write_pngs(out, name: str, pixels: dict[str, np.ndarray]) -> None:
  for folder, picture in pixels.items():
    writing.write_png(out / folder / f"{name}.png", picture)


def _identity(generator, seed, form, given) -> dict:
  """Everything that pair k depends on besides k."""
  models, stages = generator.models, {}
  refiners = dict(zip([name for name in generator.samplers if name.startswith("refine_")], models.refine, strict=True))
  for name, loaded in {"tree": models.tree, **refiners, "fundus": models.fundus, "superres": models.superres}.items():
    if loaded is None or (name == "tree" and given is not None):
      continue
    stages[name] = {"checkpoint": loaded.identity(), "step": loaded.step, "config": _hash(loaded.config)}
    if name in generator.samplers:
      options = checkpoint.to_json(generator.samplers[name].config.sampler)
      stages[name]["sampler"] = {k: v for k, v in options.items() if k not in ("batch_size", "block", "seed")}
  if (judge := models.tree_filter) is not None:
    stages["filter"] = {
      "checkpoint": judge.loaded.identity(),
      "step": judge.loaded.step,
      "config": _hash(judge.loaded.config),
      "threshold": judge.threshold,
      "how": judge.how,
      "ranges": judge.ranges,
    }
  identity = {
    "format": form,
    "seed": seed,
    "trees": "sampled" if given is None else f"given {given.fingerprint:08x}",
    "stages": stages,
  }
  return identity | ({"mask_rule": reduction.RULE} if models.refine else {})


def _facts(identity: dict) -> dict:
  """What every line of the manifest repeats of the run, so that sets can be joined line by line."""
  stages = identity["stages"]
  samplers = {name: stage["sampler"] for name, stage in stages.items() if "sampler" in stage}
  return {
    "trees": identity["trees"].split()[0],
    "sampler": {name: s["name"] for name, s in samplers.items()},
    "steps": {name: s["num_steps"] for name, s in samplers.items()},
    "guidance": samplers["fundus"]["guidance"] if "fundus" in samplers else None,
    "checkpoint": {name: stage["checkpoint"] for name, stage in stages.items()},
    "config": {name: stage["config"] for name, stage in stages.items()},
  }


def _hash(config) -> str:
  return hashlib.sha256(json.dumps(checkpoint.to_json(config), sort_keys=True).encode()).hexdigest()[:16]


def _barrier(name: str) -> None:
  """Waits for all hosts."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"retree_jax.inference.dataset_writer {name}")


def _say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


class _Progress:
  """A bar with pairs/s and the time left on a terminal, a line every ten seconds elsewhere; of this host's share."""

  def __init__(self, total: int, done: int):
    from tqdm import tqdm

    self._bar = None
    if jax.process_index() == 0:
      tty = sys.stderr.isatty()
      self._bar = tqdm(
        total=total,
        initial=done,
        unit=" pairs",
        dynamic_ncols=tty,
        ascii=not tty,
        file=sys.stderr,
        mininterval=0.1 if tty else 10.0,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} pairs, {rate_noinv_fmt}, {remaining} left",
      )

  def __call__(self, pairs: int) -> None:
    if self._bar is not None:
      self._bar.update(pairs)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
