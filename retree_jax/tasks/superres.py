"""The super-resolution stage: a low-resolution pair (photograph, tree) → a high-resolution pair, by one network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from einops import rearrange

from retree_jax import keys, losses, models, state
from retree_jax.inference import superres
from retree_jax.models import scaling
from retree_jax.models.pretrained import vgg
from retree_jax.tasks import base, image_transforms

GANS = ("nonsaturating", "least_squares")
PENALTIES = ("none", "r1", "original")


class SuperresTask(base.Task):
  """Super-resolution of photograph and tree together, with five loss terms (Alimanov & Islam 2023), each of which is optional.

  Batches hold high-resolution pairs; the low-resolution ones are computed within the step. `params` and `opt_state` are dicts
  of "generator" and "discriminator" (the latter empty if `config.loss.adversarial` is 0); `ema` is the generator's, so that a
  checkpoint loads as a generator.

  Args:
    config: besides what `base.Task` reads, `config.loss`, `config.discriminator_optimizer`, `config.discriminator`,
      `config.discriminator_augment`, `config.sampler` and `config.preview`.
    epoch_steps: see `base.Task`; not used.

  Raises:
    ValueError: an invalid size, name or weight.
  """

  fields = ("image", "tree", "fov")

  def __init__(self, config, epoch_steps: int = 1):
    super().__init__(config, epoch_steps)
    self.factor = int(self.network.settings["factor"])
    self.crop = config.data.crop
    self._check()
    self.adversarial = config.loss.adversarial > 0
    if self.adversarial:
      self.discriminator = models.build(config.discriminator)
      self.discriminator.check_size(*self._trained_size)
      self.discriminator_optimizer = state.make_optimizer(config.discriminator_optimizer)
    self._features = self._load_features()

  def _check(self):
    c = self.config
    for name, value, known in (("gan", c.loss.gan, GANS), ("penalty", c.loss.penalty, PENALTIES)):
      if value not in known:
        raise ValueError(f"config.loss.{name}={value!r} is unknown: use {', '.join(known)}")
    negative = [f for f in ("l1", "ssim", "bce", "adversarial", "perceptual") if c.loss[f] < 0]
    if negative:
      raise ValueError(f"config.loss.{negative[0]}={c.loss[negative[0]]} must not be negative: 0 switches the term off")
    if not any(c.loss[f] for f in ("l1", "ssim", "bce", "perceptual")):
      raise ValueError(
        "config.loss has no weight above 0 except the adversarial one: set for example config.loss.l1=1.0, because the "
        "adversarial term alone does not compare the output with its target"
      )
    if c.data.crops < 1 or (c.data.crops > 1 and not self.crop):
      raise ValueError(f"config.data.crops={c.data.crops} needs config.data.crop above 0, and must be 1 or more")
    if not 0 <= self.crop <= min(self.size):
      raise ValueError(f"config.data.crop={self.crop} does not fit into config.data.image_size={self.size}: make it smaller")
    for size, field in ((self.size, "config.data.image_size"), (self._trained_size, "config.data.crop")):
      if any(s % self.factor for s in size):
        raise ValueError(
          f"config.data.image_size and config.data.crop must be multiples of config.model.factor={self.factor}, not {size}"
        )
      self.network.check_size(*(s // self.factor for s in size), field=field, factor=self.factor)

  @property
  def _trained_size(self):
    return (self.crop, self.crop) if self.crop else self.size

  def _load_features(self):
    """The feature extractor of the perceptual loss, or None if the term is off."""
    options = self.config.loss
    if not options.perceptual:
      return None
    if not options.perceptual_weights:
      logging.info("The perceptual loss is off: config.loss.perceptual_weights names no file of VGG19 weights")
      return None
    weights = vgg.load_weights(options.perceptual_weights)
    layers = tuple(options.perceptual_layers)
    scales = vgg.scales(weights, layers)  # so that the term's weight has the same effect with any file
    dtype = self.network.settings["dtype"]
    return lambda x: {k: v / scales[k] for k, v in vgg.features(weights, x, layers, dtype=dtype).items()}

  # --- state -----------------------------------------------------------------------------------------------------------

  def init_parameters(self, key):
    key_g, key_d = jax.random.split(key)
    h, w = self._trained_size
    generator = self.network.init(key_g, jnp.zeros((1, h // self.factor, w // self.factor, 4)))
    discriminator = self.discriminator.init(key_d, jnp.zeros((1, h, w, 4))) if self.adversarial else {}
    return {"generator": generator, "discriminator": discriminator}

  def init_optimizer(self, params):
    discriminator = self.discriminator_optimizer.init(params["discriminator"]) if self.adversarial else {}
    return {"generator": self.optimizer.init(params["generator"]), "discriminator": discriminator}

  def inference_parameters(self, params):
    return params["generator"]

  # --- training --------------------------------------------------------------------------------------------------------

  def train_step(self, current: state.TrainState, batch: dict) -> tuple[state.TrainState, dict]:
    """One step of the discriminator, then one of the generator.

    The discriminator is trained and used from step `config.loss.adversarial_start` on, when the generator has learnt to
    upsample. Before that it is computed and the result is discarded: a `lax.cond` would save the time, but on CPUs XLA's
    gradients of convolutions are thirty times slower inside one.

    Args:
      current: the state.
      batch: uint8 fields [B, H, W, C] at the high resolution.

    Returns:
      The next state and scalar metrics: "loss" (the generator's weighted sum), "gradient_norm" (the generator's), every term
      before weighting, and "discriminator" and "discriminator_gradient_norm", which are 0 before `adversarial_start`.
    """
    prepared = self.prepare(batch, keys.at_step(current.key, current.step))
    params, opt_state, metrics = dict(current.params), dict(current.opt_state), {}
    started = current.step >= self.config.loss.adversarial_start
    if self.adversarial:
      loss = functools.partial(self._discriminator_loss, generator=params["generator"], step=current.step)
      params["discriminator"], opt_state["discriminator"], scores = self.optimizer_step(
        self.discriminator_optimizer, loss, params["discriminator"], opt_state["discriminator"], prepared, active=started
      )
      metrics = {"discriminator": scores["loss"], "discriminator_gradient_norm": scores["gradient_norm"]}
    loss = functools.partial(
      self._generator_loss, discriminator=params["discriminator"], adversarial=started.astype(jnp.float32)
    )
    params["generator"], opt_state["generator"], scores = self.optimizer_step(
      self.optimizer, loss, params["generator"], opt_state["generator"], prepared
    )
    return self.next_state(current, params, opt_state), {**scores, **metrics}

  def prepare(self, batch, key) -> dict:
    """{"high": [n, H, W, 4], "low": [n, h, w, 4], both in [-1, 1], "key": [n]}, with n = B * crops."""
    data = self.config.data
    high = scaling.stack_signed(batch, ("image", "tree"))
    key_crop, key_flip, key_low, key_net = jax.random.split(key, 4)
    if self.crop:
      crops = functools.partial(image_transforms.random_crops, size=self.crop, count=data.crops)
      high = rearrange(jax.vmap(crops)(jax.random.split(key_crop, len(high)), high), "b n h w c -> (b n) h w c")
    n = len(high)
    if data.turns:
      high = jax.vmap(image_transforms.rotate_or_flip)(jax.random.split(key_flip, n), high)
    low = image_transforms.downscale(high, self.factor)
    if data.degradation.probability:
      degrade = functools.partial(image_transforms.degrade, options=data.degradation)
      low = jax.vmap(degrade)(jax.random.split(key_low, n), low)
    return {"high": high, "low": low, "key": jax.random.split(key_net, n)}

  def _enlarged(self, params, prepared):
    """The generator's output [n, H, W, 4] for prepared["low"], with noise from each example's own key."""
    size = prepared["low"].shape[1:3]
    noise = jax.vmap(lambda key: superres.noise(jax.random.fold_in(key, 3), size, self.factor))(prepared["key"])
    return self.network.apply(params, prepared["low"], noise=noise)

  def _generator_loss(self, params, prepared, discriminator, adversarial):
    """(weighted sum of the terms, the terms before weighting), means over the examples; `adversarial`, 0 or 1, multiplies the
    adversarial term."""
    output = self._enlarged(params, prepared)
    terms = self._terms(output, prepared["high"])
    if self.adversarial:
      loss = losses.nonsaturating_generator if self.config.loss.gan == "nonsaturating" else losses.least_squares_generator
      logits = self.discriminator.apply(discriminator, self._augmented(as_pair(output), prepared["key"]))
      terms["adversarial"] = adversarial * loss(logits)
    terms = {name: jnp.mean(value) for name, value in terms.items()}
    return sum(self.config.loss[name] * value for name, value in terms.items()), terms

  def _terms(self, output, high):
    """The terms with a weight above 0 that compare the output [n, H, W, 4] with its target, each [n]."""
    weights, image, terms = self.config.loss, high[..., :3], {}
    if weights.l1:
      terms["l1"] = losses.l1(output[..., :3], image)
    if weights.ssim:
      terms["ssim"] = losses.ssim_loss(output[..., :3], image)
    if weights.bce:
      terms["bce"] = losses.bce_with_logits(output[..., 3:], (high[..., 3:] + 1.0) / 2.0)
    if self._features is not None:
      target = jax.lax.stop_gradient(self._features(image))
      terms["perceptual"] = losses.perceptual(self._features(output[..., :3]), target)
    return terms

  def _discriminator_loss(self, params, prepared, generator, step):
    """(mean loss with its gradient penalty, {})."""
    options = self.config.loss
    fake = jax.lax.stop_gradient(as_pair(self._enlarged(generator, prepared)))
    fake, real = (self._augmented(x, prepared["key"]) for x in (fake, prepared["high"]))
    discriminator = functools.partial(self.discriminator.apply, params)
    gan = losses.nonsaturating_discriminator if options.gan == "nonsaturating" else losses.least_squares_discriminator
    loss = jnp.mean(gan(discriminator(real), discriminator(fake)))
    if options.penalty != "none" and options.penalty_weight:

      def penalty():
        if options.penalty == "r1":  # Mescheder et al. 2018, eq. 9
          return 0.5 * jnp.mean(losses.r1_penalty(discriminator, real))
        return jnp.mean(losses.gradient_penalty(discriminator, real, fake, jax.random.fold_in(prepared["key"][0], 2)))

      value = (
        penalty()
        if options.penalty_every == 1
        else jax.lax.cond(step % options.penalty_every == 0, penalty, lambda: jnp.float32(0))
      )
      # Every `penalty_every` steps with a weight that is as many times larger: Karras et al. 2020, appendix B ("lazy
      # regularization").
      loss += options.penalty_weight * options.penalty_every * value
    return loss, {}

  def _augmented(self, pairs, example_keys):
    """Pairs as the discriminator sees them, with the same random change for a real pair and its generated counterpart."""
    augment = functools.partial(image_transforms.augment, options=self.config.discriminator_augment)
    return jax.vmap(lambda key, pair: augment(jax.random.fold_in(key, 1), pair))(example_keys, pairs)

  # --- evaluation ------------------------------------------------------------------------------------------------------

  def evaluate(self, ema, batch, index) -> dict:
    """Scores of whole held-out pairs, downscaled but not degraded, each [B].

    Args:
      ema: the generator's averaged parameters.
      batch: as in `train_step`.
      index: unused; the noise is determined by the pair itself.

    Returns:
      "loss" (the weighted terms without the adversarial one), "psnr" in dB, "ssim", "f1" of the tree thresholded at
      `config.sampler.mask_threshold`, within the field of view; and the last three for bicubic interpolation as "..._bicubic".
    """
    del index
    high = scaling.stack_signed(batch, ("image", "tree"))
    low = image_transforms.downscale(high, self.factor)
    small = scaling.to_levels(low).round()
    output = self.network.apply(ema, low, noise=superres.own_noise(small.astype(jnp.uint8), self.factor))
    terms = self._terms(output, high)
    base = superres.bicubic(small, self.factor)
    scores = {"loss": sum(self.config.loss[name] * value for name, value in terms.items())}
    for name, pixels in (("", superres.to_pixels(output, self.config.sampler.mask_threshold)), ("_bicubic", base)):
      pixels = jnp.where(batch["fov"] >= 128, pixels, 0)
      image = scaling.to_signed(pixels[..., :3])
      scores["psnr" + name] = losses.psnr(image, high[..., :3])
      scores["ssim" + name] = losses.ssim(image, high[..., :3])
      scores["f1" + name] = losses.f1_score(pixels[..., 3:] >= 128, batch["tree"] >= 128, batch["fov"] >= 128)
    return scores

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Held-out pairs at low resolution, enlarged, and real: {name: uint8 images [N, H, W, 1 or 3]}.

    Args:
      ema: the generator's averaged parameters.
      batch: held-out examples as uint8 NumPy arrays.
      mesh: devices to enlarge on; all hosts must take part.
    """
    real = {f: np.asarray(batch[f][: self.config.preview.num]) for f in self.fields}
    small = downscaled(real, self.factor)
    large = self.once(mesh, lambda mesh: superres.Enlarger(self.config, self.network, mesh))(ema, small)
    images = {f"small_{f}": small[f].repeat(self.factor, 1).repeat(self.factor, 2) for f in ("image", "tree")}
    return images | {f"enlarged_{f}": large[f] for f in ("image", "tree")} | {f"real_{f}": real[f] for f in ("image", "tree")}


def downscaled(fields: dict[str, np.ndarray], factor: int) -> dict[str, np.ndarray]:
  """The low-resolution pairs of an evaluation: area averages of uint8 fields [N, H, W, C], the field of view as 0 or 255."""
  out = {}
  for name, pixels in fields.items():
    low = image_transforms.downscale(scaling.to_signed(jnp.asarray(pixels)), factor)
    out[name] = np.asarray(scaling.from_signed(low))
  if "fov" in out:
    out["fov"] = np.where(out["fov"] >= 128, 255, 0).astype(np.uint8)
  return out


def as_pair(output):
  """The generator's output (tree logits last) as a pair in [-1, 1], comparable with a real pair."""
  return jnp.concatenate([output[..., :3], 2.0 * jax.nn.sigmoid(output[..., 3:]) - 1.0], axis=-1)
