"""Networks by name: `build({"name": "denoiser", "widths": (64, 128)})` returns a `Network`.

Flax is used in this package only; elsewhere, parameters are plain nested dicts and a network is `apply(params, x, t, cond)`.
"""

import dataclasses
import difflib
import importlib
import numbers
from collections.abc import Mapping
from typing import Any

from retree_jax.models.network import Network

__all__ = ["Network", "build", "defaults", "register"]

# name -> (module of this package, class), imported on first use.
_NETWORKS = {
  "paper_denoiser": ("paper", "PaperDenoiser"),
  "denoiser": ("denoiser", "Denoiser"),
  "discriminator": ("discriminator", "Discriminator"),
  "superres": ("superres", "Superres"),
  "superres_discriminator": ("superres", "SuperresDiscriminator"),
  "segmenter": ("segmenter", "Segmenter"),
}


def build(settings: Mapping[str, Any]) -> Network:
  """Builds the network described by `settings`.

  Args:
    settings: "name" (paper_denoiser, denoiser, discriminator, superres, superres_discriminator or segmenter) and any of that
      network's fields; others keep their defaults. May be a ConfigDict or a dict read from JSON: lists become tuples.

  Returns:
    The network, without parameters.

  Raises:
    ValueError: an unknown name or field, or an invalid value; the message names the valid ones.
  """
  chosen = dict(settings)
  name = chosen.pop("name", None)
  fields = _fields(name)
  for field, value in chosen.items():
    if field not in fields:
      near = difflib.get_close_matches(field, fields, n=1)
      hint = f"did you mean {near[0]!r}? " if near else ""
      raise ValueError(f"The network {name!r} has no setting {field!r}: {hint}it has {', '.join(sorted(fields))}.")
    chosen[field] = _checked(name, field, value, fields[field])
  module = _class(name)(**chosen)
  if hasattr(module, "check_settings"):
    module.check_settings()
  return Network(settings={"name": name, **fields, **chosen}, module=module)


def register(name: str, network: type) -> None:
  """Adds a network from outside the package (`docs/extending.md`).

  Args:
    name: its name in `config.model.name`.
    network: a Flax module with a default for every field, a property `size_multiple` and
      `__call__(x, t=None, cond=None, train=False)`.

  Raises:
    ValueError: the name is that of a built-in network.
  """
  if isinstance(_NETWORKS.get(name), tuple):
    raise ValueError(f"The network {name!r} is built in: register yours under another name.")
  _NETWORKS[name] = network


def defaults(name: str) -> dict[str, Any]:
  """All settings of the network `name` with their defaults, and "name"; ValueError for an unknown name."""
  return {"name": name, **_fields(name)}


def _class(name: str) -> type:
  network = _NETWORKS[name]
  if isinstance(network, tuple):
    file, cls = network
    network = getattr(importlib.import_module(f"retree_jax.models.{file}"), cls)
  return network


def _fields(name: str) -> dict[str, Any]:
  if name not in _NETWORKS:
    raise ValueError(f"There is no network {name!r}: set its name to one of {', '.join(sorted(_NETWORKS))}.")
  # Flax adds "parent" and "name" to every module.
  return {f.name: f.default for f in dataclasses.fields(_class(name)) if f.name not in ("parent", "name")}


def _checked(name: str, field: str, value: Any, default: Any) -> Any:
  """`value` converted to the type of the field's default; ValueError if it has another one."""
  if isinstance(default, bool):
    valid, wanted = isinstance(value, bool), "True or False"
  elif isinstance(default, int):
    valid, wanted = isinstance(value, numbers.Integral) and not isinstance(value, bool), "a whole number"
    value = int(value) if valid else value
  elif isinstance(default, float):
    valid, wanted = isinstance(value, numbers.Real) and not isinstance(value, bool), "a number"
    value = float(value) if valid else value
  elif isinstance(default, str):
    valid, wanted = isinstance(value, str), "a string"
    if field == "dtype":
      valid, wanted = value in ("float32", "bfloat16"), "'float32' or 'bfloat16'"
  elif isinstance(default, tuple):
    valid = isinstance(value, (tuple, list)) and all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in value)
    wanted = "a tuple of whole numbers"
    value = tuple(int(v) for v in value) if valid else value
  else:
    return value
  if not valid:
    raise ValueError(f"Setting {field!r} of the network {name!r} must be {wanted}, not {value!r}; the default is {default!r}.")
  return value
