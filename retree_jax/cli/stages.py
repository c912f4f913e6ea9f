"""What `python -m retree_jax.main` does once its flags are read: train, sample, evaluate. All of it importable."""

import hashlib
import json
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from retree_jax import checkpoint, sharding
from retree_jax.data import folders, pipeline, sources, writing
from retree_jax.inference.sampler import Sampler
from retree_jax.report import plots

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
    overrides: changes of the stored config given on the command line; those of `config.sampler` take effect.

  Raises:
    ValueError: no checkpoint, one of another stage, or inputs that do not serve.
  """
  step = int(step) if str(step).isdigit() else step
  if step not in ("best", "latest") and not isinstance(step, int):
    raise ValueError(f"--step={step} is unknown: use best, latest or a number")
  loaded = checkpoint.load(workdir, step=step, stage=stage)
  if out is None and not epath.Path(workdir).exists():
    raise ValueError("--out is missing: name a folder for the samples of shipped weights")
  out = epath.Path(out or epath.Path(workdir) / "samples")
  _override_sampler(loaded.config, overrides or {})
  if stage == "segmentation":
    from retree_jax.inference import segmenter

    if inputs is None:
      raise ValueError("--input is missing: name the folder of photographs to label")
    segmenter.label_folder(loaded, inputs, out)
  elif stage == "superres":
    if inputs is None:
      raise ValueError("--input is missing: name the pair folder to enlarge")
    _enlarge(loaded, inputs, out, num)
  elif stage in ("tree", "fundus"):
    _diffuse(loaded, out, num, seed, inputs)
  else:
    raise ValueError(f"the {stage} stage makes no samples: use --mode train or evaluate")


def evaluate(stage: str, workdir, source: str, step: int | str = "best", overrides: Mapping | None = None) -> dict:
  """Scores a trained stage on the test split of a source, prints the scores and writes them to WORKDIR/evaluation.json.

  Args:
    stage, workdir, step, overrides: as for `sample`; of a tree filter, `config.data.generated` takes effect too.
    source: as `config.data.source`.

  Returns:
    The scores. For a segmenter, those of both protocols; for other stages, the losses of the loop's evaluation.
  """
  loaded = checkpoint.load(workdir, step=int(step) if str(step).isdigit() else step, stage=stage)
  overrides = overrides or {}
  _override_sampler(loaded.config, overrides)
  if "data.generated" in overrides and "generated" in loaded.config.data:
    loaded.config.data.generated = overrides["data.generated"]
  if stage == "segmentation":
    from retree_jax.inference import segmenter

    fields = ("image", "tree")
    scores = segmenter.score_source(loaded, sources.open_source(source, split="test", fields=fields))
  else:
    from retree_jax import train as loop

    scores = loop.evaluate(loaded, source)
  if jax.process_index() == 0:
    text = json.dumps({"step": loaded.step, "source": source, "scores": scores}, indent=1)
    print(text, flush=True)
    if epath.Path(workdir).exists():
      writing.write_text(epath.Path(workdir) / "evaluation.json", text + "\n")
  return scores


def _override_sampler(config, overrides: Mapping) -> None:
  """Applies `--config.sampler.*` of the command line to a stored config; the rest belongs to the training run."""
  for name, value in overrides.items():
    if name.startswith("sampler.") and "sampler" in config:
      field = name.removeprefix("sampler.")
      if field not in config.sampler:
        raise ValueError(f"config.sampler has no field {field!r}: use {', '.join(sorted(config.sampler))}")
      config.sampler[field] = value


def _diffuse(loaded, out, num, seed, inputs) -> None:
  """Trees, or photographs of given trees, in chunks, so that memory does not grow with their number."""
  config = loaded.config
  seed = config.sampler.seed if seed is None else seed
  mesh = sharding.make_mesh()
  sampler = Sampler(config, loaded.network, mesh)
  params = jax.device_put(loaded.params, sharding.replicated(mesh))
  names, given = _given(config, inputs, num)
  num = len(names) if given is not None else (num or 16)
  names = names or [f"{k:06d}" for k in range(num)]
  run = _claim(out, loaded, seed=seed, sampler=dict(config.sampler), inputs=None if given is None else _digest(names))
  folder_of = {"tree": "masks", "fov": "fov", "image": "images"}
  shown = []
  for start in range(0, num, _CHUNK):
    rows = np.arange(start, min(start + _CHUNK, num))
    condition = None if given is None else {f: given[f][rows] for f in sampler.condition}
    made = sampler(params, rows, condition, seed=seed)
    if jax.process_index() == 0:
      for i, k in enumerate(rows):
        for field, pixels in ({**(condition or {}), **made}).items():
          picture = pixels[i] if field == "image" else np.where(pixels[i] >= 128, 255, 0).astype(np.uint8)
          writing.write_png(out / folder_of[field] / f"{names[k]}.png", picture)
    shown.append({f: v[: max(0, 64 - start)] for f, v in made.items()})
  if jax.process_index():
    return
  _write_manifest(out, names, run)
  for field in made:
    writing.write_png(
      out / ("grid.png" if field != "fov" else "grid_fov.png"),
      plots.grid(np.concatenate([s[field] for s in shown if len(s[field])])),
    )


def _claim(out, loaded, **facts) -> dict:
  """Makes sure that a folder holds samples of this very run or none, and writes run.json; returns what that holds."""
  run = json.loads(json.dumps({"stage": loaded.config.stage, "checkpoint": loaded.identity(), "step": loaded.step, **facts}))
  claim = out / "run.json"
  if claim.exists() and json.loads(claim.read_text()) != run:
    raise ValueError(f"{out} holds other samples: name another folder with --out")
  if jax.process_index() == 0:
    writing.write_json(claim, run)
  return run


def _digest(names) -> str:
  return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _write_manifest(out, names, run: dict) -> None:
  origin = {k: v for k, v in run.items() if k != "inputs"}
  writing.write_text(
    out / "manifest.jsonl", "".join(json.dumps({"name": name, "index": i, **origin}) + "\n" for i, name in enumerate(names))
  )


def _given(config, inputs, num):
  """Names and condition fields of the trees to paint: from a folder, or the held-out split of the stage's own source."""
  if not config.data.condition:
    if inputs is not None:
      raise ValueError("the tree stage takes no --input: leave it out")
    return None, None
  fields = tuple(config.data.condition)
  if inputs is not None:
    source = folders.FolderSource(inputs, ("tree",))
  else:
    wanted = tuple(f for f in fields if f != "fov")
    source = sources.open_source(
      config.data.source, split="test", fields=wanted, seed=config.seed, size=tuple(config.data.image_size)
    )
  total = min(num or len(source), len(source))
  fit = config.data.fit if inputs is None else "pad"
  given, seen = {f: [] for f in fields}, 0
  for batch in pipeline.evaluation_batches(
    source, size=tuple(config.data.image_size), batch_size=min(_CHUNK, total), fit=fit, fields=fields
  ):
    for f in fields:
      given[f].append(batch[f][batch["valid"]])
    seen += int(batch["valid"].sum())
    if seen >= total:
      break
  names = [source.names[i] for i in range(total)] if hasattr(source, "names") else [f"{k:06d}" for k in range(total)]
  return [n.replace("/", "_") for n in names], {f: np.concatenate(v)[:total] for f, v in given.items()}


