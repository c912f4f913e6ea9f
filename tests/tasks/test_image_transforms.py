"""Image transforms of the training step: exact crops, flips and averages, degradations of known strength, differentiability."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax.tasks import image_transforms
from tests import superres_stage

OFF = {"probability": 1.0, "blur": 0.0, "noise": 0.0, "compression": 0.0}


def test_crops_are_parts_of_their_image_and_flips_keep_the_pixels():
  pair = jnp.arange(6 * 8 * 4, dtype=jnp.float32).reshape(6, 8, 4)
  crops = np.asarray(image_transforms.random_crops(jax.random.key(0), pair, 5, 40))
  corners = {(int(c[0, 0, 0]) // 4 // 8, int(c[0, 0, 0]) // 4 % 8) for c in crops}
  assert corners == {(y, x) for y in range(2) for x in range(4)}  # every place, and no other
  for c in crops:
    y, x = divmod(int(c[0, 0, 0]) // 4, 8)
    np.testing.assert_array_equal(c, pair[y : y + 5, x : x + 5])
  square = pair[:, :6]
  turned = jax.vmap(image_transforms.rotate_or_flip, (0, None))(jax.random.split(jax.random.key(1), 100), square)
  eight = {np.rot90(m, k).tobytes() for m in (square, square[:, ::-1]) for k in range(4)}
  assert {np.asarray(t).tobytes() for t in turned} == eight


def test_downscaling_is_the_area_average_in_8_bit_steps():
  pixels = np.array([0, 0, 255, 254, 10, 13, 20, 20], np.float32).reshape(1, 2, 4, 1)
  low = image_transforms.downscale(pixels / 127.5 - 1, 2)
  # (0 + 0 + 10 + 13) / 4 = 5.75 and (255 + 254 + 20 + 20) / 4 = 137.25
  np.testing.assert_allclose((low[0, 0, :, 0] + 1) * 127.5, [6, 137], atol=1e-4)
  with pytest.raises(ValueError, match="multiples of 3"):
    image_transforms.downscale(pixels, 3)


def test_each_degradation_does_what_it_says_and_none_does_nothing():
  low = image_transforms.downscale(jnp.asarray(superres_stage.eyes(1)["image"], jnp.float32) / 127.5 - 1, 1)
  low = jnp.concatenate([low, low[..., :1]], -1)[0]
  flat = jnp.full((32, 32, 4), 0.2)
  draws = jax.random.split(jax.random.key(0), 32)

  def degraded(pair, **options):
    return np.asarray(jax.jit(jax.vmap(lambda key: image_transforms.degrade(key, pair, {**OFF, **options})))(draws))

  np.testing.assert_allclose(degraded(low), np.stack([low] * 32), atol=1e-6)
  half = degraded(low, noise=50.0, probability=0.5)
  alone = [np.array_equal(x, low) for x in half]
  assert 5 < sum(alone) < 27
  noise = degraded(flat, noise=8.0).std(axis=(1, 2)) * 127.5
  assert noise.max() < 9 and noise.min() < 1 and 3 < noise.mean() < 5  # strengths are uniform from 0 to 8
  np.testing.assert_allclose(noise[:, 0], noise[:, 2], rtol=0.3, atol=0.3)  # one for the photograph, another for the tree
  assert np.abs(noise[:, 0] - noise[:, 3]).max() > 3
  steps = np.abs(np.diff(degraded(low, blur=1.0), axis=1)).mean(axis=(1, 2, 3))
  assert steps.min() < 0.8 * np.abs(np.diff(low, axis=0)).mean() >= 0.79 * steps.max()
  np.testing.assert_allclose(degraded(flat, blur=1.0), np.stack([flat] * 32), atol=4e-3)
  # Rounding coefficients of an orthonormal transform to multiples of s (1 + f + g) moves each by at most half of that.
  packed = image_transforms._compress(low[..., :3], jnp.float32(0.05))
  bound = np.mean([(0.05 * (1 + f + g) / 2) ** 2 for f in range(8) for g in range(8)])
  assert 0 < jnp.mean(jnp.square(packed - low[..., :3])) <= bound
  np.testing.assert_allclose(image_transforms._compress(low[..., :3], jnp.float32(0)), low[..., :3], atol=1e-4)


def test_augmentation_changes_pairs_alike_and_passes_gradients():
  c = superres_stage.config().discriminator_augment
  pair = jax.random.uniform(jax.random.key(0), (16, 16, 4), minval=-1, maxval=1)
  changed = functools.partial(image_transforms.augment, jax.random.key(5), options=c)
  still = {**c, "flip": False, "translation": 0.0}
  tree = image_transforms.augment(jax.random.key(5), pair, still)[..., 3]
  np.testing.assert_array_equal(tree, pair[..., 3])  # a tree has no colour
  assert jnp.abs(changed(pair)[..., :3] - pair[..., :3]).max() > 0.1
  none = {**still, "brightness": 0.0, "saturation": 0.0, "contrast": 0.0}
  np.testing.assert_allclose(image_transforms.augment(jax.random.key(5), pair, none), pair, atol=1e-6)
  # Affine in the pair with the same key: the change of a difference is the difference of the changes.
  other = pair[::-1]
  twice = 2 * changed((pair + other) / 2)
  np.testing.assert_allclose(changed(pair) + changed(other), twice, atol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(changed(x)[..., 3]))(pair)
  shown = np.asarray(gradient[..., 3])
  assert set(np.unique(shown)) <= {0.0, 1.0} and shown.mean() > 0.7  # all but what moved out
