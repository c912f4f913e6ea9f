"""VGG19 features, from weights that the user provides: for the perceptual loss and one of the image distances.

Three file formats are read, each without running any code from the file:

  .npz   keys LAYER/kernel (kh, kw, in, out) and LAYER/bias, or torchvision's names (features.0.weight ...)
  .h5    Keras' files: `vgg19_weights_tf_dim_ordering_tf_kernels[_notop].h5`, saved models, `.weights.h5`
  .pth   torchvision's state dict (needs PyTorch, read with weights_only=True)

Two families of weights with different preprocessing are in use. Keras and Caffe: BGR in 0..255 minus a mean. torchvision: RGB
minus a mean, divided by a standard deviation. The loader converts both to one form, RGB kernels with a mean and a standard
deviation per channel, and stores it with the parameters, so that weights and preprocessing always match. Activations keep the
scale of their family: Caffe's are much larger than torchvision's, which matters for the weight of a perceptual loss (see
`scales`).

Architecture E of Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, table 1, without the three fully connected layers.
"""

import os
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from retree_jax.models import scaling
from retree_jax.models.pretrained import weight_files

CONVOLUTIONS = (2, 2, 4, 4, 4)  # per block
CHANNELS = (64, 128, 256, 512, 512)
LAYERS = tuple(f"block{b}_conv{c}" for b, n in enumerate(CONVOLUTIONS, 1) for c in range(1, n + 1))

# RGB, in units of 8-bit pixel values.
_CAFFE = {"mean": (123.68, 116.779, 103.939), "std": (1.0, 1.0, 1.0)}
_TORCHVISION = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}  # 255 times the usual ones
CONVENTIONS = {"caffe": _CAFFE, "torchvision": _TORCHVISION}


def load_weights(path: str | os.PathLike, convention: str | None = None) -> dict:
  """Reads VGG19 convolution weights, all five blocks or only the first few.

  Args:
    path: a .npz, .h5/.hdf5 or .pth/.pt file.
    convention: "caffe" or "torchvision", the preprocessing that these weights expect. None infers it from the names in the
      file: features.N.weight is torchvision's, anything else Keras's or Caffe's. Set "caffe" for Caffe weights that are
      distributed as a PyTorch file with torchvision's names.

  Returns:
    {"block1_conv1": {"kernel": [3, 3, in, out], "bias": [out]}, ..., "preprocess": {"mean": [3], "std":
    [3]}} of NumPy float32; kernels take RGB. Layers that the file lacks are absent.

  Raises:
    ValueError: no such file, unknown format, a damaged file, wrong shapes, a gap between layers, or the
      Python package that the format needs is not installed.
  """
  path = os.fspath(path)
  if convention is not None and convention not in CONVENTIONS:
    raise ValueError(f"VGG19 convention {convention!r} is unknown: write caffe or torchvision, or None.")
  if not os.path.isfile(path):
    raise ValueError(f"No VGG19 weights at {path}: give the path of a .npz, .h5 or .pth file.")
  suffix = os.path.splitext(path)[1].lower()
  readers = {
    ".npz": weight_files.read_npz,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".pth": weight_files.read_torch,
    ".pt": weight_files.read_torch,
  }
  if suffix not in readers:
    raise ValueError(f"VGG19 weights {path} end in {suffix!r}: known are .npz, .h5 and .pth.")
  return _assemble(readers[suffix](path), path, convention)


def save_weights(path: str | os.PathLike, params: Mapping) -> None:
  """Writes loaded weights as .npz, which needs neither PyTorch nor h5py to read."""
  arrays = {f"{layer}/{name}": np.asarray(a) for layer, group in params.items() for name, a in group.items()}
  with open(path, "wb") as file:  # a file object: savez would append .npz to another suffix
    np.savez(file, **arrays)


def available(params: Mapping) -> tuple[str, ...]:
  """Names ("relu1_1", ...) of the layers that these weights include, first to last."""
  return tuple(_short("relu", layer) for layer in LAYERS if layer in params)


def preprocess(params: Mapping, images: jax.Array) -> jax.Array:
  """RGB in [-1, 1] to the range that these weights expect: ((x + 1) · 127.5 - mean) / std."""
  mean, std = (jnp.asarray(params["preprocess"][k], jnp.float32) for k in ("mean", "std"))
  return (scaling.to_levels(jnp.asarray(images, jnp.float32)) - mean) / std


