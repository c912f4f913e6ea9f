"""The super-resolution stage: a small pair (photograph, tree) → a large one, both drawn by one network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from retree_jax import keys, losses, models, state
from retree_jax.inference import superres
from retree_jax.models.pretrained import vgg
from retree_jax.tasks import batches, views

GANS = ("nonsaturating", "least_squares")
PENALTIES = ("none", "r1", "original")


class SuperresTask:
  """Super-resolution of photograph and tree together, with five losses (Alimanov & Islam 2023) that can each be off.

  The loop's batches hold the large pair; its small copy is made within the step. `params` and `opt_state` are dicts of
  "generator" and "discriminator" (the latter empty while `config.loss.adversarial` is 0); `ema` is the generator's, so that a
  checkpoint loads as a generator.

  Args:
    config: `config.loss`, `config.optimizer`, `config.discriminator_optimizer`, `config.model`, `config.discriminator`,
      `config.discriminator_augment`, `config.data` and `config.train` are read.

  Raises:
    ValueError: a size, name or weight that cannot be.
  """

  fields = ("image", "tree", "fov")

  def __init__(self, config):
    self.config = config
    self.size = tuple(config.data.image_size)
    self.network = models.build(config.model)
    self.factor = int(self.network.settings["factor"])
    self.crop = config.data.crop
    self._check()
    self.optimizer = state.make_optimizer(config.optimizer)
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
        "config.loss has no weight above 0 but the adversarial one: give l1 one, or nothing ties the enlarged "
        "pair to its small copy"
      )
    if c.data.crops < 1 or (c.data.crops > 1 and not self.crop):
      raise ValueError(f"config.data.crops={c.data.crops} needs config.data.crop above 0, and must be 1 or more")
    if not 0 <= self.crop <= min(self.size):
      raise ValueError(f"config.data.crop={self.crop} does not fit into config.data.image_size={self.size}: make it smaller")
    for size in (self.size, self._trained_size):
      if any(s % self.factor for s in size):
        raise ValueError(
          f"config.data.image_size and config.data.crop must be multiples of config.model.factor={self.factor}, not {size}"
        )
      self.network.check_size(*(s // self.factor for s in size))

  @property
  def _trained_size(self):
    return (self.crop, self.crop) if self.crop else self.size

  def _load_features(self):
    """The function of images that the perceptual loss compares, or None."""
    options = self.config.loss
    if not options.perceptual:
      return None
    if not options.perceptual_weights:
      logging.info("The perceptual loss is off: config.loss.perceptual_weights names no file with VGG19 weights")
      return None
    weights = vgg.load_weights(options.perceptual_weights)
    layers = tuple(options.perceptual_layers)
    scales = vgg.scales(weights, layers)  # so that one weight of the loss means the same with any file
    dtype = self.network.settings["dtype"]
    return lambda x: {k: v / scales[k] for k, v in vgg.features(weights, x, layers, dtype=dtype).items()}

  # --- state -----------------------------------------------------------------------------------------------------------

  def init(self, seed_key) -> state.TrainState:
    """A fresh state; `seed_key` is the run's root key."""
    key_g, key_d = jax.random.split(keys.at_step(seed_key, 2**31 - 1))
    h, w = self._trained_size
    params = {"generator": self.network.init(key_g, jnp.zeros((1, h // self.factor, w // self.factor, 4))), "discriminator": {}}
    opt_state = {"generator": self.optimizer.init(params["generator"]), "discriminator": {}}
    if self.adversarial:
      params["discriminator"] = self.discriminator.init(key_d, jnp.zeros((1, h, w, 4)))
      opt_state["discriminator"] = self.discriminator_optimizer.init(params["discriminator"])
    return state.TrainState(
      step=jnp.int32(0),
      params=params,
      ema=state.start_ema(params["generator"], self.config.train.ema_decay),
      opt_state=opt_state,
      key=seed_key,
      extra={},
    )

  # --- training --------------------------------------------------------------------------------------------------------

  def train_step(self, current: state.TrainState, batch) -> tuple[state.TrainState, dict]:
    """One batch: crop, shrink and degrade it; one step of the discriminator, then one of the generator; average.

    Args:
      current: the state.
      batch: uint8 fields [B, H, W, C] at the large size.

    Returns:
      The next state and scalar metrics: "loss" (the generator's total), every term before its weight, "discriminator".
    """
    draw = self._prepared(batch, keys.at_step(current.key, current.step))
    params, opt_state, metrics = self._descend(current.params, current.opt_state, current.step, draw)
    ema = state.ema_update(current.ema, params["generator"], current.step, self.config.train.ema_decay)
    return current.replace(step=current.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

  def _prepared(self, batch, key) -> dict:
    """{"high": [n, H, W, 4], "low": [n, h, w, 4], "key": [n]}, n = B * crops, in [-1, 1]."""
    data = self.config.data
    high = batches.stack_signed(batch, ("image", "tree"))
    key_crop, key_turn, key_low, key_net = jax.random.split(key, 4)
    if self.crop:
      cut = functools.partial(views.crop, size=self.crop, count=data.crops)
      high = jax.vmap(cut)(jax.random.split(key_crop, len(high)), high).reshape(-1, self.crop, self.crop, 4)
    n = len(high)
    if data.turns:
      high = jax.vmap(views.turn)(jax.random.split(key_turn, n), high)
    low = views.shrink(high, self.factor)
    if data.degradation.probability:
      worsen = functools.partial(views.degrade, options=data.degradation)
      low = jax.vmap(worsen)(jax.random.split(key_low, n), low)
    return {"high": high, "low": low, "key": jax.random.split(key_net, n)}

  def _descend(self, params, opt_state, step, draw):
    """One optimizer step of the discriminator, then one of the generator: (params, opt_state, metrics).

    The generator learns to enlarge before anybody judges how natural that looks. Until then the discriminator is computed and
    not used: a `lax.cond` would save that, but on CPUs XLA's convolution gradients are thirty times slower inside one.
    """
    parts = self.config.train.accumulate
    on = (step >= self.config.loss.adversarial_start).astype(jnp.float32)
    judge, judge_state, metrics = params["discriminator"], opt_state["discriminator"], {}
    if self.adversarial:
      loss, _, grads = state.value_and_gradients(
        functools.partial(self._discriminator_loss, generator=params["generator"], step=step), judge, draw, parts
      )
      updates, new_state = self.discriminator_optimizer.update(grads, judge_state, judge)
      judge = jax.tree.map(lambda p, u: p + on * u, judge, updates)
      judge_state = jax.tree.map(lambda new, old: jnp.where(on > 0, new, old), new_state, judge_state)
      metrics = {"discriminator": on * loss}
    loss, terms, grads = state.value_and_gradients(
      functools.partial(self._generator_loss, discriminator=judge, on=on), params["generator"], draw, parts
    )
    updates, generator_state = self.optimizer.update(grads, opt_state["generator"], params["generator"])
    generator = jax.tree.map(jnp.add, params["generator"], updates)
    return (
      {"generator": generator, "discriminator": judge},
      {"generator": generator_state, "discriminator": judge_state},
      {"loss": loss, **terms, **metrics},
    )

  def _enlarged(self, params, draw):
    """The generator's output [n, H, W, 4] for draw["low"], with the noise of each example's own key."""
    size = draw["low"].shape[1:3]
    noise = jax.vmap(lambda key: superres.noise(jax.random.fold_in(key, 3), size, self.factor))(draw["key"])
    return self.network.apply(params, draw["low"], noise=noise)

  def _generator_loss(self, params, draw, discriminator, on):
    """(weighted sum of the terms that are on, the terms before their weights), means over the examples; `on`, 0 or 1,
    multiplies the adversarial term."""
    output = self._enlarged(params, draw)
    terms = self._terms(output, draw["high"])
    if self.adversarial:
      loss = losses.nonsaturating_generator if self.config.loss.gan == "nonsaturating" else losses.least_squares_generator
      terms["adversarial"] = on * loss(self._judge(discriminator, as_pair(output), draw["key"]))
    terms = {name: jnp.mean(value) for name, value in terms.items()}
    return sum(self.config.loss[name] * value for name, value in terms.items()), terms

  def _terms(self, output, high):
    """The terms that compare the output [n, H, W, 4] with the truth, each [n], without those of weight 0."""
    weights, image, terms = self.config.loss, high[..., :3], {}
    if weights.l1:
      terms["l1"] = losses.l1(output[..., :3], image)
    if weights.ssim:
      terms["ssim"] = losses.ssim_loss(output[..., :3], image)
    if weights.bce:
      terms["bce"] = losses.bce_with_logits(output[..., 3:], (high[..., 3:] + 1.0) / 2.0)
    if self._features is not None:
      truth = jax.lax.stop_gradient(self._features(image))
      terms["perceptual"] = losses.perceptual(self._features(output[..., :3]), truth)
    return terms

  def _discriminator_loss(self, params, draw, generator, step):
    options = self.config.loss
    fake = jax.lax.stop_gradient(as_pair(self._enlarged(generator, draw)))
    fake, real = (self._augmented(x, draw["key"]) for x in (fake, draw["high"]))
    judge = functools.partial(self.discriminator.apply, params)
    gan = losses.nonsaturating_discriminator if options.gan == "nonsaturating" else losses.least_squares_discriminator
    loss = jnp.mean(gan(judge(real), judge(fake)))
    if options.penalty != "none" and options.penalty_weight:

      def penalty():
        if options.penalty == "r1":  # Mescheder et al. 2018, eq. 9
          return 0.5 * jnp.mean(losses.r1_penalty(judge, real))
        return jnp.mean(losses.gradient_penalty(judge, real, fake, jax.random.fold_in(draw["key"][0], 2)))

      value = (
        penalty()
        if options.penalty_every == 1
        else jax.lax.cond(step % options.penalty_every == 0, penalty, lambda: jnp.float32(0))
      )
      # Now and then, and stronger for it: Karras et al. 2020, appendix B ("lazy regularization").
      loss += options.penalty_weight * options.penalty_every * value
    return loss, {}

  def _judge(self, params, pairs, example_keys):
    return self.discriminator.apply(params, self._augmented(pairs, example_keys))

  def _augmented(self, pairs, example_keys):
    change = functools.partial(views.augment, options=self.config.discriminator_augment)
    return jax.vmap(lambda key, pair: change(jax.random.fold_in(key, 1), pair))(example_keys, pairs)

  # --- looking at it ---------------------------------------------------------------------------------------------------

  def evaluate(self, ema, batch, index) -> dict:
    """Scores of whole held-out pairs, shrunk but not degraded, each [B].

    Args:
      ema: the generator's averaged parameters.
      batch: as in `train_step`.
      index: not used; the noise follows from the pair itself.

    Returns:
      "loss" (the weighted terms without the adversarial one), "psnr" in dB, "ssim", "f1" of the tree, cut at
      `config.sampler.mask_threshold`, within the field of view, and the last three for bicubic enlargement under "..._bicubic".
    """
    del index
    high = batches.stack_signed(batch, ("image", "tree"))
    low = views.shrink(high, self.factor)
    small = jnp.round((low + 1.0) * 127.5)
    output = self.network.apply(ema, low, noise=superres.own_noise(small.astype(jnp.uint8), self.factor))
    terms = self._terms(output, high)
    base = superres.bicubic(small, self.factor)
    scores = {"loss": sum(self.config.loss[name] * value for name, value in terms.items())}
    for name, pixels in (("", superres.to_pixels(output, self.config.sampler.mask_threshold)), ("_bicubic", base)):
      pixels = jnp.where(batch["fov"] >= 128, pixels, 0)
      image = batches.to_signed(pixels[..., :3])
      scores["psnr" + name] = losses.psnr(image, high[..., :3])
      scores["ssim" + name] = losses.ssim(image, high[..., :3])
      scores["f1" + name] = _f1(pixels[..., 3:] >= 128, batch["tree"] >= 128, batch["fov"] >= 128)
    return scores

  def preview(self, ema, batch, mesh) -> dict[str, np.ndarray]:
    """Pictures: held-out pairs small, enlarged, and as they are; rows of uint8 images [N, H, W, 1 or 3], by name.

    Args:
      ema: the generator's averaged parameters.
      batch: held-out examples as uint8 numpy arrays.
      mesh: devices to enlarge on; all hosts take part.
    """
    real = {f: np.asarray(batch[f][: self.config.preview.num]) for f in self.fields}
    small = shrunk(real, self.factor)
    large = superres.Enlarger(self.config, self.network, mesh)(ema, small)
    pictures = {f"small_{f}": small[f].repeat(self.factor, 1).repeat(self.factor, 2) for f in ("image", "tree")}
    return pictures | {f"enlarged_{f}": large[f] for f in ("image", "tree")} | {f"real_{f}": real[f] for f in ("image", "tree")}


def shrunk(fields: dict[str, np.ndarray], factor: int) -> dict[str, np.ndarray]:
  """Fields uint8 [N, H, W, C] as the small pairs that evaluation starts from: area averages, the field of view 0 or 255."""
  out = {}
  for name, pixels in fields.items():
    low = views.shrink(batches.to_signed(jnp.asarray(pixels)), factor)
    out[name] = np.asarray(jnp.round((low + 1.0) * 127.5)).astype(np.uint8)
  if "fov" in out:
    out["fov"] = np.where(out["fov"] >= 128, 255, 0).astype(np.uint8)
  return out


def as_pair(output):
  """The generator's output, tree logits last, as a pair in [-1, 1]: what a discriminator compares with a real one."""
  return jnp.concatenate([output[..., :3], 2.0 * jax.nn.sigmoid(output[..., 3:]) - 1.0], axis=-1)


def _f1(found, truth, fov):
  axes = (1, 2, 3)
  both, total = jnp.sum(found & truth & fov, axes), jnp.sum(found & fov, axes) + jnp.sum(truth & fov, axes)
  return jnp.where(total > 0, 2.0 * both / jnp.maximum(total, 1), 1.0)
