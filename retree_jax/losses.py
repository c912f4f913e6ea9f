"""Losses of all stages: one number per example, [B] float32, for arguments of any floating-point type.

Conventions:

* The first axis is the batch, the last one the channels. A loss averages over all axes but the batch, so that the caller
  decides how examples are weighted (label source, min-SNR weight, padding of the last batch).
* An argument named `logits` is a network's output before the sigmoid, one named `probabilities` after it. No function accepts
  both: training with probabilities in place of logits raises no error but works badly, a common mistake with clDice.
* `mask` is an optional weight per pixel ([B, H, W, 1], broadcast over the channels, bool or >= 0; 1 inside the field of view).
  Means and sums are weighted; an example with an empty mask has loss 0, not NaN.

Nothing of this package is imported, so the losses can be used anywhere.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5  # as scikit-image, which truncates the Gaussian at 3.5 sigma: int(3.5 * 1.5 + 0.5) = 5


def _pair(a: Array, b: Array, names: str) -> tuple[Array, Array]:
  """Both arguments in float32; ValueError if their shapes differ, since broadcasting would hide a mistake."""
  a, b = jnp.asarray(a), jnp.asarray(b)
  if a.shape != b.shape:
    raise ValueError(f"{names} must have the same shape, got {a.shape} and {b.shape}; resize one of them.")
  if a.ndim < 2:
    raise ValueError(f"{names} need a batch axis and at least one more, got {a.shape}; add the batch axis.")
  return a.astype(jnp.float32), b.astype(jnp.float32)


def _weights(mask: Array | None, shape: tuple[int, ...]) -> Array:
  """The mask as float32 weights of the given shape; ones if it is None."""
  if mask is None:
    return jnp.ones(shape, jnp.float32)
  mask = jnp.asarray(mask)
  if mask.ndim != len(shape) or any(m not in (1, s) for m, s in zip(mask.shape, shape, strict=True)):
    raise ValueError(f"mask {mask.shape} does not fit the values {shape}; give [B, H, W, 1] of that size.")
  return jnp.broadcast_to(mask.astype(jnp.float32), shape)


def _sum(values: Array, mask: Array | None) -> Array:
  """Weighted sum over all axes but the first."""
  values = values if mask is None else values * _weights(mask, values.shape)
  return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _mean(values: Array, mask: Array | None = None) -> Array:
  """Weighted mean over all axes but the first; 0 where the weights of an example sum to 0."""
  axes = tuple(range(1, values.ndim))
  if mask is None:
    return jnp.mean(values, axis=axes)
  weights = _weights(mask, values.shape)
  total = jnp.sum(weights, axis=axes)
  # Values outside the mask may be NaN, and 0 * NaN is NaN, so they are replaced besides being weighted with 0.
  return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights, axis=axes) / jnp.where(total > 0, total, 1.0)


# ------------------------------------------------------------------------------------------ pixels and noise


def mse(prediction: Array, target: Array, mask: Array | None = None) -> Array:
  """Mean squared error, [B, ...] x [B, ...] -> [B].

  Raises:
    ValueError: the shapes differ (as in every function of this file).
  """
  prediction, target = _pair(prediction, target, "prediction and target")
  return _mean(jnp.square(prediction - target), mask)


def l1(prediction: Array, target: Array, mask: Array | None = None) -> Array:
  """Mean absolute error, [B, ...] x [B, ...] -> [B]."""
  prediction, target = _pair(prediction, target, "prediction and target")
  return _mean(jnp.abs(prediction - target), mask)


def noise_loss(
  prediction: Array, target: Array, mse_weight: float = 1.0, l1_weight: float = 1.0, mask: Array | None = None
) -> Array:
  """The denoiser's loss, [B]: mse_weight * mean squared + l1_weight * mean absolute error.

  With both weights 1, this is the loss of Alimanov & Islam 2023 (mean of |e| + e^2 for e = prediction - noise); with
  l1_weight=0, the simple loss of Ho et al. 2020, eq. 14. `target` is the quantity that the network predicts: noise, x0 or v.
  """
  prediction, target = _pair(prediction, target, "prediction and target")
  error = prediction - target
  return _mean(mse_weight * jnp.square(error) + l1_weight * jnp.abs(error), mask)


def psnr(prediction: Array, target: Array, data_range: float = 2.0, mask: Array | None = None) -> Array:
  """Peak signal-to-noise ratio in dB, [B]: 10 log10(data_range^2 / MSE); infinite for equal images.

  `data_range` is the largest possible value minus the smallest: 2 for images in [-1, 1], 1 for [0, 1].
  """
  return 10.0 * (2.0 * jnp.log10(jnp.float32(data_range)) - jnp.log10(mse(prediction, target, mask)))


def f1_score(prediction: Array, target: Array, mask: Array) -> Array:
  """F1 score (Dice coefficient) of boolean masks inside a boolean mask, [B, H, W, 1] each -> [B]; 1 where all are empty."""
  axes = (1, 2, 3)
  both = jnp.sum(prediction & target & mask, axes)
  total = jnp.sum(prediction & mask, axes) + jnp.sum(target & mask, axes)
  return jnp.where(total > 0, 2.0 * both / jnp.maximum(total, 1), 1.0)


def _gaussian_window() -> np.ndarray:
  x = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
  window = np.exp(-0.5 * (x / _SSIM_SIGMA) ** 2)
  return (window / window.sum()).astype(np.float32)


def _blur_valid(x: Array) -> Array:
  """Separable 11-tap Gaussian filter of axes 1 and 2 without padding: [N, H, W, ...] -> [N, H - 10, W - 10, ...].

  A sum of shifted slices instead of a convolution, because accelerators run convolutions in reduced precision by default
  (variances are differences of nearly equal numbers here), and XLA's one-channel convolutions are slow on CPUs.
  """
  for axis in (1, 2):
    size = x.shape[axis] - 2 * _SSIM_RADIUS
    window = enumerate(_gaussian_window())
    x = sum(float(w) * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i, w in window)
  return x


def ssim(prediction: Array, target: Array, data_range: float = 2.0, mask: Array | None = None) -> Array:
  """Structural similarity (Wang et al. 2004, eq. 13), [B, H, W, C] x [B, H, W, C] -> [B] in [-1, 1].

  Equals `skimage.metrics.structural_similarity(..., gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
  data_range=data_range, channel_axis=-1)`: Gaussian window of 11 pixels, mean over the pixels whose window lies inside the
  image, mean over channels. `mask` weights the window centres.

  Raises:
    ValueError: shapes differ, or the image is smaller than the window.
  """
  x, y = _pair(prediction, target, "prediction and target")
  r = _SSIM_RADIUS
  if x.ndim != 4 or min(x.shape[1:3]) <= 2 * r:
    raise ValueError(
      f"SSIM needs [B, H, W, C] images of at least {2 * r + 1} x {2 * r + 1} pixels, got {x.shape}; use larger images."
    )
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  mean_x, mean_y = _blur_valid(x), _blur_valid(y)
  square = _blur_valid(x * x + y * y) - mean_x * mean_x - mean_y * mean_y  # var(x) + var(y)
  product = _blur_valid(x * y) - mean_x * mean_y
  similarity = (2 * mean_x * mean_y + c1) * (2 * product + c2) / ((mean_x * mean_x + mean_y * mean_y + c1) * (square + c2))
  return _mean(similarity, None if mask is None else jnp.asarray(mask)[:, r:-r, r:-r])


def ssim_loss(prediction: Array, target: Array, data_range: float = 2.0, mask: Array | None = None) -> Array:
  """1 - SSIM, [B] in [0, 2]; 0 for equal images (and for an empty mask)."""
  x, y = _pair(prediction, target, "prediction and target")
  similarity = ssim(x, y, data_range, mask)
  if mask is None:
    return 1.0 - similarity
  r = _SSIM_RADIUS
  inside = _sum(_weights(mask, (*x.shape[:3], 1))[:, r:-r, r:-r], None)
  return jnp.where(inside > 0, 1.0 - similarity, 0.0)


def perceptual(
  features_a: Mapping[str, Array], features_b: Mapping[str, Array], weights: Mapping[str, float] | None = None
) -> Array:
  """Sum over layers of weight * MSE of two feature dictionaries (name -> [B, h, w, c]), [B].

  The content loss of Johnson et al. 2016, eq. 2. `weights` has one number per layer to be used; by default, all layers have
  weight 1.

  Raises:
    ValueError: the dictionaries have different layers, or a weight is for a layer that they lack.
  """
  if set(features_a) != set(features_b) or not features_a:
    raise ValueError(
      "both feature dictionaries must hold the same layers (at least one), got "
      f"{sorted(features_a)} and {sorted(features_b)}; extract the same layers from both."
    )
  weights = dict.fromkeys(features_a, 1.0) if weights is None else weights
  if missing := sorted(set(weights) - set(features_a)):
    raise ValueError(f"weights name the layers {missing}, but the features are {sorted(features_a)}; extract those layers too.")
  return sum(weight * mse(features_a[name], features_b[name]) for name, weight in weights.items())


# --------------------------------------------------------------------------------------- trees, from logits


def bce_with_logits(logits: Array, target: Array, positive_weight: float = 1.0, mask: Array | None = None) -> Array:
  """Binary cross-entropy of logits [B, ...] and targets in [0, 1] (coverage allowed), [B], in nats per pixel.

  `positive_weight` multiplies the vessel term, because only about a tenth of the pixels are vessel. Numerically stable for
  logits of any size.
  """
  logits, target = _pair(logits, target, "logits and target")
  # -log sigmoid(l) = softplus(-l) and -log(1 - sigmoid(l)) = softplus(l)
  vessel, background = jax.nn.softplus(-logits), jax.nn.softplus(logits)
  return _mean(positive_weight * target * vessel + (1.0 - target) * background, mask)


def dice_with_logits(logits: Array, target: Array, smooth: float = 1.0, mask: Array | None = None) -> Array:
  """Soft Dice loss 1 - (2 sum pt + s) / (sum p + sum t + s), p = sigmoid(logits), [B] in [0, 1] (Milletari et al. 2016, with
  unsquared terms)."""
  logits, target = _pair(logits, target, "logits and target")
  p = jax.nn.sigmoid(logits)
  return 1.0 - (2.0 * _sum(p * target, mask) + smooth) / (_sum(p, mask) + _sum(target, mask) + smooth)


def jaccard_with_logits(logits: Array, target: Array, smooth: float = 1.0, mask: Array | None = None) -> Array:
  """Soft Jaccard loss 1 - (sum pt + s) / (sum p + sum t - sum pt + s), p = sigmoid(logits), [B] in [0, 1]; the loss of
  CBAM-UNet (arXiv 2209.04234)."""
  logits, target = _pair(logits, target, "logits and target")
  p = jax.nn.sigmoid(logits)
  both = _sum(p * target, mask)
  return 1.0 - (both + smooth) / (_sum(p, mask) + _sum(target, mask) - both + smooth)


def _neighbours(x: Array, axis: int, combine: Callable[[Array, Array], Array]) -> Array:
  """`combine` (minimum or maximum) over each pixel and its two neighbours along one axis, with replicated borders."""
  pad = [(0, 0)] * x.ndim
  pad[axis] = (1, 1)
  padded, n = jnp.pad(x, pad, mode="edge"), x.shape[axis]
  first, last = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in (0, 2))
  return combine(combine(first, x), last)


def soft_skeleton(probabilities: Array, iterations: int) -> Array:
  """Differentiable skeleton of a tree in [0, 1], [B, H, W, 1] -> [B, H, W, 1] (Shit et al. 2021, algorithm 1).

  The skeleton collects the pixels that a morphological opening removes after each erosion; erosion is a minimum over 4
  neighbours, dilation a maximum over 8. A vessel of radius r needs r erosions, so `iterations` must be at least the largest
  vessel radius in pixels: with fewer, wide vessels are missing from the skeleton; more only take time. Vessels one or two
  pixels wide are their own skeleton.

  Raises:
    ValueError: not four axes, or a negative number of iterations.
  """
  x = jnp.asarray(probabilities).astype(jnp.float32)
  if x.ndim != 4 or iterations < 0:
    raise ValueError(
      "the soft skeleton needs trees [B, H, W, C] and iterations >= 0, "
      f"got {x.shape} and {iterations}; add the missing axes or raise the iterations."
    )

  def erode(y):
    return jnp.minimum(_neighbours(y, 1, jnp.minimum), _neighbours(y, 2, jnp.minimum))

  def residue(y, eroded):  # what an opening removes
    return jax.nn.relu(y - _neighbours(_neighbours(eroded, 1, jnp.maximum), 2, jnp.maximum))

  def step(carry, _):
    y, eroded, skeleton = carry
    y, eroded = eroded, erode(eroded)
    delta = residue(y, eroded)
    return (y, eroded, skeleton + jax.nn.relu(delta - skeleton * delta)), None

  eroded = erode(x)
  (_, _, skeleton), _ = jax.lax.scan(step, (x, eroded, residue(x, eroded)), length=iterations)
  return skeleton


def cldice_with_logits(
  logits: Array, target: Array, iterations: int = 10, smooth: float = 1.0, mask: Array | None = None
) -> Array:
  """Centreline Dice loss 1 - soft clDice, [B] in [0, 1] (Shit et al. 2021, eqs. 1-3), of logits and targets
  [B, H, W, 1] in [0, 1].

  clDice is the harmonic mean of topology precision, the fraction of the predicted skeleton inside the target, and topology
  sensitivity, the fraction of the target's skeleton inside the prediction. The paper trains with (1 - a) * Dice loss + a *
  this, a = 0.5, because centrelines do not determine the vessel width. `iterations`: see `soft_skeleton`; the paper's code uses
  3, which is too few for the arcades at 256 pixels and more.
  """
  logits, target = _pair(logits, target, "logits and target")
  p = jax.nn.sigmoid(logits)
  skeleton_p, skeleton_t = soft_skeleton(p, iterations), soft_skeleton(target, iterations)
  precision = (_sum(skeleton_p * target, mask) + smooth) / (_sum(skeleton_p, mask) + smooth)
  sensitivity = (_sum(skeleton_t * p, mask) + smooth) / (_sum(skeleton_t, mask) + smooth)
  return 1.0 - 2.0 * precision * sensitivity / (precision + sensitivity)


# ----------------------------------------------------------------------------------------------- adversarial


def _logits(logits: Array) -> Array:
  logits = jnp.asarray(logits).astype(jnp.float32)
  return logits[:, None] if logits.ndim == 1 else logits


def nonsaturating_generator(fake_logits: Array) -> Array:
  """-log D(fake), mean over the patch map, [B, ...] -> [B] (Goodfellow et al. 2014, section 3)."""
  return _mean(jax.nn.softplus(-_logits(fake_logits)))


def nonsaturating_discriminator(real_logits: Array, fake_logits: Array) -> Array:
  """-log D(real) - log(1 - D(fake)), each a mean over the patch map, [B] (Goodfellow et al. 2014, eq. 1)."""
  return _mean(jax.nn.softplus(-_logits(real_logits))) + _mean(jax.nn.softplus(_logits(fake_logits)))


def least_squares_generator(fake_scores: Array, real_target: float = 1.0) -> Array:
  """(D(fake) - real_target)^2, mean over the patch map, [B] (Mao et al. 2017, eq. 9, without the factor 1/2).

  The scores may be logits, or sigmoid(logits) as in the original's tree classifier.
  """
  return _mean(jnp.square(_logits(fake_scores) - real_target))


def least_squares_discriminator(
  real_scores: Array, fake_scores: Array, real_target: float = 1.0, fake_target: float = 0.0
) -> Array:
  """(D(real) - real_target)^2 + (D(fake) - fake_target)^2, means over the patch map, [B] (Mao et al. 2017, eq. 9, without the
  factor 1/2)."""
  return _mean(jnp.square(_logits(real_scores) - real_target)) + _mean(jnp.square(_logits(fake_scores) - fake_target))


def _squared_gradient_norms(discriminator: Callable[[Array], Array], images: Array, reduce: str) -> Array:
  """|d score / d image|^2 per example, where the score is the mean or the sum of the example's patch map."""
  if reduce not in ("mean", "sum"):
    raise ValueError(f"reduce is {reduce!r}; use 'mean' or 'sum' (of the discriminator's patch map).")
  images = jnp.asarray(images).astype(jnp.float32)

  def total(x):
    scores = _logits(discriminator(x))
    return jnp.sum(_mean(scores)) if reduce == "mean" else jnp.sum(scores)

  # The gradient of the sum over the batch holds each example's own gradient, because examples are independent in our
  # discriminators.
  return _sum(jnp.square(jax.grad(total)(images)), None)


