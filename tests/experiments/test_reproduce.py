"""The chain: its plan, its budgets and its memory, with small commands in place of the real ones."""

import json
import sys
import time

import pytest
from absl.flags import DEFINE_string, FlagValues
from ml_collections import config_flags

from experiments import reproduce, validation
from experiments.reproduce import Step
from retree_jax import evaluate, generate
from retree_jax.cli import errors

# Stands in for a training: counts its starts in a file, works until it is asked to stop, and saves.
_TRAINING = """
import pathlib, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
file = pathlib.Path(sys.argv[1])
file.write_text(file.read_text() + 'start ' if file.exists() else 'start ')
end = time.time() + float(sys.argv[2])
while time.time() < end and not stop:
  time.sleep(0.02)
file.write_text(file.read_text() + ('saved ' if stop else 'finished '))
"""


def training(name, file, seconds, minutes=None):
  return Step(name, ("-c", _TRAINING, str(file), str(seconds)), minutes)


def test_a_budget_ends_a_training_and_the_chain_goes_on(tmp_path):
  steps = [training("long", tmp_path / "a", 60, minutes=1 / 60), training("short", tmp_path / "b", 0, minutes=1)]
  assert reproduce.run_chain(steps, tmp_path, say=lambda text: None)
  assert (tmp_path / "a").read_text() == "start saved "
  assert (tmp_path / "b").read_text() == "start finished "
  log = json.loads((tmp_path / "chain.json").read_text())
  assert log["long"]["done"] and 1 <= log["long"]["seconds"] < 20
  # Nothing is done twice.
  assert reproduce.run_chain(steps, tmp_path, say=lambda text: None)
  assert (tmp_path / "a").read_text() == "start saved "


def test_a_deadline_pauses_a_training_and_a_rerun_goes_on_with_it(tmp_path):
  steps = [training("long", tmp_path / "a", 60, minutes=3 / 60), training("short", tmp_path / "b", 0)]
  assert not reproduce.run_chain(steps, tmp_path, time.monotonic() + 0.5, say=lambda text: None)
  assert not (tmp_path / "b").exists()
  assert reproduce.run_chain(steps, tmp_path, say=lambda text: None)
  assert (tmp_path / "a").read_text() == "start saved start saved "
  assert (tmp_path / "b").read_text() == "start finished "


def test_a_failed_step_stops_the_chain_and_is_tried_again(tmp_path):
  flag = tmp_path / "mended"
  check = Step("check", ("-c", f"import pathlib, sys; sys.exit(0 if pathlib.Path({str(flag)!r}).exists() else 3)"))
  steps = [training("first", tmp_path / "a", 0), check]
  with pytest.raises(RuntimeError, match="'check' failed .exit code 3."):
    reproduce.run_chain(steps, tmp_path, say=lambda text: None)
  flag.touch()
  assert reproduce.run_chain(steps, tmp_path, say=lambda text: None)
  assert (tmp_path / "a").read_text() == "start finished "


def test_the_plan_labels_photographs_before_they_are_painted(tmp_path, monkeypatch):
  args = reproduce.parser().parse_args(
    ["--labelled", "A,B", "--photographs", "C", "--out", str(tmp_path), "--preset", "tiny", "--budget", "tree=1.5"]
  )
  steps = {step.name: step for step in reproduce.plan(args)}
  names = list(steps)
  assert names.index("train segmentation") < names.index("label C") < names.index("train fundus") < names.index("generate")
  assert f"--config.data.source=folder:A*2+folder:B*2+folder:{tmp_path}/labels/C" in steps["train fundus"].command
  assert "--config.data.source=folder:A+folder:B" in steps["train tree"].command
  assert steps["train tree"].minutes == 1.5
  # Every training of the plan has a config that exists in the chosen variant.
  for stage in reproduce.STAGES:
    config = steps[f"train {stage}"].command[3]
    assert config == f"configs/{stage}.py:tiny"


def test_what_was_done_with_other_arguments_is_not_taken_for_done(tmp_path):
  assert reproduce.run_chain([training("train", tmp_path / "a", 0)], tmp_path, say=lambda text: None)
  with pytest.raises(RuntimeError, match="(?s)'train' of .* was run with other arguments .*another folder with --out"):
    reproduce.run_chain([training("train", tmp_path / "b", 0)], tmp_path, say=lambda text: None)
  assert not (tmp_path / "b").exists()


def test_labels_of_folders_with_one_name_stay_apart(tmp_path):
  args = reproduce.parser().parse_args(["--photographs", "one/images,two/images/,two/other", "--out", str(tmp_path)])
  steps = {step.name: step.command[-1] for step in reproduce.plan(args) if step.name.startswith("label ")}
  assert list(steps.values()) == [str(tmp_path / "labels" / name) for name in ("images", "images_2", "other")]


@pytest.mark.parametrize("preset", reproduce.PRESETS)
def test_every_flag_of_the_plan_is_one_of_its_command(preset, tmp_path, monkeypatch):
  args = reproduce.parser().parse_args(
    ["--labelled", "A,B", "--out", str(tmp_path), "--preset", preset, "--validate", "--vgg19", "w.npz"]
  )
  own = {"retree_jax.generate": generate, "retree_jax.evaluate": evaluate, "experiments.validation": validation}
  seen = set()
  for step in reproduce.plan(args):
    module, rest = step.command[1], list(step.command[2:])
    seen.add(module)
    monkeypatch.setattr(sys, "argv", [module, *rest])  # where ml_collections looks for fields of a config
    if module in own:
      assert errors.parse(own[module].define_flags(), [module, *rest]) == [module]
      continue
    flags = FlagValues()
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=flags)
    for name in ("workdir", "mode", "input", "out"):
      DEFINE_string(name, None, "", flag_values=flags)
    assert errors.parse(flags, [module, *rest]) == [module]
  assert seen == {*own, "retree_jax.main"}


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    (["--labelled", "nowhere", "--out", "x"], "nowhere is not a folder"),
    (["--budget", "trees=3", "--out", "x"], "stage 'trees' is unknown"),
    (["--budget", "tree=long", "--out", "x"], "has no number of minutes"),
  ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
  try:
    code = reproduce.main()
  except SystemExit as error:
    code = error.code
  assert code == 2
  assert sentence in capsys.readouterr().err


def test_a_folder_may_have_a_comma_in_its_name(tmp_path):
  (tmp_path / "eyes, final").mkdir()
  read = reproduce.parser().parse_args
  assert read(["--out", "x", "--labelled", f"{tmp_path / 'eyes, final'}"]).labelled == [str(tmp_path / "eyes, final")]
  assert read(["--out", "x", "--labelled", "folder:a,b"]).labelled == ["a", "b"]
