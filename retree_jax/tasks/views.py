"""What super-resolution is shown: crops and turns of a pair, its low-resolution copy, and what its
discriminator sees of it.

A *pair* is [H, W, 4] float32: RGB and tree coverage, both in [-1, 1]. All functions but `shrink` are for one
pair and one key; `jax.vmap` makes them batches, so that no example's draw depends on its neighbours.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 8  # pixels along the side of a compression block, as in JPEG


def crop(key: jax.Array, pair: jax.Array, size: int, count: int) -> jax.Array:
  """`count` square crops at random places, [H, W, C] -> [count, size, size, C]; they may overlap."""
  room = jnp.array([pair.shape[0] - size + 1, pair.shape[1] - size + 1])
  corners = jax.random.randint(key, (count, 2), 0, room)
  sizes = (size, size, pair.shape[-1])
  return jax.vmap(lambda corner: jax.lax.dynamic_slice(pair, (*corner, 0), sizes))(corners)


def turn(key: jax.Array, pair: jax.Array) -> jax.Array:
  """One of the eight turns and mirrors of a square at random (of the four that fit, if it is not square).

  They lose nothing, whereas a rotation by any other angle would blur the pair that is to be learnt.
  """
  up, left, over = jax.random.bernoulli(key, 0.5, (3,))
  pair = jnp.where(up, pair[::-1], pair)
  pair = jnp.where(left, pair[:, ::-1], pair)
  return jnp.where(over, pair.swapaxes(0, 1), pair) if pair.shape[0] == pair.shape[1] else pair


def shrink(pairs: jax.Array, factor: int) -> jax.Array:
  """Area averages in 8-bit steps, as a stored picture has them: [B, H, W, C] -> [B, H / factor, W / factor,
  C].

  Raises:
    ValueError: height or width is not divisible by `factor`.
  """
  b, h, w, c = pairs.shape
  if h % factor or w % factor:
    raise ValueError(f"Pairs of {h}x{w} pixels cannot be shrunk by {factor}: use multiples of {factor}.")
  # Means of whole numbers are exact, so that one half is rounded alike whatever the compiler fuses.
  levels = jnp.round((pairs + 1.0) * 127.5).reshape(b, h // factor, factor, w // factor, factor, c)
  return jnp.round(levels.mean(axis=(2, 4))) / 127.5 - 1.0


def degrade(key: jax.Array, low: jax.Array, options: Mapping[str, float]) -> jax.Array:
  """A low-resolution pair made a little worse, as generated ones are: [h, w, 4] in [-1, 1] -> the same.

  Blur, noise and compression of random strengths up to the given ones; the tree and the photograph have
  strengths of their own, as two models make them. With probability 1 - options.probability the pair is left
  alone, so that clean inputs stay in range.

  Args:
    key: PRNG key.
    low: the pair.
    options: "probability"; "blur", greatest standard deviation of the Gaussian in low-resolution pixels;
      "noise", greatest standard deviation in 8-bit grey levels; "compression", greatest step in grey levels
      to which the photograph's 8x8 cosine coefficients are rounded (0 switches each of the three off).
  """
  keys = jax.random.split(key, 4)
  strengths = jax.random.uniform(keys[0], (5,))
  worse = low
  if options["blur"]:
    sigma = options["blur"] * strengths[jnp.array([0, 0, 0, 1])]  # per channel
    worse = _blur(worse, sigma)
  if options["noise"]:
    sigma = options["noise"] / 127.5 * strengths[jnp.array([2, 2, 2, 3])]
    worse = worse + sigma * jax.random.normal(keys[1], low.shape)
  if options["compression"]:
    step = options["compression"] / 127.5 * strengths[4]
    worse = worse.at[..., :3].set(_compress(worse[..., :3], step))
  worse = _round8(jnp.clip(worse, -1.0, 1.0))
  return jnp.where(jax.random.bernoulli(keys[2], options["probability"]), worse, low)


def augment(key: jax.Array, pair: jax.Array, options: Mapping[str, float]) -> jax.Array:
  """Differentiable augmentation of what a discriminator sees (Zhao et al. 2020), [H, W, 4] -> [H, W, 4].

  With real and generated pairs changed alike, a discriminator of a few dozen eyes cannot learn them by heart,
  and the generator does not learn the changes, as gradients pass through them.

  Args:
    key: PRNG key; the same one for a real pair and its generated counterpart.
    pair: the pair.
    options: "flip", whether to turn and mirror; "translation", greatest shift as a share of the side, black
      moves in; "brightness", greatest addition; "saturation" and "contrast", greatest relative change. Colour
      acts on the photograph alone.
  """
  keys = jax.random.split(key, 3)
  brightness, saturation, contrast = jax.random.uniform(keys[0], (3,), minval=-1.0, maxval=1.0)
  colour = pair[..., :3] + options["brightness"] * brightness
  grey = colour.mean(axis=-1, keepdims=True)
  colour = grey + (1.0 + options["saturation"] * saturation) * (colour - grey)
  mean = colour.mean()
  pair = pair.at[..., :3].set(mean + (1.0 + options["contrast"] * contrast) * (colour - mean))
  if options["flip"]:
    pair = turn(keys[1], pair)
  reach = [int(options["translation"] * size) for size in pair.shape[:2]]
  if any(reach):
    padded = jnp.pad(pair, (*((r, r) for r in reach), (0, 0)), constant_values=-1.0)
    corner = jax.random.randint(keys[2], (2,), 0, 2 * jnp.array(reach) + 1)
    pair = jax.lax.dynamic_slice(padded, (*corner, 0), pair.shape)
  return pair


def _round8(x: jax.Array) -> jax.Array:
  return jnp.round((x + 1.0) * 127.5) / 127.5 - 1.0


def _blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
  """Gaussian of 5 taps with standard deviation `sigma` [C] in pixels, [h, w, C]; the border repeats."""
  taps = jnp.exp(-0.5 * jnp.square(jnp.arange(-2, 3)[:, None] / jnp.maximum(sigma, 1e-3)))
  taps = taps / taps.sum(axis=0)
  for axis in (0, 1):
    pad = [(0, 0)] * 3
    pad[axis] = (2, 2)
    padded = jnp.pad(x, pad, mode="edge")
    x = sum(taps[i] * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(5))
  return x


def _compress(x: jax.Array, step: jax.Array) -> jax.Array:
  """8x8 cosine coefficients rounded to multiples of `step`, [h, w, C]; a border narrower than a block is left.

  JPEG without its tables and colour space: the coarseness grows with the frequency, as there.
  """
  h, w = (size // _BLOCK for size in x.shape[:2])
  k = np.arange(_BLOCK)
  basis = np.sqrt(2 / _BLOCK) * np.cos(np.pi * (2 * k + 1) * k[:, None] / (2 * _BLOCK))
  basis[0] /= np.sqrt(2)
  steps = jnp.maximum(step, 1e-6) * (1.0 + (k[:, None] + k))[:, :, None]
  blocks = x[: h * _BLOCK, : w * _BLOCK].reshape(h, _BLOCK, w, _BLOCK, -1)
  coefficients = jnp.einsum("fi,hiwjc,gj->hwfgc", basis, blocks, basis)
  coefficients = jnp.round(coefficients / steps) * steps
  blocks = jnp.einsum("fi,hwfgc,gj->hiwjc", basis, coefficients, basis)
  return x.at[: h * _BLOCK, : w * _BLOCK].set(blocks.reshape(h * _BLOCK, w * _BLOCK, -1))
