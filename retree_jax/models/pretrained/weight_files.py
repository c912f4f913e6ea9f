"""Reads weight files of other libraries without running any code that they may hold."""

import zipfile
from collections.abc import Mapping

import numpy as np


def read_npz(path: str) -> dict[str, np.ndarray]:
  """Arrays of a .npz file; a file that would need unpickling is rejected.

  Raises:
    ValueError: damaged file or one with Python objects in it.
  """
  try:
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, AttributeError) as error:
    raise ValueError(
      f"Cannot read {path} as .npz: it is damaged or holds objects instead of plain arrays ({error})."
    ) from error


def read_torch(path: str) -> dict[str, np.ndarray]:
  """Tensors of a PyTorch checkpoint, without unpickling anything but tensors and plain values.

  Args:
    path: the file; either {"state_dict": ...} or the state dict itself.

  Returns:
    {parameter name: float32 array}. A leading "module." (DataParallel) is dropped.

  Raises:
    ValueError: PyTorch is not installed; or the file is damaged, holds no tensors, or holds other objects than tensors and
      plain values, which could run code.
  """
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"Reading {path} needs PyTorch: pip install 'retree-jax[torch]', or convert it to .npz on a machine that has it."
    ) from error
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises a dozen types here, pickle's own among them
    raise ValueError(
      f"Cannot read {path}: it is damaged or no PyTorch checkpoint of plain tensors ({type(error).__name__}); "
      "only such are read, since others could run code: save its state_dict alone."
    ) from error
  loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
  tensors = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)} if isinstance(loaded, Mapping) else {}
  if not tensors:
    raise ValueError(f"{path} holds no state_dict of tensors: save the network's state_dict() alone.")
  return {name.removeprefix("module."): value.detach().float().numpy() for name, value in tensors.items()}
