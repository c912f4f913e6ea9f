"""Every loss against a number worked out by hand, or against scikit-image, SciPy and drawn shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity
from skimage.morphology import skeletonize

from retree_jax import losses

# compiled, as they are used: operation by operation most of the time would go into compiling single slices
ssim = jax.jit(losses.ssim, static_argnames="data_range")
ssim_loss = jax.jit(losses.ssim_loss, static_argnames="data_range")
soft_skeleton = jax.jit(losses.soft_skeleton, static_argnames="iterations")
cldice_with_logits = jax.jit(losses.cldice_with_logits, static_argnames="iterations")

LOGIT = 30.0  # sigmoid(30) is 1 to float32


def logits_of(tree):
  return (2.0 * tree - 1.0) * LOGIT


def close(value, expected, **kw):
  np.testing.assert_allclose(np.asarray(value), expected, **{"rtol": 1e-5, "atol": 1e-6, **kw})


def test_noise_loss_is_the_weighted_sum_of_both_errors_per_example():
  target = jnp.zeros((2, 2, 2, 1))
  prediction = jnp.stack([jnp.full((2, 2, 1), 0.5), jnp.full((2, 2, 1), -2.0)])
  close(losses.noise_loss(prediction, target), [0.75, 6.0])
  close(losses.noise_loss(prediction, target, l1_weight=0.0), [0.25, 4.0])
  close(losses.noise_loss(prediction, target, mse_weight=0.5, l1_weight=2.0), [1.125, 6.0])
  close(losses.mse(prediction, target), [0.25, 4.0])
  close(losses.l1(prediction, target), [0.5, 2.0])


def test_noise_loss_equals_the_original(original):
  stages = [stage for stage in ("tree", "fundus") if f"{stage}/loss" in original]
  assert "tree" in stages
  for stage in stages:
    output, noise = original[f"{stage}/output"], original[f"{stage}/noise"]
    close(jnp.mean(losses.noise_loss(output, noise)), original[f"{stage}/loss"], rtol=1e-5)


def test_mask_weighs_pixels_ignores_what_is_outside_and_an_empty_one_gives_zero():
  target = jnp.zeros((3, 1, 4, 2))
  prediction = jnp.broadcast_to(jnp.array([1.0, 2.0, 3.0, jnp.nan])[None, None, :, None], target.shape)
  mask = jnp.array([[1, 1, 0, 0], [0.5, 0, 1.5, 0], [0, 0, 0, 0]])[:, None, :, None]
  close(losses.l1(prediction, target, mask=mask), [1.5, 2.5, 0.0])
  close(losses.mse(prediction, target, mask=mask), [2.5, 7.0, 0.0])
  bool_mask = jnp.array([True, False, True, False])[None, None, :, None]
  close(losses.l1(prediction, target, mask=bool_mask), [2.0, 2.0, 2.0])


def test_losses_are_float32_per_example_also_from_bfloat16():
  x = jnp.zeros((3, 16, 12, 1), jnp.bfloat16)
  for loss in (
    losses.noise_loss,
    losses.mse,
    losses.l1,
    losses.ssim,
    losses.ssim_loss,
    losses.psnr,
    losses.bce_with_logits,
    losses.dice_with_logits,
    losses.jaccard_with_logits,
    losses.cldice_with_logits,
  ):
    value = jax.jit(loss)(x, x)
    assert value.shape == (3,) and value.dtype == jnp.float32, loss.__name__


def test_f1_counts_pixels_inside_the_mask():
  row = lambda *values: jnp.array(values, bool).reshape(1, 1, -1, 1)  # noqa: E731
  prediction, target = row(1, 1, 0, 0, 1), row(1, 0, 1, 0, 1)
  close(losses.f1_score(prediction, target, row(1, 1, 1, 1, 1)), [2 * 2 / 6])
  close(losses.f1_score(prediction, target, row(0, 1, 1, 1, 1)), [2 * 1 / 4])
  close(losses.f1_score(prediction, target, row(0, 0, 0, 1, 0)), [1.0])


def test_psnr_in_decibels():
  target = jnp.zeros((1, 4, 4, 3))
  close(losses.psnr(target + 0.2, target), [20.0])  # 10 log10(4 / 0.04)
  close(losses.psnr(target + 0.1, target, data_range=1.0), [20.0])
  assert np.isinf(losses.psnr(target, target)[0])


@pytest.mark.parametrize("shape", [(31, 42, 3), (11, 64, 1)])
def test_ssim_equals_scikit_image(shape):
  rng = np.random.default_rng(0)
  a = rng.uniform(-1, 1, (2, *shape)).astype(np.float32)
  b = np.clip(0.7 * a + 0.3 * rng.standard_normal(a.shape), -1, 1).astype(np.float32)
  expected = [
    structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2.0, channel_axis=-1)
    for x, y in zip(a, b, strict=True)
  ]
  close(ssim(a, b), expected, atol=1e-5)
  close(ssim_loss(a, b), 1 - np.asarray(expected), atol=1e-5)


def test_ssim_of_flat_images_is_the_luminance_term_and_of_equal_images_one():
  a, b = jnp.full((1, 20, 20, 1), 0.5), jnp.full((1, 20, 20, 1), -0.25)
  c1 = (0.01 * 2) ** 2
  close(ssim(a, b), [(2 * 0.5 * -0.25 + c1) / (0.25 + 0.0625 + c1)], rtol=1e-4)
  noise = jax.random.normal(jax.random.key(0), (1, 20, 20, 1))
  close(ssim(noise, noise), [1.0])
  close(ssim_loss(noise, noise), [0.0])


def test_ssim_mask_counts_only_windows_centred_inside():
  rng = np.random.default_rng(1)
  a = rng.uniform(-1, 1, (2, 24, 24, 1)).astype(np.float32)
  b = a.copy()
  b[:, :, 18:] = 0  # windows centred left of column 13 do not see it
  mask = np.zeros((2, 24, 24, 1), bool)
  mask[0, :, :13] = True
  close(ssim(a, b, mask=mask), [1.0, 0.0])
  close(ssim_loss(a, b, mask=mask), [0.0, 0.0])
  assert ssim_loss(a, b)[0] > 0.05


def test_bce_in_nats_and_stable_at_huge_logits():
  logits = jnp.array([[0.0, 0.0], [np.log(3.0), -np.log(3.0)], [1000.0, -1000.0], [1000.0, -1000.0]])
  target = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
  close(losses.bce_with_logits(logits, target), [np.log(2), np.log(4 / 3), 0.0, 500.0])
  close(losses.bce_with_logits(logits[:1], target[:1], positive_weight=3.0), [2 * np.log(2)])
  grad = jax.grad(lambda x: losses.bce_with_logits(x, target).sum())(logits)
  close(grad[3], [0.5, 0.0])
  close(
    losses.bce_with_logits(jnp.full((1, 1), np.log(3.0)), jnp.full((1, 1), 0.75)),  # coverage as a target
    [0.75 * np.log(4 / 3) + 0.25 * np.log(4)],
  )


def test_dice_and_jaccard_of_overlapping_squares():
  target = np.zeros((2, 10, 10, 1), np.float32)
  target[:, :4, :4] = 1  # 16 pixels
  prediction = np.zeros_like(target)
  prediction[0, :4, 2:6] = 1  # 16 pixels, 8 shared
  logits = logits_of(prediction)  # the second example predicts nothing
  close(losses.dice_with_logits(logits, target), [1 - 17 / 33, 1 - 1 / 17])
  close(losses.jaccard_with_logits(logits, target), [1 - 9 / 25, 1 - 1 / 17])
  close(losses.dice_with_logits(logits, target, smooth=1e-3), [0.5, 1.0], atol=1e-3)
  close(losses.jaccard_with_logits(logits, target, smooth=1e-3), [2 / 3, 1.0], atol=1e-3)
  mask = np.zeros_like(target)
  mask[:, :, 2:4] = 1  # there the first prediction is perfect
  close(losses.dice_with_logits(logits, target, mask=mask)[0], 0.0)
  close(losses.jaccard_with_logits(logits, target, mask=mask)[0], 0.0)
  empty = jnp.zeros_like(target)
  close(losses.dice_with_logits(logits_of(empty), empty), [0.0, 0.0])


def bar(width, length=40, size=48):
  tree = np.zeros((1, size, size, 1), np.float32)
  top = (size - width) // 2
  tree[0, top : top + width, (size - length) // 2 : (size + length) // 2] = 1
  return tree


@pytest.mark.parametrize("width", [1, 3, 7, 11])
def test_soft_skeleton_of_a_bar_is_its_centre_line_when_there_are_iterations_enough(width):
  skeleton = np.asarray(soft_skeleton(bar(width), width // 2 + 1))[0, :, :, 0]
  middle = (48 - width) // 2 + width // 2
  expected = np.zeros((48, 48))
  expected[middle] = 1
  # away from the rounded ends only the middle row remains
  np.testing.assert_array_equal(skeleton[:, 15:33], expected[:, 15:33])
  more = soft_skeleton(bar(width), width // 2 + 20)[0, :, :, 0]
  np.testing.assert_array_equal(more, skeleton)  # more iterations change nothing


def test_soft_skeleton_with_too_few_iterations_misses_wide_vessels_but_not_thin_ones():
  assert soft_skeleton(bar(11), 3)[0, :, 20:28].sum() == 0
  assert soft_skeleton(bar(1), 0).sum() == 40
  assert soft_skeleton(bar(2), 0).sum() == 80


def test_soft_skeleton_lies_on_the_hard_one_for_a_drawn_fork():
  y, x = np.mgrid[:96, :96]
  tree = ((np.abs(x - 48) < 4) & (y > 48)) | ((np.abs(np.abs(x - 48) - (48 - y)) < 3) & (y <= 48))
  soft = np.asarray(soft_skeleton(tree[None, :, :, None].astype(np.float32), 6))[0, :, :, 0]
  hard = skeletonize(tree)
  near = sum(np.roll(hard, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) > 0
  assert set(np.unique(soft)) <= {0.0, 1.0} and (soft[~tree] == 0).all()
  found = sum(np.roll(soft > 0, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) > 0
  assert found[hard].mean() > 0.97
  assert near[soft > 0].mean() > 0.8


def test_cldice_is_zero_for_equal_trees_and_known_for_half_a_line():
  tree = bar(1)
  half = tree.copy()
  half[:, :, 24:] = 0  # 20 of the 40 pixels
  close(cldice_with_logits(logits_of(tree), tree), [0.0])
  # precision 1, sensitivity (20 + 1) / (40 + 1)
  sensitivity = 21 / 41
  close(cldice_with_logits(logits_of(half), tree), [1 - 2 * sensitivity / (1 + sensitivity)])
  # a thicker vessel has the same centre line: clDice does not mind, Dice does
  assert cldice_with_logits(logits_of(bar(5)), bar(3))[0] < 0.06
  assert losses.dice_with_logits(logits_of(bar(5)), bar(3))[0] > 0.2
  # missing pixels outside the mask do not count
  mask = np.zeros_like(tree)
  mask[:, :, :24] = 1
  close(cldice_with_logits(logits_of(half), tree, mask=mask), [0.0])
  empty = np.zeros_like(tree)
  close(cldice_with_logits(logits_of(empty), empty), [0.0])


def test_cldice_punishes_a_gap_more_than_dice_does_and_can_be_descended():
  tree = bar(5)
  broken = tree.copy()
  broken[:, :, 22:26] = 0
  thinner = bar(4)
  assert losses.dice_with_logits(logits_of(broken), tree) < losses.dice_with_logits(logits_of(thinner), tree)
  assert cldice_with_logits(logits_of(broken), tree) > cldice_with_logits(logits_of(thinner), tree)
  logits = jnp.asarray((2 * broken - 1) * 2.0)
  value, grad = jax.value_and_grad(lambda x: cldice_with_logits(x, tree).sum())(logits)
  assert np.isfinite(grad).all() and np.abs(grad).sum() > 0
  assert cldice_with_logits(logits - 20.0 * grad / jnp.abs(grad).max(), tree)[0] < value


def test_adversarial_losses_at_known_logits():
  zero = jnp.zeros((2, 3, 3, 1))
  one = jnp.full((2, 3, 3, 1), np.log(3.0))  # sigmoid 3/4
  close(losses.nonsaturating_generator(one), np.full(2, np.log(4 / 3)))
  close(losses.nonsaturating_discriminator(one, zero), np.full(2, np.log(4 / 3) + np.log(2)))
  close(losses.nonsaturating_discriminator(zero, one), np.full(2, np.log(2) + np.log(4)))
  close(losses.least_squares_generator(jnp.full((2, 5), 0.25)), np.full(2, 0.5625))
  quarter = jnp.full((2, 5), 0.25)
  close(losses.least_squares_discriminator(quarter, jnp.full((2, 5), 0.5)), np.full(2, 0.8125))
  close(losses.least_squares_discriminator(jnp.full(2, 0.9), jnp.full(2, -1.0), 0.9, -1.0), np.zeros(2))
  # the generator's and the discriminator's gradients point in opposite directions
  up = jax.grad(lambda x: losses.nonsaturating_generator(x).sum())(zero)
  down = jax.grad(lambda x: losses.nonsaturating_discriminator(zero, x).sum())(zero)
  assert (up < 0).all() and (down > 0).all()


def test_gradient_penalties_of_a_linear_and_a_quadratic_discriminator():
  w = jax.random.normal(jax.random.key(0), (4, 4, 1))
  norm2 = float(jnp.sum(w * w))
  real = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
  fake = jax.random.normal(jax.random.key(2), (3, 4, 4, 1))

  def linear(x):  # a map of two equal patches
    score = jnp.sum(x * w, axis=(1, 2, 3))
    return jnp.stack([score, score], axis=1)

  close(losses.r1_penalty(linear, real), np.full(3, norm2), rtol=1e-4)
  close(losses.r1_penalty(linear, real, reduce="sum"), np.full(3, 4 * norm2), rtol=1e-4)
  close(losses.gradient_penalty(linear, real, fake, jax.random.key(3)), np.full(3, (2 * norm2**0.5 - 1) ** 2), rtol=1e-4)
  close(
    losses.gradient_penalty(linear, real, fake, jax.random.key(3), reduce="mean"), np.full(3, (norm2**0.5 - 1) ** 2), rtol=1e-4
  )

  def quadratic(x):
    return 0.5 * jnp.sum(x * x, axis=(1, 2, 3))

  close(losses.r1_penalty(quadratic, real), jnp.sum(real * real, axis=(1, 2, 3)), rtol=1e-4)
  mix = jax.random.uniform(jax.random.key(3), (3, 1, 1, 1))
  between = mix * real + (1 - mix) * fake
  close(
    losses.gradient_penalty(quadratic, real, fake, jax.random.key(3)),
    (jnp.sqrt(jnp.sum(between**2, axis=(1, 2, 3))) - 1) ** 2,
    rtol=1e-4,
  )
  # the penalty can be differentiated for the discriminator's parameters, also where the gradient vanishes
  slope = jax.grad(lambda a: losses.gradient_penalty(lambda x: a * quadratic(x), 0 * real, 0 * fake, jax.random.key(0)).sum())(
    1.0
  )
  assert np.isfinite(slope)
  slope = jax.grad(lambda a: losses.r1_penalty(lambda x: a * linear(x), real).sum())(1.0)
  close(slope, 2 * 3 * norm2, rtol=1e-4)


def test_perceptual_sums_weighted_layers():
  a = {"one": jnp.zeros((2, 4, 4, 3)), "two": jnp.ones((2, 2, 2, 5))}
  b = {"one": jnp.full((2, 4, 4, 3), 0.5), "two": jnp.stack([jnp.ones((2, 2, 5)), jnp.full((2, 2, 5), 3.0)])}
  close(losses.perceptual(a, b), [0.25, 4.25])
  close(losses.perceptual(a, b, {"one": 2.0}), [0.5, 0.5])
  with pytest.raises(ValueError, match="must hold the same layers"):
    losses.perceptual(a, {"one": b["one"]})
  with pytest.raises(ValueError, match=r"\['three'\]"):
    losses.perceptual(a, b, {"three": 1.0})


def test_bad_arguments_are_named():
  x = jnp.zeros((2, 16, 16, 1))
  with pytest.raises(ValueError, match=r"target must have the same shape, got \(2, 16, 16, 1\) and \(2, 16, 16\)"):
    losses.mse(x, x[:, :, :, 0])
  with pytest.raises(ValueError, match=r"need a batch axis and at least one more, got \(3,\)"):
    losses.l1(jnp.zeros(3), jnp.zeros(3))
  with pytest.raises(ValueError, match=r"mask \(2, 8, 16, 1\) does not fit the values \(2, 16, 16, 1\)"):
    losses.mse(x, x, mask=x[:, :8])
  with pytest.raises(ValueError, match="images of at least 11 x 11 pixels"):
    ssim(x[:, :10], x[:, :10])
  with pytest.raises(ValueError, match="reduce is 'max'; use 'mean' or 'sum'"):
    losses.r1_penalty(lambda y: y, x, reduce="max")
  with pytest.raises(ValueError, match="iterations >= 0, got .* and -1"):
    losses.soft_skeleton(x, -1)