def features(
  params: Mapping,
  images: jax.Array,
  layers: Sequence[str] = ("relu3_4",),
  *,
  dtype: str = "float32",
  precision: jax.lax.PrecisionLike = None,
) -> dict[str, jax.Array]:
  """Activations of the named layers; computation stops after the deepest of them.

  Args:
    params: from `load_weights`.
    images: [B, H, W, 3] RGB in [-1, 1], large enough for the pooling layers.
    layers: names, "relu3_4" or Keras' "block3_conv4" (after the ReLU), "conv3_4" (before it), "pool3" or
      "block3_pool".
    dtype: type of the convolutions, "float32" or "bfloat16".
    precision: of the convolutions, as in `jax.lax.conv_general_dilated`; "highest" for numbers to report.

  Returns:
    {name as requested: [B, h, w, c] float32}.

  Raises:
    ValueError: an unknown layer, a layer deeper than the weights, or images that are not [B, H, W, 3] or too small.
  """
  if jnp.ndim(images) != 4 or jnp.shape(images)[-1] != 3:
    raise ValueError(
      f"VGG19 takes images [batch, height, width, 3], not {jnp.shape(images)}: repeat a single channel three times."
    )
  if isinstance(layers, str):
    layers = (layers,)
  wanted = {}  # canonical name -> names as requested
  for name in layers:
    wanted.setdefault(_canonical(name, params), []).append(name)
  depth = max((int(name[-3]) if "_" in name else int(name[-1]) + 1) for name in wanted) if wanted else 1
  if min(jnp.shape(images)[1:3]) < 2 ** (depth - 1):
    raise ValueError(
      f"Images of {jnp.shape(images)[1:3]} pixels are too small for {list(layers)}: "
      f"their sides must be at least {2 ** (depth - 1)}."
    )
  found = {}
  x = preprocess(params, images).astype(dtype)
  for block, count in enumerate(CONVOLUTIONS, 1):
    for index in range(1, count + 1):
      if len(found) == len(wanted):
        break
      group = params[f"block{block}_conv{index}"]
      x = jax.lax.conv_general_dilated(
        x, jnp.asarray(group["kernel"], dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
      )
      x = x + jnp.asarray(group["bias"], dtype)
      if f"conv{block}_{index}" in wanted:
        found[f"conv{block}_{index}"] = x
      x = jax.nn.relu(x)
      if f"relu{block}_{index}" in wanted:
        found[f"relu{block}_{index}"] = x
    if len(found) == len(wanted):
      break
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    if f"pool{block}" in wanted:
      found[f"pool{block}"] = x
  return {name: found[key].astype(jnp.float32) for key, names in wanted.items() for name in names}


def scales(params: Mapping, layers: Sequence[str]) -> dict[str, jax.Array]:
  """Root mean square of each layer's activations on a fixed random image, a scalar each, to normalise activations with.

  Activations of Keras's weights are two orders of magnitude larger than torchvision's, and layers differ too.
  """
  picture = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3), minval=-1.0, maxval=1.0)
  picture = jax.image.resize(picture, (1, 64, 64, 3), "cubic")
  return {k: jnp.sqrt(jnp.mean(jnp.square(v))) for k, v in features(params, picture, layers, precision="highest").items()}


def _short(kind: str, layer: str) -> str:
  return re.sub(r"block(\d)_conv(\d)", kind + r"\1_\2", layer)


def _canonical(name: str, params: Mapping) -> str:
  """The layer's canonical name ("relu3_4", "conv3_4", "pool3"); ValueError if the weights do not include it."""
  short = re.sub(r"^block(\d)_pool$", r"pool\1", _short("relu", name))
  match = re.fullmatch(r"(?:(?:relu|conv)(\d)_(\d)|pool(\d))", short)
  block = int(match[1] or match[3]) if match else 0
  index = int(match[2] or CONVOLUTIONS[min(block, 5) - 1]) if match else 0
  if not (1 <= block <= 5 and 1 <= index <= CONVOLUTIONS[block - 1]):
    raise ValueError(
      f"VGG19 has no layer {name!r}: write relu1_1, relu1_2, relu2_1 ... relu5_4, or conv1_1 "
      "... before the ReLU, or pool1 ... pool5."
    )
  if f"block{block}_conv{index}" not in params:
    raise ValueError(
      f"Layer {name!r} is deeper than these VGG19 weights, which end at "
      f"{available(params)[-1]}: ask for an earlier layer or load all five blocks."
    )
  return short


