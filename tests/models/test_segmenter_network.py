"""The segmenter: what its docstrings promise, on a few channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import models
from retree_jax.models import segmenter
from tests.models import checks

TINY = {"name": "segmenter", "widths": (8, 12), "bottleneck": (16,), "dropout": 0.0}


@pytest.fixture(scope="module")
def tiny():
  """(network, parameters, x): pictures of 16x24 pixels."""
  network = models.build(TINY)
  x = jax.random.uniform(jax.random.key(0), (2, 16, 24, 3), minval=-1)
  return network, network.init(jax.random.key(1), x), x


def test_untrained_it_says_a_tenth_is_vessel(tiny):
  network, params, x = tiny
  logits = jax.jit(network.apply)(params, x)
  assert logits.shape == (2, 16, 24, 1) and logits.dtype == jnp.float32
  np.testing.assert_allclose(params["head"]["bias"], np.log(0.1 / 0.9), rtol=1e-6)
  off = {**params, "head": {**params["head"], "kernel": 0 * params["head"]["kernel"]}}
  np.testing.assert_allclose(1 / (1 + np.exp(-network.apply(off, x))), 0.1, rtol=1e-5)


def test_every_parameter_is_trained_and_pictures_do_not_see_each_other(tiny):
  network, params, x = tiny
  value, gradients = jax.jit(jax.value_and_grad(lambda p: jnp.sum(network.apply(p, x) ** 2)))(params)
  assert np.isfinite(value) and not checks.untrained(gradients)
  run = jax.jit(network.apply)
  logits, changed = run(params, x), run(params, x.at[0].mul(0.5))
  np.testing.assert_allclose(changed[1], logits[1], rtol=1e-4, atol=1e-5)
  assert np.abs(changed[0] - logits[0]).max() > 1e-3


def test_features_are_one_vector_per_picture(tiny):
  network, params, x = tiny
  features = jax.jit(lambda p, x: network.apply(p, x, features=True))(params, x)
  assert features.shape == (2, 16) and features.dtype == jnp.float32
  assert np.abs(features[0] - features[1]).max() > 1e-4


def test_bfloat16_keeps_parameters_and_output_in_float32(tiny):
  _, params, x = tiny
  assert 1e-4 < checks.bfloat16_difference(TINY, params, x) < 0.05


def test_a_field_of_view_may_be_given(tiny):
  network, _, x = tiny
  fov = jnp.ones((2, 16, 24, 1))
  params = network.init(jax.random.key(1), x, None, fov)
  run = jax.jit(lambda fov: network.apply(params, x, None, fov))
  assert np.abs(run(fov) - run(-fov)).max() > 1e-3


def test_dropout_takes_whole_channels_and_only_in_training():
  network = models.build({**TINY, "dropout": 0.5})
  x = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3), minval=-1)
  params = network.init(jax.random.key(1), x)
  still = jax.jit(network.apply)(params, x)
  plain = jax.jit(models.build(TINY).apply)(params, x)
  np.testing.assert_allclose(still, plain, rtol=1e-5, atol=1e-6)
  train = jax.jit(lambda key: network.apply(params, x, key=key, features=True))
  one, two = train(jax.random.key(0)), train(jax.random.key(1))
  assert 0 < np.mean(one == 0) < 1  # channels of the coarsest features, each whole or not at all
  assert not np.array_equal(one, two)


def test_attention_gates_are_the_published_ones():
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))
  block = segmenter.Cbam(ratio=4)
  params = block.init(jax.random.key(1), x)["params"]
  out = block.apply({"params": params}, x)
  # Woo et al. 2018, eq. 2: one MLP for the mean and the maximum over the picture, sigmoid of the sum.
  mlp = lambda v: np.maximum(v @ params["squeeze"]["kernel"], 0) @ params["excite"]["kernel"]  # noqa: E731
  channel = 1 / (1 + np.exp(-(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))))
  gated = np.asarray(x * channel[:, None, None])
  # eq. 3: a 7x7 convolution of mean and maximum over the channels.
  maps = np.pad(np.stack([gated.mean(-1), gated.max(-1)], -1), ((0, 0), (3, 3), (3, 3), (0, 0)))
  kernel = np.asarray(params["where"]["kernel"])[..., 0]
  where = np.array([[[np.sum(maps[b, i : i + 7, j : j + 7] * kernel) for j in range(6)] for i in range(5)] for b in range(2)])
  np.testing.assert_allclose(out, gated / (1 + np.exp(-where))[..., None], rtol=1e-4, atol=1e-5)


def test_the_companion_network_has_its_published_size():
  network = models.build(
    {
      "name": "segmenter",
      "widths": (64, 128, 256, 512),
      "bottleneck": (640, 768, 896, 1024),
      "patch": 1,
      "norm": "instance",
      "attention": "cbam",
      "dropout": 0.0,
    }
  )
  x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  params = jax.eval_shape(lambda: network.init(jax.random.key(0), x))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(64.8, abs=0.1)
  assert jax.eval_shape(network.apply, params, x).shape == (1, 256, 256, 1)


def test_instance_norm_forgets_the_brightness_of_each_channel():
  block = segmenter.Block(8, "instance", "none", 0.0, "float32")
  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  params = block.init(jax.random.key(1), x, False)["params"]
  out = block.apply({"params": params}, x, False)
  # ReLU of numbers of mean 0 and variance 1 over the picture, in every channel.
  assert np.all(np.asarray(out).reshape(64, 8).max(0) > 0)
  kernel = params["Conv_0"]["kernel"]
  louder = {**params, "Conv_0": {"kernel": kernel * jnp.linspace(1, 5, 8)}}
  np.testing.assert_allclose(block.apply({"params": louder}, x, False), out, atol=2e-3)


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"widths": ()}, "needs positive widths and bottleneck"),
    ({"bottleneck": (0,)}, "needs positive widths and bottleneck"),
    ({"patch": 4}, "'patch' of the segmenter is 4; use one of \\(1, 2\\)"),
    ({"norm": "batch"}, "'norm' of the segmenter is 'batch'; use one of"),
    ({"attention": "vit"}, "use one of \\('none', 'cbam'\\)"),
    ({"dropout": -0.1}, "use at least 0, less than 1"),
  ],
)
def test_bad_settings_are_answered_in_a_sentence(settings, words):
  with pytest.raises(ValueError, match=words):
    models.build({**TINY, **settings})


def test_bad_sizes_are_answered_in_a_sentence():
  with pytest.raises(ValueError, match="cannot take 20x24 pixels: .* multiples of 8, for instance 16x24"):
    models.build(TINY).check_size(20, 24)
