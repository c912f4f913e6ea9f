"""From a picture file to an array, and from a photograph to the disc that shows the retina."""

import io
import pathlib
import warnings

import numpy as np
from PIL import Image
from scipy import ndimage

# EyePACS, the largest photographs in the field, stay below 20 million pixels; a file that claims more than
# this is a mistake or a bomb.
MAX_PIXELS = 64_000_000
_TILT = 20  # degrees


def decode(data: bytes | pathlib.Path, name: str) -> np.ndarray:
  """Reads one picture file, 8 or 16 bits, to uint8 [H, W] (grey, palettes of grey included) or [H, W, 3].

  Args:
    data: a path or the file's bytes.  name: what messages call the file.

  Raises:
    ValueError: not a picture, damaged, or more than `MAX_PIXELS` pixels.
  """
  limit = MAX_PIXELS // 10**6
  too_big = f"{name} has more than {limit} million pixels: shrink it, or remove it if it is no photograph."
  try:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as picture:
      if picture.size[0] * picture.size[1] > MAX_PIXELS:
        raise ValueError(too_big)
      picture.load()
      if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
      if picture.mode.startswith("I") or picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, np.float64))
        # 16-bit files hold 0..65535; ones whose values stay below 256 are 8-bit pictures in a wide container
        scale = 257.0 if values.max(initial=0) > 255 else 1.0
        return np.clip(np.round(values / scale), 0, 255).astype(np.uint8)
      if "A" in picture.getbands() or "transparency" in picture.info:
        picture = _on_black(picture)
      colour = np.asarray(picture.convert("RGB"))
      is_grey = (
        picture.mode == "P"
        and (colour[..., 0] == colour[..., 1]).all()
        and (colour[..., 1] == colour[..., 2]).all()
      )
      return np.ascontiguousarray(colour[..., 0]) if is_grey else colour
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise ValueError(too_big) from None
  except FileNotFoundError:
    raise ValueError(f"{name} is gone: it was there when the folder was listed; start again.") from None
  except ValueError as error:
    if str(error) == too_big:
      raise
    raise ValueError(f"Cannot read {name} ({error}): replace or remove it.") from None
  except (OSError, SyntaxError, EOFError, MemoryError, TypeError, IndexError) as error:
    what = (
      "not a picture Pillow can read"
      if isinstance(error, Image.UnidentifiedImageError)
      else str(error) or "damaged"
    )
    raise ValueError(f"Cannot read {name} ({what}): replace the damaged file or remove it.") from None


def _on_black(picture: Image.Image) -> Image.Image:
  """What is transparent shows nothing: black. An alpha channel of one value hides nothing; grey pictures stay grey."""
  grey = picture.mode in ("LA", "La")
  picture = picture.convert("RGBA")
  low, high = picture.getchannel("A").getextrema()
  if low == high:
    return picture.convert("RGB").convert("L" if grey else "RGB")
  flat = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
  return flat.convert("L" if grey else "RGB")


def as_photograph(picture: np.ndarray) -> np.ndarray:
  """Decoded picture -> uint8 [H, W, 3]; grey ones are repeated."""
  return np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture


def as_mask(picture: np.ndarray, name: str) -> np.ndarray:
  """Decoded picture -> uint8 0/255 [H, W, 1].

  A mask is binary when more than 98 % of its pixels lie within 5 (of 255) of zero or of its maximum, which
  lets masks that went through JPEG pass and stops grey-level maps, probability maps and files with several
  classes.

  Raises:
    ValueError: it is not binary; the sentence says how to make it so.
  """
  grey = picture.max(axis=-1) if picture.ndim == 3 else picture
  top = int(grey.max(initial=0))
  if top == 0:
    return np.zeros((*grey.shape, 1), np.uint8)
  slack = 5 * top // 255
  counts = np.bincount(grey.ravel(), minlength=256)
  share = (counts[: slack + 1].sum() + counts[top - slack :].sum()) / grey.size
  if share <= 0.98:
    raise ValueError(
      f"{name} is no binary mask ({100 * (1 - share):.0f} % of its pixels are neither background nor "
      "vessel): binarise it first, "
      "e.g. with Pillow: Image.open(f).convert('L').point(lambda v: 255 * (v >= 128)).save(f)."
    )
  return ((grey.astype(np.int32) * 2 > top) * np.uint8(255))[..., None]


def as_tree(picture: np.ndarray, name: str) -> np.ndarray:
  """Decoded vessel mask -> uint8 0/255 [H, W, 1].

  Raises:
    ValueError: it is not binary, or over three quarters of it are vessel, as where vessels are drawn black on white.
  """
  mask = as_mask(picture, name)
  if mask.mean() > 0.75 * 255:  # of a retina, a tenth is
    raise ValueError(
      f"{name} says that {100 * mask.mean() / 255:.0f} % of its pixels are vessel: draw vessels white on black, "
      "e.g. with Pillow: ImageOps.invert(Image.open(f).convert('L')).save(f)."
    )
  return mask


def picture_size(path: pathlib.Path) -> tuple[int, int]:
  """(height, width) from the header alone; `ValueError` where there is no readable header."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      with Image.open(path) as picture:
        return picture.size[1], picture.size[0]
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    raise ValueError(
      f"Cannot read {path}: it is no picture or it is damaged; replace or remove it."
    ) from None


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
    float(np.median(bright[ys, xs]))
    for ys in (slice(side), slice(-side, None))
    for xs in (slice(side), slice(-side, None))
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
  for axis in (0, 90):
    coarse = max(range(axis - _TILT, axis + _TILT + 1, 5), key=lambda degrees: _best_cuts(disc, drawn, degrees)[0])
    for degrees in range(coarse - 4, coarse + 5):
      gained, found = _best_cuts(disc, drawn, degrees)
      if gained > best:
        best, cuts, tilt = gained, found, degrees - axis
  rows, columns = np.ogrid[:disc.shape[0], :disc.shape[1]]
  for normal, place in cuts:
    beyond = rows * normal[0] + columns * normal[1] - place
    disc = np.minimum(disc, np.round(255 * np.clip(0.5 - beyond, 0.0, 1.0)).astype(np.uint8))
  return disc, tilt


def _best_cuts(disc: np.ndarray, drawn: np.ndarray, degrees: float) -> tuple[float, list]:
  """The cuts across one direction that bring a disc nearest to what was drawn, at most one on each side.

  Returns:
    By how many pixels it comes nearer, and for each cut the outward normal (row, column) and its place along it.
  """
  rows, columns = np.nonzero(disc >= 128)
  gain = np.where(drawn[rows, columns], -1.0, 1.0)  # of cutting a pixel away
  shortest = 0.4 * min(disc.shape)  # chord in pixels: shorter ones are dents
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
  rows, columns = np.ogrid[:size[0], :size[1]]
  distance = np.hypot(rows - centre[0], columns - centre[1])
  return np.round(255 * np.clip(radius + 0.5 - distance, 0.0, 1.0)).astype(np.uint8)
