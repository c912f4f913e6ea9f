"""The InceptionV3 of the Fréchet Inception distance: images to the 2048 features of its last pooling layer.

The published distance is defined by one particular network, TensorFlow's `inception-2015-12-05`, which differs from other
InceptionV3 networks: average pooling excludes the padding, and the last block uses max pooling (an oversight of 2015 that all
comparable numbers share). The user provides the weights: the widely used PyTorch file
(`pt_inception-2015-12-05-6726825d.pth`), or a .npz with the same names.

  Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016
  Heusel et al., "GANs trained by a two time-scale update rule ...", NeurIPS 2017 (the distance)

Two ways to resize an image to 299 × 299 are in use and give different distances, so both are available, and a report states
which was used: "tensorflow", the resize in the original graph (corner-aligned sampling, pixels shifted by 128), and "pytorch"
(half-pixel centres, pixels in [-1, 1]), which the PyTorch port made common. Neither filters before downsampling: Parmar et al.,
"On aliased resizing", CVPR 2022.
"""

import os
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from retree_jax.models import scaling
from retree_jax.models.pretrained import weight_files

SIZE = 299
FEATURES = 2048
PREPROCESSING = ("tensorflow", "pytorch")
_EPSILON = 1e-3  # of every batch normalisation in this network

# conv(name, x, channels, (kernel height, width), stride, padding) -> x
_Conv = Callable[..., jax.Array]


