"""What generated pairs add to a few labelled eyes: segmenters trained with equal numbers of steps, tested on real eyes.

    retree-jax validate --real PATH --generated data/retree --test PATH --out runs/validation

The arms share one network and one number of optimizer steps:

    real           real pairs alone, default augmentation
    generated      generated pairs alone
    both           each batch half real, half generated
    finetune       half of the steps on generated pairs, then half on real ones
    real_strong    real pairs alone, with the config's strong augmentation: the cheapest alternative to generated pairs
    mix_R          all real pairs and R times as many generated ones (`--ratios 0,0.5,1,2,4`, `experiments.mixing`)

Every arm is scored on the test split of the real set and on the test splits of all `--test` sets, with both protocols of
`retree_jax.metrics.segmentation`. Nothing is selected on a test split: the last step is used, the threshold is fixed. Label
fidelity: the `real` segmenters are applied to generated photographs that no arm was trained on, and scored against the trees
of those photographs.

Give `--real` several times to repeat the experiment with each set (train on CHASE_DB1, test on HRF, and the reverse). PATH may
be any source spec of `retree_jax.data.sources`. Rerunning the same command resumes it. With `--minutes`, no new training starts
after that time, and the table lists the runs that are missing.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping

from absl import flags
from ml_collections import config_flags

from retree_jax.cli import cpu, errors
from retree_jax.config import defaults
from retree_jax.data import fingerprint, provenance, sources, writing

from . import mixing
from .validation_tables import BASELINE, METRICS, collect, markdown

ARMS = ("real", "generated", "both", "finetune", "real_strong")
_CONFIG = "segmentation:cpu"


@dataclasses.dataclass(frozen=True)
class Plan:
  """One experiment.

  Attributes:
    name: of the real set; names its folder.
    real: source spec of the real pairs.
    generated: source spec of the generated pairs, a single source.
    tests: {name: source spec} of the sets to test on; their test splits are used.
    arms: some of `ARMS`, and of `mixing.arms`.
    seeds: seeds of the runs.
    steps: optimizer steps of every arm.
    fidelity: number of generated photographs for the label fidelity; 0 = none.
  """

  name: str
  real: str
  generated: str
  tests: Mapping[str, str]
  arms: tuple[str, ...] = ARMS
  seeds: tuple[int, ...] = (0, 1, 2)
  steps: int = 1000
  fidelity: int = 50

  def __post_init__(self):
    unknown = [arm for arm in self.arms if arm not in ARMS and mixing.ratio(arm) is None]
    if unknown or not self.arms:
      raise ValueError(f"there is no arm {unknown[0] if unknown else ''!r}: use some of {', '.join(ARMS)}")
    if self.steps < 2:
      raise ValueError(f"--steps={self.steps} is too small: use 2 or more")
    if not self.seeds:
      raise ValueError("--seeds is 0: use 1 or more, and at least 3 for a standard deviation")


def phases(plan: Plan, arm: str, config) -> list[tuple[str, object]]:
  """The trainings of an arm, in order, each initialised from the one before: [(name, config)], `plan.steps` steps in total.

  Args:
    plan: the experiment.
    arm: one of `Plan.arms`.
    config: config of the segmentation stage; its augmentation is the strong one.

  Raises:
    ValueError: sources that cannot be opened.
  """

  def phase(source, steps, strong=False):
    c = config.copy_and_resolve_references()
    c.data.source = source
    if not strong:
      c.data.augment = defaults.augmentation()
    c.train.num_steps = steps
    if c.optimizer.schedule == "cosine":
      c.optimizer.decay_steps = steps
    c.optimizer.warmup_steps = min(c.optimizer.warmup_steps, steps // 5)
    c.evaluate.every = c.preview.every = 0
    return c

  if arm == "real":
    return [("train", phase(plan.real, plan.steps))]
  if arm == "real_strong":
    return [("train", phase(plan.real, plan.steps, strong=True))]
  if arm == "generated":
    return [("train", phase(plan.generated, plan.steps))]
  if times := mixing.ratio(arm):
    return [("train", phase(mixing.source(plan.real, plan.generated, times), plan.steps))]
  if arm == "both":
    return [("train", phase(even_mixture(plan.real, plan.generated), plan.steps))]
  first = plan.steps // 2
  return [("pretrain", phase(plan.generated, first)), ("finetune", phase(plan.real, plan.steps - first))]


def even_mixture(real: str, generated: str) -> str:
  """A source spec from which real and generated pairs are drawn equally often, whatever their numbers.

  Raises:
    ValueError: `generated` is several sources, or has a weight of its own.
  """
  if [weight for _, weight in sources.weighted_parts(generated)] != [1.0]:
    raise ValueError(f"--generated={generated} must be one source without a weight: put the pairs into one folder")
  opened = sources.open_source(real, split="train")
  share = len(opened)
  if hasattr(opened, "parts"):
    share = sum(weight * len(part) for weight, part in zip(opened.weights, opened.parts, strict=True))
  return f"{real}+{generated}*{share / len(sources.open_source(generated, split='train')):.6g}"


def run(plan: Plan, config, out, deadline: float = float("inf")) -> dict:
  """Trains and scores what is missing, writes results.json and RESULTS.md into `out`/NAME, and returns the results.

  Args:
    plan: the experiment.
    config: config of the segmentation stage.
    out: local folder.
    deadline: value of `time.monotonic()` after which no training starts.

  Raises:
    ValueError: sources that cannot be opened, or an `out` that holds another experiment.
  """
  out = pathlib.Path(out) / plan.name
  for arm in plan.arms:
    phases(plan, arm, config)
  # Open every source before hours of training, so that a wrong path is reported now.
  tests = {name: sources.open_source(spec, split="test", fields=("image", "tree")) for name, spec in plan.tests.items()}
  opened = [sources.open_source(spec, split="train", fields=("image", "tree")) for spec in (plan.real, plan.generated)]
  marks = {"real": opened[0], "generated": opened[1], **{f"test {name}": source for name, source in tests.items()}}
  _claim(out, plan, config, {name: fingerprint.of_source(source) for name, source in marks.items()})
  for source in (opened[0], *tests.values()):
    provenance.warn(source, "given as real eyes", "give photographs of real eyes with --real and --test")
  for seed in plan.seeds:  # outer loop, so that all arms have the same seeds when time runs out
    for arm in plan.arms:
      if not _finish(plan, arm, seed, config, tests, out, deadline):
        break
  results = collect(plan, out)
  writing.write_json(out / "results.json", results)
  writing.write_text(out / "RESULTS.md", markdown(results))
  if any(mixing.ratio(arm) for arm in plan.arms) and any(results["gain"].values()):
    writing.write_text(out / "mixing.svg", mixing.plot(results))
  return results


def _finish(plan, arm, seed, config, tests, out, deadline) -> bool:
  """Trains and scores one arm with one seed unless that is done. Returns False if the deadline has passed."""
  from retree_jax import checkpoint, train

  scores = out / "scores" / f"{arm}-{seed}.json"
  if scores.exists():
    return True
  before = ""
  for name, c in phases(plan, arm, config):
    workdir = out / "runs" / f"{arm}-{seed}" / name
    if time.monotonic() > deadline and not _trained(workdir, c.train.num_steps):
      return False
    c.seed, c.train.start_from = seed, before
    train.train(c, workdir)
    before = str(workdir)
  loaded = checkpoint.load(before, step="latest", stage="segmentation")
  result = {name: _scored(loaded, source) for name, source in tests.items()}
  if arm == BASELINE and plan.fidelity:
    generated = sources.open_source(plan.generated, split="test", fields=("image", "tree"))
    result["fidelity"] = _scored(loaded, _First(generated, plan.fidelity))
  writing.write_json(scores, result)
  print(
    f"{plan.name}: {arm}, seed {seed}: " + ", ".join(f"{name} F1 {r['native']['f1']:.3f}" for name, r in result.items()),
    flush=True,
  )
  return True


def _trained(workdir, steps: int) -> bool:
  return (workdir / "checkpoints" / str(steps)).is_dir()


class _First:
  """The first few examples of a source."""

  def __init__(self, source, number: int):
    self._source, self._number = source, min(number, len(source))

  def __len__(self):
    return self._number

  def __getitem__(self, index):
    return self._source[index]


def _scored(loaded, source) -> dict:
  """Means over the photographs for each protocol, and the F1 score of every photograph."""
  from retree_jax.inference import segmenter  # here, so that --help answers without JAX

  full = segmenter.score_source(loaded, source)
  means = {p: {m: full[p]["all"]["per_image"][m]["mean"] for m in METRICS} for p in segmenter.PROTOCOLS}
  return {**means, "images": {name: f1["native"] for name, f1 in full["images"].items()}}


def _claim(out, plan, config, data: dict[str, str]) -> None:
  """Checks that a folder holds this experiment or none; seeds and arms may be added later. `data`: fingerprints of the sets."""
  from retree_jax import checkpoint

  facts = dataclasses.asdict(plan) | {"config": checkpoint.to_json(config), "data": data}
  facts = {k: v for k, v in json.loads(json.dumps(facts)).items() if k not in ("arms", "seeds")}
  path = out / "experiment.json"
  if path.exists():
    theirs = json.loads(path.read_text())
    theirs.setdefault("data", data)  # of a folder written before fingerprints were kept
    differ = [k for k in facts if theirs.get(k) != facts[k]]
    if differ:
      raise ValueError(f"{out} holds another experiment ({', '.join(differ)} differ): name another folder with --out")
  writing.write_json(path, facts)


def _spec(path: str) -> str:
  """Returns a source spec unchanged, and a path as "folder:PATH"."""
  return path if path.partition(":")[0] in ("phantom", "folder", "tfds") else f"folder:{path}"


def _titled(specs) -> dict[str, str]:
  """{title: spec}; of several sets with one title, all but the first are numbered."""
  found: dict[str, str] = {}
  for spec in dict.fromkeys(specs):
    title = name = sources.open_source(spec, split="test").title
    number = 1
    while name in found:
      number += 1
      name = f"{title} {number}"
    found[name] = spec
  return found


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  f = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config", None, f"Config of the segmenters (default {_CONFIG}).", lock_config=True, flag_values=f
  )
  flags.DEFINE_multi_string("real", [], "Real pairs to train on; repeat it to run the experiment with each.", flag_values=f)
  flags.DEFINE_string("generated", None, "Generated pairs.", flag_values=f)
  flags.DEFINE_multi_string("test", [], "Another real set to test on (its test split); may be repeated.", flag_values=f)
  flags.DEFINE_string("out", "runs/validation", "Folder for runs, scores and tables.", flag_values=f)
  flags.DEFINE_list("arms", list(ARMS), "Arms to run.", flag_values=f)
  flags.DEFINE_list(
    "ratios", [], "Mixtures to compare with real pairs alone: generated pairs per real eye, e.g. 0,0.5,1,2,4.", flag_values=f
  )
  flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=1, flag_values=f)
  flags.DEFINE_integer("steps", 1000, "Optimizer steps of every arm.", lower_bound=2, flag_values=f)
  flags.DEFINE_float("minutes", None, "Start no training after this many minutes.", lower_bound=0, flag_values=f)
  flags.DEFINE_integer(
    "fidelity", 50, "Number of generated photographs for the label fidelity; 0 = none.", lower_bound=0, flag_values=f
  )
  return f


def main() -> None:
  """Runs the experiment for each `--real`, prints the tables."""
  f = define_flags()
  # Not the flag's default: absl would load it for --help, and JAX with it.
  given = any(word.partition("=")[0] in ("--config", "-config") for word in sys.argv)
  errors.parse(f, sys.argv if given else [sys.argv[0], f"--config={_CONFIG}", *sys.argv[1:]], __doc__)
  if not f.real or not f.generated:
    raise ValueError("--real or --generated is missing: name a folder of real pairs and a folder of generated pairs")
  arms = tuple(f.arms)
  if f.ratios:
    arms = tuple(dict.fromkeys(((*arms,) if f["arms"].present else ()) + mixing.arms(f.ratios)))
  cpu.dispatch_inline()
  deadline = time.monotonic() + 60 * f.minutes if f.minutes is not None else float("inf")
  others = [_spec(spec) for spec in f.test]
  titles = {spec: name for name, spec in _titled([*map(_spec, f.real), *others]).items()}
  for real in dict.fromkeys(map(_spec, f.real)):
    tests = {titles[spec]: spec for spec in dict.fromkeys([real, *others])}
    plan = Plan(titles[real], real, _spec(f.generated), tests, arms, tuple(range(f.seeds)), f.steps, f.fidelity)
    print(markdown(run(plan, f.config, f.out, deadline)), flush=True)


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
