"""The privacy audits of an evaluation: of photographs and of trees, with the closest pairs as pictures."""

from collections.abc import Mapping

import numpy as np

from retree_jax.data import montage
from retree_jax.metrics import privacy
from retree_jax.metrics.features import Extractor
from retree_jax.report import measure

_FIELDS = {"photographs": "image", "trees": "tree"}
_SHOWN = 8  # closest pairs of each kind
_SIDE = 256  # of their pictures, in pixels


def audits(
  measured: Mapping[str, measure.MeasuredSet],
  sources: Mapping,
  chosen: Mapping[str, np.ndarray],
  extractor: Extractor,
  pictures: bool,
) -> tuple[dict, dict]:
  """Looks for copies of training images among the generated photographs and, where the training set has some, trees.

  Args:
    measured, sources, chosen: by "generated", "train" and "real" (held-out): what was measured, the sources of the examples,
      and the indices of those that were measured.
    extractor: features by which photographs are compared, in addition to their pixels.
    pictures: whether the closest pairs are wanted.

  Returns:
    audits: {"photographs", "trees": `metrics.privacy.Audit.to_dict`, or {"refused": why there is no audit}}.
    closest: {"photographs", "trees": list of {"generated", "train": uint8 [256, 256, 3], "distance", "second", "copied",
      "generated_name", "train_name"}}; empty without pictures.
  """
  results, closest = {}, {}
  for kind, field in _FIELDS.items():
    generated, train, heldout = (measured[side].thumbnails[field] for side in ("generated", "train", "real"))
    if not len(train):
      continue
    try:
      # Features of trees would add little to their pixels.
      audit = privacy.audit(generated, train, heldout, extractor if field == "image" else None)
    except ValueError as error:
      results[kind] = {"refused": str(error)}
      continue
    results[kind] = audit.to_dict()
    if pictures:
      compared = chosen
      if field == "tree":
        compared = {side: [chosen[side][i] for i in measured[side].with_tree] for side in ("generated", "train")}
      closest[kind] = _closest(audit, field, sources, compared)
  return results, closest


def _closest(audit: privacy.Audit, field: str, sources, chosen) -> list[dict]:
  pairs = audit.spaces["pixels"].closest(_SHOWN)
  examples = {}
  for side in ("generated", "train"):
    indices = [chosen[side][getattr(pair, side)] for pair in pairs]
    examples[side] = list(measure.fitted(sources[side], indices, (_SIDE, _SIDE)))
  return [
    {
      "generated": montage.to_rgb(generated[field]),
      "train": montage.to_rgb(pair.pose(train[field], _SIDE)),
      "distance": pair.distance,
      "second": pair.second,
      "copied": pair.copied,
      "generated_name": generated["name"],
      "train_name": train["name"],
    }
    for pair, generated, train in zip(pairs, examples["generated"], examples["train"], strict=True)
  ]