def load_weights(path: str | os.PathLike) -> dict:
  """Reads the FID network's weights and folds each batch normalisation into its convolution.

  Args:
    path: .pth/.pt (a state dict of tensors; needs PyTorch) or .npz with the same names, e.g.
      "Mixed_5b.branch1x1.conv.weight" [out, in, kh, kw] and ".bn.weight", ".bn.bias", ".bn.running_mean",
      ".bn.running_var" [out].

  Returns:
    {"Mixed_5b.branch1x1": {"kernel": [kh, kw, in, out], "bias": [out]}, ...}, NumPy float32.

  Raises:
    ValueError: no such file, unknown format, damaged file, missing layer, wrong shape, not finite.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise ValueError(f"No Inception weights at {path}: give a path to pt_inception-2015-12-05 (.pth, .npz).")
  suffix = os.path.splitext(path)[1].lower()
  readers = {".npz": weight_files.read_npz, ".pth": weight_files.read_torch, ".pt": weight_files.read_torch}
  if suffix not in readers:
    raise ValueError(f"Inception weights {path} end in {suffix!r}: known are .pth and .npz.")
  return convert(readers[suffix](path), path)


def convert(state: Mapping[str, np.ndarray], path: str = "the state dict") -> dict:
  """As `load_weights`, from a dictionary of arrays; `path` is used in messages only."""
  state = {re.sub(r"^module\.", "", name): value for name, value in state.items()}
  params = {}
  for name, (height, width, channels, out) in shapes().items():
    wanted = {f"{name}.conv.weight": (out, channels, height, width)}
    wanted |= {f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    for key, shape in wanted.items():
      if key not in state:
        raise ValueError(f"{path} lacks {key}: it is not the FID network pt_inception-2015-12-05.")
      if np.shape(state[key]) != shape:
        raise ValueError(
          f"{path}: {key} should have shape {shape}, found {np.shape(state[key])}: it is not "
          "the FID network pt_inception-2015-12-05 (torchvision's inception_v3 differs)."
        )
      if not np.isfinite(state[key]).all():
        raise ValueError(f"{path}: {key} is not finite: the file is damaged.")
    kernel, gamma, beta, mean, variance = (np.asarray(state[key], np.float64) for key in wanted)
    scale = gamma / np.sqrt(variance + _EPSILON)  # folded in float64, so that folding costs no accuracy
    params[name] = {
      "kernel": (rearrange(kernel, "c_out c_in h w -> h w c_in c_out") * scale).astype(np.float32),
      "bias": (beta - mean * scale).astype(np.float32),
    }
  return params


def shapes() -> dict[str, tuple[int, int, int, int]]:
  """{layer: (kernel height, width, input channels, output channels)} of all 94 convolutions, by tracing the network once."""
  found = {}

  def record(name, x, channels, kernel, stride=1, padding="SAME"):
    found[name] = (*kernel, x.shape[-1], channels)
    weights = jnp.zeros((*kernel, x.shape[-1], channels))
    return jax.lax.conv_general_dilated(x, weights, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

  jax.eval_shape(lambda x: _network(x, record), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
  return found


def features(params: Mapping, images: jax.Array, preprocessing: str = "tensorflow") -> jax.Array:
  """The pool3 features of the FID network.

  Args:
    params: from `load_weights`.
    images: [B, H, W, 3] RGB in [-1, 1], any size.
    preprocessing: "tensorflow" (the original graph) or "pytorch" (the common port); see above.

  Returns:
    [B, 2048] float32.

  Raises:
    ValueError: unknown preprocessing, or images not [B, H, W, 3].
  """
  if preprocessing not in PREPROCESSING:
    raise ValueError(f"Inception preprocessing {preprocessing!r} is unknown: write tensorflow or pytorch.")
  if jnp.ndim(images) != 4 or jnp.shape(images)[-1] != 3:
    raise ValueError(
      f"Inception takes images [batch, height, width, 3], not {jnp.shape(images)}: repeat a single channel three times."
    )
  x = resize(jnp.asarray(images, jnp.float32), SIZE, SIZE, half_pixel=preprocessing == "pytorch")
  if preprocessing == "tensorflow":
    x = (scaling.to_levels(x) - 128) / 128

  def conv(name, x, channels, kernel, stride=1, padding="SAME"):
    # Highest precision, because TF32 or bfloat16 products would make distances depend on the hardware.
    x = jax.lax.conv_general_dilated(
      x, params[name]["kernel"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return jax.nn.relu(x + params[name]["bias"])

  return _network(x, conv)


def resize(images: jax.Array, height: int, width: int, half_pixel: bool) -> jax.Array:
  """Two-tap bilinear resize without low-pass filter, [B, H, W, C] -> [B, height, width, C].

  Output pixel i samples the input at i · H / height (TensorFlow 1's `resize_bilinear`) or, with half_pixel,
  at (i + 0.5) · H / height - 0.5 (PyTorch's `interpolate`, align_corners=False), clamped to the image.
  """
  rows = _taps(images.shape[1], height, half_pixel)
  columns = _taps(images.shape[2], width, half_pixel)
  return jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns, precision="highest")


def _taps(size: int, new: int, half_pixel: bool) -> np.ndarray:
  position = np.arange(new, dtype=np.float64)
  position = (position + 0.5) * size / new - 0.5 if half_pixel else position * size / new
  position = np.clip(position, 0, size - 1)
  low = np.floor(position).astype(int)
  high = np.minimum(low + 1, size - 1)
  taps = np.zeros((new, size), np.float32)
  np.add.at(taps, (np.arange(new), low), 1 - (position - low))
  np.add.at(taps, (np.arange(new), high), position - low)
  return taps


def _max_pool(x: jax.Array, stride: int, padding: str) -> jax.Array:
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: jax.Array) -> jax.Array:
  """3 × 3 average pooling, stride 1, without counting the padding (as TensorFlow; PyTorch: count_include_pad=False)."""
  window = ((1, 3, 3, 1), (1, 1, 1, 1), "SAME")
  total = jax.lax.reduce_window(x, 0.0, jax.lax.add, *window)
  return total / jax.lax.reduce_window(jnp.ones_like(x[:1, :, :, :1]), 0.0, jax.lax.add, *window)


def _network(x: jax.Array, conv: _Conv) -> jax.Array:
  x = conv("Conv2d_1a_3x3", x, 32, (3, 3), 2, "VALID")
  x = conv("Conv2d_2a_3x3", x, 32, (3, 3), 1, "VALID")
  x = conv("Conv2d_2b_3x3", x, 64, (3, 3))
  x = _max_pool(x, 2, "VALID")
  x = conv("Conv2d_3b_1x1", x, 80, (1, 1))
  x = conv("Conv2d_4a_3x3", x, 192, (3, 3), 1, "VALID")
  x = _max_pool(x, 2, "VALID")
  for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
    x = _block_a(name, x, conv, pooled)
  x = _block_b("Mixed_6a", x, conv)
  for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
    x = _block_c(name, x, conv, inner)
  x = _block_d("Mixed_7a", x, conv)
  x = _block_e("Mixed_7b", x, conv, _average_pool(x))
  x = _block_e("Mixed_7c", x, conv, _max_pool(x, 1, "SAME"))
  return jnp.mean(x, axis=(1, 2))


def _block_a(name, x, conv, pooled):
  one = conv(f"{name}.branch1x1", x, 64, (1, 1))
  five = conv(f"{name}.branch5x5_1", x, 48, (1, 1))
  five = conv(f"{name}.branch5x5_2", five, 64, (5, 5))
  double = conv(f"{name}.branch3x3dbl_1", x, 64, (1, 1))
  double = conv(f"{name}.branch3x3dbl_2", double, 96, (3, 3))
  double = conv(f"{name}.branch3x3dbl_3", double, 96, (3, 3))
  pool = conv(f"{name}.branch_pool", _average_pool(x), pooled, (1, 1))
  return jnp.concatenate([one, five, double, pool], -1)


def _block_b(name, x, conv):
  three = conv(f"{name}.branch3x3", x, 384, (3, 3), 2, "VALID")
  double = conv(f"{name}.branch3x3dbl_1", x, 64, (1, 1))
  double = conv(f"{name}.branch3x3dbl_2", double, 96, (3, 3))
  double = conv(f"{name}.branch3x3dbl_3", double, 96, (3, 3), 2, "VALID")
  return jnp.concatenate([three, double, _max_pool(x, 2, "VALID")], -1)


def _block_c(name, x, conv, inner):
  one = conv(f"{name}.branch1x1", x, 192, (1, 1))
  seven = conv(f"{name}.branch7x7_1", x, inner, (1, 1))
  seven = conv(f"{name}.branch7x7_2", seven, inner, (1, 7))
  seven = conv(f"{name}.branch7x7_3", seven, 192, (7, 1))
  double = conv(f"{name}.branch7x7dbl_1", x, inner, (1, 1))
  double = conv(f"{name}.branch7x7dbl_2", double, inner, (7, 1))
  double = conv(f"{name}.branch7x7dbl_3", double, inner, (1, 7))
  double = conv(f"{name}.branch7x7dbl_4", double, inner, (7, 1))
  double = conv(f"{name}.branch7x7dbl_5", double, 192, (1, 7))
  pool = conv(f"{name}.branch_pool", _average_pool(x), 192, (1, 1))
  return jnp.concatenate([one, seven, double, pool], -1)


def _block_d(name, x, conv):
  three = conv(f"{name}.branch3x3_1", x, 192, (1, 1))
  three = conv(f"{name}.branch3x3_2", three, 320, (3, 3), 2, "VALID")
  seven = conv(f"{name}.branch7x7x3_1", x, 192, (1, 1))
  seven = conv(f"{name}.branch7x7x3_2", seven, 192, (1, 7))
  seven = conv(f"{name}.branch7x7x3_3", seven, 192, (7, 1))
  seven = conv(f"{name}.branch7x7x3_4", seven, 192, (3, 3), 2, "VALID")
  return jnp.concatenate([three, seven, _max_pool(x, 2, "VALID")], -1)


def _block_e(name, x, conv, pooled):
  one = conv(f"{name}.branch1x1", x, 320, (1, 1))
  three = conv(f"{name}.branch3x3_1", x, 384, (1, 1))
  double = conv(f"{name}.branch3x3dbl_1", x, 448, (1, 1))
  double = conv(f"{name}.branch3x3dbl_2", double, 384, (3, 3))
  parts = [one]
  for stem, y in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
    parts += [conv(f"{name}.{stem}a", y, 384, (1, 3)), conv(f"{name}.{stem}b", y, 384, (3, 1))]
  parts.append(conv(f"{name}.branch_pool", pooled, 192, (1, 1)))
  return jnp.concatenate(parts, -1)
