"""Field-of-view geometry: found in photographs, fitted to what a model drew, applied to finished pairs."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

_TILT = 20  # degrees
_SEEN_WHOLE = 250  # coverage, of 255, from which on a pixel holds hardly any black


def find_fov(image: np.ndarray) -> np.ndarray:
  """Finds the visible disc of a photograph: threshold just above the black surround, largest component,
  filled, convex.

  Args:
    image: uint8 [H, W, 3].

  Returns:
    uint8 0/255 [H, W, 1]. All 255 where there is no dark surround to tell apart (a photograph cropped inside
    its disc).

  The brightest channel is thresholded, because the retina is always red and often dark in green and blue; the
  threshold is a small share of the way from the surround (the median of the four corners' darkest) to the
  retina's typical brightness, because the rim is much darker than the middle. A disc, whole or cut by the
  frame, is convex, so the hull gives back what dark lesions or shadows took.
  """
  height, width = image.shape[:2]
  stride = max(1, round(max(height, width) / 640))
  bright = image[::stride, ::stride].max(axis=-1)
  bright = ndimage.uniform_filter(bright.astype(np.float32), 3, mode="nearest")
  typical = float(np.percentile(bright, 90))
  side = max(2, min(bright.shape) // 40)
  corners = [
    float(np.median(bright[ys, xs])) for ys in (slice(side), slice(-side, None)) for xs in (slice(side), slice(-side, None))
  ]
  dark = min(corners)
  threshold = dark + 0.12 * (typical - dark)
  everything = np.full((height, width, 1), 255, np.uint8)
  if dark > 0.35 * typical or typical < 8:
    return everything
  labels, count = ndimage.label(bright > threshold)
  if not count:
    return everything
  largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
  # a morphological opening takes away bright text or reflections that touch the rim before the hull would
  # span them
  opened = ndimage.binary_opening(largest, iterations=max(1, min(bright.shape) // 80))
  mask = opened if opened.sum() > 0.5 * largest.sum() else largest
  from skimage.morphology import convex_hull_image  # 0.3 s to import: only those who need a FOV pay

  mask = convex_hull_image(mask)
  if mask.mean() < 0.1:
    return everything
  whole = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
  return ((np.asarray(whole) >= 128) * np.uint8(255))[..., None]


def as_disc(drawn: np.ndarray) -> tuple[np.ndarray, int]:
  """The disc, whole or cut straight by its aperture, that a roughly drawn field of view means.

  A network draws the rim of a field of view with dents; every camera's is an arc of a circle with straight cuts
  at most. A circle is fitted to the rim of the convex hull by least absolute deviations, which dents do not
  pull, and the cuts to the area that they take away.

  Args:
    drawn: bool [H, W].

  Returns:
    Coverage 0..255, uint8 [H, W], so that the rim stays smooth when it is enlarged; the convex hull where no
    circle fits; all 0 where less than a tenth is drawn. And the degrees by which the cuts are turned
    counter-clockwise, 0 without any.
  """
  from skimage.morphology import convex_hull_image

  labels, count = ndimage.label(drawn)
  largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count else np.zeros(drawn.shape, bool)
  if largest.mean() < 0.1:
    return np.zeros(drawn.shape, np.uint8), 0
  hull = convex_hull_image(largest)
  rim = _rim(hull)
  if len(rim) < 10:
    return np.uint8(255) * hull, 0
  row, column, radius = _circle(rim)
  # The hull runs over what stands out of the rim; what was drawn, near that circle, says better where it is.
  whole = ndimage.binary_fill_holes(largest)
  rim = _rim(whole)
  near = rim[np.abs(np.hypot(*(rim - (row, column)).T) - radius) < 4]
  if len(near) > 0.3 * len(rim):
    row, column, radius = _circle(near)
  disc, tilt = _cut(disc_coverage(hull.shape, (row, column), radius + 0.5), whole)
  inside = disc >= 128
  return (disc, tilt) if (inside & hull).sum() >= 0.85 * (inside | hull).sum() else (np.uint8(255) * hull, 0)


def _rim(mask: np.ndarray) -> np.ndarray:
  """(row, column) of the outermost pixels of a mask, [N, 2]; the frame's own edges are no rim."""
  return np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=1)).astype(float)


