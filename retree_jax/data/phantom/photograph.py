"""Rendering of a procedural retina: the fundus photograph of `retree_jax.data.phantom`, from its anatomy and vessel depth."""

import math

import numpy as np
from PIL import Image


def photograph(rng, eye_anatomy, view, x, y, artery, vein, reflex):
  """The rendered fundus, before blur and noise.

  Args:
    rng: numpy Generator.
    eye_anatomy, view: `phantom.Anatomy` and `phantom.View`.
    x, y: coordinates of the pixel centres in degrees, [1, width] and [height, 1].
    artery, vein: depth of the vessels, float32 [height, width] in 0..1.
    reflex: strength of the arteries' central reflex, likewise.

  Returns:
    float32 [height, width, 3] RGB, about 0..255.
  """
  side = eye_anatomy.side
  fundus = np.hypot(x - view.centre[0], y - view.centre[1]) / view.radius

  # Pigmentation: from orange (blond fundus, choroid shows) to dark brown-red; exposure and camera tint vary independently.
  pigment = rng.beta(2.0, 2.0)
  red = rng.uniform(170, 235) - 35 * pigment
  green = red * (rng.uniform(0.34, 0.48) - 0.06 * pigment)
  blue = green * rng.uniform(0.15, 0.50)

  # Illumination: vignette, a gradient across the field, slow unevenness.
  tilt = rng.uniform(0, 2 * math.pi)
  lean = rng.uniform(0.0, 0.16) * (np.cos(tilt) * (x - view.centre[0]) + np.sin(tilt) * (y - view.centre[1])) / view.radius
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
  macula = rng.uniform(0.10, 0.22) * np.exp(-((fovea / 3.4) ** 2)) + rng.uniform(0.08, 0.2) * np.exp(-((fovea / 1.2) ** 2))
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
  for channel, (in_artery, in_vein, shine) in enumerate(((0.20, 0.50, 0.10), (0.95, 1.10, 0.22), (0.80, 0.90, 0.12))):
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
    picture *= (1 + rng.uniform(0.15, 0.4) * pale)[..., None] * np.array([1.0, 1.1, 1.15], np.float32) ** pale[..., None]
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


def _cloud(rng, view, x, y, side, wavelength, stretch=1.0):
  """Smooth noise, mean 0 and deviation about 1, the same at every picture size: [height, width] float32.

  Args:
    wavelength: size of the spots in degrees.
    stretch: ratio of the spots' width to their height.
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
