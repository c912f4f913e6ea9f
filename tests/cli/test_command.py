"""`retree-jax`: the table of commands, help without JAX, exit codes."""

import json

import numpy as np
import pytest
from PIL import Image

import retree_jax
from retree_jax import __main__ as command
from retree_jax.cli import cpu
from retree_jax.data import phantom, writing
from tests import small

_HELP = """
import runpy, sys
sys.argv = ["retree-jax", *sys.argv[1:]]
try:
  runpy.run_module("retree_jax", run_name="__main__")
except SystemExit as stop:
  heavy = {"jax", "flax", "optax", "orbax", "tensorflow", "torch", "grain", "starlette", "uvicorn"} & set(sys.modules)
  print("EXIT", stop.code or 0, sorted(heavy))
"""


def test_help_of_every_command_imports_neither_jax_nor_anything_built_on_it():
  lines = [[], ["--version"], ["--help"], *([name, flag] for name in command.COMMANDS for flag in ("--help", "-h"))]
  processes = [small.start("-c", _HELP, *line, RETREE_JAX_CPU_SETTINGS="") for line in lines]
  try:
    said = [small.finish(process) for process in processes]
  finally:
    small.stop(*processes)
  for line, text in zip(lines, said, strict=True):
    assert text.endswith(f"EXIT {0 if line else 2} []\n"), (line, text)
    assert "Traceback" not in text
    if line == ["--version"]:
      assert text.startswith(retree_jax.__version__ + "\n")
    elif line == ["--help"]:
      assert all(f"\n  {name} " in text for name in command.COMMANDS)
      assert all(f"\n  {code} " in text for code in (0, 1, 2, 130, 143))
    elif line:
      assert f"retree-jax {line[0]}" in text and "--" in text, text


def run(monkeypatch, *arguments: str) -> int:
  monkeypatch.setattr("sys.argv", ["retree-jax", *arguments])
  monkeypatch.setattr(cpu, "restart_with_settings", lambda: None)
  return command.main()


@pytest.mark.parametrize(
  "arguments, words",
  [
    ([], "the command is missing: use train, sample,"),
    (["trian"], "there is no command 'trian': did you mean train? use train,"),
    (["generate", "here"], "'here' is not a flag: write --flag=value"),
    (["train", "tree:tiny"], "'tree:tiny' is not a flag"),
    (["train", "--num=3"], "Unknown command line flag 'num'"),
    (["train"], "--config is missing: give for example --config tree:tiny"),
    (["train", "--config", "branch:tiny"], "there is no config file branch: name one, or a built-in config (detail, filter, "),
    (["sample", "--config=tree:huge"], "variant 'huge' is unknown"),
    (["segment", "--input=photos"], "--out is missing: write retree-jax segment --input PHOTOS --out MASKS"),
    (
      ["segment", "--input=photos", "--out=o", "--model=tree"],
      "tree is a checkpoint of the tree stage, not of the segmentation",
    ),
  ],
)
def test_bad_input_exits_with_2_and_one_sentence(arguments, words, monkeypatch, capsys):
  assert run(monkeypatch, *arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith(f"error: {words}") and said.count("\n") == 1


def test_the_exit_code_of_a_command_is_passed_on(monkeypatch, capsys):
  assert run(monkeypatch, "reproduce", "--labelled=nowhere", "--out=x") == 2
  assert capsys.readouterr().err == "error: nowhere is not a folder: give existing folders\n"


def test_train_and_sample_in_an_empty_folder_with_a_built_in_config(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert (
    run(
      monkeypatch,
      "train",
      "--config",
      "tree:tiny",
      *small.FLAGS,
      "--config.train.num_steps=1",
      "--config.train.batch_size=8",
      "--seed=3",
    )
    == 0
  )
  assert json.loads((tmp_path / "runs/tree/config.json").read_text())["seed"] == 3
  assert run(monkeypatch, "sample", "--config", "tree:tiny", "--num=2", "--out=out") == 0
  assert len(list((tmp_path / "out/masks").iterdir())) == 2


def test_segment_with_the_shipped_model_finds_the_vessels_of_a_phantom(tmp_path, monkeypatch, capsys):
  eye = phantom.eye(4, (256, 256))
  writing.write_png(tmp_path / "photos/eye.png", eye["image"])
  arguments = ["segment", f"--input={tmp_path / 'photos'}", f"--out={tmp_path / 'out'}"]
  assert run(monkeypatch, *arguments) == 0
  assert capsys.readouterr().out.startswith("segmented 1 photographs: ")
  mask, tree = np.asarray(Image.open(tmp_path / "out/masks/eye.png")) > 0, eye["tree"][..., 0] > 0
  assert mask.shape == tree.shape
  # Drawn eyes are not what it was trained on: far better than chance is what tells that the right network ran.
  found, share = np.mean(mask[tree]), np.mean(mask[~tree])
  assert found > 0.4 and found > 5 * share
  before = (tmp_path / "out/masks/eye.png").read_bytes()
  assert run(monkeypatch, *arguments) == 0
  assert capsys.readouterr().out.startswith("segmented 0 photographs: ")
  assert (tmp_path / "out/masks/eye.png").read_bytes() == before
