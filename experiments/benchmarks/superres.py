"""Super-resolution against bicubic enlargement on held-out real pairs.

    python -m experiments.benchmarks.superres --superres runs/superres --source folder:PATH [--num 38] [--out results.json]

Every held-out pair is brought to the stage's size, shrunk by area averages to its input size, and enlarged again in both ways.
PSNR and SSIM of the photograph, over the whole frame and within the field of view; F1 and clDice of the tree within the field
of view, at the stage's own threshold (`config.sampler.mask_threshold`). Bicubic trees at one half are scored a second time at
the threshold that gives the best F1 on training eyes, as averages of thin vessels never reach one half. Differences are
paired, with 95 % bootstrap intervals over the eyes.

PSNR and SSIM like a photograph smooth. Whether it looks like one is measured by the kernel distance, over scattering features,
of the enlarged photographs to the very ones they were shrunk from, by outline (see `experiments.by_outline`); the floor is what
random halves of the real ones score against each other.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.by_outline import LEAST, OUTLINES, is_whole
from experiments.sampling_table import distance, floor, interval
from retree_jax import checkpoint, losses
from retree_jax.data import pipeline, sources, writing
from retree_jax.inference.superres import Enlarger, bicubic, blackened, enlarged_fov
from retree_jax.metrics import segmentation
from retree_jax.models import scaling
from retree_jax.tasks.superres import downscaled

NAMES = ("psnr", "ssim", "psnr_fov", "ssim_fov", "tree_f1", "tree_cldice")
_FIELDS = ("image", "tree", "fov")
CUTS = tuple(i / 40 for i in range(8, 21))  # 0.2 to 0.5: above, vessels only grow thinner and shorter


def pairs(source, size, num: int):
  """Up to `num` pairs one by one: dicts of uint8 [1, H, W, C]."""
  batches = pipeline.evaluation_batches(source, size=size, batch_size=1, fields=_FIELDS, num_threads=1)
  for _, batch in zip(range(num), batches, strict=False):
    yield {name: batch[name] for name in _FIELDS}


def by_bicubic(small: dict, scale: int) -> dict[str, np.ndarray]:
  """The baseline, with the field of view treated as the enlarger treats it."""
  pair = bicubic(jnp.concatenate([small["image"], small["tree"]], axis=-1), scale)
  pixels = np.asarray(blackened(pair, enlarged_fov(jnp.asarray(small["fov"]), scale)))
  return {"image": pixels[..., :3], "tree": pixels[..., 3:4], "fov": pixels[..., 4:]}


@jax.jit
def _image_scores(made, real, fov):
  made, real = (scaling.to_signed(x) for x in (made, real))
  inside = fov >= 128
  return jnp.concatenate(
    [
      losses.psnr(made, real),
      losses.ssim(made, real),
      losses.psnr(made, real, mask=inside),
      losses.ssim(made, real, mask=inside),
    ]
  )


def score(made: dict, real: dict, threshold: float = 0.5) -> dict[str, float]:
  """`NAMES` of one enlarged pair."""
  found = segmentation.scores(made["tree"][0] / 255.0, real["tree"][0] >= 128, real["fov"][0] >= 128, threshold)
  values = [float(v) for v in _image_scores(made["image"], real["image"], real["fov"])]
  return dict(zip(NAMES, [*values, found["f1"], found["cldice"]], strict=True))


def choose_cut(loaded, spec: str, num: int = 1000) -> dict[float, float]:
  """Mean clDice of enlarged trees for each probability of `CUTS`, on up to `num` training pairs of a source.

  clDice asks whether centrelines lie on the other's vessels: what thin vessels lose by a high cut and gain by a low one.
  """
  config = loaded.config.copy_and_resolve_references()
  with config.unlocked():
    config.sampler.mask_threshold = 0.5  # so that coverage is the probability itself
  enlarger, found = Enlarger(config, loaded.network), []
  source = sources.open_source(spec, split="train", fields=("image", "tree"), size=enlarger.size)
  for real in pairs(source, enlarger.size, num):
    probability = enlarger(loaded.params, downscaled(real, enlarger.scale))["tree"][0] / 255.0
    truth, fov = real["tree"][0] >= 128, real["fov"][0] >= 128
    found.append([segmentation.scores(probability, truth, fov, cut)["cldice"] for cut in CUTS])
  return dict(zip(CUTS, np.mean(found, axis=0).tolist(), strict=True))


def run(path, spec: str, num: int = 1000, tuning: int = 12) -> dict:
  """All scores as a JSON-able dict.

  Args:
    path: workdir or name of the superres stage.
    spec: source of real pairs, see `retree_jax.data.sources`.
    num: at most so many held-out pairs.
    tuning: training pairs from which the threshold of bicubic trees is chosen.
  """
  loaded = checkpoint.load(path, stage="superres")
  enlarger = Enlarger(loaded.config, loaded.network)
  fields = ("image", "tree")
  train = sources.open_source(spec, split="train", fields=fields, size=enlarger.size)
  test = sources.open_source(spec, split="test", fields=fields, size=enlarger.size)
  known = [(by_bicubic(downscaled(real, enlarger.scale), enlarger.scale), real) for real in pairs(train, enlarger.size, tuning)]
  threshold = segmentation.choose_threshold(
    [made["tree"][0] / 255.0 for made, _ in known],
    [real["tree"][0] >= 128 for _, real in known],
    [real["fov"][0] >= 128 for _, real in known],
  )

  rows = {"superres": [], "bicubic": [], f"bicubic, tree cut at {threshold:.3f}": []}
  photographs = {"real": [], "superres": [], "bicubic": []}
  whole, seconds = [], []
  for real in pairs(test, enlarger.size, num):
    small = downscaled(real, enlarger.scale)
    started = time.perf_counter()
    large = enlarger(loaded.params, small)
    seconds.append(time.perf_counter() - started)
    base = by_bicubic(small, enlarger.scale)
    whole.append(is_whole(real["fov"][0]))
    for name, pair in zip(photographs, (real, large, base), strict=True):
      photographs[name].append(pair["image"][0])
    for name, made, cut in zip(rows, (large, base, base), (0.5, 0.5, threshold), strict=True):
      rows[name].append(score(made, real, cut))
  gains = {
    name: [{n: a[n] - b[n] for n in NAMES} for a, b in zip(rows["superres"], found, strict=True)]
    for name, found in rows.items()
    if name != "superres"
  }
  return {
    "checkpoint": loaded.identity(),
    "step": loaded.step,
    "source": spec,
    "num": len(seconds),
    "input": list(enlarger.input_size),
    "output": list(enlarger.size),
    "seconds_per_pair": float(np.median(seconds)),
    "bicubic_threshold": threshold,
    "means": {name: segmentation.summary(found) for name, found in rows.items()},
    "gain_over": {name: segmentation.summary(found) for name, found in gains.items()},
    "looks": looks({name: np.stack(found) for name, found in photographs.items()}, np.array(whole)),
    "names": list(test.names[: len(seconds)]),
    "pairs": rows,
  }


def looks(photographs: dict[str, np.ndarray], whole: np.ndarray) -> dict[str, dict]:
  """Kernel distances of enlarged photographs to the real ones they were shrunk from, by outline, where there are `LEAST` eyes.

  Args:
    photographs: uint8 [N, H, W, 3] of each name; "real" is what the others are compared with.
    whole: bool [N], whether the eye is a whole disc.

  Returns:
    {outline: {"eyes": their number, "floor": of halves of the real ones, and each other name: its distance}}.
  """
  found = {}
  for outline, wanted in OUTLINES.items():
    chosen = whole == wanted
    if chosen.sum() < LEAST:
      continue
    real = photographs["real"][chosen]
    distances = {name: distance(real, made[chosen]) for name, made in photographs.items() if name != "real"}
    found[outline] = {"eyes": int(chosen.sum()), "floor": floor(real), **distances}
  return found


def table(result: dict) -> str:
  """The means, the paired gains and the distances as Markdown tables."""
  lines = ["| | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
  for name, means in result["means"].items():
    lines.append(f"| {name} | " + " | ".join(f"{means[n]['mean']:.4f}" for n in NAMES) + " |")
  for name, gain in result["gain_over"].items():
    cells = [f"{gain[n]['mean']:+.4f} [{gain[n]['low']:+.4f}, {gain[n]['high']:+.4f}]" for n in NAMES]
    lines.append(f"| gain over {name} | " + " | ".join(cells) + " |")
  if result["looks"]:
    names = ("superres", "bicubic", "floor")
    lines += ["", "Kernel distance of the photographs:", "", f"| outline | eyes | {' | '.join(names)} |", "|---" * 5 + "|"]
    for outline, found in result["looks"].items():
      lines.append(f"| {outline} | {found['eyes']} | {' | '.join(interval(found[name]) for name in names)} |")
  return "\n".join(lines)


def main(arguments=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--superres", required=True, help="workdir or name of the stage")
  parser.add_argument("--source", required=True, help="real pairs, e.g. folder:PATH; the test split is scored")
  parser.add_argument("--num", type=int, default=1000, help="at most so many held-out pairs")
  parser.add_argument("--out", help="JSON file to write")
  options = parser.parse_args(arguments)
  result = run(options.superres, options.source, options.num)
  print(
    f"{result['num']} held-out pairs, {result['input']} -> {result['output']}, step {result['step']}, "
    f"{result['seconds_per_pair']:.2f} s per pair\n\n{table(result)}"
  )
  if options.out:
    writing.write_json(pathlib.Path(options.out), writing.json_values(result))


if __name__ == "__main__":
  main()
