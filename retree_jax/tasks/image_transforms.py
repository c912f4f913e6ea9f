"""Image transforms inside the compiled training step: crops, flips, downscaling, degradation, discriminator augmentation.

A *pair* is [H, W, 4] float32: RGB and tree coverage, both in [-1, 1]. All functions except `downscale` take one image and one
key; batches are formed with `jax.vmap`, so that an example's randomness does not depend on its neighbours in the batch.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from retree_jax.models import scaling

_BLOCK = 8  # side of a compression block in pixels, as in JPEG


def random_crops(key: jax.Array, image: jax.Array, size: int, count: int) -> jax.Array:
  """`count` square crops at random positions, [H, W, C] -> [count, size, size, C]; they may overlap."""
  limit = jnp.array([image.shape[0] - size + 1, image.shape[1] - size + 1])
  corners = jax.random.randint(key, (count, 2), 0, limit)
  sizes = (size, size, image.shape[-1])
  return jax.vmap(lambda corner: jax.lax.dynamic_slice(image, (*corner, 0), sizes))(corners)


def rotate_or_flip(key: jax.Array, image: jax.Array) -> jax.Array:
  """A random one of the eight symmetries of a square (of the four that preserve the shape, if the image is not square).

  They move pixels without interpolation; a rotation by another angle would blur the training target.
  """
  vertical, horizontal, transpose = jax.random.bernoulli(key, 0.5, (3,))
  image = jnp.where(vertical, image[::-1], image)
  image = jnp.where(horizontal, image[:, ::-1], image)
  return jnp.where(transpose, image.swapaxes(0, 1), image) if image.shape[0] == image.shape[1] else image


def downscale(images: jax.Array, factor: int) -> jax.Array:
  """Area averages rounded to 8-bit levels, as in a stored image: [B, H, W, C] -> [B, H / factor, W / factor, C].

  Args:
    images: in [-1, 1].
    factor: pixels averaged along each axis.

  Raises:
    ValueError: height or width is not divisible by `factor`.
  """
  h, w = images.shape[1:3]
  if h % factor or w % factor:
    raise ValueError(f"Images of {h}x{w} pixels cannot be downscaled by {factor}: use multiples of {factor}.")
  # Means of whole numbers are exact, so that rounding does not depend on how the compiler fuses the operations.
  levels = rearrange(scaling.to_levels(images).round(), "b (h p) (w q) c -> b h p w q c", p=factor, q=factor)
  return scaling.to_signed(levels.mean(axis=(2, 4)).round())


def degrade(key: jax.Array, low: jax.Array, options: Mapping[str, float]) -> jax.Array:
  """Degrades a low-resolution pair to resemble generated ones: [h, w, 4] in [-1, 1] -> the same.

  Applies blur, noise and compression of random strengths up to the given ones, drawn separately for tree and photograph, which
  come from two models. With probability 1 - options["probability"] the pair is returned unchanged.

  Args:
    key: PRNG key.
    low: the pair.
    options: "probability"; "blur", largest standard deviation of a Gaussian in low-resolution pixels; "noise", largest standard
      deviation in 8-bit grey levels; "compression", largest quantisation step in grey levels of the photograph's 8x8 cosine
      coefficients (0 disables each of the three).
  """
  keys = jax.random.split(key, 4)
  strengths = jax.random.uniform(keys[0], (5,))
  degraded = low
  if options["blur"]:
    sigma = options["blur"] * strengths[jnp.array([0, 0, 0, 1])]  # per channel
    degraded = _blur(degraded, sigma)
  if options["noise"]:
    sigma = options["noise"] / scaling.HALF_RANGE * strengths[jnp.array([2, 2, 2, 3])]
    degraded = degraded + sigma * jax.random.normal(keys[1], low.shape)
  if options["compression"]:
    step = options["compression"] / scaling.HALF_RANGE * strengths[4]
    degraded = degraded.at[..., :3].set(_compress(degraded[..., :3], step))
  degraded = scaling.to_signed(scaling.to_levels(jnp.clip(degraded, -1.0, 1.0)).round())
  return jnp.where(jax.random.bernoulli(keys[2], options["probability"]), degraded, low)


def augment(key: jax.Array, pair: jax.Array, options: Mapping[str, float]) -> jax.Array:
  """Differentiable augmentation of a discriminator's input (Zhao et al. 2020), [H, W, 4] -> [H, W, 4].

  Applied to real and generated pairs alike, it keeps a discriminator from memorising a few dozen training images. Gradients
  pass through it, so the generator does not learn the augmentation itself.

  Args:
    key: PRNG key; the same one for a real pair and its generated counterpart.
    pair: the pair.
    options: "flip", whether to rotate and flip; "translation", largest shift as a fraction of the side, filled with black;
      "brightness", largest offset; "saturation" and "contrast", largest relative change. Colour changes apply to the photograph
      only.
  """
  keys = jax.random.split(key, 3)
  brightness, saturation, contrast = jax.random.uniform(keys[0], (3,), minval=-1.0, maxval=1.0)
  colour = pair[..., :3] + options["brightness"] * brightness
  grey = colour.mean(axis=-1, keepdims=True)
  colour = grey + (1.0 + options["saturation"] * saturation) * (colour - grey)
  mean = colour.mean()
  pair = pair.at[..., :3].set(mean + (1.0 + options["contrast"] * contrast) * (colour - mean))
  if options["flip"]:
    pair = rotate_or_flip(keys[1], pair)
  reach = [int(options["translation"] * size) for size in pair.shape[:2]]
  if any(reach):
    padded = jnp.pad(pair, (*((r, r) for r in reach), (0, 0)), constant_values=-1.0)
    corner = jax.random.randint(keys[2], (2,), 0, 2 * jnp.array(reach) + 1)
    pair = jax.lax.dynamic_slice(padded, (*corner, 0), pair.shape)
  return pair


def _blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
  """Gaussian filter of 5 taps with standard deviation `sigma` [C] in pixels, [h, w, C], with replicated borders."""
  taps = jnp.exp(-0.5 * jnp.square(jnp.arange(-2, 3)[:, None] / jnp.maximum(sigma, 1e-3)))
  taps = taps / taps.sum(axis=0)
  for axis in (0, 1):
    pad = [(0, 0)] * 3
    pad[axis] = (2, 2)
    padded = jnp.pad(x, pad, mode="edge")
    x = sum(taps[i] * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(5))
  return x


def _compress(x: jax.Array, step: jax.Array) -> jax.Array:
  """Quantises the 8x8 cosine coefficients of an image [h, w, C]; a border narrower than a block is unchanged.

  As JPEG without its tables and colour space: the quantisation step grows linearly with the frequency, from `step`.
  """
  h, w = (size // _BLOCK for size in x.shape[:2])
  k = np.arange(_BLOCK)
  basis = np.sqrt(2 / _BLOCK) * np.cos(np.pi * (2 * k + 1) * k[:, None] / (2 * _BLOCK))
  basis[0] /= np.sqrt(2)
  steps = jnp.maximum(step, 1e-6) * (1.0 + (k[:, None] + k))[:, :, None]
  blocks = rearrange(x[: h * _BLOCK, : w * _BLOCK], "(h i) (w j) c -> h i w j c", i=_BLOCK, j=_BLOCK)
  coefficients = jnp.einsum("fi,hiwjc,gj->hwfgc", basis, blocks, basis)
  coefficients = jnp.round(coefficients / steps) * steps
  blocks = jnp.einsum("fi,hwfgc,gj->hiwjc", basis, coefficients, basis)
  return x.at[: h * _BLOCK, : w * _BLOCK].set(rearrange(blocks, "h i w j c -> (h i) (w j) c"))
