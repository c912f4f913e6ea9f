"""The product's main job: seeds → trees → filter → photographs → super-resolution → a labelled data set on disk.

    python -m retree_jax.generate --num 16 --out out                                        # shipped models
    python -m retree_jax.generate --tree runs/tree --fundus runs/fundus --superres runs/superres --num 1000 --out data/retree
    python -m retree_jax.generate --trees FOLDER --fundus runs/fundus --out painted         # paint your own trees

Pair k is a function of (models, settings, seed, k): not of the batch, the number of devices or hosts, or a restart. Rerunning the
command continues it. `pairs` does the same on arrays, for notebooks; `retree_jax.dataset` writes.
"""

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from retree_jax import command, cpu

_MAX_ATTEMPTS = 20  # trees drawn for one pair before the best of them is taken and marked as not accepted


@dataclasses.dataclass(frozen=True)
class Models:
  """The stages of one generator; a stage that is None is left out.

  Attributes:
    tree, fundus, superres: `retree_jax.checkpoint.Loaded`.
    tree_filter: `retree_jax.tree_filter.Filter` that scores trees.
  """

  tree: object = None
  fundus: object = None
  superres: object = None
  tree_filter: object = None


class Generator:
  """Compiled stages over a mesh.

  Args:
    models: the stages.
    mesh: devices; one local device by default.
    guidance: guidance scale of the fundus stage; None keeps its config's.
    num_steps: sampler steps of both diffusion stages; None keeps their configs'.

  Raises:
    ValueError: stages that do not fit each other.
  """

  def __init__(self, models: Models, mesh=None, guidance: float | None = None, num_steps: int | None = None):
    from retree_jax import enlarge, sampling

    self.models = models
    self._tree = self._fundus = self._superres = None
    if models.tree is None and models.fundus is None:
      raise ValueError("nothing to generate with: give --tree, --fundus or both, or install the shipped models")
    if models.tree is not None:
      self._tree = sampling.Sampler(_changed(models.tree.config, num_steps=num_steps), models.tree.network, mesh)
    if models.fundus is not None:
      config = _changed(models.fundus.config, num_steps=num_steps, guidance=guidance)
      self._fundus = sampling.Sampler(config, models.fundus.network, mesh)
    if models.superres is not None:
      self._superres = enlarge.Enlarger(models.superres, mesh)

  @property
  def batch_size(self) -> int:
    """Pairs per compiled call over all devices."""
    return max(s.batch_size for s in (self._tree, self._fundus) if s is not None)

  def trees(self, indices: np.ndarray, seed: int) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Trees that pass the filter, one for each index.

    Args:
      indices: [N] numbers of the pairs.
      seed: root of the randomness.

    Returns:
      Fields "tree" and "fov", uint8 [N, H, W, 1], and N records {"attempts", "accepted", "filter_score", "dropped"}.
    """
    n, judge = len(indices), self.models.tree_filter
    fields: dict[str, np.ndarray] = {}
    records = [{"attempts": 0, "accepted": judge is None, "filter_score": None, "dropped": []} for _ in range(n)]
    waiting = np.arange(n)
    for attempt in range(1 if judge is None else _MAX_ATTEMPTS):
      if not len(waiting):
        break
      drawn = _with_fov(self._tree(self.models.tree.params, indices[waiting], seed=seed, stream=f"attempt {attempt}"))
      verdicts = [None] * len(waiting) if judge is None else judge(drawn["tree"], drawn["fov"])
      for name, pixels in drawn.items():
        fields.setdefault(name, np.zeros((n, *pixels.shape[1:]), np.uint8))
      for row, (i, verdict) in enumerate(zip(waiting, verdicts, strict=True)):
        record = records[i]
        record["attempts"] += 1
        if verdict is not None:
          better = record["filter_score"] is None or verdict.score > record["filter_score"]
          record["accepted"] = verdict.accepted
          if not verdict.accepted:
            record["dropped"].append(verdict.reason)
          if not (better or verdict.accepted):
            continue
          record["filter_score"] = round(float(verdict.score), 6)
        for name, pixels in drawn.items():
          fields[name][i] = pixels[row]
      waiting = np.array([i for i in waiting if not records[i]["accepted"]], int)
    return fields, records

  def photographs(self, fields: dict[str, np.ndarray], indices: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Paints trees (and enlarges both): fields "image", "tree", "fov", uint8 [N, H, W, C]."""
    if self._fundus is None:
      return fields
    size = self._fundus.size
    given = {name: _resized(fields[name], size) for name in self._fundus.condition}
    painted = self._fundus(self.models.fundus.params, indices, given, seed=seed)
    out = {"tree": _resized(fields["tree"], size), "fov": _resized(fields["fov"], size), **painted}
    return out if self._superres is None else self._superres(out)


def pairs(models: Models, num: int = 16, seed: int = 0, trees: np.ndarray | None = None, mesh=None, indices: Sequence[int] | None = None,
          **options) -> dict[str, np.ndarray]:
  """Generates pairs as arrays: the same as the command writes, before files.

  Args:
    models: the stages, e.g. from `load_models`.
    num: number of pairs; ignored when `indices` or `trees` are given.
    seed: root of the randomness.
    trees: trees to paint, uint8 [N, H, W, 1] in 0..255, instead of sampling them.
    mesh: devices.
    indices: numbers of the pairs.
    **options: of `Generator`.

  Returns:
    "image" uint8 [N, H, W, 3], "tree" uint8 [N, H, W, 1] (coverage; binarise at 128), "fov" uint8 [N, H, W, 1], and "records", a
    list of N dicts.
  """
  generator = Generator(models, mesh, **options)
  if trees is not None:
    indices = np.arange(len(trees)) if indices is None else np.asarray(indices)
    fields, records = given_trees(trees), [{} for _ in trees]
  else:
    indices = np.arange(num) if indices is None else np.asarray(indices)
    fields, records = generator.trees(indices, seed)
  return {**generator.photographs(fields, indices, seed), "records": records}


