"""Every field of a config, with its default and what it means. `configs/STAGE.py` changes a few of them per variant."""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny", "cpu", "paper")


def base(stage: str, variant: str = "") -> ConfigDict:
  """The fields that all stages share, for one accelerator and up.

  Args:
    stage: "tree", "refine", "fundus", "detail", "superres", "segmentation" or "filter".
    variant: "" (default), "tiny", "cpu" or "paper".

  Raises:
    ValueError: unknown variant.
  """
  if variant not in VARIANTS:
    raise ValueError(f"variant {variant!r} is unknown: write configs/{stage}.py alone, or with :tiny, :cpu or :paper")
  c = ConfigDict()
  # The stage, and the variant of its config: the run records them, and loading a checkpoint as another stage is refused.
  c.stage = stage
  c.variant = variant or "default"
  # Root of all randomness of a run: parameters, data order, augmentation, noise.
  c.seed = 0

  c.data = ConfigDict()
  # "phantom[:NUM]", "folder:PATH", "tfds:NAME[:DIR]"; several joined by "+", each with an optional weight "*W".
  c.data.source = "phantom:400"
  # (height, width) in pixels that the stage works at.
  c.data.image_size = (256, 256)
  # How a photograph is brought to that size: "fov" (crop to the visible disc, pad black), "pad", "crop", "squash".
  c.data.fit = "fov"
  # Fields that the network makes, and those it is given.
  c.data.target = ("tree", "fov")
  c.data.condition = ()
  # Examples whose loss chooses the best checkpoint: "validation" sets one patient in five of the train split aside for it.
  # "test" trains on the whole train split and logs the losses on the test split, but the last checkpoint counts.
  c.data.heldout = "validation"
  # Augmentation; see retree_jax.data.transforms.Augment.
  c.data.augment = augmentation()
  # Number of augmented views that are prepared before the first step, kept in memory and drawn from; 0 = every view is new. For
  # accelerators, which learn faster than a host augments: 100 views of each eye differ little from new ones.
  c.data.views = 0
  # Threads that read and augment examples; -1 = as many as cores, but 16 at most; 0 = none, examples are made when needed.
  c.data.num_threads = -1
  # Processes that do so instead, each with `num_threads` threads and `cache_gib` of memory of its own, where the threads of one
  # process cannot keep up with the accelerators; 0 = none.
  c.data.num_processes = 0
  # Memory in GiB for examples that were read and fitted to the size, so that they are read from disk only once.
  c.data.cache_gib = 1.0
  # Batches kept ready on the devices.
  c.data.prefetch = 2

  c.model = ConfigDict()
  c.optimizer = ConfigDict()
  # "adamw", or "muon" for the kernels (see `retree_jax.state.make_optimizer`).
  c.optimizer.name = "adamw"
  # Peak learning rate, reached after warmup_steps; it serves both.
  c.optimizer.learning_rate = 2e-4
  c.optimizer.warmup_steps = 1000
  # "constant", or "cosine" down to 0 at decay_steps.
  c.optimizer.schedule = "constant"
  c.optimizer.decay_steps = 0
  # Decay of the averages of the gradient and of its square, and what is added to the root of the latter.
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.99
  c.optimizer.eps = 1e-8
  # Decoupled weight decay; times the learning rate, the share by which a step shrinks the parameters.
  c.optimizer.weight_decay = 0.01
  # Gradients with a greater global L2 norm are scaled down to it; 0 switches this off.
  c.optimizer.clip_norm = 1.0

  c.train = ConfigDict()
  # Optimizer batches to train for; a finished run can be continued with a greater number.
  c.train.num_steps = 100_000
  # Examples per step over all devices and hosts.
  c.train.batch_size = 64
  # Parts in which a batch is computed one after the other, to save memory.
  c.train.accumulate = 1
  # Decay of the moving average of the parameters, which sampling uses; 0 = it uses the parameters themselves.
  c.train.ema_decay = 0.9995
  # Fine-tuning: workdir of a run, or name of shipped weights, whose averaged parameters this run starts from; "" = random ones.
  c.train.start_from = ""

  c.evaluate = ConfigDict()
  # Steps between evaluations on held-out examples; 0 = never.
  c.evaluate.every = 2500
  # Greatest number of held-out examples, taken from joined sources in turn.
  c.evaluate.num = 64

  c.preview = ConfigDict()
  # Steps between preview pictures; 0 = never.
  c.preview.every = 5000
  # Samples in a preview.
  c.preview.num = 8

  c.checkpoint = ConfigDict()
  # Steps between checkpoints.
  c.checkpoint.every = 2500
  # Number of newest checkpoints to keep, and of those with the lowest held-out loss to keep in addition.
  c.checkpoint.keep_latest = 2
  c.checkpoint.keep_best = 1

  c.log = ConfigDict()
  # Steps between lines of metrics.jsonl and TensorBoard.
  c.log.every = 100
  # Whether to write TensorBoard files beside metrics.jsonl.
  c.log.tensorboard = True
  # First step and number of steps of a profiler trace into workdir/profile; 0 steps = none.
  c.log.profile_start = 20
  c.log.profile_steps = 0

  c.mesh = ConfigDict()
  # Devices that share one copy of the parameters (FSDP); 1 = every device has its own, -1 = all share one.
  c.mesh.fsdp = 1
  return c


