"""What a user can ask of a retina: outline, position of the optic disc, and measures of its vessels.

A tree stage that knows attributes (`config.data.attributes`) is given a random subset of them for each training eye, so that
each can be asked for or left open when sampling. They are measured on the training trees when these are read.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from retree_jax.data import reduction, transforms
from retree_jax.metrics import vessels

SIZE = 512  # height and width in pixels at which trees are measured
WHOLE = 0.95  # least ratio of height to width of a field of view that counts as a whole disc
_FAR = 0.25  # distance of the optic disc from the middle, in diameters of the field of view, that counts as one side

# name -> (centre, scale, definition). Networks see (value - centre) / scale; centre and scale are about the mean and the
# standard deviation over adults' and children's photographs, and need not be exact.
ATTRIBUTES = {
  "outline": (0.5, 0.5, "0: the whole circular field of view; 1: cut off above and below"),
  "side": (
    0.0,
    1.0,
    f"where the vessels' root, the optic disc, lies: -1 left, 1 right ({_FAR} diameters from the middle or more)",
  ),
  "density": (0.09, 0.02, "vessel pixels over pixels of the field of view"),
  "width": (2.3, 0.8, f"mean vessel width, pixels of a picture of {SIZE}x{SIZE}"),
  "tortuosity": (1.08, 0.02, "arc length over chord, mean over the vessels weighted by length"),
  "fractal_dimension": (1.38, 0.05, "box-counting dimension of the tree"),
}
# The same, measured on the train splits of CHASE_DB1 and HRF, where it is far from the numbers above. Those stay: weights were
# trained with them.
_USUAL = {"tortuosity": (1.046, 0.020)}
# Least and greatest value that a retina can have.
_LIMITS = {
  "outline": (0.0, 1.0),
  "side": (-1.0, 1.0),
  "density": (0.0, 1.0),
  "width": (0.0, float(SIZE)),
  "tortuosity": (1.0, 10.0),
  "fractal_dimension": (0.0, 2.0),
}
WORDS = {"outline": {"whole": 0.0, "cut": 1.0}, "side": {"left": -1.0, "right": 1.0}}


def usual(name: str) -> tuple[float, float]:
  """The middle and about one standard deviation of an attribute over eyes: what can be asked for."""
  return _USUAL.get(name, ATTRIBUTES[name][:2])


def is_whole(fov: np.ndarray) -> bool:
  """Whether the height of a field of view, uint8 [H, W, 1], is at least `WHOLE` times its width."""
  rows, columns = np.nonzero(fov[..., 0] >= 128)
  return bool(len(rows)) and np.ptp(rows) + 1 >= WHOLE * (np.ptp(columns) + 1)


def root(mask: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
  """(row, column) where a tree is densest: vessels leave the optic disc there.

  Args:
    mask, inside: bool [H, W], the vessels and the field of view, which must not be empty.
  """
  diameter = 2.0 * np.sqrt(inside.sum() / np.pi)
  crowd = ndimage.gaussian_filter(mask.astype(np.float32), diameter / 16, mode="constant")
  return np.unravel_index(np.argmax(np.where(inside, crowd, -1.0)), mask.shape)


def measure(tree: np.ndarray, fov: np.ndarray) -> dict[str, float]:
  """The attributes of one eye.

  Args:
    tree: vessel mask, uint8 0/255 [H, W, 1]; widths are in its pixels.
    fov: uint8 0/255 [H, W, 1], not empty.

  Returns:
    {name of `ATTRIBUTES`: value}; NaN where a tree has no such measure (an empty one has no width).
  """
  measured = vessels.biomarkers(tree, fov)
  mask, inside = tree[..., 0] >= 128, fov[..., 0] >= 128
  columns = np.flatnonzero(inside.any(axis=0))
  middle, diameter = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1
  side = float(np.clip((root(mask, inside)[1] - middle) / (_FAR * diameter), -1, 1)) if mask.any() else float("nan")
  values = {"outline": float(not is_whole(fov)), "side": side, **{name: measured[name] for name in list(ATTRIBUTES)[2:]}}
  return {name: float(values[name]) for name in ATTRIBUTES}


def of_example(example: Mapping, fit: str, line=None) -> np.ndarray:
  """The attributes of an eye at its native size, as networks see them: float32 [len(ATTRIBUTES)], NaN where unknown.

  Args:
    example: see `retree_jax.data.sources`; has "tree" and "fov".
    fit: see `retree_jax.data.transforms.fit`.
    line: the tree's centrelines, where they are at hand.
  """
  size = (SIZE, SIZE)
  box = transforms.fit_box(example["fov"], size, fit)
  tree = reduction.reduce_mask(transforms.binarise(example["tree"]), size, box, line)[..., None]
  return encode(measure(tree, transforms.fit({"fov": example["fov"]}, size, fit)["fov"]))


def encode(values: Mapping[str, float], names: Sequence[str] = tuple(ATTRIBUTES)) -> np.ndarray:
  """Attributes as networks see them, float32 [len(names)]; NaN for those that `values` lacks."""
  out = [(values.get(name, float("nan")) - ATTRIBUTES[name][0]) / ATTRIBUTES[name][1] for name in names]
  return np.array(out, np.float32)


def told(values):
  """What a network is told: values [B, A], NaN where unknown -> [B, 2A], the values (0 where unknown) and then whether each is
  known (1) or not (0). NumPy and JAX arrays."""
  import jax.numpy as jnp  # here, so that processes that only measure trees start without JAX

  known = values == values  # not NaN
  return jnp.concatenate([jnp.where(known, values, 0.0), known.astype(jnp.float32)], axis=-1)


def check(names: Sequence[str]) -> None:
  """Raises ValueError for an unknown attribute in `config.data.attributes`."""
  for name in names:
    if name not in ATTRIBUTES:
      raise ValueError(f"config.data.attributes names the unknown attribute {name!r}: use {', '.join(ATTRIBUTES)}")


def mirrored(encoded: np.ndarray) -> np.ndarray:
  """The encoded attributes [len(ATTRIBUTES)] of the same eye, left and right exchanged."""
  return np.where(np.array(list(ATTRIBUTES)) == "side", -encoded, encoded)


def measures_in(asked: Mapping[str, float]) -> set[str]:
  """The vessel measures among what is asked for; the other attributes have words."""
  return set(asked) - set(WORDS)


def parse(asked: Sequence[str]) -> dict[str, float]:
  """What a user asks for, from "NAME=VALUE" texts: numbers, or the words in `WORDS`.

  Raises:
    ValueError: an unknown attribute, one that is asked for twice, or a value that cannot be.
  """
  out = {}
  for text in asked:
    name, _, value = text.partition("=")
    if name not in ATTRIBUTES:
      raise ValueError(
        f"--ask {text}: there is no attribute {name!r}; ask for {', '.join(ATTRIBUTES)}, as in --ask density=0.11"
      )
    if name in out:
      raise ValueError(f"--ask {text}: {name} is asked for twice: give it once")
    words, (low, high) = WORDS.get(name, {}), _LIMITS[name]
    try:
      out[name] = words[value] if value in words else float(value)
    except ValueError:
      out[name] = float("nan")
    if not low <= out[name] <= high:  # NaN is not either
      number = f"a number from {low:g} to {high:g}, such as {usual(name)[0]}"
      raise ValueError(f"--ask {text}: write {name}={' or '.join(words) if words else number}")
  return out
