"""Finds, for each picture of an eye, the most similar pictures of a set, whatever their pose, colour and lighting.

Two steps. *Search*: thumbnails in polar form, whose correlation at all rotations of both mirrorings is a product of
spectra, so that millions of pairs are compared at 128 angles each. *Alignment*: the best few of every picture are
registered (zoom, rotation, shift: Gauss-Newton on the correlation, coarse to fine; Evangelidis and Psarakis, PAMI
2008), and their correlation is computed again at the finer scale.

Photographs are reduced to what is invariant to lighting and colour: the logarithm of every channel minus its local mean,
divided by its local standard deviation, averaged over the channels. Trees (one channel) are slightly blurred.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import fft, ndimage

SIDE = 64  # pixels of the thumbnails
_RINGS, _ANGLES, _FREQUENCIES = 20, 128, 32  # of their polar form
_ZOOMS = (1.0, 0.93, 1.07)  # tried by the search; the alignment interpolates
_LIMITS = (0.2, 0.3, 6.0, 6.0)  # of the alignment: logarithm of the zoom, radians, pixels down, pixels right
_QUERIES, _REFERENCES, _PAIRS = 128, 256, 32  # block sizes: of the search, and pairs that are aligned at once


@dataclasses.dataclass(frozen=True)
class Pose:
  """The transform that registers a picture to another: rotation, mirroring, then zoom and shift.

  Attributes:
    mirrored: left-right, after the rotation.
    degrees: rotation, counter-clockwise.
    zoom: above 1 where the other picture shows more of the eye.
    shift: (down, right) in the transformed picture's own frame, as fractions of its side.
  """

  mirrored: bool = False
  degrees: float = 0.0
  zoom: float = 1.0
  shift: tuple[float, float] = (0.0, 0.0)

  def __call__(self, picture: np.ndarray, side: int = 256) -> np.ndarray:
    """Transforms a picture uint8 [H, W, C], padded to a square: uint8 [side, side, C], black outside the picture."""
    square = as_square(picture, side)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    x = -x if self.mirrored else x
    c, s = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
    down, right = ((side - 1) / 2 + share * side for share in self.shift)
    place = self.zoom * (c * y + s * x) + down, self.zoom * (c * x - s * y) + right
    planes = [
      ndimage.map_coordinates(square[..., i].astype(np.float32), place, order=1, mode="constant")
      for i in range(square.shape[-1])
    ]
    return np.clip(np.round(np.stack(planes, -1)), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Pictures prepared for comparison. spectra: [N, rings, frequencies]; searched, coarse, fine: [N, SIDE, SIDE]."""

  spectra: np.ndarray
  searched: np.ndarray
  coarse: np.ndarray
  fine: np.ndarray

  def __len__(self) -> int:
    return len(self.fine)


@dataclasses.dataclass(frozen=True)
class Matches:
  """The nearest references of each query, nearest first.

  Attributes:
    index: [N, k] int.
    distance: [N, k], 1 - correlation after alignment: 0 for a perfect copy, about 1 for unrelated pictures.
    poses: N lists of k Poses, which register the reference to the query.
    best: [N] largest correlation over all references in the search, before alignment.
    above: [N] int, number of references whose correlation in the search exceeds `threshold`; 0 without one.
  """

  index: np.ndarray
  distance: np.ndarray
  poses: list[list[Pose]]
  best: np.ndarray
  above: np.ndarray


def as_square(picture: np.ndarray, side: int) -> np.ndarray:
  """uint8 [H, W, C] padded with black to a square and resized to uint8 [side, side, C]."""
  height, width, channels = picture.shape
  longer = max(height, width)
  top, left = (longer - height) // 2, (longer - width) // 2
  if height != width:
    picture = np.pad(picture, ((top, longer - height - top), (left, longer - width - left), (0, 0)))
  if longer == side:
    return picture
  image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
  return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).reshape(side, side, channels)


