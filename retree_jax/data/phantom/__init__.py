"""Procedural retinas: the default data set, computed from a seed, without any files.

`eye(seed, size)` gives a fundus photograph with its vessel tree and field of view, `tree(seed, size)` the tree alone,
`anatomy(seed)` the vessel graphs that both are drawn from. The anatomy is grown in degrees of visual angle (`vessel_tree`), so
the same seed is the same eye at every size. There are two views, as in public data sets: "disc" (about 29 degrees around the
optic disc, like CHASE_DB1) and "macula" (about 45 degrees between disc and fovea, often cut off at top and bottom, like HRF and
IDRiD).

Trees are coverage maps: uint8, 255 times the share of the pixel that is vessel; `binary=True` gives masks (coverage >= 128).
The eyes are healthy. They teach networks the general appearance of a retina and let every command run without data, but they
are no substitute for real eyes.
"""

import dataclasses
import functools
import math
import numbers

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from retree_jax.data.phantom import photograph, vessel_tree
from retree_jax.data.phantom.vessel_tree import Vessels

SMALLEST = 32  # pixels; below this no vessel is left
VIEWS = ("disc", "macula")


@dataclasses.dataclass(frozen=True)
class View:
  """The field of view: centre (x, y) and radius in degrees, and the share of its height that is kept."""

  kind: str
  centre: tuple[float, float]
  radius: float
  kept: float


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """One eye in degrees of visual angle; x points from the disc to the temporal side, y upwards, the disc is the origin.

  Attributes:
    seed: the seed it was grown from.
    side: "right" (disc on the right of the picture) or "left".
    fovea: (x, y).
    foveal_zone: radius around the fovea without vessels.
    disc_radius: mean radius of the optic disc.
    arteries, veins: `Vessels`.
    view: the default `View`.
  """

  seed: int
  side: str
  fovea: tuple[float, float]
  foveal_zone: float
  disc_radius: float
  arteries: Vessels
  veins: Vessels
  view: View


def _streams(seed):
  """Independent random streams of one seed: anatomy, view, photograph."""
  if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
    raise ValueError(f"seed of a phantom eye must be a whole number from 0 up, not {seed!r}.")
  return [np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(int(seed)).spawn(3)]


def _checked_size(size):
  try:
    height, width = (int(v) for v in size)
    exact = (height, width) == tuple(size)
  except (TypeError, ValueError):
    exact = False
  if not exact or min(height, width) < SMALLEST:
    raise ValueError(
      f"size of a phantom eye must be (height, width) in whole pixels, at least {SMALLEST} each, "
      f"for example (512, 512), not {size!r}."
    )
  return height, width


def _view(rng, fovea, kind=None):
  drawn = VIEWS[int(rng.random() < 0.5)]
  jitter, size, cut, kept = rng.normal(0, 1, 2), rng.uniform(-1, 1), rng.random(), rng.uniform(0.7, 0.88)
  kind = kind or drawn
  if kind == "disc":
    return View(kind, (0.8 + 0.9 * jitter[0], 0.9 * jitter[1]), 14.3 + 0.7 * size, 1.0)
  return View(
    kind, (0.72 * fovea[0] + 1.2 * jitter[0], 0.5 * fovea[1] + 0.8 * jitter[1]), 22.5 + 1.2 * size, kept if cut < 0.6 else 1.0
  )


@functools.lru_cache(maxsize=16)
def _anatomy(seed):
  rng, view_rng, _ = _streams(seed)
  side = "right" if rng.random() < 0.5 else "left"
  fovea = (vessel_tree.FOVEA[0] + rng.normal(0, 0.6), vessel_tree.FOVEA[1] + rng.normal(0, 0.6))
  disc = vessel_tree.DISC_RADIUS * math.exp(rng.normal(0, 0.06))
  vein = 0.27 * np.exp(rng.normal(0, 0.08, 2))
  artery = vein * rng.normal(0.70, 0.03, 2)  # artery-vein ratio about 2/3 to 3/4 (Hubbard et al. 1999)
  tortuosity = 0.03 * math.exp(rng.normal(0, 0.35))
  arteries = vessel_tree.grow_kind(rng, "artery", fovea, None, 0.8 * tortuosity, artery)
  veins = vessel_tree.grow_kind(rng, "vein", fovea, arteries.position[: arteries.coarse], tortuosity, vein)
  return Anatomy(seed, side, fovea, vessel_tree.FOVEAL_ZONE, disc, arteries, veins, _view(view_rng, fovea))


