"""Does the label lie on the vessels? Compares the green channel along a tree with its surroundings.

Haemoglobin absorbs green light, so in the green channel, in which vessels are traced, they are darker than the
retina beside them. A label that fits its photograph follows dark lines; a tree of another eye does not. Both
ends of the scale are measured: real pairs above, shuffled trees below. No trained network is involved. Vessels
in the photograph that the label lacks are not detected; the precision and recall of a segmenter
(`metrics.segmentation`) cover both directions.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from retree_jax.metrics.intervals import mean_with_interval
from retree_jax.metrics.masks import as_mask

# name -> (unit, definition). The order is that of reports.
MEASURES: dict[str, tuple[str, str]] = {
  "darker": ("share", "share of the labelled pixels that are darker in green than the mean of the retina around them"),
  "separation": (
    "AUC",
    "probability that a labelled pixel is darker, against its own surroundings, than an unlabelled "
    "pixel within reach of the label (ties count half); 0.5 is chance, 1 is perfect",
  ),
  "contrast": ("share", "mean over labelled pixels of (surroundings − pixel) / surroundings in green: Weber contrast"),
}
REACH = 0.03  # radius of the surroundings as a fraction of the shorter side: wider than any vessel
GUARD = 0.004  # rim of the label that counts to neither side, as a fraction likewise: vessel walls are blurred
SHIFTS = 4  # pixels by which a label is displaced in each direction to find where it fits best


def measures(image, tree, fov=None) -> dict[str, float]:
  """Measures how well a label lies on the vessels of its photograph.

  Args:
    image: uint8 [H, W, 3].
    tree: [H, W] or [H, W, 1] mask (bool, {0, 1} or {0, 255}).
    fov: mask of the same size, the visible disc; None for the whole frame.

  Returns:
    {name: value} for the names in MEASURES, which gives units and definitions; all NaN for a tree that has no
    pixels in the field of view, or no surroundings.

  Raises:
    ValueError: the image is not uint8 [H, W, 3], the tree or field of view is not a mask, or sizes differ.
  """
  green, tree, inside = _checked(image, tree, fov)
  side = min(green.shape)
  reach, guard = max(2, round(REACH * side)), max(1, round(GUARD * side))
  nothing = dict.fromkeys(MEASURES, float("nan"))
  if not tree.any():
    return nothing
  # The rim of the visible disc is a dark line itself: neither vessels nor surroundings are measured there.
  inside = ndimage.binary_erosion(inside, iterations=guard + 1, border_value=1)
  label = tree & inside
  distance = ndimage.distance_transform_edt(~tree)
  retina = inside & (distance > guard)
  around = _local_mean(green, retina, reach)
  near = retina & (distance <= reach) & np.isfinite(around)
  label &= np.isfinite(around)
  if not label.any() or not near.any():
    return nothing
  depth = around - green
  on, off = depth[label], np.sort(depth[near])
  wins = np.searchsorted(off, on, "left").mean() + np.searchsorted(off, on, "right").mean()
  return {
    "darker": float((on > 0).mean() + 0.5 * (on == 0).mean()),
    "separation": float(wins / (2 * off.size)),
    "contrast": float((on / np.maximum(around[label], 1.0)).mean()),
  }


def shift_map(image, tree, fov=None, most: int = SHIFTS) -> np.ndarray:
  """Mean contrast under the label when it is displaced by a few pixels.

  Args:
    image, tree, fov: as in `measures`.
    most: largest displacement in each direction, in pixels.

  Returns:
    [2·most + 1, 2·most + 1]; row most + dy, column most + dx holds the mean, over the label moved down by dy
    and right by dx, of the local mean of green minus green, in grey levels. Zeros for a tree without pixels.
  """
  green, tree, inside = _checked(image, tree, fov)
  guard = max(1, round(GUARD * min(green.shape)))
  inside = ndimage.binary_erosion(inside, iterations=guard + 1, border_value=1)
  around = _local_mean(green, inside, max(2, round(REACH * min(green.shape))))
  depth = np.where(inside & np.isfinite(around), around - green, 0.0)
  means = np.zeros((2 * most + 1, 2 * most + 1))
  y, x = np.nonzero(tree & inside)
  if not y.size:
    return means
  depth = np.pad(depth, most)
  for row in range(2 * most + 1):
    for column in range(2 * most + 1):
      means[row, column] = depth[y + row, x + column].mean()
  return means


def best_shift(maps: Sequence[np.ndarray]) -> tuple[int, int]:
  """The displacement (dy, dx) in pixels at which the labels of a set of `shift_map`s fit best: (0, 0) if they are in place.

  Raises:
    ValueError: no maps.
  """
  if not len(maps):
    raise ValueError("there are no labels to look for a shift in: give at least one shift map")
  total = np.mean(maps, axis=0)
  most = total.shape[0] // 2
  # Ties go to the smallest displacement, so that a photograph without vessels gives (0, 0).
  steps = np.add.outer(np.arange(-most, most + 1) ** 2, np.arange(-most, most + 1) ** 2)
  row, column = np.unravel_index(np.argmax(total - 1e-9 * steps), total.shape)
  return int(row) - most, int(column) - most


def summary(own: Sequence[dict], shuffled: Sequence[dict], real: Sequence[dict], seed: int = 0) -> dict[str, dict]:
  """Places labels on the scale from chance to real pairs.

  Args:
    own: `measures` of generated photographs with their own trees.
    shuffled: the same photographs with the trees of others: the null distribution.
    real: real photographs with their own trees.
    seed: of the bootstrap.

  Returns:
    For each of MEASURES: "generated", "shuffled" and "real", each {"mean", "std", "low", "high", "count"}
    with a 95 % bootstrap interval of the mean, and "position", (generated − shuffled) / (real − shuffled): 0
    is chance, 1 is real; NaN where real pairs are no better than chance. Trees without the measure are
    excluded.
  """
  result = {}
  for name in MEASURES:
    sides = {}
    for side, records in (("generated", own), ("shuffled", shuffled), ("real", real)):
      values = np.array([record[name] for record in records], float)
      sides[side] = mean_with_interval(values[np.isfinite(values)], seed=seed)
    gain = sides["real"]["mean"] - sides["shuffled"]["mean"]
    own_gain = sides["generated"]["mean"] - sides["shuffled"]["mean"]
    result[name] = {**sides, "position": own_gain / gain if gain > 1e-6 else float("nan")}
  return result


def _checked(image, tree, fov) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Green as float64 [H, W], the tree inside the field of view, and the field of view, as bool."""
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(f"the photograph must be uint8 of shape [H, W, 3], not {image.dtype} {image.shape}")
  tree = as_mask(tree, "the tree")
  inside = np.ones(tree.shape, bool) if fov is None else as_mask(fov, "the field of view")
  if not image.shape[:2] == tree.shape == inside.shape:
    raise ValueError(
      f"the photograph is {image.shape[:2]} pixels (height, width), the tree {tree.shape} and "
      f"the field of view {inside.shape}; resize them to one size"
    )
  return image[..., 1].astype(np.float64), tree & inside, inside


def _local_mean(values: np.ndarray, valid: np.ndarray, radius: int) -> np.ndarray:
  """Mean of the valid pixels in a square of 2·radius + 1 around each pixel; NaN where there are none."""
  width = 2 * radius + 1
  weight = ndimage.uniform_filter(valid.astype(np.float64), width, mode="constant")
  total = ndimage.uniform_filter(np.where(valid, values, 0.0), width, mode="constant")
  return np.divide(total, weight, out=np.full(values.shape, np.nan), where=weight > 0.5 / width**2)
