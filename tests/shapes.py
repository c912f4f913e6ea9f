"""Shapes with known lengths, angles and dimensions, drawn as masks at any rotation."""

import numpy as np
from scipy.spatial import cKDTree


def draw(paths, width: float, degrees: float = 0.0, size: int = 256) -> np.ndarray:
  """Pixels [size, size] bool whose centres lie within width / 2 of the paths.

  Args:
    paths: list of [n, 2] (row, column), measured from the middle, which is a little off the pixel grid.
    width: pixels.
    degrees: by which all is turned around the middle.
    size: side of the mask.
  """
  angle = np.radians(degrees)
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  grid = np.stack(np.mgrid[:size, :size], -1).reshape(-1, 2)
  mask = np.zeros(size * size, bool)
  for path in paths:
    corners = np.asarray(path) @ turn.T + (size - 1) / 2 + (0.3, 0.2)
    steps = [
      np.linspace(a, b, max(2, int(np.ceil(np.linalg.norm(b - a) / 0.1))))
      for a, b in zip(corners[:-1], corners[1:], strict=True)
    ]
    distance, _ = cKDTree(np.concatenate(steps)).query(grid, distance_upper_bound=width)
    mask |= distance <= width / 2
  return mask.reshape(size, size)


def line(length):
  return [np.array([[0, -length / 2], [0, length / 2]])]


def arc(radius, degrees):
  t = np.radians(np.linspace(-degrees / 2, degrees / 2, 400))
  return [np.stack([radius * np.sin(t), radius * np.cos(t) - radius / 2], 1)]


def circle(radius):
  t = np.linspace(0, 2 * np.pi, 721)
  return [radius * np.stack([np.sin(t), np.cos(t)], 1)]


def sinusoid(amplitude, wavelength, periods):
  x = np.linspace(-wavelength * periods / 2, wavelength * periods / 2, 2000)
  return [np.stack([amplitude * np.sin(2 * np.pi * x / wavelength), x], 1)]


def star(arms):
  """Straight arms from the middle: [(degrees, length)]."""
  return [np.array([[0, 0], [length * np.sin(np.radians(a)), length * np.cos(np.radians(a))]]) for a, length in arms]


def fork(length, degrees):
  """A stem and two children with `degrees` between them."""
  return star([(180, length), (degrees / 2, length), (-degrees / 2, length)])


def koch(order, length):
  points = np.array([0, 1 + 0j])
  for _ in range(order):
    step = np.diff(points) / 3
    first = points[:-1] + step
    parts = [points[:-1], first, first + step * np.exp(1j * np.pi / 3), first + step]
    points = np.append(np.stack(parts, 1).ravel(), points[-1])
  points = (points - 0.5 - 0.14j) * length
  return [np.stack([points.imag, points.real], 1)]
