"""The smallest run that is still a run: 16×16 drawn trees, a network of a few thousand parameters, a dozen time steps."""

import atexit
import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from retree_jax.config import defaults

# Runs in the same session, and the processes that they start, compile the same program once. To compile once for many sessions,
# name a folder in RETREE_JAX_TEST_CACHE.
_CACHE = os.environ.get("RETREE_JAX_TEST_CACHE") or tempfile.mkdtemp(prefix="retree_jax_tests_")
if "RETREE_JAX_TEST_CACHE" not in os.environ:
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The same settings as flags, for tests of the command line.
FLAGS = (
  "--config.data.source=phantom:5", "--config.data.image_size=(32, 32)", "--config.data.target=('tree',)",
  "--config.data.num_threads=1", "--config.data.attributes=()",
  "--config.model.widths=(8,)", "--config.model.attention=()", "--config.model.middle=0",
  "--config.model.head_width=4", "--config.model.time_dim=16", "--config.model.detail=4",
  "--config.diffusion.num_steps=12", "--config.sampler.num_steps=2", "--config.train.batch_size=4",
  "--config.optimizer.warmup_steps=2", "--config.evaluate.every=0", "--config.preview.every=0",
  "--config.log.tensorboard=False", "--config.log.every=1",
)  # fmt: skip


def config(**changes):
  """A tree-stage config for `arrays()`; keyword "train__num_steps=3" sets `config.train.num_steps`."""
  c = defaults.base("tree")
  defaults.add_diffusion(c)
  c.data.update(image_size=(16, 16), target=("tree",), augment=defaults.no_augmentation())
  c.model.update(
    name="denoiser", patch=1, detail=0, widths=(8,), blocks=(1,), attention=(), middle=0, head_width=4, time_dim=16
  )
  c.diffusion.num_steps = 12
  c.sampler.num_steps = 2
  c.train.update(num_steps=4, batch_size=8, ema_decay=0.9)
  c.optimizer.update(warmup_steps=2, learning_rate=1e-3)
  c.evaluate.update(every=0, num=8)
  c.preview.update(every=0, num=3)
  c.checkpoint.every = 1000
  c.log.update(every=1, tensorboard=False)
  for name, value in changes.items():
    *path, field = name.split("__")
    functools.reduce(lambda node, key: node[key], path, c)[field] = value
  return c


def cascade(stage, **changes):
  """The tiny variant of `configs.refine` or `configs.detail`, made smaller still: 32×32 pixels, crops of 16×16, four steps."""
  c = stage.get_config("tiny")
  c.data.update(source="phantom:3", image_size=(32, 32), crop=16, crops=2, num_threads=1)
  c.model.update(widths=(8, 8), detail=4, time_dim=16)
  c.diffusion.num_steps = 12
  c.sampler.update(num_steps=2, batch_size=2)
  c.train.update(num_steps=4, batch_size=2)
  c.optimizer.warmup_steps = 1
  c.evaluate.update(every=0, num=2)
  c.preview.update(every=0, num=2)
  c.log.update(every=1, tensorboard=False)
  for name, value in changes.items():
    section, field = name.split("__")
    c[section][field] = value
  return c


class Toy:
  """A network that compiles in no time: every pixel through one hidden layer, and a bias that depends on the timestep.

  With `monkeypatch.setattr(models, "build", small.Toy)` the loop, checkpoints and samplers take it for any other.
  """

  def __init__(self, settings, width: int = 8):
    self.settings, self.width = settings, width

  def check_size(self, height, width, field="", factor=1):
    pass

  def cpu_block(self, height, width):
    return 1

  def init(self, key, x, t=None, cond=None):
    channels = x.shape[-1] + (0 if cond is None else cond.shape[-1])
    make = jax.nn.initializers.normal(0.3)
    first, last = jax.random.split(key)
    return {
      "first": make(first, (channels, self.width)),
      "last": make(last, (self.width, x.shape[-1])),
      "time": jnp.zeros((12, self.width)),
    }

  def apply(self, params, x, t=None, cond=None, *, key=None):
    h = x if cond is None else jnp.concatenate([x, cond], -1)
    time = params["time"][t.astype(jnp.int32)][:, None, None]
    return jnp.tanh(h @ params["first"] + time) @ params["last"]


@functools.lru_cache
def arrays(size: int = 16, train: int = 24, test: int = 8) -> dict:
  """{"train": {"tree": uint8 [n, size, size, 1]}, "heldout": ...}: each tree one straight vessel with a branch."""
  rng = np.random.default_rng(7)

  def tree():
    out = np.zeros((size, size, 1), np.uint8)
    column, branch = rng.integers(2, size - 2), rng.integers(3, size - 3)
    out[:, column - 1 : column + 1] = 255
    out[branch, column:] = 255
    return out

  return {split: {"tree": np.stack([tree() for _ in range(n)])} for split, n in (("train", train), ("heldout", test))}


def on_host(tree):
  """A state or any pytree as numpy arrays; typed keys as their numbers."""

  def leaf(x):
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

  return jax.tree.map(leaf, tree)


def assert_same(a, b) -> None:
  """Two pytrees are equal bit for bit."""
  a, b = (jax.tree_util.tree_leaves_with_path(on_host(t)) for t in (a, b))
  assert [k for k, _ in a] == [k for k, _ in b]
  for (path, x), (_, y) in zip(a, b, strict=True):
    assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def assert_close(a, b, rtol: float, atol: float) -> None:
  """Two pytrees are equal up to rounding."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), on_host(a), on_host(b))


def start(*arguments: str, devices: int = 1, **environment: str) -> subprocess.Popen:
  """Starts `python ARGUMENTS` on so many CPU devices; stderr is a pipe, stdout goes there too."""
  env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "RETREE_"))}
  env.update(
    JAX_PLATFORMS="cpu",
    JAX_NUM_CPU_DEVICES=str(devices),
    JAX_COMPILATION_CACHE_DIR=_CACHE,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2",
    RETREE_JAX_CPU_SETTINGS="off",
    PYTHONUNBUFFERED="1",
  )
  return subprocess.Popen(
    [sys.executable, *arguments],
    env={**env, **environment},
    text=True,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


def finish(process: subprocess.Popen, timeout: float = 1500) -> str:
  """Waits for a process that must succeed; what it printed."""
  try:
    text, _ = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    stop(process)
    raise
  assert process.returncode == 0, text
  return text


def stop(*processes: subprocess.Popen | None) -> None:
  """Kills what still runs of these, and closes their pipes."""
  for process in processes:
    if process is not None and not process.stdout.closed:
      process.kill()
      process.communicate()


def wait_for(condition, seconds: float = 1500) -> None:
  """Waits until `condition()` is true; AssertionError if it never is."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it did not happen"
    time.sleep(0.05)


@contextlib.contextmanager
def compilations():
  """A list that grows by one entry for every program that XLA compiles in the context."""
  found, event = [], "/jax/core/compile/backend_compile_duration"

  def heard(name, seconds, **unused):
    if name == event:
      found.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)
