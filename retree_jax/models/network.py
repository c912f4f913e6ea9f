"""What the rest of the project sees of a network: two functions of arrays, and the sizes it takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from retree_jax.models import init_random


@dataclasses.dataclass(frozen=True)
class Network:
  """A network without parameters: `init` makes them, `apply` uses them.

  Attributes:
    settings: everything needed to build it again (`models.build(network.settings)`), defaults written out.
    module: the Flax module behind it; of no concern outside `retree_jax.models`.
  """

  settings: Mapping[str, Any]
  module: nn.Module

  def init(self, key: jax.Array, x, t=None, cond=None) -> dict:
    """Makes parameters, float32.

    Args:
      key: PRNG key.
      x: input [B, H, W, C], or a `jax.ShapeDtypeStruct` of it: only the shape counts, and any batch size
        gives the same parameters.
      t: timesteps [B], likewise, for networks that know a time.
      cond: condition [B, H, W, D], likewise, for networks that will be given one.

    Returns:
      A nested dict of arrays.

    Raises:
      ValueError: a size that the network cannot take.
    """
    self.check_size(*x.shape[1:3])

    def blank(like):
      return None if like is None else jnp.zeros((1, *like.shape[1:]), jnp.float32)

    @jax.jit  # traced only: the forward pass is not needed for its parameters, and XLA drops it
    def make(key):
      return self.module.init({"params": init_random.key_from(key)}, blank(x), blank(t), blank(cond))["params"]

    return make(key)

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
      params: what `init` gave, or the same trained.
      x: input [B, H, W, C] in [-1, 1] (noise may exceed it).
      t: timesteps [B], float or int, 0 .. T-1, for networks that know a time.
      cond: condition [B, H, W, D] in [-1, 1], concatenated after x on the channel axis.
      key: PRNG key for dropout. Given, the network runs as in training; without, as in use.
      **kw: what a particular network takes beside these (see its `__call__`).

    Returns:
      The network's output, float32.

    Raises:
      ValueError: a size, or a number of channels, that the network or these parameters cannot take.
    """
    self.check_size(*x.shape[1:3])
    if cond is not None and cond.shape[:3] != x.shape[:3]:
      raise ValueError(
        f"The condition has shape {cond.shape} and the input {x.shape}: batch, height and "
        "width of the two must be equal, so resize or repeat one of them."
      )
    if key is not None:
      kw = {"train": True, "rngs": {"dropout": key}, **kw}
    try:
      return self.module.apply({"params": params}, x, t, cond, **kw)
    except flax.errors.ScopeParamShapeError as error:
      channels = f"{x.shape[-1]} channels and a condition of {0 if cond is None else cond.shape[-1]}"
      raise ValueError(
        f"These parameters do not fit the network {self._name!r} with an input of {channels}: use the "
        f"settings and channels they were made with (first misfit: {_short(error)})."
      ) from None
    except (flax.errors.ScopeParamNotFoundError, flax.errors.ScopeCollectionNotFound) as error:
      raise ValueError(
        f"These are not parameters of the network {self._name!r} as it is set: use the settings they were "
        f"made with (first one missing: {_short(error)})."
      ) from None

  @property
  def size_multiple(self) -> int:
    """Height and width must be divisible by it."""
    return self.module.size_multiple

  def cpu_block(self, height: int, width: int) -> int:
    """Images that it is quickest to sample at once on a CPU."""
    return self.module.cpu_block(height, width) if hasattr(self.module, "cpu_block") else 1

  def check_size(self, height: int, width: int) -> None:
    """Raises ValueError, with sizes that will do, if the network cannot take height x width pixels."""
    m = self.size_multiple
    if height % m or width % m or min(height, width) < m:
      fit = "x".join(str(max(m, round(size / m) * m)) for size in (height, width))
      raise ValueError(
        f"The network {self._name!r} cannot take {height}x{width} pixels: height and width "
        f"must be multiples of {m}, for instance {fit}; set data.image_size to that."
      )
    if hasattr(self.module, "check_size"):
      self.module.check_size(height, width)

  @property
  def _name(self) -> str:
    return self.settings["name"]


def _short(error: Exception) -> str:
  """Flax's message without its advice on where to read more."""
  return str(error).split(" (http")[0].rstrip(". ")
