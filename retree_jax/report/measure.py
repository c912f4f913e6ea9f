"""One pass over a set of pairs: everything the evaluation needs of each pair, and no picture kept at full size.

Pairs are read, fitted to one size, measured and let go, so a set may be larger than the memory. What stays of
a pair is a thumbnail (for the privacy audit), feature vectors, biomarkers and a few numbers: about 60 kB.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np

from retree_jax.data import sources, transforms
from retree_jax.metrics import features, fidelity, segmentation, vessels

SIZES = (512, 256, 128, 64)  # sides that are chosen from when none is asked for
THUMBNAIL = 128  # side of what the audit compares
FEATURE_SIDE = 256  # side at which features are taken that have no size of their own: four times quicker than 512
_BATCH = 16


class Arrays:
  """Pairs in memory as a source.

  Args:
    arrays: {"image": uint8 [N, H, W, 3], "tree": uint8 [N, H, W, 1] coverage 0..255, optional "fov" likewise}.
    title: what the report calls the set.

  Raises:
    ValueError: a field is missing, of another type or shape, not finite, or of another length.
  """

  def __init__(self, arrays: dict, title: str):
    self._arrays, self.title = {}, title
    channels = {"image": 3, "tree": 1, "fov": 1}
    for key in channels:
      if key in arrays:
        value = np.asarray(arrays[key])
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
          raise ValueError(f"The {title} set's {key} holds NaN or infinity: remove these pairs.")
        if value.dtype != np.uint8 or value.ndim != 4 or value.shape[-1] != channels[key]:
          raise ValueError(
            f"The {title} set's {key} must be uint8 [N, H, W, {channels[key]}], not "
            f"{value.dtype} {value.shape}: scale it to 0..255 and convert it."
          )
        self._arrays[key] = value
    if "image" not in self._arrays:
      raise ValueError(f"The {title} set has no 'image': give photographs, uint8 [N, H, W, 3].")
    shapes = {key: value.shape[:3] for key, value in self._arrays.items()}
    if len(set(shapes.values())) > 1:
      raise ValueError(f"The {title} set's arrays do not belong together, {shapes}: give one number and one size.")
    self.names = [f"{i:05d}" for i in range(len(self._arrays["image"]))]

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict:
    from retree_jax.data import field_of_view

    example = {key: value[index] for key, value in self._arrays.items()} | {"name": self.names[index]}
    if "fov" not in example:
      example["fov"] = field_of_view.find_fov(example["image"])
    return example


@dataclasses.dataclass
class Measured:
  """What stays of a set.

  Attributes:
    title: of the set.  names: of the pairs, in the order of everything below.
    thumbnails: {"image": uint8 [N, 128, 128, 3], "tree": uint8 [N, 128, 128, 1], or [0, ...] for a set without}.
    digests: one per photograph, equal for equal pixels.
    features: {space: [N, d]} over the extractors asked for.
    biomarkers, own, shuffled: a dict per pair (`vessels.biomarkers`; `fidelity.measures` with the pair's own
      tree and with another pair's).  shifts: `fidelity.shift_map`s.
    agreement: `segmentation.scores` of the segmenter against the trees; empty without a segmenter.
  """

  title: str
  names: list[str]
  thumbnails: dict[str, np.ndarray]
  digests: list[str]
  features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  biomarkers: list[dict] = dataclasses.field(default_factory=list)
  own: list[dict] = dataclasses.field(default_factory=list)
  shuffled: list[dict] = dataclasses.field(default_factory=list)
  shifts: list[np.ndarray] = dataclasses.field(default_factory=list)
  agreement: list[dict] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return len(self.names)


def common_size(*eyes, peeked: int = 8) -> tuple[int, int]:
  """The largest of `SIZES` for which the eyes of no set have to be enlarged (by more than a tenth).

  Args:
    *eyes: sources; a few eyes of each, evenly spread, are looked at.
  """
  sides = []
  for source in eyes:
    chosen = np.unique(np.linspace(0, len(source) - 1, peeked).astype(int))
    boxes = [transforms.fit_box(source[int(i)]["fov"], (1, 1)) for i in chosen]
    sides.append(np.median([box[2] - box[0] for box in boxes]))
  fitting = [size for size in SIZES if size <= 1.1 * min(sides)]
  side = fitting[0] if fitting else SIZES[-1]
  return side, side


def draw(source, num: int | None, seed: int) -> np.ndarray:
  """Which pairs are looked at: all, or `num` drawn at random, in the source's order."""
  if num is None or num >= len(source):
    return np.arange(len(source))
  return np.sort(np.random.default_rng(seed).choice(len(source), num, replace=False))


def fitted(source, indices: Sequence[int], size: tuple[int, int]):
  """Yields the examples, fitted to `size`, in order; two threads read ahead, a few examples at a time."""
  source = sources.at_size(source, size)

  def load(index):
    return transforms.fit(source[int(index)], size)

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


def photographs(source, indices: Sequence[int], size: tuple[int, int]) -> Measured:
  """Only what the audit needs: names, thumbnails and digests. Trees are taken if every eye has one."""
  found = Measured(_title(source), [], {}, [])
  thumbnails = {"image": [], "tree": []}
  for example in fitted(source, indices, size):
    _note(found, thumbnails, example)
  found.thumbnails = _stacked(thumbnails)
  return found


def pairs(
  source,
  indices: Sequence[int],
  size: tuple[int, int],
  extractors: dict[str, features.Extractor],
  predict: Callable | None = None,
  say: Callable[[str], None] = lambda text: None,
) -> Measured:
  """Measures a set of pairs.

  Args:
    source: see `retree_jax.data.sources`; examples need "image" and "tree".
    indices: which pairs.
    size: (height, width) to fit them to.
    extractors: {space: extractor}; a space that begins with "trees" is taken of the trees, any other of the
      photographs.
    predict: fitted example -> arguments of `segmentation.scores`, see `segmenter_parts`.
    say: told how far the pass is, now and then.

  Raises:
    ValueError: as the metrics, or a pair without tree.
  """
  found = Measured(_title(source), [], {}, [])
  thumbnails, batch, previous, first = {"image": [], "tree": []}, [], None, None
  gathered: dict[str, list] = {space: [] for space in extractors}

  def flush():
    for space, extractor in extractors.items():
      field = "tree" if space.startswith("trees") else "image"
      inputs = np.stack([_feature_input(example[field], extractor) for example in batch])
      # Padded here too, so that one shape is compiled per set and not one more for the last batch.
      padded = np.concatenate([inputs, np.zeros((_BATCH - len(inputs), *inputs.shape[1:]), np.uint8)])
      gathered[space].append(features.extract(padded, extractor, _BATCH)[: len(inputs)])
    batch.clear()

  for done, example in enumerate(fitted(source, indices, size), 1):
    if "tree" not in example:
      raise ValueError(f"{found.title} has no vessel mask for {example['name']}: give a folder with images/ and masks/.")
    _note(found, thumbnails, example)
    image, fov, tree = example["image"], example["fov"] > 0, example["tree"] >= 128
    if not fov.any():
      raise ValueError(f"The field of view of {example['name']} in {found.title} is empty: correct or remove its fov file.")
    found.biomarkers.append(vessels.biomarkers(tree, fov))
    found.own.append(fidelity.measures(image, tree, fov))
    found.shifts.append(fidelity.shift_map(image, tree, fov))
    if previous is None:
      first = (image, fov)
    else:
      found.shuffled.append(fidelity.measures(image, previous, fov))
    previous = tree
    if predict is not None:
      found.agreement.append(segmentation.scores(*predict(example)))
    batch.append({"image": image, "tree": example["tree"]})
    if len(batch) == _BATCH:
      flush()
    if done % 50 == 0 or done == len(indices):
      say(f"{found.title}: {done} of {len(indices)} pairs")
  if batch:
    flush()
  if len(found) > 1:  # the first photograph gets the last tree, so that each has exactly one foreign tree
    found.shuffled.insert(0, fidelity.measures(first[0], previous, first[1]))
  found.thumbnails = _stacked(thumbnails)
  found.features = {space: np.concatenate(parts) for space, parts in gathered.items()}
  return found


def segmenter_parts(loaded) -> tuple[Callable, features.Extractor | None]:
  """What a trained segmenter contributes: predictions to score, and its encoder as features.

  Args:
    loaded: `checkpoint.Loaded` of the segmentation stage.

  Returns:
    predict: fitted example -> (probabilities, target, field of view, threshold), arguments of
      `segmentation.scores`.
    extractor: mean of the coarsest features over the tiles of a photograph brought to the network's own size;
      None for the diffusion variant and for networks that want more than the photograph.
  """
  import jax
  import jax.numpy as jnp

  from retree_jax.inference import tiling
  from retree_jax.inference.segmenter import Segmenter
  from retree_jax.tasks.segmentation import tile_size

  segmenter, config = Segmenter(loaded), loaded.config

  def predict(example):
    found = segmenter([example["image"]], [example["fov"]])[0]
    return found, example["tree"] >= 128, example["fov"] > 0, segmenter.threshold

  if "diffusion" in config or tuple(config.data.condition) != ("image",):
    return predict, None
  tile, size = tile_size(config), segmenter.size
  places = [(i, j) for i in tiling.starts(size[0], tile[0], 0) for j in tiling.starts(size[1], tile[1], 0)]

  @jax.jit
  def encode(params, images):
    images = jax.image.resize(images, (len(images), *size, 3), "linear")

    def at(place):
      part = jax.lax.dynamic_slice(images, (0, *place, 0), (len(images), *tile, 3))
      return loaded.network.apply(params, part, features=True)

    return jnp.mean(jax.lax.map(at, tuple(jnp.array(places).T)), 0)

  name = f"segmenter {loaded.identity()} encoder"
  return predict, features.Extractor(name, lambda images: encode(loaded.params, images))


def _title(source) -> str:
  return getattr(source, "title", "set")


def _stacked(thumbnails: dict[str, list]) -> dict[str, np.ndarray]:
  count = len(thumbnails["image"])
  return {
    field: np.stack(parts) if len(parts) == count else np.zeros((0, THUMBNAIL, THUMBNAIL, 1), np.uint8)
    for field, parts in thumbnails.items()
  }


def _note(found: Measured, thumbnails: dict[str, list], example: dict) -> None:
  found.names.append(str(example["name"]))
  found.digests.append(hashlib.sha256(example["image"].tobytes()).hexdigest()[:16])
  for field, parts in thumbnails.items():
    if field in example:
      parts.append(transforms.area_resize(example[field], (THUMBNAIL, THUMBNAIL)))


def _feature_input(picture: np.ndarray, extractor: features.Extractor) -> np.ndarray:
  """The picture at the size that features are taken at: the Inception network and segmenters resize by themselves."""
  if extractor.name.startswith(("inception", "segmenter")) or max(picture.shape[:2]) <= FEATURE_SIDE:
    return picture
  height, width = picture.shape[:2]
  shrink = FEATURE_SIDE / max(height, width)
  return transforms.area_resize(picture, (round(height * shrink), round(width * shrink)))
