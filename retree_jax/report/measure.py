"""Measures sets of pairs in one pass: everything that the evaluation needs of each pair.

Pairs are read, fitted to one size, measured and released, so a set may be larger than the memory. What is kept of a pair is a
thumbnail (for the privacy audit), feature vectors, biomarkers and a few numbers: about 60 kB.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from retree_jax.data import reduction, sources, transforms
from retree_jax.data.workers import Workers
from retree_jax.metrics import features, fidelity, segmentation, vessels

SIZES = (512, 256, 128, 64)  # sides in pixels from which `common_size` chooses
THUMBNAIL = 128  # side of the pictures that the privacy audit compares
FEATURE_SIDE = 256  # side at which features without a size of their own are computed: four times faster than 512
_BATCH = 16  # pairs that are held at full size
_LOG_EVERY = 50  # pairs


@dataclasses.dataclass
class MeasuredSet:
  """The measurements of a set.

  Attributes:
    title: of the set.
    names: of the pairs, in the order of everything below.
    thumbnails: {"image": uint8 [N, 128, 128, 3], "tree": uint8 [M, 128, 128, 1] of the M examples that have one}.
    with_tree: [M] numbers of these examples.
    digests: one for each photograph, equal for equal pixels.
    features: {space: [N, d]}, a space being a kind of pictures and an extractor.
    biomarkers: `vessels.biomarkers` of each pair.
    own, shuffled: `fidelity.measures` of each photograph with its own tree, and with another pair's.
    shifts: `fidelity.shift_map` of each pair.
    agreement: `segmentation.scores` of the segmenter against each tree; empty without a segmenter.
  """

  title: str
  names: list[str] = dataclasses.field(default_factory=list)
  thumbnails: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  with_tree: list[int] = dataclasses.field(default_factory=list)
  digests: list[str] = dataclasses.field(default_factory=list)
  features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  biomarkers: list[dict] = dataclasses.field(default_factory=list)
  own: list[dict] = dataclasses.field(default_factory=list)
  shuffled: list[dict] = dataclasses.field(default_factory=list)
  shifts: list[np.ndarray] = dataclasses.field(default_factory=list)
  agreement: list[dict] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return len(self.names)


def common_size(*eyes, samples: int = 8) -> tuple[int, int]:
  """The largest of `SIZES` at which the eyes of no set have to be enlarged (by more than a tenth).

  Args:
    *eyes: sources.
    samples: number of examples of each, evenly spread, that are looked at.

  Returns:
    (height, width).
  """
  sides = []
  for source in eyes:
    chosen = np.unique(np.linspace(0, len(source) - 1, samples).astype(int))
    boxes = [transforms.fit_box(source[int(i)]["fov"], (1, 1)) for i in chosen]
    sides.append(np.median([box[2] - box[0] for box in boxes]))
  possible = [size for size in SIZES if size <= 1.1 * min(sides)]
  side = possible[0] if possible else SIZES[-1]
  return side, side


def draw(source, num: int | None, seed: int) -> np.ndarray:
  """Indices of the examples to measure, in ascending order: all, or `num` drawn at random."""
  if num is None or num >= len(source):
    return np.arange(len(source))
  return np.sort(np.random.default_rng(seed).choice(len(source), num, replace=False))


def fitted(source, indices: Sequence[int], size: tuple[int, int]) -> Iterator[dict]:
  """Yields examples in the given order, fitted to `size`; a few threads read a few examples ahead.

  Trees are masks 0/255, reduced by `reduction.RULE` in every set: reduced by area, the thin vessels of large masks would break,
  and sets of different sizes could not be compared.
  """
  source = sources.at_size(source, size)

  def load(index):
    example = source[int(index)]
    out = transforms.fit(example, size)
    if "tree" in example:
      box = transforms.fit_box(example["fov"], size)
      out["tree"] = reduction.reduce_mask(transforms.binarise(example["tree"]), size, box)[..., None]
    return out

  threads = max(1, min(4, os.cpu_count() or 1))
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    waiting = collections.deque()
    try:
      for index in indices:
        waiting.append(pool.submit(load, index))
        if len(waiting) > 2 * threads:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()


def photographs(source, indices: Sequence[int], size: tuple[int, int]) -> MeasuredSet:
  """Measures only what the privacy audit needs: names, thumbnails and digests."""
  measured, thumbnails = MeasuredSet(_title(source)), _Thumbnails()
  for example in fitted(source, indices, size):
    _add_photograph(measured, example)
    thumbnails.add(example)
  thumbnails.store(measured)
  return measured


def pairs(
  source,
  indices: Sequence[int],
  size: tuple[int, int],
  extractors: dict[str, features.Extractor],
  predict: Callable[[list[dict]], list[tuple]] | None = None,
  log: Callable[[str], None] = lambda text: None,
  workers: Workers | None = None,
) -> MeasuredSet:
  """Measures a set of pairs.

  Args:
    source: see `retree_jax.data.sources`; examples need "image" and "tree".
    indices: of the pairs to measure.
    size: (height, width) in pixels to which pairs are fitted.
    extractors: {space: extractor}; a space whose name begins with "trees" is computed on the trees, any other on the
      photographs.
    predict: fitted examples -> arguments of `segmentation.scores` for each, see `segmenter_parts`.
    log: receives lines about the progress.
    workers: processes that measure the vessels; None does it in the calling thread.

  Raises:
    ValueError: a pair without tree or with an empty field of view.
  """
  measured, thumbnails = MeasuredSet(_title(source)), _Thumbnails()
  vectors: dict[str, list] = {space: [] for space in extractors}
  batch, first, previous_tree = [], None, None
  workers, waiting = Workers() if workers is None else workers, collections.deque()

  def measure_batch():
    for space, extractor in extractors.items():
      field = "tree" if space.startswith("trees") else "image"
      inputs = np.stack([_feature_input(example[field], extractor) for example in batch])
      # Padded to whole batches, so that one shape is compiled for a set and not another for its last batch.
      padded = np.concatenate([inputs, np.zeros((_BATCH - len(inputs), *inputs.shape[1:]), np.uint8)])
      vectors[space].append(features.extract(padded, extractor, _BATCH)[: len(inputs)])
    if predict is not None:
      measured.agreement += [segmentation.scores(*arguments) for arguments in predict(batch)]
    batch.clear()

  for done, example in enumerate(fitted(source, indices, size), 1):
    if "tree" not in example:
      raise ValueError(f"{measured.title} has no vessel mask for {example['name']}: give a folder with images/ and masks/.")
    image, fov, tree = example["image"], example["fov"] > 0, example["tree"] >= 128
    if not fov.any():
      raise ValueError(
        f"The field of view of {example['name']} in {measured.title} is empty: correct or remove its file in fov/."
      )
    _add_photograph(measured, example)
    thumbnails.add(example)
    waiting.append(workers.submit(vessels.biomarkers, tree, fov))
    if len(waiting) > 4 * workers.count:
      measured.biomarkers.append(waiting.popleft().result())
    measured.own.append(fidelity.measures(image, tree, fov))
    measured.shifts.append(fidelity.shift_map(image, tree, fov))
    if previous_tree is None:
      first = image, fov
    else:
      measured.shuffled.append(fidelity.measures(image, previous_tree, fov))
    previous_tree = tree
    batch.append(example)
    if len(batch) == _BATCH:
      measure_batch()
    if done % _LOG_EVERY == 0 or done == len(indices):
      log(f"{measured.title}: {done} of {len(indices)} pairs")
  if batch:
    measure_batch()
  measured.biomarkers += [future.result() for future in waiting]
  if len(measured) > 1:  # the first photograph gets the last tree, so that each has exactly one tree of another eye
    measured.shuffled.insert(0, fidelity.measures(first[0], previous_tree, first[1]))
  thumbnails.store(measured)
  measured.features = {space: np.concatenate(parts) for space, parts in vectors.items()}
  return measured


def segmenter_parts(loaded) -> tuple[Callable, features.Extractor | None]:
  """What a trained segmenter contributes: predictions to score, and its encoder as features.

  Args:
    loaded: `checkpoint.Loaded` of the segmentation stage.

  Returns:
    predict: fitted examples -> for each (probabilities, target, field of view, threshold), the arguments of
      `segmentation.scores`.
    extractor: mean of the coarsest features over the tiles of a photograph that is resized to the network's own size. None
      for the diffusion variant and for networks whose input is more than the photograph.
  """
  import jax
  import jax.numpy as jnp

  from retree_jax.inference import tiling, vessel_map
  from retree_jax.inference.segmenter import Segmenter

  segmenter, config = Segmenter(loaded.config, loaded.network), loaded.config

  def predict(examples):
    eyes = [[example[field] for example in examples] for field in ("image", "fov")]
    probabilities = segmenter(loaded.params, *eyes)
    return [
      (probability, example["tree"] >= 128, example["fov"] > 0, segmenter.threshold)
      for probability, example in zip(probabilities, examples, strict=True)
    ]

  if "diffusion" in config or tuple(config.data.condition) != ("image",):
    return predict, None
  tile, size = vessel_map.tile_size(config), segmenter.size
  places = [(i, j) for i in tiling.starts(size[0], tile[0], 0) for j in tiling.starts(size[1], tile[1], 0)]

  @jax.jit
  def encode(params, images):
    images = jax.image.resize(images, (len(images), *size, 3), "linear")

    def encode_tile(place):
      part = jax.lax.dynamic_slice(images, (0, *place, 0), (len(images), *tile, 3))
      return loaded.network.apply(params, part, features=True)

    return jnp.mean(jax.lax.map(encode_tile, tuple(jnp.array(places).T)), 0)

  name = f"segmenter {loaded.identity()} encoder"
  return predict, features.Extractor(name, lambda images: encode(loaded.params, images))


def _title(source) -> str:
  return getattr(source, "title", "set")


class _Thumbnails:
  """Collects the thumbnails of a set."""

  def __init__(self):
    self._fields: dict[str, list] = {"image": [], "tree": []}
    self._with_tree: list[int] = []

  def add(self, example: dict) -> None:
    if "tree" in example:
      self._with_tree.append(len(self._fields["image"]))
    for field, pictures in self._fields.items():
      if field in example:
        pictures.append(transforms.area_resize(example[field], (THUMBNAIL, THUMBNAIL)))

  def store(self, measured: MeasuredSet) -> None:
    """Gives a set its thumbnails."""
    none = np.zeros((0, THUMBNAIL, THUMBNAIL, 1), np.uint8)
    measured.thumbnails = {field: np.stack(part) if part else none for field, part in self._fields.items()}
    measured.with_tree = self._with_tree


def _add_photograph(measured: MeasuredSet, example: dict) -> None:
  measured.names.append(str(example["name"]))
  measured.digests.append(hashlib.sha256(example["image"].tobytes()).hexdigest()[:16])


def _feature_input(picture: np.ndarray, extractor: features.Extractor) -> np.ndarray:
  """The picture at the size at which features are computed; the Inception network and segmenters resize it themselves."""
  if extractor.name.startswith(("inception", "segmenter")) or max(picture.shape[:2]) <= FEATURE_SIDE:
    return picture
  height, width = picture.shape[:2]
  shrink = FEATURE_SIDE / max(height, width)
  return transforms.area_resize(picture, (round(height * shrink), round(width * shrink)))