def augmentation() -> ConfigDict:
  """Augmentation for a few dozen eyes (`retree_jax.data.transforms.Augment`); colour fields act on photographs alone."""
  a = ConfigDict()
  # Probability of a left-right flip (the other eye), and of an up-down flip (off: photographs are taken upright).
  a.horizontal_flip = 0.5
  a.vertical_flip = 0.0
  # Greatest rotation in degrees either way.
  a.rotation = 20.0
  # Greatest relative zoom, and greatest shift as a share of the side, either way.
  a.scale = 0.1
  a.shift = 0.03
  # Standard deviation of the smooth displacement, as a share of the shorter side.
  a.elastic = 0.008
  # Greatest relative change of brightness, contrast and saturation; of hue, as a share of a full turn.
  a.brightness = 0.1
  a.contrast = 0.1
  a.saturation = 0.1
  a.hue = 0.01
  # Greatest exponent: the photograph is raised to exp(±gamma).
  a.gamma = 0.1
  # Greatest relative brightening across the disc.
  a.illumination = 0.12
  # Greatest radius of a blur in pixels, greatest standard deviation of noise in grey levels.
  a.blur = 0.4
  a.noise = 2.0
  return a


def no_augmentation() -> ConfigDict:
  """The same fields, all augmentation off."""
  return ConfigDict({name: 0.0 for name in augmentation()})


def add_diffusion(c: ConfigDict) -> None:
  """Adds the fields of the denoising stages: corruption, loss and sampler."""
  c.diffusion = ConfigDict()
  # "cosine" (Nichol & Dhariwal), "linear" (Ho et al.), "sigmoid" (Jabri et al.), "paper" (the original's).
  c.diffusion.schedule = "cosine"
  # Number of time steps T.
  c.diffusion.num_steps = 1000
  # Rescale so that the last step is pure noise (Lin et al. 2305.08891).
  c.diffusion.zero_terminal_snr = True
  # Resolution shift (Hoogeboom et al. 2301.11093): image size over the size the schedule was made for; above 1 = more noise.
  c.diffusion.shift = 1.0
  # What the network predicts: "v", "x0" or "eps".
  c.diffusion.prediction = "v"
  # Time steps are drawn "stratified" over the batch or "uniform"; and the smallest one.
  c.diffusion.time_sampling = "stratified"
  c.diffusion.first_step = 0
  # Probability of hiding the tree of a training pair; above 0 for guidance and for photographs without trees.
  c.diffusion.condition_dropout = 0.0
  # Attributes of an eye that the network is told (`retree_jax.data.attributes`); () = none.
  c.data.attributes = ()
  # Probability of hiding each attribute of a training eye, and, once more, all of them; standard deviation of the noise that is
  # added to those told, in standard deviations over eyes, so that a few dozen eyes cannot be told apart by them.
  c.diffusion.attribute_dropout = 0.3
  c.diffusion.attribute_noise = 0.25

  c.loss = ConfigDict()
  # Weights of the squared and the absolute error.
  c.loss.mse = 1.0
  c.loss.l1 = 1.0
  # min-SNR weighting (Hang et al. 2303.09556; with v, pure noise counts too: `diffusion.process.loss_weight`); 0 = none.
  c.loss.min_snr_gamma = 5.0
  # Weight of pixels outside the field of view.
  c.loss.outside_fov = 1.0
  # Repetitive training technique of the original: up to rtt_repeats optimizer steps on the same noised batch.
  c.train.rtt = False
  c.train.rtt_repeats = 5

  c.sampler = ConfigDict()
  # "dpmpp_2m", "heun", "ddim" or "ddpm"; and its number of steps.
  c.sampler.name = "dpmpp_2m"
  c.sampler.num_steps = 20
  # Spacing of the steps in time: "trailing", "trailing_fine" (which keeps fine texture with few steps), "logsnr", "karras", or
  # "full" (the paper's, every time step).
  c.sampler.spacing = "trailing"
  # Noise that ddim adds: 0 = none, 1 = as much as ddpm.
  c.sampler.eta = 0.0
  # How the estimate of the clean image is clipped to [-1, 1] at every step: "static", "dynamic" or "none".
  c.sampler.clip = "static"
  # Classifier-free guidance scale; 1 = none.
  c.sampler.guidance = 1.0
  # Factor of the time step that the network is told in the last steps, where sigma / alpha is below 0.45. Below 1 it takes some
  # of the noise that is left for texture, and keeps it (Li et al., arXiv 2305.15583, shift time steps likewise); 1 = none.
  c.sampler.time_shift = 1.0
  # Samples per device and compiled call, and how many of them the network sees at once (0 = a CPU's best, all elsewhere).
  c.sampler.batch_size = 16
  c.sampler.block = 0
  # Root of the samples' randomness.
  c.sampler.seed = 0


