"""Vessel segmentation in use: photographs of any size in, vessel maps out; labels for folders; scores on sources."""

import filecmp
import json
import pathlib
import shutil
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from PIL import Image

from retree_jax import sharding
from retree_jax.config import validate
from retree_jax.data import claim, field_of_view, folders, transforms, writing
from retree_jax.inference import vessel_map
from retree_jax.inference.sampler import Sampler
from retree_jax.metrics import segmentation as metrics
from retree_jax.models import scaling

PROTOCOLS = ("native", "paper")
_ACCELERATOR_BLOCK = 8  # photographs that an accelerator sees at once


class Segmenter:
  """Finds vessels in photographs, with a U-Net over tiles or with the diffusion variant.

  The visible disc is resized to the size that the network was trained at, so that vessels have the width it knows from any
  camera. The result is resized back to the photograph's own pixels.

  Args:
    config: the segmentation stage's config.
    network: `retree_jax.models.Network`.
    mesh: devices; one local device by default.

  Attributes:
    size: (height, width) in pixels that the network works at.
    threshold: of probability, above which a pixel is labelled vessel.
    batch_size: photographs per compiled call.
  """

  def __init__(self, config, network, mesh=None):
    validate.check(config)
    self.config, self._network = config, network
    self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    self.size = tuple(self.config.data.image_size)
    self.threshold = float(self.config.sampler.threshold)
    # On a CPU one photograph at a time is as fast, and gives the same bits for any batch.
    block = 1 if self.mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR_BLOCK
    self.batch_size = block * self.mesh.size
    if "diffusion" in self.config:
      self._sampler = Sampler(self.config, self._network, self.mesh)
      self._find = self._draw
    else:
      spec = sharding.BATCH
      self._run = jax.jit(
        jax.shard_map(
          lambda params, batch: vessel_map.probabilities(self.config, self._network, params, batch),
          mesh=self.mesh,
          in_specs=(sharding.REPLICATED, spec),
          out_specs=spec,
          check_vma=False,
        )
      )
      self._find = self._tile

  def __call__(self, params, photographs: Sequence[np.ndarray], fovs: Sequence | None = None) -> list[np.ndarray]:
    """Vessel probabilities.

    Args:
      params: the network's parameters.
      photographs: uint8 [H, W, 3] each, of any sizes.
      fovs: masks of the visible disc, uint8 0/255 [H, W, 1] each; None, for one or for all, finds them with
        `retree_jax.data.field_of_view.find_fov`.

    Returns:
      float32 [H, W] in [0, 1] for each photograph; 0 outside the field of view.

    Raises:
      ValueError: arrays that are not photographs, a mask of another size, or lists of different lengths.
    """
    photographs = list(photographs)
    fovs = [None] * len(photographs) if fovs is None else list(fovs)
    if len(fovs) != len(photographs):
      raise ValueError(
        f"{len(photographs)} photographs and {len(fovs)} fields of view do not go together: give one "
        "of each, or None in place of a field of view"
      )
    params = sharding.replicate(params, self.mesh)
    eyes = [self._eye(*pair) for pair in zip(photographs, fovs, strict=True)]
    probabilities = []
    for start in range(0, len(eyes), self.batch_size):
      chunk = eyes[start : start + self.batch_size]
      fitted = [transforms.fit(eye, self.size, self.config.data.fit) for eye in chunk]
      batch = {f: np.stack([eye[f] for eye in fitted]) for f in ("image", "fov")}
      maps = self._find(params, batch)
      probabilities += [self._resize_back(p, eye["fov"]) for p, eye in zip(maps, chunk, strict=True)]
    return probabilities

  def _eye(self, photograph, fov) -> dict:
    """A checked photograph with its field of view."""
    photograph = np.asarray(photograph)
    if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3 or not photograph.size:
      raise ValueError(
        f"a photograph must be uint8 of shape [height, width, 3], not {photograph.dtype} "
        f"{photograph.shape}: decode the file with retree_jax.data.image_io"
      )
    fov = field_of_view.find_fov(photograph) if fov is None else (np.asarray(fov) > 0) * np.uint8(255)
    fov = fov[..., None] if fov.ndim == 2 else fov
    if not fov.any():
      raise ValueError(
        "the field of view is empty, so there would be no vessels: give the mask of the visible disc, or None (no fov/ file) "
        "to detect it"
      )
    if fov.shape != (*photograph.shape[:2], 1):
      raise ValueError(
        f"the field of view has shape {fov.shape[:2]} and the photograph {photograph.shape[:2]}: give "
        "a mask of the photograph's size, or None"
      )
    return {"image": photograph, "fov": fov}

  def _tile(self, params, batch) -> np.ndarray:
    """Probabilities [n, H, W] of fitted photographs, padded to a whole compiled batch."""
    count = len(batch["image"])
    rows = np.minimum(np.arange(self.batch_size), count - 1)
    batch = {f: v[rows] for f, v in batch.items()}
    split = sharding.batch_sharding(self.mesh)
    placed = {f: jax.make_array_from_callback(v.shape, split, lambda i, v=v: v[i]) for f, v in batch.items()}
    return sharding.to_host(self._run(params, placed))[:count, ..., 0]

  def _draw(self, params, batch) -> np.ndarray:
    """The same with the diffusion variant: the mean of several sampled masks."""
    draws = int(self.config.sampler.draws)
    # The noise of draw d is the same for every photograph, so that labels do not depend on the other files of a folder.
    masks = [self._sampler(params, np.full(len(batch["image"]), d), batch)["tree"] for d in range(draws)]
    return np.mean([m[..., 0] / np.float32(255) for m in masks], axis=0) * (batch["fov"][..., 0] > 0)

  def _resize_back(self, probability, fov) -> np.ndarray:
    """From the fitted view to the photograph's own pixels."""
    y0, x0, y1, x1 = transforms.fit_box(fov, self.size, self.config.data.fit)
    view = Image.fromarray(np.asarray(probability, np.float32)).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    height, width = fov.shape[:2]
    whole = np.zeros((height, width), np.float32)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    whole[top:bottom, left:right] = np.asarray(view)[top - y0 : bottom - y0, left - x0 : right - x0]
    return np.clip(whole, 0.0, 1.0) * (fov[..., 0] > 0)


