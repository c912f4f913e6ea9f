"""Writes generated pairs to disk: streaming, resumable, from any number of hosts, with the documents that belong to a data set.

    OUT/images/NAME.png  masks/NAME.png (0/255)  fov/NAME.png      a pair folder, which `folder:OUT` reads back
    OUT/coverage/NAME.png                                          without a fundus stage: trees as drawn, 0..255
    OUT/manifest.jsonl  run.json  DATA_CARD.md  contact_sheet.png  metadata.json

`retree_jax.data.formats` lists the other forms.

Devices make one chunk of pairs while threads write the last two; memory does not grow with the number of pairs. Each host makes
its own range of them. `retree_jax.data.manifest` keeps the progress journal.
"""

import collections
import concurrent.futures
import os
import sys
import time

import jax
import numpy as np

from retree_jax import checkpoint, sharding
from retree_jax.config import stored
from retree_jax.data import claim, fingerprint, folders, formats, manifest, provenance, reduction, transforms
from retree_jax.data.workers import Workers, spare_cores
from retree_jax.inference import data_card, pairs

_AT_ONCE = 2  # chunks that are made at a time where worker processes take part
_IN_FLIGHT = 2  # chunks that may wait for the disk while the devices work on the next
_CHECKED_AT_ONCE = 256  # given masks that are checked before the first is painted
_SHIPPED = {
  "tree": ("tree",),
  "refine": ("refine", "refine_512"),
  "fundus": ("fundus",),
  "detail": ("detail_128", "detail_256"),
  "superres": ("superres",),
  "filter_path": ("filter",),
}


def shipped() -> dict[str, str | None]:
  """The shipped weights, as `write` takes them: whatever folders of the same names are here.

  Raises:
    ValueError: this installation has none.
  """
  names = checkpoint.shipped_names()
  paths = {
    stage: ",".join(checkpoint.SHIPPED + name for name in wanted if name in names) or None for stage, wanted in _SHIPPED.items()
  }
  if not (paths["tree"] or paths["fundus"]):
    raise ValueError(
      "this installation ships no weights: give --tree and --fundus, the workdirs of "
      "`python -m retree_jax.main --config configs/tree.py` and `configs/fundus.py`"
    )
  return paths


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
  ask: dict[str, float] | None = None,
  ask_guidance: float | None = None,
  cut_share: float | None = None,
  workers: int | None = 0,
  ask_candidates: int | None = None,
  batch_size: int | None = None,
) -> dict:
  """Generates a data set into a folder, or continues one.

  Args:
    paths: {"tree", "refine", "fundus", "detail", "superres", "filter_path"}: workdirs or names of shipped weights; a stage that
      is missing or None is left out.
    out: folder to write, local or bucket, shared by all hosts.
    num: pairs; by default those that the folder was begun with, in a new one 16, or all of `trees`. More than the folder has
      extends it; fewer shorten a set of which no pair beyond is done.
    seed: root of the randomness.
    trees: folder of vessel masks to paint, flat or a pair folder, in place of the tree stage; names are kept.
    form: one of `formats.FORMS`: "png", "tfds", "nnunet", "imagefolder".
    guidance, num_steps: see `pairs.Generator`.
    threshold: least filter score, in place of the one chosen on validation data.
    mesh: devices of this host; all of them by default.
    ask, ask_guidance, cut_share: what trees are asked to have, see `pairs.Generator`.
    workers: processes that mend and turn trees while the devices draw the next, see `retree_jax.data.workers`; None for all
      cores but one with an accelerator, and none on CPUs, where the networks need the cores.
    ask_candidates, batch_size: see `pairs.Generator`.

  Returns:
    {"pairs": in the set, "made": by this host now, "wall": seconds, "waited": of them for the disk, "stages": seconds by
    stage}.

  Raises:
    ValueError: models that do not fit, trees that cannot be painted, a folder that holds something else or that another process
      writes to.
  """
  mesh = sharding.make_mesh(devices=jax.local_devices()) if mesh is None else mesh
  given = None if trees is None else _Given(trees)
  if given is not None and not paths.get("fundus"):
    raise ValueError("--trees are painted by the fundus stage: give --fundus too")
  if ask and given is not None:
    raise ValueError("--ask is for sampling trees, but --trees gives them: leave one of the two out")
  if ask_candidates is not None and not ask:
    raise ValueError("--ask_candidates needs something to choose by: give --ask, or leave --ask_candidates out")
  models = pairs.load_models(**paths, threshold=threshold, mesh=mesh)
  if workers is None:
    workers = 0 if mesh.devices.flat[0].platform == "cpu" else spare_cores()
  with Workers(workers) as workers:
    generator = pairs.Generator(
      models, mesh, guidance, num_steps, ask, ask_guidance, cut_share, workers, ask_candidates, batch_size
    )
    return _write(generator, given, out, num, seed, trees, form)


