"""The whole chain, from folders of eyes to a report.

    retree-jax reproduce --labelled data/CHASE_DB1,data/HRF_native --photographs data/IDRiD --out runs/chain
    retree-jax reproduce --out runs/phantom --preset tiny            # no data: phantom retinas, CPU minutes

segmenter → labels for the photographs that have none → tree stage → refinement → tree filter → fundus stage →
detail → super-resolution → generated set → report and validation. Every step is one of the project's own commands and is
printed before it runs. Rerunning the same command resumes the chain, also within a training. Each training has a budget in
minutes (--budget changes it); when it is used up the training saves and stops, and the chain continues with the result.
--piece_minutes stops the whole script after that time, for machines with limited sessions.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from retree_jax.data import writing

STAGES = ("segmentation", "tree", "refine", "filter", "fundus", "detail", "superres")


def _preset(variant: str, minutes: tuple[float, ...], **more) -> dict:
  """Config variant, and minutes of training for each of `STAGES`.

  Further keys: "num", pairs to generate; "validation", flags of that step; "coarse", minutes that the tree stage first trains
  at half its size, where a step costs a quarter (there it learns where vessels run; at full size it learns the thin ones);
  "refined", height and width of refined trees, twice the tree stage's, where the config's differ.
  """
  return {"variant": variant, **dict(zip(STAGES, minutes, strict=True)), **more}


PRESETS = {
  "tiny": _preset(":tiny", (2, 4, 2, 2, 4, 2, 4), num=16, validation=("--steps", "150", "--seeds", "1")),
  "cpu": _preset(":cpu", (40, 60, 60, 10, 90, 30, 40), num=200, validation=("--steps", "500"), coarse=40),
  "default": _preset("", (3, 7, 5, 1, 9, 3, 5), num=1000, validation=("--steps", "2000"), refined=512),
}
_GRACE_S = 120  # seconds between the request to stop and the kill, enough to write a checkpoint


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of the chain.

  Attributes:
    name: unique name in the log and in chain.json.
    command: arguments after `python`.
    minutes: time after which a training is asked to save and stop; None = no limit.
  """

  name: str
  command: tuple[str, ...]
  minutes: float | None = None


def plan(args) -> list[Step]:
  """The steps of the chain, in order."""
  preset, out = PRESETS[args.preset], pathlib.Path(args.out)
  minutes = {stage: args.budget.get(stage, preset[stage]) for stage in STAGES}
  sets = [f"folder:{p}" for p in args.labelled] or ["phantom:200"]
  labelled = "+".join(sets)
  run = {stage: str(out / stage) for stage in STAGES}

  def stage_command(stage, *more):
    config = f"configs/{stage}.py{preset['variant']}"
    return ("-m", "retree_jax.main", "--config", config, "--workdir", run[stage], *more)

  def training(stage, *more):
    return Step(f"train {stage}", stage_command(stage, f"--config.seed={args.seed}", *more), minutes[stage])

  def generate(name, *more):
    return Step(name, ("-m", "retree_jax.generate", "--tree", run["tree"], "--refine", run["refine"], *more))

  def source(spec):
    return f"--config.data.source={spec}"

  steps = [training("segmentation", source(labelled))]
  pairs, names = labelled, _label_names(args.photographs)
  for folder in args.photographs:
    labels = str(out / "labels" / names[folder])
    command = stage_command("segmentation", "--mode", "sample", "--input", folder, "--out", labels)
    steps.append(Step(f"label {folder}", command))
    # Expert labels are drawn twice as often as predicted ones, which show colours and lesions that few labelled eyes have.
    pairs = "+".join(f"{spec}*2" for spec in sets) if pairs == labelled else pairs
    pairs += f"+folder:{labels}"
  trees, drawn, generated = str(out / "generated_trees"), str(max(200, preset["num"])), str(out / "pairs")
  fine = ()
  if "coarse" in preset:
    half = str(out / "tree_coarse")
    size = ("--config.data.image_size=(64,64)", "--config.train.batch_size=16")
    coarse = training("tree", source(labelled), *size, "--workdir", half)
    steps.append(dataclasses.replace(coarse, name="train tree, coarse", minutes=args.budget.get("coarse", preset["coarse"])))
    # Twice the size: more noise for the same signal at the coarse scales (Hoogeboom et al. 2301.11093).
    fine = (f"--config.train.start_from={half}", "--config.diffusion.shift=2.0")
  refined = [f"--config.data.image_size=({size},{size})"] if (size := preset.get("refined")) else []
  weights = [f"--config.loss.perceptual_weights={args.vgg19}"] if args.vgg19 else []
  models = [word for stage in ("filter", "fundus", "detail", "superres") for word in (f"--{stage}", run[stage])]
  report = ("--generated", generated, "--real", labelled, "--train", labelled, "--segmenter", run["segmentation"])
  steps += [
    training("tree", source(labelled), *fine),
    training("refine", source(labelled), *refined),
    generate("trees for the filter", "--num", drawn, "--seed", "1", "--out", trees),
    training("filter", source(labelled), f"--config.data.generated={trees}"),
    training("fundus", source(pairs)),
    training("detail", source(pairs)),
    training("superres", source(labelled), *weights),
    generate("generate", *models, "--num", str(args.num or preset["num"]), "--out", generated),
    Step("report", ("-m", "retree_jax.evaluate", *report, "--out", str(out / "report"))),
  ]
  if args.validate:
    # Train on each set and test on all of them.
    tested = [part for spec in sets for part in ("--real", spec, "--test", spec)]
    flags = (
      "--config",
      f"configs/segmentation.py{preset['variant']}",
      *tested,
      "--generated",
      generated,
      *preset["validation"],
    )
    steps.append(Step("validation", ("-m", f"{__package__}.validation", *flags, "--out", str(out / "validation"))))
  return steps


