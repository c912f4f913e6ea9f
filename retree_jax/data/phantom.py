"""Procedural retinas: the embedded default data set, deterministic in its seed, made of nothing but
arithmetic.

`eye(seed, size)` gives a fundus photograph with its vessel tree and field of view, `tree(seed, size)` the
tree alone, `anatomy(seed)` what both are drawn from. The anatomy is grown in degrees of visual angle
(`phantom_tree`), so the same seed is the same eye at every size. Two kinds of view occur, as in public data
sets: "disc" (about 29 degrees around the optic disc, like CHASE_DB1) and "macula" (about 45 degrees between
disc and fovea, often cut off at top and bottom, like HRF and IDRiD).

Trees are coverage maps: uint8, 255 times the share of the pixel that is vessel. `>= 128` makes them binary
(`binary=True` does it here). Photographs are of healthy eyes; they teach networks what retinas look like on
the whole and let every command run without data, but they are no substitute for real eyes.
"""

import dataclasses
import functools
import math
import numbers

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from retree_jax.data import phantom_tree
from retree_jax.data.phantom_tree import Vessels

SMALLEST = 32  # pixels; below this no vessel is left
VIEWS = ("disc", "macula")


@dataclasses.dataclass(frozen=True)
class View:
  """What the camera sees: centre (x, y) and radius of the field in degrees, and the share of its height
  that is kept.
  """

  kind: str
  centre: tuple[float, float]
  radius: float
  kept: float


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """One eye in degrees of visual angle; x points from the disc to the temporal side, y upwards, the disc is
  the origin.

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
    kind,
    (0.72 * fovea[0] + 1.2 * jitter[0], 0.5 * fovea[1] + 0.8 * jitter[1]),
    22.5 + 1.2 * size,
    kept if cut < 0.6 else 1.0,
  )


@functools.lru_cache(maxsize=16)
def _anatomy(seed):
  rng, view_rng, _ = _streams(seed)
  side = "right" if rng.random() < 0.5 else "left"
  fovea = (phantom_tree.FOVEA[0] + rng.normal(0, 0.6), phantom_tree.FOVEA[1] + rng.normal(0, 0.6))
  disc = phantom_tree.DISC_RADIUS * math.exp(rng.normal(0, 0.06))
  vein = 0.27 * np.exp(rng.normal(0, 0.08, 2))
  artery = vein * rng.normal(0.70, 0.03, 2)  # artery-vein ratio about 2/3 to 3/4 (Hubbard et al. 1999)
  tortuosity = 0.03 * math.exp(rng.normal(0, 0.35))
  arteries = phantom_tree.grow_kind(rng, "artery", fovea, None, 0.8 * tortuosity, artery)
  veins = phantom_tree.grow_kind(rng, "vein", fovea, arteries.position[: arteries.coarse], tortuosity, vein)
  return Anatomy(seed, side, fovea, phantom_tree.FOVEAL_ZONE, disc, arteries, veins, _view(view_rng, fovea))


def anatomy(seed):
  """The eye of a seed, as vessel graphs in degrees.

  Args:
    seed: whole number from 0 up.

  Returns:
    `Anatomy`; its arrays are shared between calls, so do not write to them.

  Raises:
    ValueError: the seed is no whole number from 0 up.
  """
  _streams(seed)
  return _anatomy(int(seed))


def _chosen_view(seed, kind):
  eye_anatomy = anatomy(seed)
  if kind is None:
    return eye_anatomy, eye_anatomy.view
  if kind not in VIEWS:
    raise ValueError(
      f"view of a phantom eye must be one of {', '.join(VIEWS)}, or None for the seed's own, not {kind!r}."
    )
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
  """Every unbranched vessel piece inside the view: list of (points [n, 2] in pixels, half widths [n] in
  pixels).
  """
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
  """Fill strips of `share` of their width with rounded ends; `value` is a function of the half width in
  pixels.
  """
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
    view: "disc", "macula", or None for the one that belongs to the seed.
    binary: True gives 0/255 (coverage >= 128) instead of coverage.

  Returns:
    uint8 [height, width, 1], 255 times the share of each pixel that is vessel; 0 outside the field of view.

  Raises:
    ValueError: seed, size or view is impossible.
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
  """Drawn layers (artery depth, vein depth, arterial reflex) as Pillow images; depth 255 is a vessel of
  0.75 degrees.
  """
  big = height * factor, width * factor
  scale = _pixels_per_degree(view, *big)
  layers = []
  for vessels in (eye_anatomy.arteries, eye_anatomy.veins):
    layer = Image.new("L", big[::-1])
    strips = _strips(vessels, eye_anatomy.side, view, *big)
    # A cylinder's depth across its width, 2 sqrt(r^2 - d^2), in three stairs; the blur makes them smooth.
    for share, depth in ((1.0, 0.45), (0.75, 0.8), (0.45, 1.0)):
      _draw(
        layer,
        strips,
        share,
        lambda r, share=share, depth=depth: max(
          1, min(255, int(255 * depth * (r + 0.27) / share / (0.375 * scale)))
        ),
      )
    layers.append(layer)
  reflex = Image.new("L", big[::-1])
  wide = [s for s in _strips(eye_anatomy.arteries, eye_anatomy.side, view, *big) if s[1][0] > 0.1 * scale]
  _draw(reflex, wide, 0.3, lambda r: min(255, int(255 * (r + 0.27) / 0.3 / (0.25 * scale))))
  return [*layers, reflex]


def _cloud(rng, view, x, y, side, wavelength, stretch=1.0):
  """Smooth noise, mean 0 and deviation about 1, the same at every picture size: [height, width] float32.

  Args:
    wavelength: size of its spots in degrees.
    stretch: how much longer than high the spots are.
  """
  half = 1.15 * view.radius
  rows, columns = (max(4, int(2 * half / wavelength)), max(4, int(2 * half / wavelength / stretch)))
  grid = rng.normal(0, 1.5, (rows, columns)).astype(np.float32)
  span_x = (x[0, [0, -1]] - view.centre[0]) * (-1 if side == "right" else 1)
  span_y = -(y[[0, -1], 0] - view.centre[1])
  pad_x, pad_y = np.diff(span_x)[0] / (2 * (x.size - 1)), np.diff(span_y)[0] / (2 * (y.size - 1))
  box = (
    (span_x[0] - pad_x + half) / (2 * half) * columns,
    (span_y[0] - pad_y + half) / (2 * half) * rows,
    (span_x[1] + pad_x + half) / (2 * half) * columns,
    (span_y[1] + pad_y + half) / (2 * half) * rows,
  )
  inside = (max(box[0], 0), max(box[1], 0), min(box[2], columns), min(box[3], rows))
  if inside == box:
    return np.asarray(Image.fromarray(grid).resize((x.size, y.size), Image.Resampling.BICUBIC, box=box))
  # The picture is wider than the noise (black margins): fill the part that the field of view can lie in.
  out = np.zeros((y.size, x.size), np.float32)
  left, right = (int(round((v - box[0]) / (box[2] - box[0]) * x.size)) for v in (inside[0], inside[2]))
  top, bottom = (int(round((v - box[1]) / (box[3] - box[1]) * y.size)) for v in (inside[1], inside[3]))
  patch = Image.fromarray(grid).resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=inside)
  out[top:bottom, left:right] = np.asarray(patch)
  return out


def _soft(distance, edge):
  """1 inside (negative distance), 0 outside, over an edge of the given width."""
  return 1 / (1 + np.exp(np.clip(distance / edge, -30, 30)))


def _photograph(rng, eye_anatomy, view, x, y, artery, vein, reflex):
  """The rendered fundus, float32 [height, width, 3] in 0..255 (before noise), from vessel depths in 0..1."""
  side = eye_anatomy.side
  fundus = np.hypot(x - view.centre[0], y - view.centre[1]) / view.radius

  # Pigmentation: from orange (blond fundus, choroid shows) to dark brown-red; exposure and camera tint vary
  # apart.
  pigment = rng.beta(2.0, 2.0)
  red = rng.uniform(170, 235) - 35 * pigment
  green = red * (rng.uniform(0.34, 0.48) - 0.06 * pigment)
  blue = green * rng.uniform(0.15, 0.50)

  # Illumination: vignette, a gradient across the field, slow unevenness.
  tilt = rng.uniform(0, 2 * math.pi)
  lean = (
    rng.uniform(0.0, 0.16)
    * (np.cos(tilt) * (x - view.centre[0]) + np.sin(tilt) * (y - view.centre[1]))
    / view.radius
  )
  light = 1 - rng.uniform(0.10, 0.32) * fundus**2 - 0.1 * fundus**6 + lean
  light = light * (1 + 0.05 * _cloud(rng, view, x, y, side, 14.0))

  # Choroid: mottling at several scales, and streaks of choroidal vessels where there is little pigment.
  mottle = (
    0.5 * _cloud(rng, view, x, y, side, 6.0)
    + 0.35 * _cloud(rng, view, x, y, side, 2.2)
    + 0.3 * _cloud(rng, view, x, y, side, 0.9)
    + 0.2 * _cloud(rng, view, x, y, side, 0.35)
  )
  streaks = _cloud(rng, view, x, y, side, 1.1, 2.6) * _cloud(rng, view, x, y, side, 1.4, 1.3)
  texture = rng.uniform(0.018, 0.04) * mottle + rng.uniform(0.0, 0.025) * (1 - pigment) * streaks

  fx, fy = x - eye_anatomy.fovea[0], y - eye_anatomy.fovea[1]
  fovea = np.hypot(fx, fy * 1.05)
  macula = rng.uniform(0.10, 0.22) * np.exp(-((fovea / 3.4) ** 2)) + rng.uniform(0.08, 0.2) * np.exp(
    -((fovea / 1.2) ** 2)
  )
  yellow = 0.25 * np.exp(-((fovea / 4.0) ** 2))
  from_disc = np.hypot(x, y)
  # Nerve fibres: a faint sheen along the arcades, strongest near the disc.
  fibres = rng.uniform(0.03, 0.13) * np.exp(-((from_disc / 6.5) ** 2)) * (0.5 + np.abs(y) / (from_disc + 0.5))

  picture = np.empty((*fundus.shape, 3), np.float32)
  for channel, (base, mottled, dark, sheen) in enumerate(
    ((red, 0.8, 0.55, 0.35), (green, 1.2, 1.0, 1.0), (blue, 1.0, 1.0, 1.1))
  ):
    picture[..., channel] = base * (1 + mottled * texture + sheen * fibres) * (1 - dark * macula)
  picture[..., 2] *= 1 - yellow
  _paint_disc(rng, picture, eye_anatomy, view, x, y)

  # Vessels absorb by Beer-Lambert, green most; veins hold less oxygen and look darker in red too.
  strength = rng.uniform(0.9, 1.2)
  over_disc = _soft(from_disc - 0.9 * eye_anatomy.disc_radius, 0.3) * 0.25
  for channel, (in_artery, in_vein, shine) in enumerate(
    ((0.20, 0.50, 0.10), (0.95, 1.10, 0.22), (0.80, 0.90, 0.12))
  ):
    depth = in_artery * artery + in_vein * vein
    picture[..., channel] *= np.exp(-strength * (1 - over_disc) * depth) * (1 + shine * reflex)
  picture *= light[..., None]
  # Reflections of the rim of the pupil: a hazy crescent at the edge of some pictures.
  haze = (rng.random() < 0.35) * rng.uniform(10, 35)
  where = rng.uniform(0, 2 * math.pi)
  towards = (np.cos(where) * (x - view.centre[0]) + np.sin(where) * (y - view.centre[1])) / view.radius
  crescent = haze * np.clip((towards - 0.72) / 0.28, 0, 1) ** 2
  return picture + crescent[..., None] * np.array([0.5, 0.8, 0.7], np.float32)


def _paint_disc(rng, picture, eye_anatomy, view, x, y):
  """Optic disc with rim, cup, halo and sometimes a temporal crescent, painted into `picture` in place."""
  radius = eye_anatomy.disc_radius
  tall = rng.uniform(1.02, 1.14)
  around = np.arctan2(y, x)
  wavy = 1 + sum(rng.normal(0, 0.012) * np.cos(k * around + rng.uniform(0, 6.3)) for k in (2, 3, 4))
  distance = np.hypot(x * tall**0.5, y / tall**0.5) / wavy
  glow = rng.uniform(0.05, 0.22) * np.exp(-np.maximum(distance - radius, 0) / rng.uniform(0.6, 1.6))
  picture *= (1 + glow)[..., None]
  if rng.random() < 0.35:  # a pale crescent of bare choroid or sclera on the temporal side
    pale = _soft(np.hypot((x - 0.14 * radius) * tall**0.5, y / tall**0.5) - 1.06 * radius, 0.12)
    picture *= (1 + rng.uniform(0.15, 0.4) * pale)[..., None] * np.array(
      [1.0, 1.1, 1.15], np.float32
    ) ** pale[..., None]
  base = np.median(picture[::8, ::8], axis=(0, 1))
  rim_red = min(base[0] * rng.uniform(1.15, 1.35), 252)
  rim = np.array([rim_red, rim_red * rng.uniform(0.52, 0.64), rim_red * rng.uniform(0.16, 0.32)])
  cup_red = min(rim_red * 1.08, 255)
  cup = np.array([cup_red, cup_red * rng.uniform(0.72, 0.86), cup_red * rng.uniform(0.34, 0.58)])
  edge = rng.uniform(0.10, 0.22)
  inside = _soft(distance - radius, edge)
  share = rng.uniform(0.3, 0.6)  # cup-to-disc ratio
  cup_x, cup_y = rng.normal(0.15, 0.1), rng.normal(0, 0.08)
  cupped = _soft(np.hypot(x - cup_x * radius, (y - cup_y * radius) / 1.05) - share * radius, 0.09 * radius)
  # The nasal rim is thicker and redder than the temporal one.
  rosy = 1 - 0.10 * np.clip(-x / radius, -1, 1)
  speckle = 1 + 0.03 * _cloud(rng, view, x, y, eye_anatomy.side, 0.7)
  for channel in range(3):
    tone = rim[channel] * (rosy if channel else 1.0) * (1 - cupped) + cup[channel] * cupped
    picture[..., channel] += inside * (tone * speckle - picture[..., channel])


def eye(seed, size=(512, 512), *, view=None, binary=False):
  """A phantom eye: photograph, vessel tree and field of view.

  Args:
    seed: whole number from 0 up; the same seed is the same eye at every size.
    size: (height, width) in pixels, at least 32 each.
    view: "disc" (29 degrees around the disc), "macula" (45 degrees between disc and fovea), or None for the
      seed's own.
    binary: True gives a 0/255 tree (coverage >= 128) instead of coverage.

  Returns:
    {"name": "phantom_00000042", "image": uint8 [height, width, 3], "tree": uint8 [height, width, 1] (255
    times the share of each pixel that is vessel), "fov": uint8 0/255 [height, width, 1], "label": "phantom"}.

  Raises:
    ValueError: seed, size or view is impossible.
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
  picture = _photograph(rng, eye_anatomy, seen, x, y, artery, vein, reflex)
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
