"""Every stage's programs, lowered for devices that need not exist: its training step, and what a trained stage runs."""

import contextlib
import dataclasses
import hashlib
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.tpu import flops
from retree_jax import keys, sharding, tasks
from retree_jax.data import attributes, writing
from retree_jax.data.fields import CHANNELS, num_channels

NAMES = ("train", "use")
_FILTER_TREES = 500  # generated trees that the filter's config asks for


@dataclasses.dataclass(frozen=True)
class Program:
  """A lowered program and what is known of it before it is compiled.

  Attributes:
    lowered: from `jax.jit(...).lower(...)`.
    images: photographs, trees or pairs that one run takes or makes, over all devices.
    flops: matrix products and convolutions of one run, over all devices.
    rounds: how many times as much as XLA's cost analysis counts, which sees one round of every loop.
    parameters: of the network that is trained or used; `sharded` of them are split over the axis "fsdp".
    width: bytes of a value in what the network computes in.
    trains: a training step.
  """

  lowered: jax.stages.Lowered
  images: int
  flops: int
  rounds: float
  parameters: int
  sharded: int
  width: int
  trains: bool

  @property
  def key(self) -> str:
    """Hash of the program as it was lowered: the same for the same arithmetic, whatever the commit."""
    return hashlib.sha256(self.lowered.as_text().encode()).hexdigest()[:16]


def build(config, name: str, devices) -> Program:
  """The program "train" or "use" of a config over a mesh of `devices`, with `config.mesh.fsdp` and the config's batch size.

  Raises:
    ValueError: the filter's "use", an unknown name, or a batch that cannot be split over the devices.
  """
  if name not in NAMES:
    raise ValueError(f"--program={name} is unknown: use {' or '.join(NAMES)}")
  mesh = sharding.make_mesh(config.mesh.fsdp, devices)
  with _generated_trees(config):
    task = tasks.make(config)
  abstract = jax.eval_shape(lambda: task.init(keys.stream(0, "benchmark")))
  shardings = sharding.infer_shardings(abstract, mesh)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  if name == "train":
    sharding.check_batch(config.train.batch_size, mesh, config.train.accumulate)
    given = _placed(mesh, _batch(config, task))
    function = jax.jit(
      task.train_step,
      donate_argnums=0,
      in_shardings=(shardings, sharding.batch_sharding(mesh)),
      out_shardings=(shardings, sharding.replicated(mesh)),
    )
    arguments, images, params = (abstract, given), config.train.batch_size, abstract.params
  else:
    params = abstract.averaged
    function, given, images = _use(config, task, mesh)
    arguments = (params, *_placed(mesh, given))
  leaves = jax.tree.leaves(params)
  total = flops.count(function, *arguments)
  return Program(
    function.lower(*arguments),
    images=images,
    flops=total,
    rounds=total / max(1, flops.count(function, *arguments, loops=False)),
    parameters=sum(x.size for x in leaves),
    sharded=sum(x.size for x in leaves if not x.sharding.is_fully_replicated),
    width=jnp.dtype(config.model.get("dtype", "float32")).itemsize,
    trains=name == "train",
  )


def _placed(mesh, arrays):
  """Shapes of arrays that are split over the devices along their first axis."""
  split = sharding.batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), arrays)


def _batch(config, task) -> dict:
  """Shapes of what the loop gives the training step."""
  number, size, batch = config.train.batch_size, tuple(config.data.image_size), {}
  for field in task.fields:
    name = field.rstrip("?")
    if name == "attributes":
      batch[name] = jax.ShapeDtypeStruct((number, len(attributes.ATTRIBUTES)), jnp.float32)
      continue
    batch[name] = jax.ShapeDtypeStruct((number, *size, CHANNELS[name]), jnp.uint8)
    if field != name:
      batch[f"has_{name}"] = jax.ShapeDtypeStruct((number,), jnp.bool_)
  return batch


def _use(config, task, mesh):
  """(jitted function of parameters and what follows, shapes of what follows, images) of a trained stage, one compiled call."""
  from retree_jax.inference.refiner import Refiner
  from retree_jax.inference.sampler import Sampler
  from retree_jax.inference.segmenter import Segmenter
  from retree_jax.inference.superres import Enlarger

  def pixels(count, size, channels):
    return jax.ShapeDtypeStruct((count, *size, channels), jnp.uint8)

  if config.stage in ("tree", "fundus", "refine"):
    sampler = (Refiner if config.stage == "refine" else Sampler)(config, task.network, mesh)
    count = sampler.batch_size
    given = (
      jax.ShapeDtypeStruct((mesh.size,), jnp.int32),
      jax.ShapeDtypeStruct((count, 2), jnp.uint32),
      pixels(count, sampler.size, num_channels(sampler.condition)),
      jax.ShapeDtypeStruct((count, len(sampler.attributes)), jnp.float32),
    )
    return sampler._run, given, count
  if config.stage == "superres":
    enlarger = Enlarger(config, task.network, mesh)
    return enlarger._run, (pixels(enlarger.batch_size, enlarger.input_size, 5),), enlarger.batch_size
  if config.stage == "segmentation":
    segmenter = Segmenter(config, task.network, mesh)
    count = segmenter.batch_size
    return segmenter._run, ({"image": pixels(count, segmenter.size, 3), "fov": pixels(count, segmenter.size, 1)},), count
  raise ValueError(f"the {config.stage} stage has no program for devices beside its training step: leave --program=use out")


@contextlib.contextmanager
def _generated_trees(config):
  """Some generated trees for the tree filter, which reads them when it is made: any will do here."""
  if config.stage != "filter" or config.data.generated:
    yield
    return
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    for i in range(_FILTER_TREES):
      tree = 255 * rng.integers(0, 2, (*config.data.image_size, 1), np.uint8)
      writing.write_png(pathlib.Path(folder) / f"coverage/{i:03d}.png", tree)
    config.data.generated = folder
    try:
      yield
    finally:
      config.data.generated = ""