def anatomy(seed):
  """The eye of a seed, as vessel graphs in degrees.

  Args:
    seed: whole number from 0 up.

  Returns:
    `Anatomy`; its arrays are shared between calls, so do not write to them.

  Raises:
    ValueError: the seed is not a whole number from 0 up.
  """
  _streams(seed)
  return _anatomy(int(seed))


def _chosen_view(seed, kind):
  eye_anatomy = anatomy(seed)
  if kind is None:
    return eye_anatomy, eye_anatomy.view
  if kind not in VIEWS:
    raise ValueError(f"view of a phantom eye must be one of {', '.join(VIEWS)}, or None for the seed's own, not {kind!r}.")
  return eye_anatomy, _view(_streams(seed)[1], eye_anatomy.fovea, kind)


def _pixels_per_degree(view, height, width):
  return 0.98 * min(width / (2 * view.radius), height / (2 * view.radius * view.kept))


def _degrees(side, view, height, width):
  """Coordinates of all pixel centres in degrees: x [1, width], y [height, 1], float32."""
  scale = _pixels_per_degree(view, height, width)
  mirror = -1.0 if side == "right" else 1.0
  x = view.centre[0] + mirror * (np.arange(width) + 0.5 - width / 2) / scale
  y = view.centre[1] - (np.arange(height) + 0.5 - height / 2) / scale
  return x[None, :].astype(np.float32), y[:, None].astype(np.float32)


def _fov(view, x, y):
  distance = np.hypot(x - view.centre[0], y - view.centre[1])
  return (distance <= view.radius) & (np.abs(y - view.centre[1]) <= view.radius * view.kept)


def _strips(vessels, side, view, height, width):
  """Every unbranched vessel piece inside the view: list of (points [n, 2], half widths [n]), in pixels."""
  scale = _pixels_per_degree(view, height, width)
  mirror = -1.0 if side == "right" else 1.0
  points = np.stack(
    [
      width / 2 + mirror * scale * (vessels.position[:, 0] - view.centre[0]),
      height / 2 - scale * (vessels.position[:, 1] - view.centre[1]),
    ],
    -1,
  )
  order = np.lexsort((vessels.depth, vessels.segment))
  starts = np.flatnonzero(np.diff(vessels.segment[order], prepend=-1))
  has_child = np.zeros(len(points), bool)
  has_child[vessels.parent[vessels.parent >= 0]] = True
  strips = []
  for part in np.split(order, starts[1:]):
    first = vessels.parent[part[0]]
    line = points[np.concatenate([[first], part])] if first >= 0 else points[part]
    if len(line) < 2 or (line.min(0) > (width, height)).any() or (line.max(0) < 0).any():
      continue
    half = np.full(len(line), scale * vessels.radius[part[-1]])
    if not has_child[part[-1]]:  # a tip thins out over its last 1.5 degrees
      half *= np.minimum(1, 0.55 + 0.45 * np.arange(len(line) - 1, -1, -1) / 12)
    strips.append((line, half))
  return sorted(strips, key=lambda strip: strip[1][0])


def _draw(canvas, strips, share, value):
  """Fills strips of `share` of their width, with rounded ends; `value` maps the half width in pixels to a grey value."""
  pen = ImageDraw.Draw(canvas)
  for line, half in strips:
    # Pillow's polygons come out 0.27 pixels too wide on each side; measured on random rectangles.
    half = np.maximum(half * share - 0.27, 0.25)
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    across = half[:, None] * np.stack([-along[:, 1], along[:, 0]], -1)
    fill = value(half[0])
    pen.polygon(np.concatenate([line + across, (line - across)[::-1]]).ravel().tolist(), fill=fill)
    for (cx, cy), r in ((line[0], half[0]), (line[-1], half[-1])):
      if r > 1:
        pen.ellipse((cx - r, cy - r, cx + r - 1, cy + r - 1), fill=fill)


def _canvas(height, width):
  """Supersampling factor: vessels are drawn on at least about 1024 pixels and area-averaged."""
  return max(2, math.ceil(1024 / max(height, width)))


def _reduced(canvas, factor):
  return np.asarray(canvas.reduce(factor))


def _coverage(layers, fov, factor):
  solid = np.zeros(layers[0].size[::-1], bool)
  for layer in layers:
    solid |= np.asarray(layer) > 0
  share = np.asarray(Image.fromarray(solid.view(np.uint8) * np.uint8(255)).reduce(factor))
  return np.where(fov, share, 0).astype(np.uint8)


