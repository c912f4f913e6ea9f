"""The whole chain, from folders of eyes to a table: what a user with their own eyes runs.

    python -m experiments.reproduce --labelled data/CHASE_DB1,data/HRF --photographs data/IDRiD --out runs/chain
    python -m experiments.reproduce --out runs/phantom --preset tiny            # no data: phantom retinas, CPU minutes

segmenter → labels for the photographs that have none → tree stage → tree filter → fundus stage → super-resolution →
generated set → report and validation. Every step is one of the project's own commands, printed before it runs; rerunning the
same line goes on where it stopped, also inside a training. Each training has a budget in minutes (--budget changes them); it
stops there, saves, and the chain goes on with what it has learnt. --piece_minutes ends the whole script after so long, for
machines that are lent in pieces.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

from retree_jax.data import writing

# Minutes of training per stage. "coarse": minutes that the tree stage first spends at half its size, where a step costs a
# quarter: it learns there where vessels go, and at full size how thin they are. "validation": its flags.
PRESETS = {
  "tiny": {
    "variant": ":tiny",
    "segmentation": 2,
    "tree": 4,
    "filter": 2,
    "fundus": 4,
    "superres": 4,
    "num": 16,
    "validation": ("--steps", "150", "--seeds", "1"),
  },
  "cpu": {
    "variant": ":cpu",
    "segmentation": 40,
    "tree": 60,
    "filter": 10,
    "fundus": 90,
    "superres": 40,
    "num": 200,
    "coarse": 40,
    "validation": ("--steps", "500"),
  },
  "default": {
    "variant": "",
    "segmentation": 3,
    "tree": 7,
    "filter": 1,
    "fundus": 9,
    "superres": 5,
    "num": 1000,
    "validation": ("--steps", "2000"),
  },
}
STAGES = ("segmentation", "tree", "filter", "fundus", "superres")
_GRACE_S = 120  # between the request to stop and the kill: a checkpoint has to be written


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of the chain.

  Attributes:
    name: unique, stands in the log and in chain.json.
    command: arguments after `python`.
    minutes: budget of a training, which is asked to save and stop there; None = until it ends.
  """

  name: str
  command: tuple[str, ...]
  minutes: float | None = None