def label_folder(loaded, input_folder, out_folder, threshold: float | None = None, probabilities: bool = False) -> int:
  """Labels the photographs of a folder: the result is a pair folder that any stage can be trained on.

  Writes masks/NAME.png, fov/NAME.png, manifest.jsonl, which marks the labels as "predicted", and, unless `out_folder` is
  `input_folder`, copies of the photographs and of splits.json. Files that exist are kept, so the same call continues an
  interrupted one. The processes of a job share the work.

  Args:
    loaded: `checkpoint.Loaded` of the segmentation stage.
    input_folder: photographs, or a folder with images/ (and fov/, which is then used).
    out_folder: local folder to write to; may be `input_folder` if that has images/ and no masks.
    threshold: of probability; `config.sampler.threshold` by default.
    probabilities: also write probabilities/NAME.png, 255 times the probability.

  Returns:
    Number of photographs labelled by this call.

  Raises:
    ValueError: no photographs, a damaged one, or a folder with other masks or photographs, or in use by another job.
  """
  source = folders.FolderSource(input_folder, ("image",))
  out = pathlib.Path(out_folder).expanduser()
  segmenter = Segmenter(loaded.config, loaded.network, sharding.make_mesh(devices=jax.local_devices()))
  params = sharding.replicate(loaded.params, segmenter.mesh)
  threshold = segmenter.threshold if threshold is None else float(threshold)
  if not 0.0 <= threshold < 1.0:
    raise ValueError(f"the threshold {threshold} would label nothing or is not a probability: give one from 0 to below 1")
  run = {"label": "predicted", "checkpoint": loaded.identity(), "step": loaded.step, "threshold": threshold}
  sampler = {name: value for name, value in loaded.config.sampler.items() if name != "threshold"}
  inside = source.path / "images" if (source.path / "images").is_dir() else source.path
  files = folders.list_pictures(inside)
  copy = inside.resolve() != (out / "images").resolve()
  if inside.resolve() == out.resolve():
    raise ValueError(
      f"{out} holds photographs, which would then be there twice: use another --out, or move them to {out / 'images'} first"
    )
  with claim.hold(out, "labelling"):
    if copy and (out / "images").is_dir():
      _check_copies(files, folders.list_pictures(out / "images"))
    sharding.on_first_process(lambda: _begin(out, run, sampler, source.names, "" if copy else "masks"))
    if jax.process_index() == 0 and copy and (source.path / "splits.json").is_file():
      writing.write_bytes(out / "splits.json", (source.path / "splits.json").read_bytes())
    mine = range(jax.process_index(), len(source), jax.process_count())
    written = ("masks", "probabilities") if probabilities else ("masks",)
    waiting = [i for i in mine if not all((out / kind / f"{source.names[i]}.png").exists() for kind in written)]
    for start in range(0, len(waiting), segmenter.batch_size):
      eyes = [source[i] for i in waiting[start : start + segmenter.batch_size]]
      maps = segmenter(params, [eye["image"] for eye in eyes], [eye["fov"] for eye in eyes])
      for eye, probability in zip(eyes, maps, strict=True):
        name = eye["name"]
        if copy:
          _copy(files[name], out / "images" / files[name].name)
        if probabilities:
          writing.write_png(out / "probabilities" / f"{name}.png", scaling.from_unit(probability))
        if copy or not source.has_fov(name):
          writing.write_png(out / "fov" / f"{name}.png", eye["fov"])
        # Last: the mask marks this photograph as done. One that is there may have been corrected by hand.
        if not (out / "masks" / f"{name}.png").exists():
          writing.write_png(out / "masks" / f"{name}.png", (probability > threshold) * np.uint8(255))
      logging.info("labelled %d of %d photographs", min(start + segmenter.batch_size, len(waiting)), len(waiting))
    sharding.wait_for_all("photographs labelled")  # before process 0 gives the folder back
  return len(waiting)