def _write(generator, given, out, num, seed, trees, form) -> dict:
  """`write`, once the models are loaded."""
  models = generator.models
  if given is None and models.tree is None:
    raise ValueError("there are no trees to paint: give --tree to draw some, or --trees with a folder of masks")
  if given is not None and num is not None and num > len(given):
    raise ValueError(f"{trees} holds {len(given)} trees, not --num={num}: give at most that, or leave --num out")
  journal, layout = manifest.Journal(out), formats.FORMS[form]
  layout.check(journal.out, models.fundus is not None)
  identity = identity_of(generator, seed, form, given)
  with claim.hold(journal.out, "generating") as lease:
    sharding.on_first_process(lambda: _begin(journal, identity, num, given, layout))
    num, card = journal.num(), journal.out / "DATA_CARD.md"
    summary = {"pairs": num, "made": 0, "wall": 0.0, "waited": 0.0, "stages": {}}
    if card.exists():
      _say(f"{out} is finished: {num} pairs")
      return summary
    if models.tree_filter is not None:
      _say(f"trees are kept from a score of {models.tree_filter.bounds.threshold:.4f} on: {models.tree_filter.bounds.how}")
    summary |= _make(generator, journal, lease, facts_of(identity), given, seed, layout, num)
    sharding.wait_for_all("pairs made")
    if jax.process_index() == 0:
      journal.merge()
      layout.finish(journal)
      data_card.write(journal, identity, models, layout)
      _say(f"{out} holds {num} pairs")
    sharding.wait_for_all("data set finished")
  return summary


def _begin(journal, identity, num, given, layout) -> None:
  """Claims the folder for this run. The data card goes if anything is missing, which tells all hosts that there is work."""
  total, begun = journal.claim(identity, num, 16 if given is None else len(given))
  if begun and total < begun:
    _say(f"{journal.out} was begun with {begun} pairs and will now hold {total}")
    layout.remove_beyond(journal.out, total, _number_of(given))
  elif num and total > num:
    _say(f"{journal.out} was begun with {begun} pairs, and all of them are done: they are kept")
  lost = layout.lost(journal, total, _number_of(given))
  if lost.any():
    _say(f"{lost.sum()} pairs of {journal.out} lack a file and are made again")
  documents = [journal.out / name for name in layout.documents]
  if lost.any() or not journal.finished() or not all(path.exists() for path in documents):
    documents[0].unlink(missing_ok=True)


def _number_of(given):
  """From a name to the number of its pair, or None."""
  numbers = None if given is None else {name: k for k, name in enumerate(given.names)}

  def number(name: str) -> int | None:
    if numbers is not None:
      return numbers.get(name)
    return int(name) if name.isdecimal() and f"{int(name):07d}" == name else None

  return number


class _Given:
  """Trees that the user brings: a folder of masks, read one at a time."""

  def __init__(self, path):
    self._source = folders.FolderSource(path, ("tree",))
    self.names, self.fingerprint = self._source.names, fingerprint.of_source(self._source)
    with concurrent.futures.ThreadPoolExecutor() as pool:
      for _ in pool.map(lambda i: self._source[i] and None, range(min(len(self), _CHECKED_AT_ONCE))):
        pass

  def __len__(self):
    return len(self.names)

  def __getitem__(self, rows: range) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """(trees, fields of view) uint8 [H, W, 1]; None where the field of view is unknown."""
    examples = [self._source[i] for i in rows]
    return [e["tree"] for e in examples], [e["fov"] if e["fov"].min() < 255 else None for e in examples]