def _circle(points: np.ndarray) -> tuple[float, float, float]:
  """(row, column, radius) of the circle through points [N, 2], by least absolute deviations."""
  y, x = points.T
  weight = np.ones(len(y))
  for _ in range(20):  # x² + y² = 2ax + 2by + c, reweighted
    equations = np.stack([2.0 * x, 2.0 * y, np.ones(len(x))], axis=1) * weight[:, None]
    a, b, c = np.linalg.lstsq(equations, (x**2 + y**2) * weight, rcond=None)[0]
    radius = np.sqrt(max(c + a * a + b * b, 1.0))
    weight = 1.0 / np.sqrt(np.maximum(np.abs(np.hypot(x - a, y - b) - radius), 0.5))
  return b, a, radius


def _cut(disc: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, int]:
  """Cuts a disc straight, above and below or left and right, where that brings it nearer to what was drawn.

  Args:
    disc: coverage, uint8 [H, W].
    drawn: bool [H, W].

  Returns:
    Coverage, uint8 [H, W], and the cuts' degrees counter-clockwise. Opposite cuts are parallel, and lie up to `_TILT` degrees
    askew: eyes are turned in training.
  """
  best, cuts, tilt = 0.0, [], 0
  rows, columns = np.nonzero(disc >= 128)
  gain = np.where(drawn[rows, columns], -1.0, 1.0)  # of cutting a pixel away
  pixels = rows, columns, gain, 0.4 * min(disc.shape)
  for axis in (0, 90):
    coarse = max(range(axis - _TILT, axis + _TILT + 1, 5), key=lambda degrees: _best_cuts(*pixels, degrees)[0])
    for degrees in range(coarse - 4, coarse + 5):
      gained, found = _best_cuts(*pixels, degrees)
      if gained > best:
        best, cuts, tilt = gained, found, degrees - axis
  rows, columns = np.ogrid[: disc.shape[0], : disc.shape[1]]
  for normal, place in cuts:
    beyond = rows * normal[0] + columns * normal[1] - place
    disc = np.minimum(disc, np.round(255 * np.clip(0.5 - beyond, 0.0, 1.0)).astype(np.uint8))
  return disc, tilt


def _best_cuts(rows: np.ndarray, columns: np.ndarray, gain: np.ndarray, shortest: float, degrees: float) -> tuple[float, list]:
  """The cuts across one direction that bring a disc nearest to what was drawn, at most one on each side.

  Args:
    rows, columns: of the disc's pixels.
    gain: of cutting each of them away.
    shortest: chord in pixels; shorter ones are dents.
    degrees: the direction.

  Returns:
    By how many pixels it comes nearer, and for each cut the outward normal (row, column) and its place along it.
  """
  steps = 4  # places of a cut per pixel
  angle, total, found = np.deg2rad(degrees), 0.0, []
  for normal in ((np.cos(angle), np.sin(angle)), (-np.cos(angle), -np.sin(angle))):
    along = rows * normal[0] + columns * normal[1]
    outermost = along.max()
    depth = ((outermost - along) * steps).astype(int)
    gained, counts = np.cumsum(np.bincount(depth, gain)), np.cumsum(np.bincount(depth))
    best = int(np.argmax(gained))
    chord = counts[min(best + steps, len(counts) - 1)] - counts[best]
    if gained[best] > 0.6 * counts[best] and chord > shortest:  # less than a fifth of what goes was drawn
      total += gained[best]
      found.append((normal, outermost - (best + 1) / steps))
  return total, found


def turned(pixels: np.ndarray, degrees: float) -> np.ndarray:
  """A picture uint8 [H, W, C] turned counter-clockwise about its middle, bicubic, 0 where nothing comes from."""
  channels = [Image.fromarray(pixels[..., c]).rotate(degrees, Image.Resampling.BICUBIC) for c in range(pixels.shape[-1])]
  return np.stack([np.asarray(c) for c in channels], axis=-1)


