"""Were training images copied? Compares the nearest training images of generated images with those of held-out images.

A distance alone does not say how near is too near, because all eyes look alike. So the same search is done three times:

  generated -> train       the question
  held-out  -> train       how near eyes are that cannot be copies: this gives the threshold
  generated -> held-out    whether generated eyes are nearer to the training eyes than to equally many others

A generated image is *near* if its similarity to some training image exceeds the 95th percentile of the held-out
images' (Dar et al., Nature BME 2025); 5 % of images that copy nothing are near as well. It is *isolated* if its
nearest training image is less than a third as far as its second nearest (Yoon et al. 2023; Favero et al. 2025). It is
called *copied* if it is near and isolated, or, given at least 20 held-out images, if its distance is less than half of
the smallest held-out distance, which detects copies of images that are in the training set twice. Held-out eyes must be
of other patients than the training eyes; otherwise they are near too and hide copies.

Distances are 1 - correlation in both spaces. The comparison of pixels (`alignment`) is invariant to mirroring, rotation,
zoom, small shifts, colour and lighting, which augmentation may have changed in a copy; copies of parts of an eye are not
detected. Features are also computed without colour, and compared under the eight flips and quarter turns.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from retree_jax.metrics import alignment
from retree_jax.metrics.alignment import Pose
from retree_jax.metrics.features import Extractor, extract
from retree_jax.metrics.intervals import mean_with_interval, wilson

CALIBRATED = 20  # least number of held-out images whose smallest distance and percentile are meaningful
PERCENTILE = 95.0  # of the held-out images' similarity to the training images
RATIO = 1 / 3  # of the distances to the nearest and to the second nearest training image
_FEATURE_SIDE = 128  # pixels of the colourless pictures from which features are computed
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Share:
  """hits of total, and the 95 % Wilson interval of the share."""

  share: float
  low: float
  high: float
  hits: int
  total: int

  @classmethod
  def of(cls, flags: np.ndarray) -> "Share":
    return cls(float(np.mean(flags)), *wilson(int(np.sum(flags)), len(flags)), int(np.sum(flags)), len(flags))


@dataclasses.dataclass(frozen=True)
class Pair:
  """A generated image and its nearest training image; `pose(train picture)` is registered to the generated one."""

  generated: int
  train: int
  distance: float
  second: float
  pose: Pose
  copied: bool


@dataclasses.dataclass(frozen=True)
class Space:
  """The result of one way of comparing images. N generated, K held-out images.

  Attributes:
    name: "pixels", or the extractor's.
    nearest: [N] index of the nearest training image.
    distance, second: [N] distance to it and to the second nearest.
    poses: N Poses, which register the training image to the generated one (flips and quarter turns for features).
    heldout_distance, heldout_second: [K] the same from held-out to training images.
    to_heldout: [N] distance to the nearest held-out image.
    threshold: distance below which an image is near.
    near, isolated, copied: [N] bool, defined at the top of this file.
    closer_to_train: mean probability, with a bootstrap interval over generated images, that the nearest image is a
      training image when equally many training and held-out images are drawn from the larger set. About 0.5 without
      memorisation, apart from chance differences of the two sets; for pixels it is computed before alignment.
  """

  name: str
  nearest: np.ndarray
  distance: np.ndarray
  second: np.ndarray
  poses: list[Pose]
  heldout_distance: np.ndarray
  heldout_second: np.ndarray
  to_heldout: np.ndarray
  threshold: float
  near: np.ndarray
  isolated: np.ndarray
  copied: np.ndarray
  closer_to_train: dict[str, float]

  def closest(self, count: int = 12) -> list[Pair]:
    """The pairs to inspect: copies first, then by distance."""
    order = np.lexsort((self.distance, ~self.copied))[:count]
    return [
      Pair(int(i), int(self.nearest[i]), float(self.distance[i]), float(self.second[i]), self.poses[i], bool(self.copied[i]))
      for i in order
    ]


@dataclasses.dataclass(frozen=True)
class Audit:
  """The result of `audit`.

  Attributes:
    num_generated, num_train, num_heldout: images.
    spaces: {"pixels": Space} and, with an extractor, its own by its name.
    copied: [N] bool, copied in any space.   copies: their Share.
    verdict: "copies" (some were found), "suspicious" (more images are near than chance explains), "clear", or
      "unclear" (nothing was found, but the held-out set is too small for calibration).
    notes: sentences of caution.
  """

  num_generated: int
  num_train: int
  num_heldout: int
  spaces: dict[str, Space]
  copied: np.ndarray
  copies: Share
  verdict: str
  notes: tuple[str, ...]

  @property
  def sentence(self) -> str:
    """The verdict for a reader."""
    copies = self.copies
    counted = (
      f"{copies.hits} of {copies.total} generated images are copies of training images "
      f"({100 * copies.share:.1f} %, 95 % interval {100 * copies.low:.1f} to {100 * copies.high:.1f} %)"
    )
    return {
      "copies": f"{counted}: do not share this set before these images are removed and the cause is known.",
      "suspicious": f"{counted}, but more are near to training images than held-out eyes explain: look at the closest pairs.",
      "clear": f"{counted}, and no more are near to training images than held-out eyes explain.",
      "unclear": f"{counted}, but {self.num_heldout} held-out images are too few to calibrate the threshold.",
    }[self.verdict]

  def to_dict(self) -> dict:
    """Everything as nested dicts and lists; `retree_jax.data.writing.json_values` makes JSON of them."""
    spaces = {}
    for name, space in self.spaces.items():
      spaces[name] = {
        "threshold": space.threshold,
        "near": dataclasses.asdict(Share.of(space.near)),
        "near_expected": 1 - PERCENTILE / 100,
        "isolated": dataclasses.asdict(Share.of(space.isolated)),
        "isolated_heldout": dataclasses.asdict(Share.of(space.heldout_distance < RATIO * space.heldout_second)),
        "copied": dataclasses.asdict(Share.of(space.copied)),
        "closer_to_train": space.closer_to_train,
        "median_distance": {
          "generated_to_train": float(np.median(space.distance)),
          "heldout_to_train": float(np.median(space.heldout_distance)),
          "generated_to_heldout": float(np.median(space.to_heldout)),
        },
        "distances": {
          "generated_to_train": space.distance.tolist(),
          "heldout_to_train": space.heldout_distance.tolist(),
          "generated_to_heldout": space.to_heldout.tolist(),
        },
        "closest": [dataclasses.asdict(pair) for pair in space.closest()],
      }
    return {
      "verdict": self.verdict,
      "sentence": self.sentence,
      "num_generated": self.num_generated,
      "num_train": self.num_train,
      "num_heldout": self.num_heldout,
      "percentile": PERCENTILE,
      "ratio": RATIO,
      "copies": dataclasses.asdict(self.copies),
      "copied": np.flatnonzero(self.copied).tolist(),
      "spaces": spaces,
      "notes": list(self.notes),
    }


def audit(
  generated: Sequence[np.ndarray],
  train: Sequence[np.ndarray],
  heldout: Sequence[np.ndarray],
  extractor: Extractor | None = None,
  batch_size: int = 32,
) -> Audit:
  """Detects generated images that are copies of training images.

  Args:
    generated, train, heldout: uint8 [N, H, W, C] or sequences of [H, W, C]; C = 3 for photographs, 1 for trees. Sizes
      may differ, framing should not: crop all to the bounding box of the visible disc. Held-out images must be
      unseen by any model, of other patients, and from the same source as the training images; ideally equally many.
    extractor: features (`features.extractor`) for a second comparison; None omits it.
    batch_size: pictures per call of the extractor.

  Returns:
    The Audit. 10,000 generated against 1,000 training images take minutes in pixels.

  Raises:
    ValueError: no generated images, fewer than 3 training or 2 held-out images, or arrays that are not 8-bit pictures.
  """
  for what, pictures, least in (("generated", generated, 1), ("training", train, 3), ("held-out", heldout, 2)):
    if len(pictures) < least:
      raise ValueError(
        f"The privacy audit needs at least {least} {what} image(s), but there are {len(pictures)}: "
        "add images, or leave the audit out."
      )
    _check(pictures, what)
  channels = {np.shape(pictures[0])[-1] for pictures in (generated, train, heldout)}
  if len(channels) > 1:
    raise ValueError("Photographs are compared with trees: give images of one kind, all with 3 channels or all with 1.")
  spaces = {"pixels": _in_pixels(generated, train, heldout)}
  if extractor is not None:
    spaces[extractor.name] = _in_features(generated, train, heldout, extractor, batch_size)
  copied = np.any([space.copied for space in spaces.values()], axis=0)
  crowded = [name for name, space in spaces.items() if Share.of(space.near).low > explained(len(heldout))]
  verdict = "copies" if copied.any() else "suspicious" if crowded else "unclear" if len(heldout) < CALIBRATED else "clear"
  notes = []
  if len(heldout) < CALIBRATED:
    notes.append(f"Only {len(heldout)} held-out images: the 95th percentile of fewer than {CALIBRATED} is a guess.")
  if not len(train) / 2 <= len(heldout) <= 2 * len(train):
    notes.append(
      f"{len(heldout)} held-out and {len(train)} training images: closer_to_train (in the JSON) compares equally many of each."
    )
  for name, space in spaces.items():
    if np.mean(space.heldout_distance < RATIO * space.heldout_second) > 0.02:
      notes.append(
        f"By {name}, held-out images are isolated too, as copies are: do they show patients of the "
        "training set, or the same picture twice?"
      )
  return Audit(len(generated), len(train), len(heldout), spaces, copied, Share.of(copied), verdict, tuple(notes))


def explained(num_heldout: int) -> float:
  """The greatest share of near images that is no sign of copies: 5 % are expected, but estimated from so many held-out images.

  The upper end of the 95 % Wilson interval of that share.
  """
  return wilson(round((1 - PERCENTILE / 100) * num_heldout), num_heldout)[1]


def _check(pictures, what: str) -> None:
  for i in range(len(pictures)):
    picture = np.asarray(pictures[i])
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] not in (1, 3) or not picture.size:
      raise ValueError(
        f"The privacy audit compares uint8 pictures [height, width, 1 or 3], but {what} image {i} is "
        f"{picture.dtype} {picture.shape}: convert it."
      )
    if picture.shape[-1] != np.shape(pictures[0])[-1]:
      raise ValueError(f"Among the {what} images are photographs and trees: give one kind only.")


def _in_pixels(generated, train, heldout) -> Space:
  ours, theirs, others = (alignment.prepare(pictures) for pictures in (generated, train, heldout))
  control = alignment.nearest(others, theirs)
  # The nearest distance to the smaller set is the limit within which images of the larger set are counted.
  if len(train) >= len(heldout):
    to_others = alignment.nearest(ours, others, 1)
    to_train = alignment.nearest(ours, theirs, threshold=to_others.best)
    closer = 1 - _missed(len(train), to_train.above, len(heldout))
  else:
    to_train = alignment.nearest(ours, theirs)
    to_others = alignment.nearest(ours, others, 1, threshold=to_train.best)
    closer = _missed(len(heldout), to_others.above, len(train))
  return _judged(
    "pixels",
    to_train.index[:, 0],
    to_train.distance,
    [row[0] for row in to_train.poses],
    control.distance,
    to_others.distance[:, 0],
    closer,
  )


def _in_features(generated, train, heldout, extractor: Extractor, batch_size: int) -> Space:
  names = [(mirrored, turns) for mirrored in (False, True) for turns in range(4)]
  pictures = [_colourless(images) for images in (generated, train, heldout)]
  ours, plain, others = (extract(images, extractor, batch_size).astype(np.float64) for images in pictures)
  # Standardised, so that every feature has the same weight.
  real = np.concatenate([plain, others])
  mean, deviation = real.mean(0), real.std(0) + 1e-6 * np.abs(real).max() + 1e-12

  def unit(features):
    features = (features - mean) / deviation
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-12)

  ours, plain, others = unit(ours), unit(plain), unit(others)

  def turned(images, already):
    for mirrored, turns in names:
      if not (mirrored or turns):
        yield already
        continue
      view = np.rot90(images, turns, (1, 2))
      yield unit(extract(np.ascontiguousarray(view[:, :, ::-1] if mirrored else view), extractor, batch_size))

  theirs = list(turned(pictures[1], plain))
  strangers = list(turned(pictures[2], others))
  distance, index, view = _smallest(ours, theirs)
  control, _, _ = _smallest(others, theirs)
  to_others, _, _ = _smallest(ours, strangers)
  if len(train) >= len(heldout):
    closer = 1 - _missed(len(train), _nearer(ours, theirs, to_others[:, 0]), len(heldout))
  else:
    closer = _missed(len(heldout), _nearer(ours, strangers, distance[:, 0]), len(train))
  poses = [Pose(names[v][0], (90.0 * names[v][1] + 180) % 360 - 180) for v in view]
  return _judged(extractor.name, index, distance, poses, control, to_others[:, 0], closer)


def _colourless(pictures) -> np.ndarray:
  """uint8 [N, S, S, 1]: trees unchanged, photographs without colour and lighting."""
  parts = []
  for start in range(0, len(pictures), 256):
    small = np.stack([alignment.as_square(np.asarray(p), _FEATURE_SIDE) for p in pictures[start : start + 256]])
    if small.shape[-1] == 3:
      grey = 127.5 + 80 * alignment.without_colour(small, 0.5, 4.0)
      small = np.clip(np.round(grey), 0, 255).astype(np.uint8)[..., None]
    parts.append(small)
  return np.concatenate(parts)


def _distances(rows: np.ndarray, views: list[np.ndarray]) -> np.ndarray:
  """[views, n, M]: 1 - cosine."""
  return np.stack([np.maximum(0, 1 - rows @ view.T) for view in views])


def _smallest(queries, views) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Distances [N, 2] to the two nearest references under any view, [N] index and [N] view of the nearest."""
  distance, index, view = [], [], []
  for start in range(0, len(queries), _BLOCK):
    distances = _distances(queries[start : start + _BLOCK], views)
    over = distances.min(0)
    first = over.argmin(1)
    two = min(2, over.shape[1])
    distance.append(np.sort(np.partition(over, two - 1, axis=1)[:, :two], 1))
    index.append(first)
    view.append(distances[:, np.arange(len(first)), first].argmin(0))
  return np.concatenate(distance), np.concatenate(index), np.concatenate(view)