def _make(generator, journal, lease, facts, given, seed, layout, num) -> dict:
  """Makes this host's missing pairs."""
  hosts, host = jax.process_count(), jax.process_index()
  unit = layout.unit  # no two hosts write into one shard
  start, stop = (min(num, -(-num // unit) * h // hosts * unit) for h in (host, host + 1))
  size = generator.batch_size if unit == 1 else unit
  pieces = list(journal.missing(start, stop, size, layout.lost(journal, num, _number_of(given))))
  made, waited, began = 0, 0.0, time.monotonic()
  progress = _Progress(stop - start, stop - start - sum(b - a for a, b in pieces))
  in_flight: collections.deque = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(max(2, min(16, os.cpu_count() or 2)))

  def settle():
    """Waits until the oldest chunk is on disk, and records it as done."""
    nonlocal waited, made
    a, rows, files = in_flight.popleft()
    since = time.monotonic()
    for file in files:
      file.result()
    if lease is not None:
      lease.check()
    journal.add(a, rows)
    waited, made = waited + time.monotonic() - since, made + len(rows)
    progress(len(rows))

  try:
    for a, (rows, fields) in _chunks(generator, pieces, lambda a, b: make_chunk(generator, facts, given, seed, range(a, b))):
      in_flight.append((a, rows, [pool.submit(job) for job in layout.jobs(journal.out, a, rows, fields)]))
      if len(in_flight) > _IN_FLIGHT:
        settle()
    while in_flight:
      settle()
  finally:
    pool.shutdown(wait=True, cancel_futures=True)
    progress.close()
  return {"made": made, "wall": time.monotonic() - began, "waited": waited, "stages": dict(generator.seconds)}


def _chunks(generator, pieces, make):
  """(start, what `make` returns) of each piece in order.

  With worker processes, two pieces are made at a time: while one waits for them, the devices work on the other.
  """
  if not generator.workers:
    yield from ((a, make(a, b)) for a, b in pieces)
    return
  ahead: collections.deque = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as makers:
    try:
      for a, b in pieces:
        ahead.append((a, makers.submit(make, a, b)))
        if len(ahead) > _AT_ONCE:
          yield ahead[0][0], ahead.popleft()[1].result()
      while ahead:
        yield ahead[0][0], ahead.popleft()[1].result()
    finally:
      makers.shutdown(wait=True, cancel_futures=True)


def make_chunk(generator, facts, given, seed, indices: range) -> tuple[list[dict], dict[str, np.ndarray]]:
  """Makes some pairs of a set.

  Args:
    generator: `pairs.Generator`.
    facts: `facts_of` the set's identity.
    given: trees to paint, with `names` and, by a range of numbers, (trees, fields of view), see `pairs.Generator.given`; None
      to draw trees.
    seed: root of the randomness.
    indices: numbers of the pairs.

  Returns:
    The manifest's rows, and the fields as they are stored: {folder: uint8 [N, H, W, C]}.
  """
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
    {"name": name, "index": k, "seed": seed, "label": "generated", "synthetic": True, **record, **facts}
    for name, k, record in zip(names, indices, records, strict=True)
  ]
  return rows, stored


def identity_of(generator, seed, form, given) -> dict:
  """Everything that pair k depends on besides k."""
  models, stages = generator.models, {}
  refine, detail = (
    zip([name for name in generator.samplers if name.startswith(stage)], loaded, strict=True)
    for stage, loaded in (("refine_", models.refine), ("detail_", models.detail))
  )
  ends = {"fundus": models.fundus, "superres": models.superres}
  for name, loaded in {"tree": models.tree, **dict(refine), **dict(detail), **ends}.items():
    if loaded is None or (name == "tree" and given is not None):
      continue
    stages[name] = {"checkpoint": loaded.identity(), "step": loaded.step, "config": stored.digest(loaded.config)}
    if name in generator.samplers:
      options = checkpoint.to_json(generator.samplers[name].config.sampler)
      stages[name]["sampler"] = {k: v for k, v in options.items() if k not in ("batch_size", "block", "seed")}
  if (tree_filter := models.tree_filter) is not None:
    stages["filter"] = {
      "checkpoint": tree_filter.loaded.identity(),
      "step": tree_filter.loaded.step,
      "config": stored.digest(tree_filter.loaded.config),
      "threshold": tree_filter.bounds.threshold,
      "how": tree_filter.bounds.how,
      "ranges": tree_filter.bounds.ranges,
    }
  identity = {
    "format": form,
    "seed": seed,
    "trees": "sampled" if given is None else f"given {given.fingerprint}",
    "stages": stages,
  }
  if generator.ask:
    identity["asked"] = generator.ask
  if generator.candidates > 1:
    identity["candidates"] = generator.candidates
  return identity | ({"mask_rule": reduction.RULE} if models.refine else {})


def facts_of(identity: dict) -> dict:
  """What every line of the manifest repeats of the run, so that sets can be joined line by line."""
  stages = identity["stages"]
  samplers = {name: stage["sampler"] for name, stage in stages.items() if "sampler" in stage}
  return {
    "software": provenance.SOFTWARE,
    "trees": identity["trees"].split()[0],
    **({"asked": identity["asked"]} if "asked" in identity else {}),
    "sampler": {name: s["name"] for name, s in samplers.items()},
    "steps": {name: "all" if s["spacing"] == "full" else s["num_steps"] for name, s in samplers.items()},
    "guidance": samplers["fundus"]["guidance"] if "fundus" in samplers else None,
    "checkpoint": {name: stage["checkpoint"] for name, stage in stages.items()},
    "config": {name: stage["config"] for name, stage in stages.items()},
  }


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
