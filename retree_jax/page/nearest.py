"""The training eye that a generated eye is nearest to, by the distance of the privacy audit (`metrics.privacy`, pixels)."""

import numpy as np

from retree_jax.data import sources, writing
from retree_jax.metrics import alignment, privacy
from retree_jax.report import measure, sets

_SIDE = 256  # of the picture that is shown, in pixels


class TrainingEyes:
  """The training eyes of a folder, ready for comparison.

  Args:
    spec: folder of photographs, or data source. Its train split is what a training on it reads; its test split are eyes that
      cannot be copied, which tell how near is near.

  Raises:
    ValueError: no such eyes, or fewer than 3 training or 2 other eyes in it.
  """

  def __init__(self, spec: str):
    spec = sets.as_spec(spec)
    self._train, heldout = (sources.open_source(spec, split=split, fields=("image",)) for split in ("train", "test"))
    if len(self._train) < 3 or len(heldout) < 2:
      raise ValueError(
        f"--train={spec} has {len(self._train)} training and {len(heldout)} other eyes, and at least 3 and 2 are needed: add "
        "eyes, or leave --train out"
      )
    self._size = measure.common_size(self._train)
    self._prepared = self._prepare(self._train)
    others = alignment.nearest(self._prepare(heldout), self._prepared, 1).distance[:, 0]
    self._others, self._threshold = others, float(np.percentile(others, 100 - privacy.PERCENTILE))

  def _prepare(self, source) -> alignment.Prepared:
    measured = measure.photographs(source, range(len(source)), self._size)
    return alignment.prepare(measured.thumbnails["image"])

  def nearest(self, image: np.ndarray, fov: np.ndarray) -> tuple[dict, bytes]:
    """Compares one photograph.

    Args:
      image: uint8 [H, W, 3].
      fov: uint8 0/255 [H, W, 1].

    Returns:
      ({"name", "distance" (1 − correlation: 0 for a copy, about 1 for unrelated eyes), "others": least and greatest distance of
      eyes that cannot be copies, "near": whether it is nearer than 95 % of those, "isolated": whether no second training eye is
      nearly as near}, PNG file of the training eye, registered to the photograph).
    """
    eye = sets.ArraySource({"image": image[None], "fov": fov[None]}, "page")
    found = alignment.nearest(self._prepare(eye), self._prepared, 2)
    first, second = found.distance[0]
    (example,) = measure.fitted(self._train, [found.index[0, 0]], (_SIDE, _SIDE))
    told = {
      "name": str(example["name"]),
      "distance": round(float(first), 3),
      "others": [round(float(edge), 3) for edge in (self._others.min(), self._others.max())],
      "near": bool(first < self._threshold),
      "isolated": bool(first < privacy.RATIO * second),
    }
    return told, writing.png_bytes(found.poses[0][0](example["image"], _SIDE))