def _nearer(queries, views, limits) -> np.ndarray:
  """[N] number of references that are nearer than the limit under some view."""
  blocks = (slice(start, start + _BLOCK) for start in range(0, len(queries), _BLOCK))
  return np.concatenate([(_distances(queries[rows], views).min(0) < limits[rows, None]).sum(1) for rows in blocks])


def _missed(total: int, marked: np.ndarray, drawn: int) -> np.ndarray:
  """Probability that `drawn` of `total` items contain no marked one: C(total - marked, drawn) / C(total, drawn)."""
  left = total - marked
  possible = left >= drawn
  left = np.where(possible, left, drawn)
  logarithm = gammaln(left + 1) - gammaln(left - drawn + 1) - gammaln(total + 1) + gammaln(total - drawn + 1)
  return np.where(possible, np.exp(logarithm), 0.0)


def _judged(name, nearest, distance, poses, control, to_heldout, closer) -> Space:
  threshold = float(np.percentile(control[:, 0], 100 - PERCENTILE))
  first, second = distance[:, 0], distance[:, 1]
  near, isolated = first < threshold, first < RATIO * second
  copied = near & isolated
  if len(control) >= CALIBRATED:  # with fewer, the smallest held-out distance says little about how near one can be by chance
    copied |= first < control[:, 0].min() / 2
  return Space(
    name,
    nearest,
    first,
    second,
    poses,
    control[:, 0],
    control[:, 1],
    to_heldout,
    threshold,
    near,
    isolated,
    copied,
    mean_with_interval(closer),
  )