def _enlarge(loaded, inputs, out, num) -> None:
  """Super-resolves the pairs of a folder, shrunk to the size that the stage takes."""
  from retree_jax.inference import superres

  mesh = sharding.make_mesh()
  enlarger = superres.Enlarger(loaded, mesh)
  params = jax.device_put(loaded.params, sharding.replicated(mesh))
  source = folders.FolderSource(inputs, ("image", "tree"))
  total = min(num or len(source), len(source))
  size = tuple(enlarger.input_size)
  names = source.names[:total]
  run = _claim(out, loaded, sampler=dict(loaded.config.get("sampler", {})), inputs=_digest(source.names))
  done = 0
  for batch in pipeline.evaluation_batches(
    source, size=size, batch_size=8, fit=loaded.config.data.fit, fields=("image", "tree", "fov")
  ):
    made = enlarger({f: batch[f] for f in ("image", "tree", "fov")}, params)
    for i, name in enumerate(names[done : done + int(batch["valid"].sum())]):
      writing.write_png(out / "images" / f"{name}.png", made["image"][i])
      writing.write_png(out / "masks" / f"{name}.png", np.where(made["tree"][i] >= 128, 255, 0).astype(np.uint8))
      writing.write_png(out / "fov" / f"{name}.png", np.where(made["fov"][i] >= 128, 255, 0).astype(np.uint8))
    done += int(batch["valid"].sum())
    if done >= total:
      break
  if jax.process_index() == 0:
    _write_manifest(out, names, run)
