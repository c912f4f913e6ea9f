"""The detail stage: a painted photograph and its tree → the photograph with its fine detail.

python -m retree_jax.main --config configs/detail.py:tiny                      # phantom retinas, CPU minutes
python -m retree_jax.main --config configs/detail.py:cpu --config.data.source=folder:PATH    # 256×256, CPU hours
python -m retree_jax.main --config configs/detail.py --config.data.source=folder:PATH        # 256×256, accelerators
python -m retree_jax.generate ... --fundus runs/fundus --detail runs/detail                  # between fundus and superres
"""

from retree_jax.config import defaults

VARIANTS = ("", "tiny", "cpu")


def get_config(variant: str = ""):
  if variant not in VARIANTS:
    raise ValueError(
      f"variant {variant!r} is unknown: write configs/detail.py alone, or with :tiny or :cpu; the paper has no detail stage"
    )
  c = defaults.base("detail", variant)
  defaults.add_diffusion(c)
  # What the photograph has beyond itself at half the size; given that, the tree and the field of view.
  c.data.target = ("image",)
  c.data.condition = ("image", "tree", "fov")
  # Side in pixels of the square crops that are trained on, 0 = whole pictures; how many are cut from each eye of a batch; and
  # whether to turn and mirror them in all eight ways.
  c.data.crop, c.data.crops = 96, 4
  c.data.turns = True
  # How the reduced photograph is degraded at level 1: standard deviation of a blur in its pixels, of noise on a scale from -1
  # to 1. Training draws a level for each eye, and the network is told which.
  c.diffusion.condition_blur = 1.0
  c.diffusion.condition_noise = 0.0
  c.loss.l1 = 0.0
  c.loss.min_snr_gamma = 0.0
  # Level at which painted photographs are taken to be blurred when sampling.
  c.sampler.condition_level = 0.0
  # The last steps decide on the finest texture.
  c.sampler.update(num_steps=6, spacing="trailing_fine", batch_size=8)
  c.model.update(name="denoiser", patch=2, widths=(64, 128, 192), blocks=(2,), attention=(), middle=0, dtype="bfloat16")
  c.train.update(batch_size=32, num_steps=20_000, ema_decay=0.999)
  c.optimizer.update(learning_rate=5e-4, warmup_steps=200)
  if variant in ("tiny", "cpu"):
    c.model.update(widths=(32, 64, 96), blocks=(1,), detail=16, time_dim=128, dtype="float32")
    c.train.update(batch_size=4, num_steps=6000, ema_decay=0.995)
    c.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    c.evaluate.update(every=500, num=8)
    c.preview.update(every=500, num=4)
    c.checkpoint.every = 100
    c.log.every = 25
    c.sampler.batch_size = 4
  if variant == "tiny":
    c.data.source = "phantom:40"
    c.data.image_size = (128, 128)
    c.data.crop, c.data.crops = 64, 2
    c.train.num_steps = 400
    c.evaluate.every = c.preview.every = 200
  return defaults.complete(c)
