"""The segmentation stage: photograph → vessel tree.

    python -m retree_jax.main --config configs/segmentation.py:tiny        # phantom retinas, minutes on two CPU cores
    python -m retree_jax.main --config configs/segmentation.py:cpu --config.data.source=folder:PATH  # half an hour, one core
    python -m retree_jax.main --config configs/segmentation.py --config.data.source=folder:PATH  # one accelerator and up
    python -m retree_jax.main --config configs/segmentation.py:paper --config.data.source=folder:PATH  # the companion CBAM-UNet
    python -m retree_jax.main --config configs/segmentation.py:diffusion --config.data.source=folder:PATH # masks from noise
    python -m retree_jax.main --config configs/segmentation.py --mode sample --input PHOTOS --out MASKS   # label photographs
    python -m retree_jax.main --config configs/segmentation.py --mode evaluate --config.data.source=folder:PATH   # score

The network sees windows of photographs whose field of view is resized to `config.data.image_size`. The test split chooses no
checkpoint: the last one counts.
"""

from ml_collections import ConfigDict

from retree_jax.config import defaults

VARIANTS = (*defaults.VARIANTS, "diffusion")


def get_config(variant: str = ""):
  if variant not in VARIANTS:
    raise ValueError(
      f"variant {variant!r} is unknown: write configs/segmentation.py alone, or with "
      f"{', '.join(':' + v for v in VARIANTS[1:-1])} or :{VARIANTS[-1]}"
    )
  c = defaults.base("segmentation", "" if variant == "diffusion" else variant)
  c.data.image_size = (768, 768)
  c.data.target = ("tree",)
  c.data.condition = ("image",)
  # Vessels must be found with every camera and in every light, so augmentation is stronger than for a generator.
  c.data.augment.update(
    scale=0.2, brightness=0.25, contrast=0.3, saturation=0.3, hue=0.03, gamma=0.3, illumination=0.25, blur=1.0, noise=6.0
  )
  c.data.heldout = "test"
  c.checkpoint.update(keep_latest=1, keep_best=0)
  if variant == "diffusion":
    return defaults.complete(_diffusion(c))

  # Windows cut from each photograph of a batch: side in pixels (0 = the whole photograph) and number.
  c.crop = ConfigDict()
  c.crop.size = 256
  c.crop.num = 4
  # Whether windows are also mirrored and turned by right angles.
  c.crop.turns = True

  c.loss = ConfigDict()
  # Weights of cross-entropy, soft Dice, soft Jaccard and centreline Dice (Shit et al. 2021).
  c.loss.bce = 1.0
  c.loss.dice = 0.0
  c.loss.jaccard = 0.0
  c.loss.cldice = 0.0
  # Erosions of the soft skeleton: at least the widest vessel's radius in pixels.
  c.loss.cldice_iterations = 10
  # Factor of the cross-entropy's vessel term.
  c.loss.positive_weight = 1.0
  # Weight of pixels outside the field of view.
  c.loss.outside_fov = 0.0

  c.sampler = ConfigDict()
  # Pixels that neighbouring tiles share, at least.
  c.sampler.overlap = 64
  # Mirror images to average: 1 (none), 2 (left-right) or 4 (also up-down).
  c.sampler.flips = 4
  # A pixel is vessel where its probability is greater.
  c.sampler.threshold = 0.5

  c.train.update(batch_size=16, num_steps=20_000, ema_decay=0.999)
  c.optimizer.update(learning_rate=1e-3, warmup_steps=500, schedule="cosine", decay_steps=20_000, b2=0.999)
  c.model.update(
    name="segmenter",
    patch=2,
    widths=(64, 128, 192, 256),
    bottleneck=(384, 384),
    norm="group",
    attention="none",
    dropout=0.1,
    dtype="bfloat16",
  )
  c.evaluate.update(every=1000, num=16)
  c.preview.update(every=2000, num=4)
  c.checkpoint.every = 1000

  if variant == "paper":
    # CBAM-UNet (arXiv 2209.04234), with the cross-entropy that ReTree names: whole photographs squashed to 256×256.
    c.data.image_size = (256, 256)
    c.data.fit = "squash"
    c.data.augment = defaults.no_augmentation()
    c.data.augment.update(horizontal_flip=0.5, vertical_flip=0.5, rotation=45.0)
    c.crop.update(size=0, num=1, turns=False)
    c.loss.outside_fov = 1.0
    c.model.update(
      patch=1,
      widths=(64, 128, 256, 512),
      bottleneck=(640, 768, 896, 1024),
      norm="instance",
      attention="cbam",
      dropout=0.0,
      dtype="float32",
    )
    c.optimizer.update(
      learning_rate=1e-4, warmup_steps=0, schedule="constant", decay_steps=0, b2=0.999, weight_decay=1e-3, clip_norm=0.0
    )
    c.train.update(batch_size=2, num_steps=20_000, ema_decay=0.0)
    c.sampler.update(overlap=0, flips=1)
  if variant == "cpu":
    c.crop.update(size=160, num=8)
    c.loss.dice = 0.5
    c.model.update(widths=(24, 32, 48), bottleneck=(64,), dropout=0.05, dtype="float32")
    c.train.update(batch_size=1, num_steps=3000, ema_decay=0.99)
    c.optimizer.update(learning_rate=2e-3, warmup_steps=50, decay_steps=3000)
    c.sampler.update(overlap=32, flips=2)
    c.evaluate.update(every=500, num=8)
    c.preview.update(every=1000, num=4)
    c.checkpoint.every = 100
    c.log.every = 25
    c.data.num_threads = 1
  if variant == "tiny":
    c.data.source = "phantom:40"
    c.data.image_size = (256, 256)
    c.crop.update(size=128, num=4)
    c.model.update(widths=(16, 24, 32), bottleneck=(48,), dropout=0.0, dtype="float32")
    c.train.update(batch_size=2, num_steps=300, ema_decay=0.98)
    c.optimizer.update(learning_rate=3e-3, warmup_steps=20, decay_steps=300)
    c.sampler.overlap = 32
    c.evaluate.update(every=100, num=8)
    c.preview.update(every=100, num=4)
    c.checkpoint.every = 50
    c.log.every = 10
  return defaults.complete(c)


def _diffusion(c):
  """The paper's diffusion segmenter: a denoiser, given the photograph, samples the mask from noise."""
  c.variant = "diffusion"
  defaults.add_diffusion(c)
  c.data.image_size = (256, 256)
  c.data.condition = ("image", "fov")
  c.model.update(name="denoiser", patch=2, widths=(64, 128, 192, 256), blocks=(2,), attention=(3,), dtype="bfloat16")
  c.loss.outside_fov = 0.1
  c.train.update(batch_size=32, num_steps=50_000, ema_decay=0.999)
  # Masks sampled per photograph, whose mean is the probability; and the probability above which a pixel is vessel.
  c.sampler.draws = 4
  c.sampler.threshold = 0.5
  return c
