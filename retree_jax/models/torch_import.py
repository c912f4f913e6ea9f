"""Converts the published checkpoints of the original PyTorch code to parameters of this package's networks.

    settings, params = torch_import.convert(torch_import.read("tree.pth.tar"))
    network = models.build(settings)

`convert` works on NumPy arrays under the original's parameter names. Only `read` needs PyTorch; it loads nothing but tensors
(`weights_only`), so a file cannot run code.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import EinopsError, rearrange

from retree_jax import models
from retree_jax.models.pretrained import weight_files


class Entry(NamedTuple):
  """The destination of one of the original's parameters.

  Attributes:
    path: keys into the nested dict of parameters.
    convert_axes: converts an array from PyTorch's axis order to Flax's.
  """

  path: tuple[str, ...]
  convert_axes: Callable[[np.ndarray], np.ndarray]


def read(path) -> dict[str, np.ndarray]:
  """Reads a checkpoint file of the original (.pth.tar, .pth): `weight_files.read_torch`.

  Raises:
    ValueError: no such file, PyTorch is not installed, or not a PyTorch checkpoint of plain tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"There is no checkpoint file {path}: give the path of a .pth.tar or .pth file.")
  return weight_files.read_torch(path)


def convert(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict]:
  """Converts a state dict of the original's denoisers or discriminators.

  Args:
    state_dict: {the original's parameter name: array}, for instance from `read`.

  Returns:
    (settings for `models.build`, inferred from the shapes; parameters, a nested dict of float32 NumPy arrays). The width of an
    attention head cannot be inferred from shapes and is set to the original's 64.

  Raises:
    ValueError: a name is missing or unknown, a shape is inconsistent with the others, or a value is not finite.
  """
  arrays = {name.removeprefix("module."): _array(name, value) for name, value in state_dict.items()}
  if "bottleneck_blocks.0.double_conv.0.weight" in arrays:
    settings = _denoiser_settings(arrays)
  elif "last.weight" in arrays:
    settings = _discriminator_settings(arrays)
  else:
    some = ", ".join(list(arrays)[:3]) or "nothing"
    raise ValueError(
      f"This is not a checkpoint of the original's denoiser or discriminator (it holds {some}): "
      "give the state_dict that the original's training saved."
    )
  entries = names(settings)
  _refuse("is missing", [name for name in entries if name not in arrays])
  _refuse("is not one that the original has", [name for name in arrays if name not in entries])

  _check_shapes(settings, arrays, entries)

  params: dict = {}
  for name, entry in entries.items():
    inner = params
    for key in entry.path[:-1]:
      inner = inner.setdefault(key, {})
    inner[entry.path[-1]] = np.array(entry.convert_axes(arrays[name]), order="C")
  return settings, params


def names(settings: Mapping[str, Any]) -> dict[str, Entry]:
  """Every parameter of the original network with these settings: {its name: its destination}."""
  if settings["name"] == "discriminator":
    return _discriminator_names(settings["depth"])
  return _denoiser_names(settings["depth"])


def _array(name: str, value) -> np.ndarray:
  try:
    array = np.asarray(value, np.float32)
  except (TypeError, ValueError):
    array = np.array(np.nan)
  if not np.all(np.isfinite(array)):
    raise ValueError(
      f"Parameter {name} of this checkpoint holds values that are not finite numbers: the "
      "file is damaged, or its training had diverged."
    )
  return array


def _same(value: np.ndarray) -> np.ndarray:
  return value


def _conv(value: np.ndarray) -> np.ndarray:
  return rearrange(value, "c_out c_in h w -> h w c_in c_out")


def _dense(value: np.ndarray) -> np.ndarray:
  """Weight of a dense layer [out, in] or a 1x1 convolution [out, in, 1, 1] -> [in, out]."""
  return value.reshape(value.shape[:2]).T


def _layer(torch_name: str, flax_name: tuple[str, ...], convert_axes: Callable | None, bias: bool = True) -> dict[str, Entry]:
  """Weight and bias of a layer; `convert_axes` is None for a norm, whose weight is called "scale" in Flax."""
  weight = Entry((*flax_name, "kernel"), convert_axes) if convert_axes else Entry((*flax_name, "scale"), _same)
  entries = {f"{torch_name}.weight": weight}
  if bias:
    entries[f"{torch_name}.bias"] = Entry((*flax_name, "bias"), _same)
  return entries


def _transformer_names(torch_name: str, flax_name: str, depth: int) -> dict[str, Entry]:
  entries = {}
  for i in range(depth):
    attention, mlp = f"{torch_name}.layers.{i}.0.fn", f"{torch_name}.layers.{i}.1.fn"
    entries |= _layer(f"{attention}.norm", (flax_name, f"norm_{i}_0"), None)
    entries[f"{attention}.fn.temperature"] = Entry((flax_name, f"temperature_{i}"), _same)
    entries |= _layer(f"{attention}.fn.to_qkv", (flax_name, f"qkv_{i}"), _dense, bias=False)
    entries |= _layer(f"{attention}.fn.to_out.0", (flax_name, f"out_{i}"), _dense)
    entries |= _layer(f"{mlp}.norm", (flax_name, f"norm_{i}_1"), None)
    entries |= _layer(f"{mlp}.fn.net.0", (flax_name, f"mlp_{i}_0"), _dense)
    entries |= _layer(f"{mlp}.fn.net.3", (flax_name, f"mlp_{i}_1"), _dense)
  return entries