def _begin(out: pathlib.Path, run: dict, sampler: dict, names: Sequence[str], inside: str) -> None:
  """Claims a folder, of which `inside` must be empty, for the labels of one run; writes the manifest before the first mask."""
  identity = {**run, "sampler": sampler}
  claim.check(out, identity, "labels.json", inside)
  claim.record(out, identity, "labels.json")
  # Masks of photographs that are no longer among the inputs stay, and stay listed: their labels are predicted too.
  masks = [path.name.removesuffix(".png") for path in (out / "masks").glob("[!.]*.png")]
  names = [*names, *sorted(set(masks) - set(names))]
  writing.write_text(out / "manifest.jsonl", "".join(json.dumps({"name": name, **run}) + "\n" for name in names))


def _check_copies(files, copies) -> None:
  """Raises ValueError if a photograph of the same name that was labelled here before is another photograph."""
  for name, copied in copies.items():
    if name in files and (files[name].name != copied.name or not filecmp.cmp(files[name], copied)):
      raise ValueError(f"{copied} is another photograph than {files[name]}: name another folder with --out")


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  if not target.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}{writing.UNFINISHED}")
    shutil.copy2(source, beside)  # with its modification time, by which a rerun recognises it without reading it
    beside.replace(target)


def score_source(loaded, source, protocols: Sequence[str] = PROTOCOLS) -> dict:
  """Scores a segmenter on labelled photographs, each at its own size.

  Args:
    loaded: `checkpoint.Loaded` of the segmentation stage.
    source: from `sources.open_source` with fields ("image", "tree"); a joined source is also scored part by part.
    protocols: names of `retree_jax.metrics.segmentation.protocol`.

  Returns:
    {protocol: {part: {"per_image": {metric: {"mean", "std", "low", "high", "count"}}, "pooled": {metric: value}}},
    "images": {name: {protocol: F1}}}, with the part "all" and, of a joined source, one for each of its parts. Numbers
    that are undefined (the spread of one image) are None.

  Raises:
    ValueError: an empty source, or examples without a tree.
  """
  if not len(source):
    raise ValueError("there are no photographs to score: give a source with at least one labelled eye")
  segmenter = Segmenter(loaded.config, loaded.network, sharding.make_mesh(devices=jax.local_devices()))
  params = sharding.replicate(loaded.params, segmenter.mesh)
  cases = []
  for start in range(0, len(source), segmenter.batch_size):
    eyes = [source[i] for i in range(start, min(start + segmenter.batch_size, len(source)))]
    if any("tree" not in eye for eye in eyes):
      raise ValueError("a photograph without a vessel mask cannot be scored: open the source with fields ('image', 'tree')")
    maps = segmenter(params, [eye["image"] for eye in eyes], [eye["fov"] for eye in eyes])
    cases += [(eye["name"], p, transforms.binarise(eye["tree"]), eye["fov"]) for eye, p in zip(eyes, maps, strict=True)]
  return score_cases(cases, _parts(source), protocols, segmenter.threshold)


def score_cases(cases, parts: dict[str, Sequence[int]], protocols=PROTOCOLS, threshold: float = 0.5) -> dict:
  """The scores of `score_source` for (name, probabilities [H, W], mask, fov mask) of each photograph.

  Args:
    cases: list of such tuples.
    parts: {name of a part: indices into `cases`}.
    protocols: names of protocols.
    threshold: of probability, in place of the protocols' own.
  """
  result = {"images": {name: {} for name, *_ in cases}}
  for title in protocols:
    protocol = metrics.protocol(title)
    prepared = [protocol.prepare(p, tree, fov) for _, p, tree, fov in cases]
    scored = [metrics.scores(*item, threshold) for item in prepared]
    for (name, *_), values in zip(cases, scored, strict=True):
      result["images"][name][title] = round(values["f1"], 4)
    result[title] = {}
    for part, rows in parts.items():
      chosen = [prepared[i] for i in rows]
      result[title][part] = {
        "per_image": metrics.summary([scored[i] for i in rows]),
        "pooled": metrics.pooled(*map(list, zip(*chosen, strict=True)), threshold),
      }
  return writing.json_values(result)


def _parts(source) -> dict[str, list[int]]:
  parts = {"all": list(range(len(source)))}
  start = 0
  for part in getattr(source, "parts", []):
    title = part.title if part.title not in parts else f"{part.title} {len(parts)}"
    parts[title] = list(range(start, start + len(part)))
    start += len(part)
  return parts
