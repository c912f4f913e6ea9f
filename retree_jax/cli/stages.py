"""What `python -m retree_jax.main` does once its flags are read: train, sample, evaluate. All of it importable."""

import functools
import itertools
import json
import sys
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath

from retree_jax import checkpoint, sharding
from retree_jax.data import claim, fingerprint, folders, montage, pipeline, provenance, sources, transforms, writing
from retree_jax.inference.sampler import Sampler

_CHUNK = 64  # samples made before they are written: bounds memory


def train(config, workdir) -> None:
  """Trains, or goes on training, a stage in `workdir`."""
  from retree_jax import train as loop

  loop.train(config, workdir)


def sample(
  stage: str,
  workdir,
  *,
  num: int | None = None,
  seed: int | None = None,
  out=None,
  inputs=None,
  step: int | str = "best",
  overrides: Mapping | None = None,
) -> None:
  """Samples from a trained stage into a folder.

  tree: `masks/`, `fov/`, `grid.png` and `manifest.jsonl`. fundus: paints the trees in `inputs` (default: trees of the held-out
  split). superres: enlarges the pairs in `inputs`. segmentation: labels the photographs in `inputs`.

  Args:
    stage: name of the stage.
    workdir: of its training run, or the name of shipped weights.
    num: number of samples (default 16, or all inputs).
    seed: root of the randomness (default `config.sampler.seed`).
    out: folder to write (default WORKDIR/samples).
    inputs: folder of inputs.
    step: checkpoint.
    overrides: changes of the stored config given on the command line. Those of `config.sampler` take effect, and
      `config.data.source` where the stage paints the trees of its own source.

  Raises:
    ValueError: no checkpoint, one of another stage, inputs that do not serve, or a change that would have no effect.
  """
  loaded = checkpoint.load(workdir, step=_step(step), stage=stage)
  if out is None and not epath.Path(workdir).exists():
    raise ValueError("--out is missing: name a folder for the samples of shipped weights")
  out = epath.Path(out or epath.Path(workdir) / "samples")
  others = ("data.source",) if stage == "fundus" and inputs is None else ()
  _override(loaded.config, overrides or {}, "sample", ("sampler.*", *others))
  if stage == "segmentation":
    from retree_jax.inference import segmenter

    if inputs is None:
      raise ValueError("--input is missing: name the folder of photographs to label")
    if (num, seed) != (None, None):
      raise ValueError(
        "--num and --seed have no effect on the segmentation stage, which labels all photographs: leave them out"
      )
    if "://" in str(out):
      raise ValueError("labels are written to a local folder: name one with --out")
    segmenter.label_folder(loaded, inputs, out)
  elif stage == "superres":
    if inputs is None:
      raise ValueError("--input is missing: name the pair folder to enlarge")
    if seed is not None:
      raise ValueError("--seed has no effect on the superres stage, whose noise is that of each pair: leave it out")
    _enlarge(loaded, inputs, out, num)
  elif stage in ("tree", "fundus"):
    _diffuse(loaded, out, num, seed, inputs)
  else:
    raise ValueError(f"the {stage} stage makes no samples: use --mode train or evaluate")


def _step(step: int | str) -> int | str:
  """What --step says: a number, "best" or "latest"."""
  if str(step).isdigit():
    return int(step)
  if step not in ("best", "latest"):
    raise ValueError(f"--step={step} is unknown: use best, latest or a number")
  return step


def evaluate(
  stage: str, workdir, source: str | None = None, step: int | str = "best", overrides: Mapping | None = None
) -> dict:
  """Scores a trained stage on all test examples of a source, prints the scores and writes them to WORKDIR/evaluation.json.

  Args:
    stage, workdir, step: as for `sample`.
    source: as `config.data.source`; by default what `overrides` names, else the run's own.
    overrides: changes of the stored config given on the command line. That of `config.data.source` takes effect; of a segmenter
      those of `config.sampler`, of a tree filter `config.data.generated`, of super-resolution `config.loss.perceptual_weights`.

  Returns:
    The scores. For a segmenter, those of both protocols; for other stages, the losses of the loop's evaluation.

  Raises:
    ValueError: no checkpoint, data that cannot be read, or a change that would have no effect.
  """
  loaded = checkpoint.load(workdir, step=_step(step), stage=stage)
  overrides = {**(overrides or {}), **({} if source is None else {"data.source": source})}
  others = {"segmentation": ("sampler.*",), "filter": ("data.generated",), "superres": ("loss.perceptual_weights",)}
  _override(loaded.config, overrides, "evaluate", ("data.source", *others.get(stage, ())))
  own, source = "data.source" not in overrides, loaded.config.data.source
  try:
    if stage == "segmentation":
      from retree_jax.inference import segmenter

      scores = segmenter.score_source(loaded, sources.open_source(source, split="test", fields=("image", "tree")))
    else:
      from retree_jax import train as loop

      scores = loop.evaluate(loaded)
  except ValueError as error:
    if not own:
      raise
    raise ValueError(f"{error} (the data that {workdir} was trained on; name others with --config.data.source)") from error
  if jax.process_index() == 0:
    text = json.dumps({"step": loaded.step, "source": source, "scores": scores}, indent=1)
    print(text, flush=True)
    if epath.Path(workdir).exists():
      writing.write_text(epath.Path(workdir) / "evaluation.json", text + "\n")
  return scores


