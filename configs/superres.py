"""The super-resolution stage: photograph and tree, small → large, by one network.

    python -m retree_jax.main --config configs/superres.py:tiny                       # phantom retinas, 64 → 256, CPU minutes
    python -m retree_jax.main --config configs/superres.py:cpu --config.data.source=folder:PATH    # 128 → 512, one CPU core
    python -m retree_jax.main --config configs/superres.py --config.data.source=folder:PATH        # 256 → 512, accelerators
    python -m retree_jax.main --config configs/superres.py:paper --config.data.source=folder:PATH  # 64 → 512, the original's

The perceptual term needs VGG19 weights (.pth of torchvision, .h5 of Keras, .npz): --config.loss.perceptual_weights=FILE.
"""

from ml_collections import ConfigDict

from retree_jax.config import defaults


def get_config(variant: str = ""):
  c = defaults.base("superres", variant)
  c.data.target, c.data.condition = ("image", "tree"), ()
  # (height, width) of the large pair; the small one is `model.factor` times smaller.
  c.data.image_size = (512, 512)
  # Mirroring and colour only: resampling would blur the target.
  c.data.augment = defaults.no_augmentation()
  c.data.augment.update(horizontal_flip=0.5, brightness=0.15, contrast=0.15, saturation=0.15, hue=0.02, gamma=0.15)
  # Side in pixels of the square crops to train on, 0 = whole pairs; and the number of crops from each pair of a batch.
  c.data.crop = 256
  c.data.crops = 1
  # Whether crops are also mirrored and turned by right angles.
  c.data.turns = True
  # Degradation of the small pairs, so that generated ones are no surprise: with this probability, blur (standard deviation in
  # pixels of the small pair), noise and compression (grey levels) of random strength up to these values.
  c.data.degradation = ConfigDict({"probability": 0.5, "blur": 0.6, "noise": 4.0, "compression": 4.0})

  # The generator; its factor is 2, 4 or 8. `noise`: noise as a further input, from which it makes texture.
  c.model.update(name="superres", factor=2, width=96, depth=12, vit_blocks=1, vit_patch=8, noise=True, dtype="bfloat16")
  # The discriminator, which sees photograph and tree together.
  c.discriminator = ConfigDict(
    {
      "name": "superres_discriminator",
      "widths": (64, 128, 256, 256),
      "vit_blocks": 1,
      "spectral_norm": True,
      "detail": 0.0,
      "dtype": "bfloat16",
    }
  )
  # Augmentation of its input, the same for real and generated pairs (see retree_jax.tasks.image_transforms.augment).
  c.discriminator_augment = ConfigDict(
    {"flip": True, "translation": 0.1, "brightness": 0.2, "saturation": 0.5, "contrast": 0.3}
  )

  c.loss = ConfigDict()
  # Weights of the terms; 0 switches one off. Absolute error, 1 - SSIM, cross-entropy of the tree, what the
  # discriminator thinks of the pair, and the distance between VGG19's features.
  c.loss.l1 = 1.0
  c.loss.ssim = 0.1
  c.loss.bce = 0.5
  c.loss.adversarial = 0.005
  c.loss.perceptual = 0.05
  # File of VGG19 weights ("" = the perceptual term is off), and the layers that are compared.
  c.loss.perceptual_weights = ""
  c.loss.perceptual_layers = ("relu2_2", "relu3_4")
  # "nonsaturating" (Goodfellow et al.) or "least_squares" (Mao et al., as in the original's tree classifier).
  c.loss.gan = "nonsaturating"
  # First step with a discriminator.
  c.loss.adversarial_start = 5000
  # Penalty on the discriminator's gradient, every so many steps: "r1" (Mescheder), "original" (Gulrajani), "none".
  c.loss.penalty = "r1"
  c.loss.penalty_weight = 1.0
  c.loss.penalty_every = 16

  c.train.update(batch_size=32, num_steps=50_000, ema_decay=0.999)
  c.optimizer.update(learning_rate=2e-4, warmup_steps=500, weight_decay=0.0)
  # The discriminator's optimizer; its steps are counted from `loss.adversarial_start`.
  c.discriminator_optimizer = c.optimizer.copy_and_resolve_references()
  c.discriminator_optimizer.update(learning_rate=1e-4, b1=0.0, clip_norm=0.0)

  # Pairs per device and compiled call when enlarging, and how many the network sees at once (0 = one on a CPU, all elsewhere).
  # A pixel of a mask is vessel where its probability is above `mask_threshold`: below one half, because the position of the
  # thinnest vessels is uncertain and they would be lost. `experiments.ship` chooses it on the training eyes.
  c.sampler = ConfigDict({"batch_size": 8, "block": 0, "mask_threshold": 0.4})

  if variant == "paper":
    # Alimanov & Islam 2023: 64 → 512, five losses whose weights they do not state. Stated by their companion paper (Biomedical
    # Engineering Advances 6:100099) and taken over here: 10 for L1 and SSIM, Adam with 1e-5 and betas .5 and .999, batch 1, and
    # attention over a 64×64 grid with four heads. The network that they used is not published.
    c.data.fit = "crop"
    c.sampler.mask_threshold = 0.5
    c.data.crop, c.data.turns = 0, False
    c.data.augment = defaults.no_augmentation()
    c.data.augment.horizontal_flip = c.data.augment.vertical_flip = 0.5
    c.data.degradation.probability = 0.0
    c.model.update(factor=8, width=64, depth=16, vit_blocks=1, vit_patch=1, noise=False, dtype="float32")
    c.discriminator.update(spectral_norm=False, dtype="float32")
    c.discriminator_augment.update(flip=False, translation=0.0, brightness=0.0, saturation=0.0, contrast=0.0)
    c.loss.update(
      l1=10.0,
      ssim=10.0,
      bce=1.0,
      adversarial=1.0,
      perceptual=1.0,
      perceptual_layers=("relu5_4",),
      gan="least_squares",
      adversarial_start=0,
      penalty="original",
      penalty_weight=10.0,
      penalty_every=1,
    )
    c.train.update(batch_size=1, ema_decay=0.0)
    for optimizer in (c.optimizer, c.discriminator_optimizer):
      optimizer.update(learning_rate=1e-5, warmup_steps=0, b1=0.5, b2=0.999, clip_norm=0.0)

  if variant == "cpu":
    # No attention: it is trained on 32×32 pixels of the small pair, and a whole pair would have 16 times as many tokens.
    c.model.update(factor=4, width=48, depth=6, up_widths=(24, 16), vit_blocks=0, dtype="float32")
    c.data.crop, c.data.crops = 128, 4
    c.train.update(batch_size=2, num_steps=3600, ema_decay=0.99)
    # The discriminator joins for the last third. A network this small learns texture in so few steps only with the detail
    # channels and without a gradient penalty.
    c.loss.update(adversarial=0.01, adversarial_start=2400, penalty="none")
    c.discriminator.update(widths=(16, 32, 64), vit_blocks=0, spectral_norm=False, detail=16.0, dtype="float32")
    c.discriminator_optimizer.update(learning_rate=1e-3, b1=0.5, warmup_steps=20)
    c.optimizer.update(learning_rate=1e-3, warmup_steps=50, schedule="cosine", decay_steps=4800)
    c.evaluate.update(every=400, num=8)
    c.preview.update(every=1200, num=4)
    c.checkpoint.every = 100
  if variant == "tiny":
    c.data.source = "phantom:40"
    c.data.image_size = (256, 256)
    c.model.update(
      factor=4,
      width=24,
      depth=2,
      up_widths=(16, 8),
      vit_blocks=1,
      vit_patch=4,
      token_width=64,
      heads=2,
      head_width=32,
      dtype="float32",
    )
    c.data.crop, c.data.crops = 64, 1
    c.train.update(batch_size=8, num_steps=400, ema_decay=0.99)
    # The penalty at every step, as XLA's gradients of convolutions are slow in CPU branches.
    c.loss.update(adversarial_start=200, penalty_every=1)
    c.discriminator.update(widths=(16, 32, 64), vit_blocks=1, heads=2, head_width=32, dtype="float32")
    c.optimizer.update(learning_rate=1e-3, warmup_steps=20)
    c.evaluate.update(every=100, num=8)
    c.preview.update(every=200, num=4)
    c.checkpoint.every = 100
  if variant in ("tiny", "cpu"):
    c.log.every = 20
  return defaults.complete(c)
