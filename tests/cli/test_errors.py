"""Command lines: `~` in every path, and one sentence with an exit code for what goes wrong."""

import os
import subprocess
import sys

import pytest
from absl import flags

from retree_jax.cli import errors
from tests import small

HOME = "/home/doctor"


@pytest.fixture(autouse=True)
def home(monkeypatch):
  monkeypatch.setenv("HOME", HOME)
  monkeypatch.delenv("RETREE_JAX_TRACEBACK", raising=False)


@pytest.mark.parametrize(
  ("given", "wanted"),
  [
    ("--out=~/set", f"--out={HOME}/set"),
    ("--workdir=~", f"--workdir={HOME}"),
    ("-out=~/set", f"-out={HOME}/set"),
    ("~/set", f"{HOME}/set"),
    ("--config=~/tree.py:tiny", f"--config={HOME}/tree.py:tiny"),
    ("--config.data.generated=~/trees", f"--config.data.generated={HOME}/trees"),
    ("--config.data.source=folder:~/a+folder:~/b+phantom:4", f"--config.data.source=folder:{HOME}/a+folder:{HOME}/b+phantom:4"),
    ("--real=folder:~/eyes", f"--real=folder:{HOME}/eyes"),
    ("--out=a~b", "--out=a~b"),
    ("--out=gs://bucket/~x", "--out=gs://bucket/~x"),
    ("--out=~nobody_of_this_name/x", "--out=~nobody_of_this_name/x"),
    ("--num=16", "--num=16"),
  ],
)
def test_the_home_folder(given, wanted, monkeypatch):
  assert errors.expand_home([given]) == [wanted]
  monkeypatch.setattr("sys.argv", ["command", given])
  seen = []
  assert errors.run(lambda: seen.extend(sys.argv)) == 0
  assert seen == ["command", wanted]


def test_flags_are_parsed_with_the_home_folder():
  f = flags.FlagValues()
  flags.DEFINE_string("out", None, "", flag_values=f)
  errors.parse(f, ["command", "--out=~/set"])
  assert f.out == f"{HOME}/set"


def test_no_folder_called_tilde_is_made(tmp_path):
  command = [sys.executable, "-m", "retree_jax.generate", "--tree=tree", "--steps=1", "--num=1", "--out=~/set"]
  environment = {**os.environ, "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "RETREE_JAX_CPU_SETTINGS": "off"}
  run = subprocess.run(
    command, env={**environment, "PYTHONPATH": str(small.ROOT)}, cwd=tmp_path, capture_output=True, text=True, check=False
  )
  assert run.returncode == 0, run.stderr
  assert os.listdir(tmp_path / "set/masks") == ["0000000.png"] and not (tmp_path / "~").exists()


@pytest.mark.parametrize("platform", ["cuda", "tpu", "no_such_platform"])
def test_a_platform_that_is_not_there(platform, tmp_path):
  if os.path.exists("/dev/nvidia0") or os.path.exists("/dev/accel0"):
    pytest.skip("this machine has an accelerator")
  run = subprocess.run(
    [sys.executable, "-m", "retree_jax.generate", "--tree=tree", "--num=1", f"--out={tmp_path / 'set'}"],
    env={**os.environ, "JAX_PLATFORMS": platform, "PYTHONPATH": str(small.ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  (line,) = [line for line in run.stderr.splitlines() if line.startswith("error")]
  assert line.startswith(f"error: JAX_PLATFORMS={platform} asks for a device that JAX does not find here: unset JAX_PLATFORMS")
  assert run.returncode == 2 and "Traceback" not in run.stderr and not (tmp_path / "set").exists()


def test_other_errors_are_not_taken_for_a_missing_platform(monkeypatch, capsys):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")

  def fail():
    assert not "a fault of ours"

  assert errors.run(fail) == 1
  assert capsys.readouterr().err == "error: AssertionError: assert not 'a fault of ours' (RETREE_JAX_TRACEBACK=1 shows where)\n"