def _override(config, overrides: Mapping, mode: str, changeable: tuple[str, ...]) -> None:
  """Applies fields of the command line to a stored config: those that are `changeable`, where "sampler.*" stands for all of a
  section. The rest belongs to the training run: a value that is not the run's own would have no effect, and is refused."""
  plain = checkpoint.to_json(config)
  for name, value in overrides.items():
    *path, field = name.split(".")
    section = functools.reduce(lambda node, key: node.get(key, {}), path, plain)
    if name == "sampler.cut_share" and value != section.get(field):
      raise ValueError("--config.sampler.cut_share is read by `generate` alone: leave it out, or use generate --cut_share")
    if name not in changeable and ".".join([*path, "*"]) not in changeable:
      if json.loads(json.dumps(value)) != section.get(field):
        counted = " and ".join(f"--config.{n}" for n in changeable)
        raise ValueError(
          f"--config.{name}={value!r} has no effect with --mode {mode}: the run has {section.get(field)!r}; leave it out, only "
          f"{counted} can be changed"
        )
    elif field not in section:
      raise ValueError(
        f"config.{'.'.join(path)} of this run has no field {field!r}: use {', '.join(sorted(section)) or 'none'}"
      )
    else:
      config[path[0]][field] = value
  number = plain.get("sampler", {}).get("num_steps")
  if overrides.get("sampler.num_steps", number) != number and config.sampler.spacing == "full":
    raise ValueError(
      "--config.sampler.num_steps has no effect where config.sampler.spacing='full' takes every time step: add "
      "--config.sampler.spacing=trailing"
    )


def _diffuse(loaded, out, num, seed, inputs) -> None:
  """Samples trees, or photographs of given trees, in chunks, so that memory does not grow with their number."""
  config = loaded.config
  seed = config.sampler.seed if seed is None else seed
  mesh = sharding.make_mesh()
  sampler = Sampler(config, loaded.network, mesh)
  params = sharding.replicate(loaded.params, mesh)
  source, names, wanted = _conditions(config, inputs), None, num or 16
  if source is not None:
    names = [name.replace("/", "_") for name in source.names]
    wanted = min(num or len(names), len(names))
  folder_of = {"tree": "masks", "fov": "fov", "image": "images"}
  digest = None if source is None else fingerprint.of_source(source)
  run = _identity(loaded, seed=seed, sampler=dict(config.sampler), inputs=digest)
  with claim.hold(out, "sampling"):
    total = _begin(out, run, names, wanted, folder_of[sampler.target[0]])
    shown, start = [], 0
    for condition in _chunks(config, source, inputs, total):
      rows = np.arange(start, min(start + _CHUNK, total))
      condition = {f: condition[f][: len(rows)] for f in sampler.condition}
      made = sampler(params, rows, condition, seed=seed)
      if jax.process_index() == 0:
        for i, k in enumerate(rows):
          for field, pixels in ({**condition, **made}).items():
            picture = pixels[i] if field == "image" else transforms.binarise(pixels[i])
            text = provenance.text(seed, int(k), field in made)
            writing.write_png(out / folder_of[field] / f"{_name(names, k)}.png", picture, text)
      shown.append({f: v[: max(0, 64 - start)] for f, v in made.items()})
      start += len(rows)
    if jax.process_index() == 0:
      for field in made:
        pictures = np.concatenate([s[field] for s in shown if len(s[field])])
        grid = out / ("grid.png" if field != "fov" else "grid_fov.png")
        writing.write_png(grid, montage.grid(pictures), provenance.text(seed))


def _identity(loaded, **facts) -> dict:
  """What the samples in a folder depend on besides their number, as run.json holds it."""
  return json.loads(json.dumps({"stage": loaded.config.stage, "checkpoint": loaded.identity(), "step": loaded.step, **facts}))