def _assemble(arrays: dict[str, np.ndarray], path: str, convention: str | None) -> dict:
  """Converts the flat names of any of the formats to the parameter dictionary, and checks it."""
  params, from_torch = {}, False
  numbers = _torch_numbers()
  for name, array in arrays.items():
    if match := re.fullmatch(r"(?:.*/)?(block\d_conv\d)/(kernel|bias)", name):
      params.setdefault(match[1], {})[match[2]] = np.asarray(array, np.float32)
    elif match := re.fullmatch(r"(?:module\.)?features\.(\d+)\.(weight|bias)", name):
      from_torch = True
      if int(match[1]) not in numbers:
        raise ValueError(f"{path}: {name} is no convolution of VGG19; these are weights of another network.")
      if match[2] == "weight" and np.ndim(array) == 4:
        array = rearrange(array, "c_out c_in h w -> h w c_in c_out")
      group = params.setdefault(numbers[int(match[1])], {})
      group["kernel" if match[2] == "weight" else "bias"] = np.asarray(array, np.float32)
  _check(params, path)
  if "preprocess/mean" in arrays and "preprocess/std" in arrays:  # written by save_weights: RGB already
    stated = {k: np.asarray(arrays[f"preprocess/{k}"], np.float32) for k in ("mean", "std")}
    if any(a.shape != (3,) or not np.isfinite(a).all() for a in stated.values()) or stated["std"].min() <= 0:
      raise ValueError(f"{path}: preprocess/mean and preprocess/std must be three numbers each, std above 0.")
    return {**{k: params[k] for k in LAYERS if k in params}, "preprocess": stated}
  convention = convention or ("torchvision" if from_torch else "caffe")
  if convention == "caffe":  # BGR kernels, so that one preprocessing serves both families
    params["block1_conv1"]["kernel"] = params["block1_conv1"]["kernel"][:, :, ::-1]
  constants = {k: np.asarray(v, np.float32) for k, v in CONVENTIONS[convention].items()}
  return {**{k: params[k] for k in LAYERS if k in params}, "preprocess": constants}


def _check(params: Mapping, path: str) -> None:
  if not params:
    raise ValueError(f"{path} holds no VGG19 layers (neither blockB_convC/kernel nor features.N.weight).")
  ended = None
  channels = 3
  for layer in LAYERS:
    group = params.get(layer)
    if group is None:
      ended = ended or layer
      continue
    if ended:
      raise ValueError(f"{path} has VGG19's {layer} but lacks {ended} before it: use a complete file.")
    out = CHANNELS[int(layer[5]) - 1]
    for name, shape in (("kernel", (3, 3, channels, out)), ("bias", (out,))):
      if name not in group or group[name].shape != shape:
        got = group[name].shape if name in group else "nothing"
        raise ValueError(f"{path}: VGG19's {layer}/{name} should have shape {shape}, found {got}.")
      if not np.all(np.isfinite(group[name])):
        raise ValueError(f"{path}: VGG19's {layer}/{name} is not finite: the file is damaged.")
    channels = out


def _torch_numbers() -> dict[int, str]:
  """Position of each convolution in torchvision's `features` (conv, relu, conv, relu, pool ...) -> name."""
  numbers, position = {}, 0
  for block, count in enumerate(CONVOLUTIONS, 1):
    for index in range(1, count + 1):
      numbers[position] = f"block{block}_conv{index}"
      position += 2
    position += 1
  return numbers


def _read_h5(path: str) -> dict[str, np.ndarray]:
  """Datasets of a Keras file under the names blockB_convC/kernel and /bias, whichever Keras wrote it."""
  try:
    import h5py
  except ImportError as error:
    raise ValueError(
      f"Reading {path} needs h5py: pip install 'retree-jax[keras-weights]', or convert it to .npz on a machine that has it."
    ) from error
  found: dict[str, np.ndarray] = {}

  def visit(name, item):
    if not isinstance(item, h5py.Dataset) or "optimizer" in name:
      return
    match = re.search(r"(block\d_conv\d)(?:/|_)", name)
    layer = match[1] if match else None
    if layer is None and (match := re.search(r"(?:^|/)conv2d(?:_(\d+))?/vars/", name)):
      number = int(match[1] or 0)  # Keras 3 numbers the layers
      layer = LAYERS[number] if number < len(LAYERS) else None
    if layer:
      found[f"{layer}/{'kernel' if item.ndim == 4 else 'bias'}"] = np.asarray(item[()], np.float32)

  try:
    with h5py.File(path, "r") as file:
      file.visititems(visit)  # follows neither soft nor external links
  except (OSError, RuntimeError, TypeError, ValueError) as error:
    raise ValueError(f"Cannot read {path} as an HDF5 file of Keras weights ({error}).") from error
  return found
