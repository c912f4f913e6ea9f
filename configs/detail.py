"""The detail stage: a painted photograph and its tree → the photograph with its fine detail.

    python -m retree_jax.main --config configs/detail.py:tiny                      # phantom retinas, CPU minutes
    python -m retree_jax.main --config configs/detail.py:cpu --config.data.source=folder:PATH    # 128×128, CPU hours
    python -m retree_jax.main --config configs/detail.py --config.data.source=folder:PATH        # 256×256, accelerators

`generate --fundus runs/fundus --detail runs/detail` uses it between the fundus stage and super-resolution. Train it at the size
of the fundus stage, as its variants are. One that is trained at half that size can be given before it: `--detail coarse,fine`.
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
  defaults.add_cascade(c, variant)
  # What the photograph has beyond itself at half the size; given that, the tree and the field of view.
  c.data.target = ("image",)
  c.data.condition = ("image", "tree", "fov")
  # The photograph is blurred alone: noise would hide the texture that is to be drawn.
  c.diffusion.condition_blur = 1.0
  c.diffusion.condition_noise = 0.0
  # The finest texture is what is learnt: views keep that of their photographs.
  c.data.augment.update(blur=0.0, noise=0.0)
  c.loss.min_snr_gamma = 0.0
  # The last steps decide on the finest texture.
  c.sampler.update(num_steps=12, spacing="trailing_fine")
  if variant == "cpu":
    c.data.image_size = (128, 128)  # as photographs are painted by fundus:cpu
    c.train.ema_decay = 0.995
  elif variant == "tiny":
    c.data.image_size, c.data.crop = (64, 64), 32
  return defaults.complete(c)
