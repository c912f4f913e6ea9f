"""The fields of an example, and their channels in an array that concatenates several of them."""

from collections.abc import Sequence

# "tree" is coverage, the share of each pixel that is vessel; "vessels" the two-valued mask of the same eye at the same size, by
# `retree_jax.data.reduction.RULE`.
CHANNELS = {"image": 3, "tree": 1, "fov": 1, "vessels": 1}


def num_channels(names: Sequence[str]) -> int:
  """Total number of channels of these fields."""
  return sum(CHANNELS[name] for name in names)


def split_channels(pixels, names: Sequence[str]) -> dict:
  """Splits an array [..., C] into the fields whose channels it concatenates, in the order of `names`.

  Args:
    pixels: NumPy or JAX array [..., num_channels(names)].
    names: some of `CHANNELS`.

  Returns:
    An array [..., channels] for each name: views of a NumPy array.
  """
  out, start = {}, 0
  for name in names:
    out[name] = pixels[..., start : start + CHANNELS[name]]
    start += CHANNELS[name]
  return out
