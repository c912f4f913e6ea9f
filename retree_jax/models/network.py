"""The interface of a network to the rest of the project: `init`, `apply`, and the image sizes it accepts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from retree_jax.models import init_prng


@dataclasses.dataclass(frozen=True)
class Network:
  """A network without parameters: `init` creates them, `apply` uses them.

  Attributes:
    settings: all settings including defaults; `models.build(network.settings)` builds the same network.
    module: the Flax module; private to `retree_jax.models`.
  """

  settings: Mapping[str, Any]
  module: nn.Module

  def init(self, key: jax.Array, x, t=None, cond=None) -> dict:
    """Creates float32 parameters.

    Args:
      key: PRNG key.
      x: input [B, H, W, C], or a `jax.ShapeDtypeStruct` of it; only the shape matters, and not the batch size.
      t: timesteps [B], likewise, for networks with a time input.
      cond: condition [B, H, W, D], likewise, for networks that are used with one.

    Returns:
      A nested dict of arrays.

    Raises:
      ValueError: a size that the network does not accept.
    """
    self.check_size(*x.shape[1:3])

    def zeros(like):
      return None if like is None else jnp.zeros((1, *like.shape[1:]), jnp.float32)

    @jax.jit  # the parameters do not depend on the forward pass, so XLA removes it
    def create(key):
      return self.module.init({"params": init_prng.key_from(key)}, zeros(x), zeros(t), zeros(cond))["params"]

    return create(key)

  def apply(
    self,
    params: Mapping,
    x: jax.Array,
    t: jax.Array | None = None,
    cond: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
    **kw,
  ) -> Any:
    """Runs the network.

    Args:
      params: parameters with the structure that `init` returns.
      x: input [B, H, W, C] in [-1, 1] (noisy images may exceed it).
      t: timesteps [B], float or int, 0 .. T-1, for networks with a time input.
      cond: condition [B, H, W, D] in [-1, 1], concatenated to x along the channels.
      key: PRNG key for dropout. If given, the network runs in training mode, otherwise in inference mode.
      **kw: further arguments of the particular network (see its `__call__`).

    Returns:
      The network's output, float32.

    Raises:
      ValueError: a size or number of channels that does not match the network or the parameters.
    """
    self.check_size(*x.shape[1:3])
    if cond is not None and cond.shape[:3] != x.shape[:3]:
      raise ValueError(
        f"The condition has shape {cond.shape} and the input {x.shape}: their batch, height and "
        "width must be equal; resize or repeat one of them."
      )
    if key is not None:
      kw = {"train": True, "rngs": {"dropout": key}, **kw}
    try:
      return self.module.apply({"params": params}, x, t, cond, **kw)
    except flax.errors.ScopeParamShapeError as error:
      channels = f"{x.shape[-1]} channels and a condition of {0 if cond is None else cond.shape[-1]}"
      raise ValueError(
        f"These parameters do not fit the network {self._name!r} with an input of {channels}: use the "
        f"settings and channels that they were created with (first mismatch: {_short(error)})."
      ) from None
    except (flax.errors.ScopeParamNotFoundError, flax.errors.ScopeCollectionNotFound) as error:
      raise ValueError(
        f"These are not parameters of the network {self._name!r} with its present settings: use the settings that they "
        f"were created with (first missing parameter: {_short(error)})."
      ) from None

  @property
  def size_multiple(self) -> int:
    """Height and width must be divisible by it."""
    return self.module.size_multiple

  def cpu_block(self, height: int, width: int) -> int:
    """Number of images per forward pass with which sampling is fastest on a CPU."""
    return self.module.cpu_block(height, width) if hasattr(self.module, "cpu_block") else 1

  def check_size(self, height: int, width: int, field: str = "", factor: int = 1) -> None:
    """Raises ValueError, with the nearest valid size, if the network does not accept height x width pixels.

    Args:
      height, width: of its input, pixels.
      field: of the config that the size comes from, for the message.
      factor: by which the sizes of that field are larger than the network's input.
    """
    m = self.size_multiple
    if height % m or width % m or min(height, width) < m:
      given, valid = (
        "x".join(str(factor * side) for side in sides)
        for sides in ((height, width), [max(m, round(side / m) * m) for side in (height, width)])
      )
      raise ValueError(
        f"The network {self._name!r} cannot take {given} pixels: height and width must be multiples of {factor * m}, "
        f"for instance {valid}{f'; change {field}' if field else ''}."
      )
    if hasattr(self.module, "check_size"):
      self.module.check_size(height, width)

  @property
  def _name(self) -> str:
    return self.settings["name"]


def _short(error: Exception) -> str:
  """Flax's message without its link to further reading."""
  return str(error).split(" (http")[0].rstrip(". ")