def without_colour(thumbnails: np.ndarray, blur: float, reach: float) -> np.ndarray:
  """Reduces photographs to what is invariant to lighting and colour.

  Args:
    thumbnails: uint8 [N, S, S, 3]; the black surroundings of the eye are excluded.
    blur: standard deviation of the Gaussian that removes finer detail.
    reach: that of the Gaussian of the neighbourhood; both in 64ths of S.

  Returns:
    [N, S, S] float32 in about [-1.5, 1.5], 0 outside the eye and in a narrow rim.
  """
  unit = thumbnails.shape[1] / SIDE
  brightest = thumbnails.max(-1)
  typical = np.percentile(brightest, 90, axis=(1, 2), keepdims=True)
  rim = 2 * round(2 * unit) + 1
  seen = ndimage.minimum_filter((brightest > 0.2 * typical).astype(np.float32), (1, rim, rim), mode="constant")

  def smooth(values, sigma):
    return ndimage.gaussian_filter(values, (0, sigma * unit, sigma * unit), mode="constant", truncate=3)

  near, wide, wider = (smooth(seen, sigma) + 1e-6 for sigma in (blur, reach, 2 * reach))
  area = seen.sum((1, 2)) + 1e-6
  total = np.zeros(seen.shape, np.float32)
  for channel in range(thumbnails.shape[-1]):
    values = np.log(thumbnails[..., channel].astype(np.float32) + 8) * seen
    detail = (smooth(values, blur) / near - smooth(values, reach) / wide) * seen
    deviation = np.sqrt(smooth(detail * detail, 2 * reach) / wider)
    everywhere = np.sqrt((detail * detail).sum((1, 2)) / area)[:, None, None]
    total += detail / (deviation + 0.3 * everywhere + 1e-4) / thumbnails.shape[-1]
  # In every photograph the rim of the visible disc is darker and the optic disc brighter: neither identifies an eye.
  inner = ndimage.minimum_filter(seen, (1, rim, rim), mode="constant")
  total = np.clip(total, -1.5, 1.5) * inner
  return total - inner * (total.sum((1, 2)) / (inner.sum((1, 2)) + 1e-6))[:, None, None]