def _label_names(folders: list[str]) -> dict[str, str]:
  """The name of the labels of each folder: the folder's name, numbered if two folders share it."""
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
    out: folder of the chain; `chain.json` in it records finished steps and the time spent in each training.
    deadline: value of `time.monotonic()` after which the current step saves and everything stops.
    say: called with lines for the log.

  Returns:
    True if the whole chain is done, False if the deadline came first.

  Raises:
    RuntimeError: a step failed, or a finished step was run with other arguments. Finished steps stay finished.
  """
  path = pathlib.Path(out) / "chain.json"
  log = json.loads(path.read_text()) if path.exists() else {}
  for step in steps:
    entry = log.setdefault(step.name, {"done": False, "seconds": 0.0, "command": []})
    command = ["python", *step.command]
    if entry["done"]:
      if entry["command"] != command:
        raise RuntimeError(
          f"the step '{step.name}' of {out} was run with other arguments (`{' '.join(entry['command'])}`): "
          "use the same arguments, or another folder with --out"
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
    # A step stopped by the deadline rather than by its own budget is continued next time.
    entry["done"] = code == 0 and not (stopped and allowed < budget)
    writing.write_json(path, log)
    if code:
      raise RuntimeError(f"the step '{step.name}' failed (exit code {code}): see its message above, correct it and rerun")
    if not entry["done"]:
      return False
  return True


def run_command(command, seconds: float, note) -> tuple[int, bool]:
  """Runs `python COMMAND`; returns (exit code, whether it was asked to stop).

  `note(seconds so far)` is called every few seconds, so that a kill of this script loses little of the recorded time and
  nothing of the training. Ctrl-C also asks the step to save and stop.
  """
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
  # A step that was asked to stop ends by the signal or, after saving, with the exit code 128 + 15: not a failure.
  obeyed = stopped and process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
  return 0 if obeyed else process.returncode, stopped


def _budget(text: str) -> dict[str, float]:
  found = {}
  for part in filter(None, text.split(",")):
    stage, _, value = part.partition("=")
    if stage not in (*STAGES, "coarse"):
      raise argparse.ArgumentTypeError(f"stage {stage!r} is unknown: use {', '.join(STAGES)}, e.g. tree=30,fundus=60")
    try:
      found[stage] = float(value)
    except ValueError:
      raise argparse.ArgumentTypeError(f"{part!r} has no number of minutes: write for example {stage}=30") from None
  return found


def parser() -> argparse.ArgumentParser:
  """The flags."""
  p = argparse.ArgumentParser(prog="retree-jax reproduce", description=__doc__.split("\n\n")[0])

  def folders(text):
    if os.path.isdir(whole := os.path.expanduser(text)):  # whose name may hold a comma
      return [whole]
    return [os.path.expanduser(part.removeprefix("folder:")) for part in text.split(",") if part]

  p.add_argument(
    "--labelled", type=folders, default=[], help="folders of pairs (images/, masks/), comma-separated; default: phantom"
  )
  p.add_argument("--photographs", type=folders, default=[], help="folders of photographs without masks, comma-separated")
  p.add_argument("--out", required=True, help="folder of the chain")
  p.add_argument("--preset", choices=PRESETS, default="cpu", help="size of the models and their training times")
  p.add_argument("--budget", type=_budget, default={}, help="minutes per stage, e.g. tree=30,fundus=60")
  p.add_argument("--num", type=int, default=0, help="pairs to generate (default: the preset's)")
  p.add_argument("--seed", type=int, default=0, help="seed of the trainings")
  p.add_argument("--vgg19", default="", help="VGG19 weights (.pth, .h5, .npz) for the perceptual loss")
  p.add_argument("--validate", action="store_true", help="also run `retree-jax validate` on the generated set")
  p.add_argument("--piece_minutes", type=float, default=0, help="save and stop after this many minutes")
  return p


def main() -> int:
  """Runs the chain; returns the exit code."""
  args = parser().parse_args()
  missing = [p for p in (*args.labelled, *args.photographs) if not pathlib.Path(p).is_dir()]
  if missing:
    print(f"error: {missing[0]} is not a folder: give existing folders", file=sys.stderr)
    return 2
  deadline = time.monotonic() + 60 * args.piece_minutes if args.piece_minutes else float("inf")
  try:
    finished = run_chain(plan(args), args.out, deadline)
  except RuntimeError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("interrupted; rerun the same command to continue", file=sys.stderr)
    return 130
  print(
    f"\nThe chain is complete: {args.out}/report/report.html"
    if finished
    else "\nSaved and stopped: rerun the same command to continue"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
