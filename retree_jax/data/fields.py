"""The fields of an eye, and where each lies in an array that holds several side by side."""

from collections.abc import Sequence

CHANNELS = {"image": 3, "tree": 1, "fov": 1}


def num_channels(names: Sequence[str]) -> int:
  """Channels of these fields together."""
  return sum(CHANNELS[name] for name in names)


def split_channels(pixels, names: Sequence[str]) -> dict:
  """The fields of an array [..., C] in which they lie side by side, in the order of `names`.

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