def prepare(pictures: Sequence[np.ndarray]) -> Prepared:
  """Prepares pictures, uint8 [H, W, 3] photographs or [H, W, 1] trees, for comparison."""
  parts = []
  for start in range(0, len(pictures), 256):
    small = np.stack([as_square(np.asarray(p), SIDE) for p in pictures[start : start + 256]])
    if small.shape[-1] == 1:
      share = small[..., 0].astype(np.float32) / 255
      forms = [ndimage.gaussian_filter(share, (0, sigma, sigma)) for sigma in (1.2, 1.8, 0.7)]
    else:
      forms = [without_colour(small, *scale) for scale in ((1.2, 5.0), (1.8, 5.0), (0.7, 3.0))]
    parts.append((_spectra(forms[0], 1.0), *forms))
  return Prepared(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def nearest(queries: Prepared, references: Prepared, k: int = 2, candidates: int = 4, threshold=None) -> Matches:
  """The k nearest references of each query.

  Args:
    queries, references: from `prepare`, both of photographs or both of trees.
    k: number of neighbours, at most the number of references.
    candidates: number of the search's best references that are aligned, at least k.
    threshold: [N] correlations; the references above each are counted.

  Returns:
    The Matches. Searching takes about 4 microseconds per pair, aligning about 4 milliseconds per candidate.
  """
  candidates = min(max(k, candidates), len(references))
  top_value = np.full((len(queries), candidates), -2, np.float32)
  top_index = np.zeros((len(queries), candidates), int)
  above = np.zeros(len(queries), int)
  for begin in range(0, len(references), _REFERENCES):
    block = slice(begin, begin + _REFERENCES)
    spectra = [_spectra(references.searched[block], zoom) for zoom in _ZOOMS]
    for start in range(0, len(queries), _QUERIES):
      rows = slice(start, start + _QUERIES)
      largest = functools.reduce(np.maximum, (_largest(queries.spectra[rows], one) for one in spectra))
      if threshold is not None:
        above[rows] += (largest > threshold[rows, None]).sum(1)
      values = np.concatenate([top_value[rows], largest], 1)
      numbers = np.broadcast_to(np.arange(begin, begin + largest.shape[1]), largest.shape)
      numbers = np.concatenate([top_index[rows], numbers], 1)
      order = np.argsort(-values, 1, kind="stable")[:, :candidates]
      top_value[rows], top_index[rows] = np.take_along_axis(values, order, 1), np.take_along_axis(numbers, order, 1)
  which = np.repeat(np.arange(len(queries)), candidates)
  poses, correlation = _aligned(queries, references, which, top_index.ravel())
  distance = 1 - correlation.reshape(-1, candidates)
  order = np.argsort(distance, 1, kind="stable")[:, :k]
  places = order + candidates * np.arange(len(queries))[:, None]
  return Matches(
    np.take_along_axis(top_index, order, 1),
    np.take_along_axis(distance, order, 1),
    [[_as_pose(*poses[place]) for place in row] for row in places],
    top_value[:, 0],
    above,
  )


def _as_pose(log_zoom, angle, down, right, mirrored) -> Pose:
  degrees = (math.degrees(angle) + 180) % 360 - 180
  return Pose(bool(mirrored), float(degrees), math.exp(log_zoom), (float(down) / SIDE, float(right) / SIDE))


def _spectra(forms: np.ndarray, zoom: float) -> np.ndarray:
  """[N, SIDE, SIDE] -> Fourier coefficients along the angle, [N, rings, frequencies]; each picture has mean 0 and norm 1."""
  radius = (np.arange(_RINGS) + 0.5) / _RINGS * (SIDE / 2 - 1)
  angle = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
  middle = (SIDE - 1) / 2
  y = np.clip(middle + zoom * radius[:, None] * np.sin(angle), 0, SIDE - 1.001)
  x = np.clip(middle + zoom * radius[:, None] * np.cos(angle), 0, SIDE - 1.001)
  i, j = y.astype(int), x.astype(int)
  v, u = (y - i).astype(np.float32), (x - j).astype(np.float32)
  values = (forms[:, i, j] * (1 - u) + forms[:, i, j + 1] * u) * (1 - v) + (
    forms[:, i + 1, j] * (1 - u) + forms[:, i + 1, j + 1] * u
  ) * v
  area = (radius / radius.sum())[:, None].astype(np.float32)
  values = (values - (values * area).sum(1, keepdims=True).mean(2, keepdims=True)) * np.sqrt(area)
  values /= np.linalg.norm(values, axis=(1, 2), keepdims=True) + 1e-6
  return fft.rfft(values.astype(np.float32), axis=2)[..., :_FREQUENCIES]


def _largest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Largest correlation over all rotations of both mirrorings of every pair: [N, ...], [M, ...] -> [N, M]."""
  left = np.ascontiguousarray(einops.rearrange(a, "n rings frequencies -> frequencies n rings"))
  right = np.ascontiguousarray(einops.rearrange(b, "m rings frequencies -> frequencies rings m"))
  return np.maximum(*(fft.irfft(left @ one, n=_ANGLES, axis=0).max(0) for one in (right.conj(), right)))


def _aligned(queries, references, which, others) -> tuple[np.ndarray, np.ndarray]:
  """Registers pairs: ([P, 5] log zoom, angle, down, right, mirrored; [P] correlation)."""
  poses, correlations = np.zeros((len(which), 5), np.float32), np.zeros(len(which), np.float32)
  for start in range(0, len(which), _PAIRS):
    # The last block is filled with repeated pairs, so that only one shape is compiled.
    pairs = np.resize(np.arange(start, min(start + _PAIRS, len(which))), _PAIRS)
    q, r = which[pairs], others[pairs]
    starts, peaks = [], []
    for zoom in _ZOOMS:
      spectra = _spectra(references.searched[r], zoom)
      for mirrored in (0, 1):
        peak = fft.irfft(np.sum(queries.spectra[q] * (spectra if mirrored else spectra.conj()), 1), n=_ANGLES, axis=1)
        angle = peak.argmax(1) * 2 * np.pi / _ANGLES
        angle = angle - np.pi if mirrored else -angle
        starts.append(np.stack([np.full(_PAIRS, math.log(zoom)), angle, *np.zeros((2, _PAIRS)), np.full(_PAIRS, mirrored)], 1))
        peaks.append(peak.max(1))
    begin = np.stack(starts)[np.argmax(peaks, 0), np.arange(_PAIRS)].astype(np.float32)
    pose, correlation = _align(queries.coarse[q], queries.fine[q], references.coarse[r], references.fine[r], begin)
    poses[pairs] = np.concatenate([np.asarray(pose), begin[:, 4:]], 1)
    correlations[pairs] = np.asarray(correlation)
  return poses, correlations


@jax.jit
@jax.default_matmul_precision("highest")  # an audit must not depend on the hardware's default (bfloat16 on TPUs, TF32 on GPUs)
@jax.vmap
def _align(query_coarse, query_fine, reference_coarse, reference_fine, begin):
  """Six Gauss-Newton steps at each scale from `begin` [5]: the best pose [4] on the way, and its correlation."""
  span = jnp.arange(SIDE) - (SIDE - 1) / 2
  grid = einops.rearrange(jnp.stack(jnp.meshgrid(span, span, indexing="ij")), "yx h w -> yx (h w)")
  disc = jnp.hypot(*grid) < SIDE / 2 - 1
  grid = grid.at[1].multiply(1 - 2 * begin[4])
  limits, largest_step = jnp.array(_LIMITS), jnp.array([0.06, 0.08, 2.0, 2.0])

  def measure(pose, query, stack):
    cosine, sine = jnp.cos(pose[1]), jnp.sin(pose[1])
    turned = jnp.exp(pose[0]) * jnp.stack([cosine * grid[0] + sine * grid[1], cosine * grid[1] - sine * grid[0]])
    values, inside = _sample(stack, turned + pose[2:, None])
    weight = (disc & inside).astype(jnp.float32)
    number = weight.sum() + 1e-6
    a = (query - (query * weight).sum() / number) * weight
    b = (values[0] - (values[0] * weight).sum() / number) * weight
    correlation = (a * b).sum() / jnp.sqrt((a * a).sum() * (b * b).sum() + 1e-9)
    return correlation, a, b, values, turned, weight

  def descend(pose, query, reference):
    stack = jnp.stack([reference, *((jnp.roll(reference, -1, i) - jnp.roll(reference, 1, i)) / 2 for i in (0, 1))])
    query = einops.rearrange(query, "h w -> (h w)")

    def step(carry, _):
      pose, best, best_correlation = carry
      correlation, a, b, values, turned, weight = measure(pose, query, stack)
      best = jnp.where(correlation > best_correlation, pose, best)
      _, down, right = values
      slopes = jnp.stack([down * turned[0] + right * turned[1], down * turned[1] - right * turned[0], down, right])
      slopes = (slopes - (slopes * weight).sum(1, keepdims=True) / (weight.sum() + 1e-6)) * weight
      gain = jnp.maximum((a * b).sum() / ((b * b).sum() + 1e-9), 0.1)
      normal = slopes @ slopes.T
      normal = normal + jnp.diag(0.01 * jnp.diag(normal) + 1e-6)
      change = jnp.clip(jnp.linalg.solve(normal, slopes @ (a / gain - b)), -largest_step, largest_step)
      pose = jnp.clip(pose + change, begin[:4] - limits, begin[:4] + limits)
      return (pose, best, jnp.maximum(correlation, best_correlation)), None

    (last, best, best_correlation), _ = jax.lax.scan(step, (pose, pose, -2.0), None, length=6)
    correlation = measure(last, query, stack)[0]
    return jnp.where(correlation > best_correlation, last, best), jnp.maximum(correlation, best_correlation)

  pose, _ = descend(begin[:4], query_coarse, reference_coarse)
  return descend(pose, query_fine, reference_fine)


def _sample(stack, places):
  """Bilinear values [K, P] of a stack [K, SIDE, SIDE] at positions [2, P] from its centre, and whether they lie inside [P]."""
  places = places + (SIDE - 1) / 2
  inside = ((places >= 0) & (places <= SIDE - 1)).all(0)
  places = jnp.clip(places, 0, SIDE - 1.001)
  corner = jnp.floor(places)
  v, u = places - corner
  corner = corner.astype(jnp.int32)
  index = corner[0] * SIDE + corner[1]
  flat = einops.rearrange(stack, "k h w -> k (h w)")
  values = (flat[:, index] * (1 - u) + flat[:, index + 1] * u) * (1 - v) + (
    flat[:, index + SIDE] * (1 - u) + flat[:, index + SIDE + 1] * u
  ) * v
  return values * inside, inside