def plan(args) -> list[Step]:
  """The steps of the chain, in order."""
  preset, out = PRESETS[args.preset], pathlib.Path(args.out)
  minutes = {stage: args.budget.get(stage, preset[stage]) for stage in STAGES}
  labelled = "+".join(f"folder:{p}" for p in args.labelled) or "phantom:200"
  run = {stage: str(out / stage) for stage in STAGES}

  def training(stage, *more):
    return Step(
      f"train {stage}",
      (
        "-m",
        "retree_jax.main",
        "--config",
        f"configs/{stage}.py{preset['variant']}",
        "--workdir",
        run[stage],
        f"--config.seed={args.seed}",
        *more,
      ),
      minutes[stage],
    )

  def source(spec):
    return f"--config.data.source={spec}"

  steps = [training("segmentation", source(labelled))]
  pairs, names = labelled, _label_names(args.photographs)
  for folder in args.photographs:
    found = out / "labels" / names[folder]
    steps.append(
      Step(
        f"label {folder}",
        (
          "-m",
          "retree_jax.main",
          "--config",
          f"configs/segmentation.py{preset['variant']}",
          "--workdir",
          run["segmentation"],
          "--mode",
          "sample",
          "--input",
          folder,
          "--out",
          str(found),
        ),
      )
    )
    # Predicted labels count half: they show colours and lesions that the few labelled eyes do not have.
    pairs = "+".join(f"{spec}*2" for spec in labelled.split("+")) if pairs == labelled else pairs
    pairs += f"+folder:{found}"
  trees, drawn = str(out / "generated_trees"), str(max(200, preset["num"]))
  fine = ()
  if "coarse" in preset:
    half = str(out / "tree_coarse")
    coarse = training(
      "tree", source(labelled), "--config.data.image_size=(64,64)", "--config.train.batch_size=16", "--workdir", half
    )
    steps.append(dataclasses.replace(coarse, name="train tree, coarse", minutes=args.budget.get("coarse", preset["coarse"])))
    # Twice the size: more noise for the same signal at the coarse scales (Hoogeboom et al. 2301.11093).
    fine = (f"--config.train.start_from={half}", "--config.diffusion.shift=2.0")
  steps += [
    training("tree", source(labelled), *fine),
    Step(
      "trees for the filter",
      ("-m", "retree_jax.generate", "--tree", run["tree"], "--num", drawn, "--seed", "1", "--out", trees),
    ),
    training("filter", source(labelled), f"--config.data.generated={trees}"),
    training("fundus", source(pairs)),
    training("superres", source(labelled), *([f"--config.loss.perceptual_weights={args.vgg19}"] if args.vgg19 else [])),
    Step(
      "generate",
      (
        "-m",
        "retree_jax.generate",
        "--tree",
        run["tree"],
        "--filter",
        run["filter"],
        "--fundus",
        run["fundus"],
        "--superres",
        run["superres"],
        "--num",
        str(args.num or preset["num"]),
        "--out",
        str(out / "pairs"),
      ),
    ),
    Step(
      "report",
      (
        "-m",
        "retree_jax.evaluate",
        "--generated",
        str(out / "pairs"),
        "--real",
        labelled,
        "--train",
        labelled,
        "--segmenter",
        run["segmentation"],
        "--out",
        str(out / "report"),
      ),
    ),
  ]
  if args.validate:
    # Trained on each set, tested on all of them.
    sets = [part for spec in labelled.split("+") for part in ("--real", spec, "--test", spec)]
    steps.append(
      Step(
        "validation",
        (
          "-m",
          "experiments.validation",
          "--config",
          f"configs/segmentation.py{preset['variant']}",
          *sets,
          "--generated",
          str(out / "pairs"),
          *preset["validation"],
          "--out",
          str(out / "validation"),
        ),
      )
    )
  return steps


def _label_names(folders: list[str]) -> dict[str, str]:
  """One name for the labels of each folder: its own, numbered where two folders are called the same."""
  found = {}
  for folder in folders:
    name = pathlib.Path(folder).resolve().name
    number = 2
    while name in found.values():
      name, number = f"{pathlib.Path(folder).resolve().name}_{number}", number + 1
    found.setdefault(folder, name)
  return found


def run_chain(steps: list[Step], out, deadline: float = float("inf"), say=print) -> bool:
  """Runs the steps that are not done yet.

  Args:
    steps: from `plan`.
    out: folder of the chain; `chain.json` there remembers what is done and how long each training ran.
    deadline: `time.monotonic()` after which everything stops, saved.
    say: called with lines for the log.

  Returns:
    True when the whole chain is done, False when the deadline came first.

  Raises:
    RuntimeError: a step failed, or one that is done was done with other arguments; what was done stays done.
  """
  path = pathlib.Path(out) / "chain.json"
  log = json.loads(path.read_text()) if path.exists() else {}
  for step in steps:
    entry = log.setdefault(step.name, {"done": False, "seconds": 0.0, "command": []})
    command = ["python", *step.command]
    if entry["done"]:
      if entry["command"] != command:
        raise RuntimeError(
          f"the step '{step.name}' of {out} was done with other arguments (`{' '.join(entry['command'])}`): "
          "give those again, or another folder with --out"
        )
      continue
    entry["command"] = command
    say(f"\n=== {step.name}\npython {' '.join(step.command)}")
    allowed = deadline - time.monotonic()
    budget = float("inf") if step.minutes is None else 60 * step.minutes - entry["seconds"]
    if allowed <= 0:
      return False
    before = entry["seconds"]

    def note(took, entry=entry, before=before):
      entry["seconds"] = round(before + took, 1)
      writing.write_json(path, log)

    code, stopped = run_command(step.command, min(budget, allowed), note)
    # Stopped by the deadline rather than by its own budget: go on with it next time.
    entry["done"] = code == 0 and not (stopped and allowed < budget)
    writing.write_json(path, log)
    if code:
      raise RuntimeError(f"the step '{step.name}' failed (exit code {code}): its message stands above; mend it and rerun")
    if not entry["done"]:
      return False
  return True


