"""From an eye of any size to a training example: `fit` once, then `Augment` anew each time, in one
resampling.

Arrays are uint8 throughout: image [H, W, 3], tree [H, W, 1] and fov [H, W, 1] in an example dict (see
`sources`). Resized trees are *coverage* maps: 0..255, the share of a pixel that is vessel, so that vessels
thinner than a pixel stay visible instead of vanishing or doubling in width. `Augment` takes an example
prepared at a multiple of the output size and averages blocks after warping, which keeps coverages true (a
plain bilinear look-up at the output's resolution would not).
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageFilter
from scipy import special

MODES = ("fov", "pad", "crop", "squash")
_NORMAL = special.ndtri((np.arange(256) + 0.5) / 256)
_NORMAL = (_NORMAL / _NORMAL.std()).astype(np.float32)  # mean 0, deviation 1


def _window_means(array: np.ndarray, target: int) -> np.ndarray:
  """Means over `target` equal windows of the first axis, which is longer, weighted by overlap: float32 [target, ...]."""
  length = len(array)
  edges = np.linspace(0, length, target + 1)
  low = np.minimum(edges.astype(np.int64), length - 1)
  part = (edges - low).reshape(-1, *[1] * (array.ndim - 1))
  # Integrals up to the edges. Whole rows are summed one window at a time: NumPy adds contiguous rows many times faster than it
  # accumulates along an axis. The sums are exact, in whole numbers for uint8.
  exact = np.uint32 if array.dtype == np.uint8 else np.float64
  total = np.zeros((target + 1, *array.shape[1:]))
  for i in range(target):
    np.add(total[i], array[low[i] : low[i + 1]].sum(axis=0, dtype=exact), out=total[i + 1])
  integral = total * (1 - part) + (total + array[low]) * part
  return (np.diff(integral, axis=0) * (target / length)).astype(np.float32)


def area_resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes uint8 [H, W, C]: exact area averages where it shrinks, bilinear where it grows.

  Args:
    size: (height, width).

  Returns:
    uint8 [height, width, C].
  """
  for axis, target in enumerate(size):
    length = array.shape[axis]
    if target >= length:
      continue
    if length % target == 0:
      shape = (*array.shape[:axis], target, length // target, *array.shape[axis + 1 :])
      array = array.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    else:
      means = _window_means(np.ascontiguousarray(np.swapaxes(array, 0, axis)), target)
      array = np.ascontiguousarray(np.swapaxes(means, 0, axis))
  if array.dtype != np.uint8:
    array = np.clip(np.rint(array), 0, 255).astype(np.uint8)
  if array.shape[:2] != tuple(size):
    planes = [
      np.asarray(Image.fromarray(array[..., c]).resize(size[::-1], Image.Resampling.BILINEAR)) for c in range(array.shape[-1])
    ]
    array = np.stack(planes, axis=-1)
  return array


def crop(array: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
  """array[y0:y1, x0:x1] where the box may reach beyond the array; black there."""
  y0, x0, y1, x1 = box
  height, width = array.shape[:2]
  inside = array[max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)]
  if inside.shape[:2] == (y1 - y0, x1 - x0):
    return inside
  out = np.zeros((y1 - y0, x1 - x0, array.shape[-1]), array.dtype)
  top, left = max(-y0, 0), max(-x0, 0)
  out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
  return out


def fit_box(fov: np.ndarray, size: tuple[int, int], mode: str = "fov") -> tuple[int, int, int, int]:
  """The part (y0, x0, y1, x1) of an eye that `fit` shows, in its pixels; it may reach beyond the frame.

  Raises:
    ValueError: unknown mode.
  """
  if mode not in MODES:
    raise ValueError(f"Unknown way to fit {mode!r}: write one of {', '.join(MODES)}.")
  height, width = fov.shape[:2]
  y0, x0, y1, x1 = 0, 0, height, width
  if mode == "fov" and fov.any():
    rows, columns = np.flatnonzero(fov.any(axis=(1, 2))), np.flatnonzero(fov.any(axis=(0, 2)))
    y0, x0, y1, x1 = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
  if mode == "squash":
    return y0, x0, y1, x1
  aspect = size[1] / size[0]
  h, w = y1 - y0, x1 - x0
  grow = (w < h * aspect) != (mode == "crop")  # widen the narrow side to pad, cut the wide side to crop
  if grow:
    new_h, new_w = h, max(1, round(h * aspect))
  else:
    new_h, new_w = max(1, round(w / aspect)), w
  y0, x0 = y0 + (h - new_h) // 2, x0 + (w - new_w) // 2
  return y0, x0, y0 + new_h, x0 + new_w


def fit(example: dict, size: tuple[int, int], mode: str = "fov", blacken: bool = True) -> dict:
  """Brings an example to one size.

  Args:
    example: see `sources`; its "fov" is needed.
    size: (height, width).
    mode: "fov" crops to the bounding box of the visible disc and pads black to the target's aspect ratio;
      "pad" does so with the whole frame; "crop" cuts the longer side; "squash" gives up the aspect ratio (the
      original's way).
    blacken: set the photograph to 0 outside the FOV, where cameras leave noise and text that no model should
      learn.

  Returns:
    A new example; "tree" is a coverage map 0..255, "fov" 0/255.

  Raises:
    ValueError: unknown mode.
  """
  box = fit_box(example["fov"], size, mode)
  out = dict(example)
  for key in ("image", "tree", "fov"):
    if key in example:
      out[key] = area_resize(crop(example[key], box), size)
  out["fov"] = (out["fov"] >= 128) * np.uint8(255)
  if blacken and "image" in out:
    out["image"] = out["image"] * (out["fov"] > 0)
  return out


def binarise(tree: np.ndarray) -> np.ndarray:
  """Coverage map uint8 0..255 -> mask uint8 0/255: vessel where at least half of the pixel is."""
  return (tree >= 128) * np.uint8(255)


def _check(name, value, low, high):
  if not (isinstance(value, int | float) and low <= value <= high):
    raise ValueError(f"augment.{name} is {value!r}: give a number from {low} to {high}.")


@dataclasses.dataclass(frozen=True)
class Augment:
  """Random views of an eye: `Augment(...)(example, rng)`. Every amount 0 is a step left out.

  Attributes:
    horizontal_flip: probability; a left eye becomes a right one.
    vertical_flip: probability; no eye looks like that (the arcades are not symmetric), the paper flips all
      the same.
    rotation: largest angle either way, degrees. Heads tilt a little; a full turn would put the optic disc
      above the fovea.
    scale: largest relative zoom either way.
    shift: largest shift either way, as a share of the side.
    elastic: standard deviation of the smooth displacement, as a share of the shorter side; none at the rim.
    brightness, contrast, saturation: largest relative change either way.
    hue: largest rotation of colours, as a share of a full turn.
    gamma: largest exponent either way, exp(±gamma).
    illumination: largest relative brightening across the disc (a gradient and a vignette).
    blur: largest radius of a Gaussian, output pixels; noise: largest standard deviation, grey levels of 255.
  """

  horizontal_flip: float = 0.5
  vertical_flip: float = 0.0
  rotation: float = 20.0
  scale: float = 0.08
  shift: float = 0.03
  elastic: float = 0.01
  brightness: float = 0.1
  contrast: float = 0.1
  saturation: float = 0.1
  hue: float = 0.01
  gamma: float = 0.1
  illumination: float = 0.12
  blur: float = 0.4
  noise: float = 2.0

  def __post_init__(self):
    limits = {"rotation": 180, "scale": 0.9, "shift": 0.5, "elastic": 0.05, "hue": 0.5, "gamma": 2, "blur": 10, "noise": 100}
    for field in dataclasses.fields(self):
      _check(field.name, getattr(self, field.name), 0, limits.get(field.name, 1))

  @classmethod
  def none(cls) -> "Augment":
    """No change at all."""
    return cls(**{field.name: 0.0 for field in dataclasses.fields(cls)})

  @classmethod
  def paper(cls) -> "Augment":
    """The paper's: both flips with probability one half and nothing else."""
    return dataclasses.replace(cls.none(), horizontal_flip=0.5, vertical_flip=0.5)

  @property
  def warps(self) -> bool:
    """Whether pixels move off the grid, so that preparing examples at a multiple of the size pays."""
    return any((self.rotation, self.scale, self.shift, self.elastic))

  def __call__(self, example: dict, rng: np.random.Generator, size: tuple[int, int] | None = None) -> dict:
    """Draws one view.

    Args:
      example: fitted; its size is `size` times a whole number. Its "line", if there is one, holds the vessels'
        centrelines in its pixels (`retree_jax.data.centreline.Centreline`). With "attributes" comes out "mirrored":
        whether left and right were exchanged.
      rng: all randomness comes from here, in a fixed order.
      size: output (height, width); the example's own if left out.

    Returns:
      A new example of that size. The photograph stays as it is outside the FOV (black after `fit`); the line
      is moved along, still in pixels of the size that came in.

    Raises:
      ValueError: the example's size is no multiple of `size`.
    """
    height, width = example["fov"].shape[:2]
    size = tuple(size or (height, width))
    factor = height // size[0]
    if (size[0] * factor, size[1] * factor) != (height, width):
      raise ValueError(f"Cannot augment {height}x{width} to {size[0]}x{size[1]}: fit the example to a whole multiple first.")
    flips = rng.random(2) < (self.horizontal_flip, self.vertical_flip)
    out = dict(example)
    if self.warps:
      mesh = self._mesh((height, width), flips, rng)
      self._warp(out, mesh, factor)
      if "line" in out:
        out["line"] = out["line"].through_mesh(mesh)
    else:
      if "line" in out:
        out["line"] = out["line"].mirrored((height, width), vertical=flips[1], horizontal=flips[0])
      step = (slice(None, None, -1 if flips[1] else 1), slice(None, None, -1 if flips[0] else 1))
      for key in ("image", "tree", "fov"):
        if key in out:
          out[key] = area_resize(np.ascontiguousarray(out[key][step]), size)
    out["fov"] = (out["fov"] >= 128) * np.uint8(255)
    if "attributes" in out:
      out["mirrored"] = bool(flips[0])
    if "image" in out:
      out["image"] = self._colour(out["image"], out["fov"], rng)
    return out

  def _mesh(self, shape, flips, rng, cells: int = 8):
    """The warp as Pillow wants it: for each output cell the four corners of its source quadrilateral.

    Corners carry rotation, zoom, shift and the smooth displacement at once; inside a cell positions are
    bilinear.
    """
    height, width = shape
    turn, zoom, shift_y, shift_x = rng.uniform(-1, 1, 4).tolist()
    wobble = rng.standard_normal((cells + 3, cells + 3, 2))
    # a [1 2 1]/4 filter both ways makes neighbours move together; 8/3 restores the variance (its square sums
    # to (6/16)²)
    wobble = (wobble[:-2] + 2 * wobble[1:-1] + wobble[2:]) / 4
    wobble = (wobble[:, :-2] + 2 * wobble[:, 1:-1] + wobble[:, 2:]) / 4 * (8 / 3)
    ys, xs = (np.round(np.linspace(0, side, cells + 1)).astype(int) for side in shape)
    y = ys[:, None] - height / 2 - self.shift * shift_y * height
    x = xs[None, :] - width / 2 - self.shift * shift_x * width
    angle, stretch = math.radians(self.rotation * turn), (1 + self.scale) ** -zoom
    cosine, sine = stretch * math.cos(angle), stretch * math.sin(angle)
    source_x = (cosine * x + sine * y) * (-1 if flips[0] else 1)
    source_y = (cosine * y - sine * x) * (-1 if flips[1] else 1)
    # No wobble at the rim: discs are round, and a generator would learn bent ones.
    still = np.maximum(0, 1 - (2 * source_x / width) ** 2 - (2 * source_y / height) ** 2)[..., None]
    points = np.stack([source_x + width / 2, source_y + height / 2], -1) + self.elastic * min(shape) * still * wobble
    corners = np.concatenate([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=-1)
    quads = corners.reshape(-1, 8).tolist()
    ys, xs = ys.tolist(), xs.tolist()
    boxes = [(xs[j], ys[i], xs[j + 1], ys[i + 1]) for i in range(cells) for j in range(cells)]
    return list(zip(boxes, quads, strict=True))

  @staticmethod
  def _warp(out: dict, mesh, factor: int):
    """Moves image, tree and FOV with one look-up each; photograph and FOV travel together as four bands."""
    height, width = out["fov"].shape[:2]

    def look_up(array, mode, resample):
      picture = Image.frombuffer(mode, (width, height), np.ascontiguousarray(array).data, "raw", mode, 0, 1)
      picture = picture.transform((width, height), Image.Transform.MESH, mesh, resample)
      return np.asarray(picture.reduce(factor) if factor > 1 else picture)

    # With two or more source pixels per output pixel, the block average does the interpolation for the
    # photograph; the tree's thin lines get the bilinear look-up in any case.
    coarse = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
    if "image" in out:
      four = look_up(np.concatenate([out["image"], out["fov"]], axis=-1), "CMYK", coarse)
      out["image"], out["fov"] = four[..., :3], four[..., 3:]
    else:
      out["fov"] = look_up(out["fov"], "L", coarse)[..., None]
    if "tree" in out:
      out["tree"] = look_up(out["tree"], "L", Image.Resampling.BILINEAR)[..., None]

  def _colour(self, image: np.ndarray, fov: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour, light and camera, inside the FOV only; uint8 [H, W, 3] -> the same."""
    bright, contrast, saturation, hue, gamma, blur, noise, gradient, vignette, direction = rng.uniform(-1, 1, 10).tolist()
    height, width = fov.shape[:2]
    inside = fov > 0
    if not any(
      (self.brightness, self.contrast, self.saturation, self.hue, self.gamma, self.illumination, self.blur, self.noise)
    ):
      return image
    work = image
    if self.blur * abs(blur) > 0.05:
      work = np.asarray(Image.fromarray(np.ascontiguousarray(work)).filter(ImageFilter.GaussianBlur(self.blur * abs(blur))))
    table = (255 * (np.arange(256) / 255) ** math.exp(self.gamma * gamma)).astype(np.float32)
    work = table.take(work)
    share = max(float(inside.mean()), 1e-6)
    middle = float(work.mean()) / share  # the mean inside the FOV, for black surrounds
    # Saturation and hue act on the two chroma axes of YIQ, contrast around the mean, brightness on all: one
    # matrix.
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    angle, strength = 2 * math.pi * self.hue * hue, 1 + self.saturation * saturation
    chroma = np.array(
      [
        [1, 0, 0],
        [0, strength * math.cos(angle), -strength * math.sin(angle)],
        [0, strength * math.sin(angle), strength * math.cos(angle)],
      ]
    )
    gain, spread = 1 + self.brightness * bright, 1 + self.contrast * contrast
    matrix = gain * spread * np.linalg.inv(to_yiq) @ chroma @ to_yiq
    # Not "@": BLAS would spread these few operations over all cores and let them spin, against training and other threads.
    work = np.einsum("hwc,dc->hwd", work, matrix.astype(np.float32))
    work += np.float32(gain * (1 - spread) * middle)
    if self.illumination:
      y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
      y, x = y[:, None], x[None, :]
      light = gradient * (x * math.cos(math.pi * direction) + y * math.sin(math.pi * direction))
      light = 1 + self.illumination * (light + vignette * (0.5 - (x * x + y * y) / 2)).astype(np.float32)
      work *= light[..., None]
    if self.noise:
      # A byte looked up among a normal distribution's quantiles takes an eighth of the time of a normal number.
      drawn = np.frombuffer(rng.bytes(work.size), np.uint8).reshape(work.shape)
      work += (_NORMAL * np.float32(self.noise * abs(noise))).take(drawn)
    np.rint(np.clip(work, 0, 255, out=work), out=work)
    return np.where(inside, work.astype(np.uint8), image)