def disc_coverage(size: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
  """A filled circle, uint8 [H, W]: how much of each pixel it covers, 0..255.

  Args:
    size: (height, width) in pixels.
    centre: (row, column) in pixels; whole numbers are the middles of pixels.
    radius: in pixels.
  """
  rows, columns = np.ogrid[: size[0], : size[1]]
  distance = np.hypot(rows - centre[0], columns - centre[1])
  return np.round(255 * np.clip(radius + 0.5 - distance, 0.0, 1.0)).astype(np.uint8)


def with_fov(fields: dict[str, np.ndarray], framed: bool = True) -> tuple[dict[str, np.ndarray], list[int]]:
  """Trees with a clean field of view, and no vessel outside it.

  Args:
    fields: "tree", and "fov" where the stage draws one, uint8 [N, H, W, 1].
    framed: the stage learnt from eyes cropped to their discs.

  Returns:
    "tree", and "fov" uint8 0..255 (coverage): the disc that the drawn one means. Where none was drawn, the disc
    that the frame inscribes, or the whole frame if eyes were not framed so. And the tilt of each disc, in degrees.
  """
  tree = fields["tree"]
  guess = inscribed(tree.shape[1:3], min(tree.shape[1:3])) if framed else np.full(tree.shape[1:], 255, np.uint8)
  clean, tilts = np.empty_like(tree), [0] * len(tree)
  for i in range(len(tree)):
    clean[i] = guess
    if "fov" in fields:
      disc, tilt = as_disc(fields["fov"][i, ..., 0] >= 128)
      if (disc >= 128).mean() >= 0.3:  # else no disc to speak of: an untrained model
        clean[i, ..., 0], tilts[i] = disc, tilt
  return {"tree": np.where(clean >= 128, tree, 0).astype(np.uint8), "fov": clean}, tilts


def fade_at_rim(painted: np.ndarray, detailed: np.ndarray, fovs: np.ndarray) -> np.ndarray:
  """Photographs with fine detail, except along the rim, where they fade into the ones that the detail was drawn for.

  The detail stage draws differences of up to 32 grey levels from a reduced photograph. At the rim, where that one is mixed with
  the black around the eye, the true differences are larger, so that colours there come out dark and greenish.

  Args:
    painted: photographs before the detail was drawn, uint8 [N, H, W, 3].
    detailed: the same photographs with it, uint8 [N, H, W, 3].
    fovs: coverage, uint8 [N, H, W, 1].

  Returns:
    uint8 [N, H, W, 3]: `painted` in the outermost 2 pixels of 256, `detailed` from the sixth on, and a mixture between.
  """
  out = np.empty_like(detailed)
  for i, fov in enumerate(fovs[..., 0]):
    # The frame's edge is a rim too, as in `soft_rim`.
    depth = ndimage.distance_transform_edt(np.pad(fov >= _SEEN_WHOLE, 1))[1:-1, 1:-1] * (256 / fov.shape[0])
    share = np.clip((6 - depth) / 4, 0, 1)[..., None]
    out[i] = np.round(share * painted[i] + (1 - share) * detailed[i])
  return out


def soft_rim(images: np.ndarray, fovs: np.ndarray) -> np.ndarray:
  """Photographs whose rim fades as that of a shrunk photograph does, so that enlarging them gives a smooth one.

  Pixels along the edge of the frame count as a rim too: few training eyes reach there, so that a small network leaves
  noise in them.

  Args:
    images: uint8 [N, H, W, 3], black where less than half of a pixel is seen.
    fovs: coverage, uint8 [N, H, W, 1].

  Returns:
    uint8 [N, H, W, 3]: where a pixel is seen in part or has no neighbour, the colour of its mirror image in the nearest one
    that is seen whole with all of its neighbours, by its own share. The colour of the nearest itself would draw stripes.
  """
  out = np.empty_like(images)
  for i, (image, fov) in enumerate(zip(images, fovs[..., 0], strict=True)):
    inside = ndimage.binary_erosion(fov >= _SEEN_WHOLE)
    if inside.any():
      nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
      mirrored = 2 * nearest - np.indices(fov.shape)
      rows, columns = np.clip(mirrored, 0, np.reshape(fov.shape, (2, 1, 1)) - 1)
      rows, columns = np.where(inside[rows, columns], (rows, columns), nearest)
      image = image[rows, columns]
    out[i] = np.round(image * (fov[..., None] / 255.0))
  return out


def upright(fields: dict[str, np.ndarray], tilts: Sequence[float]) -> dict[str, np.ndarray]:
  """Finished pairs turned clockwise about their middle, by the tilt of each one's eye, so that it stands upright.

  Args:
    fields: uint8 [N, H, W, C] each, among them "fov".
    tilts: degrees, N of them; whole pairs stay as they are where it is 0.

  Returns:
    The same fields, 0 outside the field of view. Where the frame cut the disc, the cut runs along the frame again.
  """
  out = {name: pixels.copy() for name, pixels in fields.items()}
  for i in np.flatnonzero(tilts):
    pair = {name: turned(pixels[i], -tilts[i]) for name, pixels in fields.items()}
    frame = _turned_frame(pair["fov"].shape[:2], -tilts[i])
    pair["fov"] = _without_ragged_rows(_cut_by_frame(_smoothed(pair["fov"]), frame))
    for name, pixels in pair.items():
      out[name][i] = np.where(pair["fov"] > 0, pixels, 0)
  return out


@functools.lru_cache(maxsize=64)
def _turned_frame(size: tuple[int, int], degrees: float) -> np.ndarray:
  """[H, W] bool: pixels of a turned frame that come from within it."""
  return turned(np.full((*size, 1), 255, np.uint8), degrees)[..., 0] >= 128


def _smoothed(fov: np.ndarray) -> np.ndarray:
  """A field of view, uint8 [H, W, 1], 0 or 255, without the steps, a pixel or two high, that enlarging a slanted cut leaves.

  One pixel smaller all around, so that it holds nothing but what was in sight before.
  """
  share = ndimage.gaussian_filter(fov[..., 0].astype(np.float32), min(fov.shape[:2]) / 128, mode="nearest")
  return np.uint8(255) * ndimage.binary_erosion(share >= 127.5, border_value=1)[..., None]


def _without_ragged_rows(fov: np.ndarray) -> np.ndarray:
  """A field of view [H, W, 1] without outermost rows and columns that hold only pieces of a straight cut.

  A cut that stays a fraction of a degree aslant ends in rows of dashes or of half its length. Beside the full length of a
  straight cut each is short; where a disc is round, its outermost rows are short too, and stay.
  """
  fov = fov.copy()
  for _ in range(4):
    fov = np.rot90(fov)  # a view: each side is on top once
    lengths = np.count_nonzero(fov[..., 0], axis=1)
    top = int(np.argmax(lengths > 0))
    deepest = min(top + math.ceil(len(fov) / 128), len(fov) - 1)
    while (
      top < deepest
      and lengths[top + 1] > fov.shape[1] / 2
      and (lengths[top] < lengths[top + 1] - max(6, 0.02 * lengths[top + 1]))
    ):
      fov[top] = 0
      top += 1
  return fov


def _cut_by_frame(fov: np.ndarray, frame: np.ndarray) -> np.ndarray:
  """A field of view [H, W, 1] without the rows and columns in which the turned `frame`, bool [H, W], cuts it aslant."""
  height, width = frame.shape
  row, column = np.nonzero(ndimage.binary_dilation(~frame, iterations=2) & (fov[..., 0] > 0))
  nearest = np.argmin([row, height - 1 - row, column, width - 1 - column], axis=0) if len(row) else np.zeros(0, int)
  top, left = max(row[nearest == 0], default=-1) + 1, max(column[nearest == 2], default=-1) + 1
  bottom, right = min(row[nearest == 1], default=height), min(column[nearest == 3], default=width)
  kept = np.zeros_like(fov)
  kept[top:bottom, left:right] = fov[top:bottom, left:right]
  return kept


def inscribed(size: tuple[int, int], diameter: float) -> np.ndarray:
  """Coverage of a disc about the middle of a frame, uint8 0..255 [H, W, 1]."""
  return disc_coverage(size, ((size[0] - 1) / 2, (size[1] - 1) / 2), diameter / 2)[..., None]