def run_command(command, seconds: float, note) -> tuple[int, bool]:
  """(exit code, whether it was asked to stop). Calls note(seconds so far) now and then, so that a kill of this script loses a
  few seconds of the account and nothing of the training. Ctrl-C stops the step too, saved."""
  start = time.monotonic()
  process = subprocess.Popen([sys.executable, *command])
  stopped = False
  try:
    while process.poll() is None:
      took = time.monotonic() - start
      if took > seconds and not stopped:
        process.send_signal(signal.SIGTERM)
        stopped = True
      if took > seconds + _GRACE_S:
        process.kill()
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5 if stopped else min(5, max(0.05, seconds - took)))
      note(time.monotonic() - start)
  except BaseException:
    process.send_signal(signal.SIGTERM)
    process.wait()
    raise
  # A step that has nothing to save ends by the signal: that is no failure.
  code = 0 if stopped and process.returncode == -signal.SIGTERM else process.returncode
  return code, stopped


def _budget(text: str) -> dict[str, float]:
  found = {}
  for part in filter(None, text.split(",")):
    stage, _, value = part.partition("=")
    if stage not in (*STAGES, "coarse"):
      raise argparse.ArgumentTypeError(f"stage {stage!r} is unknown: use {', '.join(STAGES)}, e.g. tree=30,fundus=60")
    try:
      found[stage] = float(value)
    except ValueError:
      raise argparse.ArgumentTypeError(f"{part!r} names no minutes: write e.g. {stage}=30") from None
  return found


def parser() -> argparse.ArgumentParser:
  """The flags."""
  p = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__.split("\n\n")[0])
  folders = lambda text: [part for part in text.split(",") if part]  # noqa: E731
  p.add_argument("--labelled", type=folders, default=[], help="pair folders (images/, masks/), comma-separated; none = phantom")
  p.add_argument("--photographs", type=folders, default=[], help="folders of photographs without masks, comma-separated")
  p.add_argument("--out", required=True, help="folder of the chain")
  p.add_argument("--preset", choices=PRESETS, default="cpu", help="size of the models and time of their training")
  p.add_argument("--budget", type=_budget, default={}, help="minutes per stage, e.g. tree=30,fundus=60")
  p.add_argument("--num", type=int, default=0, help="pairs to generate (default: the preset's)")
  p.add_argument("--seed", type=int, default=0, help="root of all randomness of the trainings")
  p.add_argument("--vgg19", default="", help="VGG19 weights (.pth, .h5, .npz) for the perceptual loss")
  p.add_argument("--validate", action="store_true", help="also run experiments.validation on the generated set")
  p.add_argument("--piece_minutes", type=float, default=0, help="stop, saved, after so many minutes")
  return p


def main() -> int:
  """Runs the chain; returns the exit code."""
  args = parser().parse_args()
  missing = [p for p in (*args.labelled, *args.photographs) if not pathlib.Path(p).is_dir()]
  if missing:
    print(f"error: {missing[0]} is no folder: name existing ones", file=sys.stderr)
    return 2
  deadline = time.monotonic() + 60 * args.piece_minutes if args.piece_minutes else float("inf")
  try:
    finished = run_chain(plan(args), args.out, deadline)
  except RuntimeError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("stopped by the keyboard; rerun the same command to go on", file=sys.stderr)
    return 130
  print(
    f"\nThe chain is complete: {args.out}/report/report.html"
    if finished
    else "\nStopped, saved: rerun the same command to go on"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