def _name(names, k: int) -> str:
  return f"{k:06d}" if names is None else names[k]


def _begin(out, run: dict, names, num: int, folder: str) -> int:
  """Claims a folder and writes its manifest, before the first sample: none is ever there that the manifest does not list.

  Args:
    out: the folder.
    run: the identity of the samples.
    names: of the inputs; None for samples that are only numbered.
    num: samples wanted.
    folder: subfolder of `out` that holds a picture of every sample.

  Returns:
    The number of samples that the folder is to hold: `num`, or those that are there already.
  """

  def first() -> None:
    begun = claim.check(out, run) is not None
    there = {p.name.removesuffix(".png") for p in (out / folder).iterdir()} if begun and (out / folder).exists() else set()
    if names is None:
      done = max((int(name) + 1 for name in there if name.isdecimal()), default=0)
    else:
      done = max((k + 1 for k, name in enumerate(names) if name in there), default=0)
    if done > num:
      print(f"{out} holds {done} samples already, more than the {num} asked for: all of them are kept", file=sys.stderr)
    total = max(num, done)
    claim.record(out, run, num=total)
    origin = {k: v for k, v in run.items() if k != "inputs"}
    lines = [json.dumps({"name": _name(names, k), "index": k, **origin}) + "\n" for k in range(total)]
    writing.write_text(out / "manifest.jsonl", "".join(lines))
    for part in ("", "images", "masks", "fov"):
      writing.remove_unfinished(out / part)

  sharding.on_first_process(first)
  return int(json.loads((out / "run.json").read_text())["num"])


def _conditions(config, inputs):
  """The trees to paint, from a folder or from the held-out split of the stage's own source; None where the stage takes none."""
  if not config.data.condition:
    if inputs is not None:
      raise ValueError("the tree stage takes no --input: leave it out")
    return None
  if inputs is not None:
    return folders.FolderSource(inputs, ("tree",))
  fields = tuple(f for f in config.data.condition if f != "fov")
  size = tuple(config.data.image_size)
  try:
    return sources.open_source(config.data.source, split="test", fields=fields, seed=config.seed, size=size)
  except ValueError as e:
    raise ValueError(f"Without --input FOLDER the test trees of config.data.source are painted. {e}") from None


def _chunks(config, source, inputs, total: int) -> Iterator[dict]:
  """The conditions of `total` samples, _CHUNK at a time: uint8 [n, H, W, 1] each; empty dicts where there are none."""
  number = -(-total // _CHUNK)
  if source is None:
    yield from ({} for _ in range(number))
    return
  batches = pipeline.evaluation_batches(
    source,
    size=tuple(config.data.image_size),
    batch_size=min(_CHUNK, total),
    fit=config.data.fit if inputs is None else "pad",
    fields=tuple(config.data.condition),
  )
  yield from itertools.islice(batches, number)


def _enlarge(loaded, inputs, out, num) -> None:
  """Super-resolves the pairs of a folder, shrunk to the size that the stage takes. Process 0 writes."""
  from retree_jax.inference import superres

  mesh = sharding.make_mesh()
  enlarger = superres.Enlarger(loaded.config, loaded.network, mesh)
  params = sharding.replicate(loaded.params, mesh)
  source = folders.FolderSource(inputs, ("image", "tree"))
  names = source.names
  run = _identity(loaded, sampler=dict(loaded.config.get("sampler", {})), inputs=fingerprint.of_source(source))
  fields = ("image", "tree", "fov")
  with claim.hold(out, "enlarging"):
    total, done = _begin(out, run, names, min(num or len(names), len(names)), "masks"), 0
    for batch in pipeline.evaluation_batches(
      source, size=enlarger.input_size, batch_size=8, fit=loaded.config.data.fit, fields=fields
    ):
      made = enlarger(params, {f: batch[f] for f in fields})
      count = min(int(batch["valid"].sum()), total - done)
      for i, name in enumerate(names[done : done + count] if jax.process_index() == 0 else ()):
        # Pictures of a generated pair stay marked as synthetic.
        photo, tree = (provenance.text() if provenance.is_synthetic(file) else None for file in source.files(name)[:2])
        writing.write_png(out / "images" / f"{name}.png", made["image"][i], photo)
        for field, folder in (("tree", "masks"), ("fov", "fov")):
          writing.write_png(out / folder / f"{name}.png", transforms.binarise(made[field][i]), tree)
      done += count
      if done >= total:
        break