def given_trees(trees: np.ndarray, fov: np.ndarray | None = None) -> dict[str, np.ndarray]:
  """Fields "tree" and "fov" of trees that a user brings; without a field of view, the disc that the frame inscribes.

  Raises:
    ValueError: not uint8 [N, H, W, 1].
  """
  trees = np.asarray(trees)
  if trees.dtype != np.uint8 or trees.ndim != 4 or trees.shape[-1] != 1:
    raise ValueError(f"trees must be uint8 of shape [N, H, W, 1], not {trees.dtype} of shape {trees.shape}")
  return {"tree": trees, "fov": _inscribed_disc(trees.shape) if fov is None else fov}


def load_models(tree=None, fundus=None, superres=None, filter_path=None, threshold: float | None = None, mesh=None) -> Models:
  """Loads stages by path or name.

  Raises:
    ValueError: a path that holds no checkpoint, or one of another stage.
  """
  from retree_jax import checkpoint, tree_filter

  def stage(path, name):
    return None if path is None else checkpoint.load(path, mesh=mesh, stage=name)

  judge = None
  if filter_path is not None:
    judge = tree_filter.load(filter_path, threshold, mesh)
  return Models(stage(tree, "tree"), stage(fundus, "fundus"), stage(superres, "superres"), judge)


def _changed(config, **sampler):
  """A copy of a config with some of its sampler's fields changed; None leaves a field as it is."""
  changes = {k: v for k, v in sampler.items() if v is not None}
  if not changes:
    return config
  config = config.copy_and_resolve_references()
  config.sampler.update(changes)
  return config


def _with_fov(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Trees with a clean field of view: the sampled one, thresholded, its largest part filled; or the inscribed disc."""
  from scipy import ndimage

  tree = fields["tree"]
  if "fov" not in fields:
    return {"tree": tree, "fov": _inscribed_disc(tree.shape)}
  clean = np.zeros_like(fields["fov"])
  for i, soft in enumerate(fields["fov"][..., 0]):
    labels, count = ndimage.label(soft >= 128)
    if count:
      largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
      clean[i, ..., 0] = 255 * ndimage.binary_fill_holes(labels == largest)
  empty = clean.mean(axis=(1, 2, 3)) < 0.3 * 255  # no disc to speak of: an untrained model
  clean[empty] = _inscribed_disc(tree.shape)[empty]
  return {"tree": np.where(clean > 0, tree, 0).astype(np.uint8), "fov": clean}


def _inscribed_disc(shape) -> np.ndarray:
  n, h, w = shape[:3]
  y, x = np.ogrid[:h, :w]
  radius = min(h, w) / 2 - 0.5
  disc = (y - (h - 1) / 2) ** 2 + (x - (w - 1) / 2) ** 2 <= radius**2
  return np.broadcast_to((255 * disc).astype(np.uint8)[None, ..., None], (n, h, w, 1)).copy()


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8 [N, H, W, C] at another size: area averages when shrinking, bicubic when enlarging."""
  if pixels.shape[1:3] == tuple(size):
    return pixels
  from PIL import Image

  shrinks = size[0] < pixels.shape[1]
  how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
  out = [np.asarray(Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p).resize(size[::-1], how)) for p in pixels]
  return np.stack(out).reshape(len(pixels), *size, pixels.shape[-1])


_TREE = flags.DEFINE_string("tree", None, "Workdir or name of the tree stage.")
_FUNDUS = flags.DEFINE_string("fundus", None, "Workdir or name of the fundus stage.")
_SUPERRES = flags.DEFINE_string("superres", None, "Workdir or name of the super-resolution stage.")
_FILTER = flags.DEFINE_string("filter", None, "Workdir or name of the tree filter.")
_THRESHOLD = flags.DEFINE_float("filter_threshold", None, "Least filter score; by default the one chosen on its validation data.")
_TREES = flags.DEFINE_string("trees", None, "Folder of trees to paint, instead of sampling trees.")
_GEN_NUM = flags.DEFINE_integer("num", None, "Number of pairs (default 16, or all of --trees).", lower_bound=1)
_GEN_OUT = flags.DEFINE_string("out", "out", "Folder to write; a bucket will do.")
_GEN_SEED = flags.DEFINE_integer("seed", 0, "Root of the randomness.", lower_bound=0)
_FORMAT = flags.DEFINE_enum("format", "png", ["png", "tfds"], "PNG folders, or a TFDS data set of ArrayRecord shards.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale of the fundus stage.")
_STEPS = flags.DEFINE_integer("steps", None, "Sampler steps of the diffusion stages.", lower_bound=1)


def main() -> None:
  """Parses the flags, loads the stages and writes the data set."""
  command.parse(flags.FLAGS, sys.argv)
  from retree_jax import dataset, sharding

  sharding.initialize_distributed()
  paths = {"tree": _TREE.value, "fundus": _FUNDUS.value, "superres": _SUPERRES.value, "filter_path": _FILTER.value}
  if not any(paths.values()):
    paths = dataset.shipped()
  if _TREES.value:
    paths["tree"] = paths["filter_path"] = None
  dataset.write(paths, out=_GEN_OUT.value, num=_GEN_NUM.value, seed=_GEN_SEED.value, trees=_TREES.value, form=_FORMAT.value,
                guidance=_GUIDANCE.value, num_steps=_STEPS.value, threshold=_THRESHOLD.value)


if __name__ == "__main__":
  cpu.restart_with_settings("retree_jax.generate")
  sys.exit(command.run(main))