def add_cascade(c: ConfigDict, variant: str) -> None:
  """Adds the fields of the stages that are given a coarser picture (refine, detail), after `add_diffusion`, and sets the sizes
  of their networks and trainings."""
  # Side in pixels of the square crops that are trained on, 0 = whole pictures; how many are cut from each eye of a batch; and
  # whether to turn and mirror them in all eight ways.
  c.data.crop, c.data.crops = 96, 4
  c.data.turns = True
  # How the coarse picture is degraded at level 1: standard deviation of a blur in its pixels, of noise on a scale from -1 to 1.
  # Training draws a level for each eye, which is an input of the network.
  c.diffusion.condition_blur = 0.8
  c.diffusion.condition_noise = 0.2
  # The absolute error is minimised by the median: where the course of a thin vessel is uncertain, that is no vessel.
  c.loss.l1 = 0.0
  # Level at which coarse pictures are degraded when sampling.
  c.sampler.condition_level = 0.0
  c.sampler.batch_size = 8
  c.model.update(name="denoiser", patch=2, widths=(64, 128, 192), blocks=(2,), attention=(), middle=0, dtype="bfloat16")
  c.train.update(batch_size=32, num_steps=20_000, ema_decay=0.999)
  c.optimizer.update(learning_rate=5e-4, warmup_steps=200)
  if variant in ("tiny", "cpu"):
    c.model.update(widths=(32, 64, 96), blocks=(1,), detail=16, time_dim=128, dtype="float32")
    c.train.update(batch_size=4, num_steps=6000, ema_decay=0.99)
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


def set_denoiser(c: ConfigDict, variant: str) -> None:
  """Sets network, image size and training length of the tree and fundus stages, for all variants but "paper"."""
  c.model.update(name="denoiser", patch=2, widths=(128, 256, 384, 512), blocks=(2,), attention=(2, 3), dtype="bfloat16")
  if variant == "cpu":
    c.data.image_size = (128, 128)
    c.model.update(widths=(32, 64, 128), blocks=(1, 2, 2), attention=(2,), head_width=32, time_dim=256, dtype="float32")
    c.train.update(batch_size=8, num_steps=8000, ema_decay=0.998)
    c.optimizer.update(learning_rate=8e-4, warmup_steps=100)
  if variant == "tiny":
    c.data.image_size = (64, 64)
    c.data.source = "phantom:100"
    c.model.update(
      widths=(32, 64, 96), blocks=(1,), attention=(2,), middle=1, head_width=32, detail=16, time_dim=128, dtype="float32"
    )
    c.train.update(batch_size=16, num_steps=1000, ema_decay=0.99)
    c.optimizer.update(learning_rate=1e-3, warmup_steps=50)
  if variant in ("tiny", "cpu"):
    c.evaluate.update(every=500, num=16)
    c.preview.update(every=500, num=8)
    c.checkpoint.every = 250
    c.log.every = 25


def complete(c: ConfigDict) -> ConfigDict:
  """Adds the settings of the networks that a variant does not name, with their defaults, so that every one can be set on the
  command line and stands in the checkpoint. Returns the same config.

  The output channels of a denoiser follow from `data.target`, its attributes from `data.attributes`: they are no settings.
  """
  from retree_jax import models  # here, so that flags are read and help is printed without JAX

  for section in ("model", "discriminator"):
    if section in c:
      for name, value in models.defaults(c[section].name).items():
        if name not in c[section] and name not in ("out_channels", "attributes"):
          c[section][name] = value
  return c