def r1_penalty(discriminator: Callable[[Array], Array], real: Array, reduce: str = "mean") -> Array:
  """|grad_x D(x)|^2 at real images, [B] (Mescheder et al. 2018, eq. 9, without the factor gamma / 2).

  Args:
    discriminator: images [B, H, W, C] -> logits [B, ...], with bound parameters: `lambda x: apply(params, x)`.
    real: images [B, H, W, C].
    reduce: how an example's patch map is reduced to one score: "mean" (independent of the map's size) or "sum".
  """
  return _squared_gradient_norms(discriminator, real, reduce)


def gradient_penalty(
  discriminator: Callable[[Array], Array], real: Array, fake: Array, key: Array, reduce: str = "sum"
) -> Array:
  """(|grad D| - 1)^2 at random points between real and fake images, [B] (WGAN-GP, Gulrajani et al. 2017, eq. 3, without the
  factor lambda).

  One uniform mixing weight per example is drawn from `key`. `reduce`: see `r1_penalty`; the original sums over the patch map.
  """
  real, fake = _pair(real, fake, "real and fake")
  mix = jax.random.uniform(key, (real.shape[0],) + (1,) * (real.ndim - 1))
  squared = _squared_gradient_norms(discriminator, mix * real + (1.0 - mix) * fake, reduce)
  return jnp.square(jnp.sqrt(squared + 1e-12) - 1.0)  # the square root is not differentiable at 0
