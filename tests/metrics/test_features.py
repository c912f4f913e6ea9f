"""Features of pictures: shapes, trees of one channel, batches, and what scattering knows and does not know."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from retree_jax.metrics import features
from retree_jax.metrics.features import Extractor


def _pictures(n=5, side=40, channels=3, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


MEANS = Extractor("means", lambda images: images.mean((1, 2)))


def test_features_are_of_pictures_in_minus_one_to_one_whatever_the_batch():
  pictures = _pictures(7)
  wanted = pictures.mean((1, 2)) / 127.5 - 1
  for size in (1, 3, 7, 32):
    np.testing.assert_allclose(features.extract(pictures, MEANS, size), wanted, atol=1e-5)
  np.testing.assert_allclose(features.extract(list(pictures), MEANS, 3), wanted, atol=1e-5)


def test_trees_are_repeated_to_three_channels():
  tree = _pictures(4, channels=1)
  found = features.extract(tree, MEANS, 3)
  assert found.shape == (4, 3)
  np.testing.assert_allclose(found, np.repeat(tree.mean((1, 2)) / 127.5 - 1, 3, 1), atol=1e-5)


def test_scattering_is_finite_and_of_its_size():
  found = features.extract(_pictures(3), features.extractor("scattering"))
  assert found.shape == (3, 162) and found.dtype == np.float32
  flat = features.extract(np.zeros((2, 33, 47, 1), np.uint8), features.extractor("scattering"))
  assert np.isfinite(flat).all()


def test_wavelets_have_mean_zero_and_choose_their_orientation():
  constant = features._wavelets(jnp.ones((1, 32, 32, 1)))
  assert float(jnp.abs(constant).max()) < 1e-4
  y, x = np.mgrid[:64, :64]
  for i in range(6):
    angle = np.pi * i / 6
    wave = np.cos(0.6 * np.pi * (x * np.cos(angle) + y * np.sin(angle)))
    energy = features._wavelets(jnp.asarray(wave[None, ..., None], jnp.float32))[0, 16:-16, 16:-16, 0].mean((0, 1))
    assert int(jnp.argmax(energy)) == i


def test_scattering_tells_textures_apart_that_share_a_histogram():
  rng = np.random.default_rng(0)
  smooth = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 2, mode="wrap")
  levels = np.argsort(np.argsort(smooth.ravel())).reshape(64, 64) // 16
  shuffled = rng.permutation(levels.ravel()).reshape(64, 64)
  moved = np.roll(levels, (13, 20), (0, 1))
  pictures = np.repeat(np.stack([levels, moved, shuffled])[..., None], 3, -1).astype(np.uint8)
  energies = features.extract(pictures, features.extractor("scattering"))[:, -84:]
  assert np.linalg.norm(energies[0] - energies[2]) > 5 * np.linalg.norm(energies[0] - energies[1])


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda: features.extract([], MEANS), "no images"),
    (lambda: features.extract(_pictures() / 255, MEANS), "uint8"),
    (lambda: features.extract(_pictures(channels=2), MEANS), "1 or 3"),
    (lambda: features.extract([_pictures()[0], _pictures(side=50)[0]], MEANS), "differ in size"),
    (lambda: features.extract(_pictures(), Extractor("maps", lambda images: images)), "pool over space"),
    (lambda: features.extract(_pictures(), Extractor("bad", lambda images: images.mean((1, 2)) / 0)), "not finite"),
    (lambda: features.extract(_pictures(side=16), features.extractor("scattering")), "at least 32"),
    (lambda: features.extractor("resnet"), "unknown"),
    (lambda: features.extractor("scattering:fast"), "unknown"),
    (lambda: features.extractor("inception:fast", "weights.npz"), "unknown"),
    (lambda: features.extractor("inception"), "weights file"),
    (lambda: features.extractor("vgg19"), "weights file"),
  ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    call()
  assert "\n" not in str(caught.value)


def test_vgg_features_from_a_file(real_eyes):
  paths = sorted((real_eyes / "weights").glob("vgg19*.npz"))
  if not paths:
    pytest.skip("no VGG19 weights beside the data")
  extractor = features.extractor("vgg19", paths[0])
  found = features.extract(_pictures(2), extractor)
  assert found.shape == (2, 64 + 128 + 256) and "relu3_4" in extractor.name and "relu4_4" not in extractor.name


def test_vgg_features_do_not_depend_on_the_scale_of_the_weights(tmp_path):
  rng = np.random.default_rng(0)
  found = []
  for scale in (1.0, 50.0):
    layers = {
      "block1_conv1/kernel": rng.normal(0, 0.01, (3, 3, 3, 64)),
      "block1_conv1/bias": np.zeros(64),
      "block1_conv2/kernel": scale * rng.normal(0, 0.06, (3, 3, 64, 64)),
      "block1_conv2/bias": np.zeros(64),
    }
    np.savez(tmp_path / f"{scale}.npz", **{k: v.astype(np.float32) for k, v in layers.items()})
    found.append(features.extract(_pictures(3), features.extractor("vgg19", tmp_path / f"{scale}.npz")))
    rng = np.random.default_rng(0)
  np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
  assert 0.05 < np.abs(found[0]).mean() < 20