def _double_conv_names(torch_name: str, flax_name: str) -> dict[str, Entry]:
  entries = {}
  for i, (conv, norm) in enumerate(((0, 1), (3, 4))):
    entries |= _layer(f"{torch_name}.double_conv.{conv}", (flax_name, f"conv_{i}"), _conv, bias=False)
    entries |= _layer(f"{torch_name}.double_conv.{norm}", (flax_name, f"norm_{i}"), None)
  return entries


def _denoiser_names(depth: int) -> dict[str, Entry]:
  entries = _layer("initial.0", ("initial_conv",), _conv, bias=False)
  entries |= _layer("initial.1", ("initial_norm",), None)
  for kind, num, convs, first in (("down", 2, "maxpool_conv", 1), ("up", 4, "conv", 0)):
    for i in range(num):
      for j, part in enumerate(("res", "out")):
        entries |= _double_conv_names(f"{kind}_blocks.{i}.{convs}.{first + j}", f"{kind}_{i}_{part}")
      entries |= _layer(f"{kind}_blocks.{i}.emb_layer.1", (f"{kind}_{i}_time",), _dense)
  for i in range(2):
    entries |= _transformer_names(f"transformer_blocks.{i}", f"vit_{i}", depth)
  for i in range(3):
    entries |= _double_conv_names(f"bottleneck_blocks.{i}", f"bottleneck_{i}")
  return entries | _layer("last.conv", ("head",), _dense)


def _discriminator_names(depth: int) -> dict[str, Entry]:
  entries = _layer("initial.0", ("initial",), _conv) | _layer("last", ("head",), _conv)
  for i in range(3):
    entries |= _layer(f"down_blocks.{2 * i}.convolution.0", (f"conv_{i}",), _conv)
    entries |= _transformer_names(f"down_blocks.{2 * i + 1}", f"vit_{i}", depth)
  return entries


def _denoiser_settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {
    "name": "paper_denoiser",
    "dim": 32 * _size(arrays, "initial.0.weight", 0, 4),
    "time_dim": _size(arrays, "down_blocks.0.emb_layer.1.weight", 1, 2),
    "out_channels": _size(arrays, "last.conv.weight", 0, 4),
    **_attention_settings(arrays, "transformer_blocks.0"),
  }


def _discriminator_settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {
    "name": "discriminator",
    "width": _size(arrays, "initial.0.weight", 0, 4),
    **_attention_settings(arrays, "down_blocks.1"),
  }


def _attention_settings(arrays: Mapping[str, np.ndarray], transformer: str) -> dict[str, int]:
  inner = _size(arrays, f"{transformer}.layers.0.0.fn.fn.to_out.0.weight", 1, 2)
  if inner % 64:
    raise ValueError(
      f"The attention in this checkpoint has {inner} channels, which is not a multiple of the "
      "original's 64 per head: it was not written by the original's code."
    )
  layer = re.compile(re.escape(transformer) + r"\.layers\.(\d+)\.")
  depth = len({match[1] for match in map(layer.match, arrays) if match})
  return {"heads": inner // 64, "head_width": 64, "depth": depth}


def _size(arrays: Mapping[str, np.ndarray], name: str, axis: int, ndim: int) -> int:
  if name not in arrays:
    _refuse("is missing", [name])
  if arrays[name].ndim != ndim:
    raise ValueError(
      f"Parameter {name} of this checkpoint has shape {arrays[name].shape}, where the "
      f"original has {ndim} axes: the file is damaged or of another network."
    )
  return arrays[name].shape[axis]


def _refuse(what: str, wrong: list[str]) -> None:
  if wrong:
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise ValueError(
      f"Parameter {wrong[0]}{more} {what} in this checkpoint: give the whole, unchanged "
      "state_dict of the original's denoiser or discriminator."
    )


def _check_shapes(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]) -> None:
  """Compares each shape with the network of these settings, which has the file's number of input channels."""
  x = jax.ShapeDtypeStruct((1, 64, 64, arrays["initial.0.weight"].shape[1]), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.float32)
  network = models.build(settings)
  params = jax.eval_shape(lambda: network.init(jax.random.key(0), x, t))
  for name, entry in entries.items():
    expected = params
    for key in entry.path:
      expected = expected[key]
    try:
      shape = entry.convert_axes(arrays[name]).shape
    except (ValueError, EinopsError):  # another number of axes
      shape = None
    if shape != expected.shape:
      raise ValueError(
        f"Parameter {name} of this checkpoint has shape {arrays[name].shape}, which does "
        f"not fit a network with {_describe(settings)}: the file is damaged or combines several networks."
      )


def _describe(settings: Mapping[str, Any]) -> str:
  return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
