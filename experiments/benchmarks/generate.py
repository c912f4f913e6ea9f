"""How fast pairs are made, where the time goes, and that memory does not grow with their number.

    python -m experiments.benchmarks.generate                                     # tiny variants, random weights
    python -m experiments.benchmarks.generate --variant=cpu --num=64
    python -m experiments.benchmarks.generate --tree=runs/tree --fundus=runs/fundus --filter=runs/filter --num=256

Speed does not depend on what the weights have learnt, so random ones will do. Prints a Markdown table: pairs/s of each
stage by itself and of the whole, the share of the time that devices waited for the disk, and the peak memory after `--num`
pairs and after four times as many. The first batch, which compiles, is left out of the times.
"""

import importlib.util
import pathlib
import resource
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import flags

from retree_jax import checkpoint, models, sharding
from retree_jax.cli import cpu, errors
from retree_jax.config.network import network_settings
from retree_jax.data.fields import num_channels
from retree_jax.inference import dataset_writer, pairs

_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def define_flags() -> flags.FlagValues:
  f = flags.FlagValues()
  for name in ("tree", "fundus", "superres", "filter"):
    flags.DEFINE_string(name, None, f"Workdir of the {name} stage.", flag_values=f)
  flags.DEFINE_string(
    "variant", "tiny", "Without workdirs: variant of the configs whose networks get random weights.", flag_values=f
  )
  flags.DEFINE_integer("num", 32, "Pairs of the first run; the second makes four times as many.", lower_bound=1, flag_values=f)
  flags.DEFINE_integer("steps", None, "Sampler steps.", lower_bound=1, flag_values=f)
  flags.DEFINE_enum("format", "png", ["png", "tfds"], "What is written.", flag_values=f)
  return f


def random_stage(stage: str, variant: str) -> checkpoint.Loaded:
  """A denoising stage of a config's variant with its initial weights."""
  spec = importlib.util.spec_from_file_location(stage, _CONFIGS / f"{stage}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(variant)
  channels, given = num_channels(config.data.target), num_channels(config.data.condition)
  network = models.build(network_settings(config))
  shape = (1, *config.data.image_size)
  params = network.init(
    jax.random.key(0), jnp.zeros((*shape, channels)), jnp.zeros((1,)), jnp.zeros((*shape, given)) if given else None
  )
  return checkpoint.Loaded(config, params, network, 0, "")


def main() -> None:
  f = define_flags()
  errors.parse(f, sys.argv)
  cpu.dispatch_inline()
  mesh = sharding.make_mesh()
  if f.tree or f.fundus:
    chosen = pairs.load_models(f.tree, f.fundus, f.superres, f.filter, mesh=mesh)
  else:
    chosen = pairs.Models(random_stage("tree", f.variant), random_stage("fundus", f.variant))
  paths = {name: name for name in ("tree", "fundus") if getattr(chosen, name) is not None}
  pairs.load_models = lambda **unused: chosen
  # One generator for all runs, so that the second finds everything compiled.
  generator = pairs.Generator(chosen, mesh, num_steps=f.steps)
  pairs.Generator = lambda *unused: generator
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    began = time.monotonic()
    dataset_writer.write(paths, f"{folder}/warm", num=generator.batch_size, form=f.format, mesh=mesh)
    print(f"compiled and made {generator.batch_size} pairs in {time.monotonic() - began:.1f} s", file=sys.stderr)
    for num in (f.num, 4 * f.num):
      generator.seconds.clear()
      summary = dataset_writer.write(paths, f"{folder}/{num}", num=num, form=f.format, mesh=mesh)
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
      rows.append((num, summary, peak))
  device = jax.devices()[0].device_kind
  names = sorted(rows[0][1]["stages"])
  print(
    f"\n{jax.device_count()} × {device}; trees {chosen.tree and chosen.tree.config.data.image_size}, photographs "
    f"{chosen.fundus and chosen.fundus.config.data.image_size}; {f.format}\n"
  )
  print(f"| pairs | {' | '.join(f'{n}, pairs/s' for n in names)} | all, pairs/s | waiting for the disk | peak memory, MiB |")
  print("|" + "---|" * (len(names) + 4))
  for num, s, peak in rows:
    speeds = " | ".join(f"{num / max(s['stages'][n], 1e-9):.2f}" if s["stages"][n] > 1e-3 * s["wall"] else "–" for n in names)
    print(f"| {num} | {speeds} | {num / s['wall']:.2f} | {s['waited'] / s['wall']:.1%} | {peak:.0f} |")


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
