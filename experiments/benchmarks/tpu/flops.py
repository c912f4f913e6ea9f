"""Arithmetic of a function as it is written: matrix products and convolutions, counted in its jaxpr.

This is what a share of the peak (MFU) is a share of. What the compiler does besides, or leaves out, does not change it.
"""

import math

import jax
import numpy as np
from jax.extend import core


def count(function, *arguments, loops: bool = True) -> int:
  """Floating-point operations of `function(*arguments)` in matrix products and convolutions, over all devices.

  A multiplication and an addition are two operations. Of a conditional the dearer branch counts, of a `while_loop` one round,
  of a `shard_map` every device's share.

  Args:
    function: a function of arrays.
    arguments: arrays or `jax.ShapeDtypeStruct`s.
    loops: count every round of a scan; False counts one, as XLA's cost analysis does.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, loops)


def _of_jaxpr(jaxpr, loops) -> int:
  return sum(_of_equation(equation, loops) for equation in jaxpr.eqns)


def _of_equation(equation, loops) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    return _convolution(equation.outvars[0].aval.shape, *(v.aval.shape for v in equation.invars), params)
  inner = [_of_jaxpr(jaxpr, loops) for jaxpr in _jaxprs(params)]
  if name == "cond":
    return max(inner)
  times = {"scan": lambda: params["length"] if loops else 1, "shard_map": lambda: params["mesh"].size}
  return sum(inner) * times.get(name, lambda: 1)()


def _convolution(made, given, kernel, params) -> int:
  """Of shapes; what falls on padding, or on the zeros between dilated pixels, is no arithmetic."""
  numbers = params["dimension_numbers"]  # of each: (batch or output channels, channels, *space)
  pairs = made[numbers.out_spec[0]] * made[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
  for i, (low, _) in enumerate(params["padding"]):
    size, taps, places = (s[spec[2 + i]] for s, spec in zip((given, kernel, made), numbers, strict=True))
    dilation = params["lhs_dilation"][i]
    at = np.arange(places)[:, None] * params["window_strides"][i] + np.arange(taps) * params["rhs_dilation"][i] - low
    pairs *= int(((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)).sum())
  return 2 * pairs // params["batch_group_count"]


def _jaxprs(params):
  """The functions that an operation runs."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item
