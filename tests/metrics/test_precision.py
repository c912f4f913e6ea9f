"""Comparisons do not depend on the hardware: every product and convolution behind them asks for the highest precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.metrics import alignment, features
from retree_jax.models.pretrained import inception, vgg

_PRODUCTS = ("dot_general", "conv_general_dilated")
_HIGHEST = jax.lax.Precision.HIGHEST


def _precisions(jaxpr) -> list:
  """The precision of every product and convolution of a jaxpr, those of inner jaxprs included."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name in _PRODUCTS:
      found.append(equation.params["precision"])
    for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        found += _precisions(inner)
  return found


def _align():
  pictures = [jnp.zeros((2, alignment.SIDE, alignment.SIDE))] * 4
  return alignment._align, (*pictures, jnp.zeros((2, 5)))


def _scattering():
  return features.scattering, (jnp.zeros((2, 64, 64, 3)),)


def _inception():
  params = {name: {"kernel": jnp.zeros(s), "bias": jnp.zeros(s[-1])} for name, s in inception.shapes().items()}
  return inception.features, (params, jnp.zeros((1, 32, 32, 3)))


def _vgg_params():
  params = {"preprocess": {"mean": jnp.zeros(3), "std": jnp.ones(3)}}
  for name, (channels, out) in {"block1_conv1": (3, 64), "block1_conv2": (64, 64)}.items():
    params[name] = {"kernel": jnp.ones((3, 3, channels, out)), "bias": jnp.zeros(out)}
  return params


def _vgg(tmp_path):
  path = tmp_path / "vgg.npz"
  vgg.save_weights(path, _vgg_params())
  return features.extractor("vgg19", path).function, (jnp.zeros((1, 32, 32, 3)),)


def _vgg_scales():
  return lambda params: vgg.scales(params, ["relu1_2"]), (_vgg_params(),)


@pytest.mark.parametrize("case", [_align, _scattering, _inception, _vgg, _vgg_scales], ids=lambda case: case.__name__[1:])
def test_highest_precision(case, tmp_path):
  function, arguments = case(tmp_path) if case is _vgg else case()
  found = _precisions(jax.make_jaxpr(function)(*arguments).jaxpr)
  assert found
  for precision in found:
    assert precision is _HIGHEST or tuple(precision or ()) == (_HIGHEST, _HIGHEST)


def test_an_extractor_of_the_users_own_runs_at_the_highest_precision():
  found = []

  def own(images):
    jaxpr = jax.make_jaxpr(lambda x: jnp.einsum("bhwc,cd->bd", x, jnp.ones((3, 4))))(images)
    found.extend(_precisions(jaxpr.jaxpr))
    return images.mean((1, 2))

  features.extract(np.zeros((2, 8, 8, 3), np.uint8), features.Extractor("own", own))
  assert found == [(_HIGHEST, _HIGHEST)]