def tree(seed, size=(512, 512), *, view=None, binary=False):
  """The vessel tree of a phantom eye.

  Args:
    seed: whole number from 0 up.
    size: (height, width) in pixels, at least 32 each.
    view: "disc", "macula", or None for the seed's own.
    binary: True gives 0/255 (coverage >= 128) instead of coverage.

  Returns:
    uint8 [height, width, 1], 255 times the share of each pixel that is vessel; 0 outside the field of view.

  Raises:
    ValueError: an invalid seed, size or view.
  """
  height, width = _checked_size(size)
  eye_anatomy, seen = _chosen_view(seed, view)
  factor = _canvas(height, width)
  fov = _fov(seen, *_degrees(eye_anatomy.side, seen, height, width))
  cover = _coverage(_vessel_layers(eye_anatomy, seen, height, width, factor)[:2], fov, factor)
  return _as_tree(cover, binary)


def _as_tree(cover, binary):
  if binary:
    cover = np.where(cover >= 128, np.uint8(255), np.uint8(0))
  return cover[..., None]


def _vessel_layers(eye_anatomy, view, height, width, factor):
  """Drawn layers (artery depth, vein depth, arterial reflex) as Pillow images; depth 255 is a vessel of 0.75 degrees."""
  big = height * factor, width * factor
  scale = _pixels_per_degree(view, *big)
  layers = []
  for vessels in (eye_anatomy.arteries, eye_anatomy.veins):
    layer = Image.new("L", big[::-1])
    strips = _strips(vessels, eye_anatomy.side, view, *big)
    # A cylinder's depth across its width, 2 sqrt(r^2 - d^2), in three steps, which the blur smooths.
    for share, depth in ((1.0, 0.45), (0.75, 0.8), (0.45, 1.0)):
      _draw(
        layer,
        strips,
        share,
        lambda r, share=share, depth=depth: max(1, min(255, int(255 * depth * (r + 0.27) / share / (0.375 * scale)))),
      )
    layers.append(layer)
  reflex = Image.new("L", big[::-1])
  wide = [s for s in _strips(eye_anatomy.arteries, eye_anatomy.side, view, *big) if s[1][0] > 0.1 * scale]
  _draw(reflex, wide, 0.3, lambda r: min(255, int(255 * (r + 0.27) / 0.3 / (0.25 * scale))))
  return [*layers, reflex]


def eye(seed, size=(512, 512), *, view=None, binary=False):
  """A phantom eye: photograph, vessel tree and field of view.

  Args:
    seed: whole number from 0 up; the same seed is the same eye at every size.
    size: (height, width) in pixels, at least 32 each.
    view: "disc" (29 degrees around the disc), "macula" (45 degrees between disc and fovea), or None for the seed's own.
    binary: True gives a 0/255 tree (coverage >= 128) instead of coverage.

  Returns:
    {"name": "phantom_00000042", "image": uint8 [height, width, 3], "tree": uint8 [height, width, 1] (255 times the share of
    each pixel that is vessel), "fov": uint8 0/255 [height, width, 1], "label": "phantom"}.

  Raises:
    ValueError: an invalid seed, size or view.
  """
  height, width = _checked_size(size)
  eye_anatomy, seen = _chosen_view(seed, view)
  rng = _streams(seed)[2]
  x, y = _degrees(eye_anatomy.side, seen, height, width)
  fov = _fov(seen, x, y)
  factor = _canvas(height, width)
  layers = _vessel_layers(eye_anatomy, seen, height, width, factor)
  cover = _coverage(layers[:2], fov, factor)
  artery, vein, reflex = (_reduced(layer, factor).astype(np.float32) / 255 for layer in layers)
  picture = photograph.photograph(rng, eye_anatomy, seen, x, y, artery, vein, reflex)
  scale = _pixels_per_degree(seen, height, width)
  blur = rng.uniform(0.02, 0.045) * scale
  if blur > 0.2:
    picture = gaussian_filter(picture, (blur, blur, 0), truncate=3.0)
  grain = rng.uniform(1.0, 3.0)
  picture += np.float32(grain) * rng.standard_normal(picture.shape, np.float32)
  image = np.where(fov[..., None], np.clip(np.rint(picture), 0, 255), 0).astype(np.uint8)
  return {
    "name": f"phantom_{int(seed):08d}",
    "image": image,
    "tree": _as_tree(cover, binary),
    "fov": (fov * np.uint8(255))[..., None],
    "label": "phantom",
  }
