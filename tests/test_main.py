"""The command line: train, sample, evaluate end to end; and one sentence, no traceback, a non-zero exit for bad input."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from retree_jax.cli import errors
from retree_jax.train import NotFiniteError
from tests import small

# Runs several command lines one after the other, each in a fork of a process that has imported everything but started
# nothing: ten times as quick as ten starts.
_DRIVER = """
import json, os, sys
import retree_jax.main as main
from retree_jax import train
from retree_jax.cli import errors, stages
results = []
for argv in json.loads(sys.argv[1]):
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    for stream in (1, 2):
      os.dup2(writer, stream)
    os.close(reader)
    sys.argv = ["retree_jax.main", *argv]
    code = 99
    try:
      code = errors.run(main.main)
    except SystemExit as stop:
      code = stop.code or 0
    finally:
      sys.stdout.flush()
      os._exit(code)
  os.close(writer)
  with os.fdopen(reader) as output:
    text = output.read()
  results.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text])
print("RESULTS", json.dumps(results))
"""


def run(*commands, devices: int = 1) -> list[tuple[int, str]]:
  """[(exit code, everything printed)] of each command line."""
  text = small.finish(small.start("-c", _DRIVER, json.dumps(commands), devices=devices))
  return json.loads(text.split("RESULTS ")[-1])


TREE = ("--config", "configs/tree.py:tiny", *small.FLAGS, "--config.train.num_steps=2")


def without(field: str) -> list[str]:
  """TREE less one of its flags: of a tuple given twice, both would count."""
  return [flag for flag in TREE if not flag.startswith(f"--config.{field}=")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run of two steps, by the command that users type, CPU settings and all."""
  workdir = tmp_path_factory.mktemp("main") / "tree"
  text = small.finish(small.start("-m", "retree_jax.main", *TREE, f"--workdir={workdir}", RETREE_JAX_CPU_SETTINGS=""))
  assert "step 2: " in text and "Traceback" not in text
  return workdir


def test_train_sample_and_evaluate(trained, tmp_path):
  sample = ("--config", "configs/tree.py:tiny", f"--workdir={trained}", "--mode=sample")
  out, few, other = tmp_path / "out", tmp_path / "few", tmp_path / "other"
  results = run(
    (*sample, "--num=5", f"--out={out}"),
    (*sample, "--num=2", f"--out={few}"),
    (*sample, "--num=2", "--seed=3", f"--out={other}"),
    (*sample, "--num=2", "--seed=4", f"--out={out}"),
    (*TREE, f"--workdir={trained}", "--mode=evaluate"),
    (*TREE, f"--workdir={trained}"),
    ("--help",),
  )
  codes = [code for code, _ in results]
  assert codes == [0, 0, 0, 2, 0, 0, 0], results
  masks = sorted((out / "masks").iterdir())
  assert [p.name for p in masks] == [f"{k:06d}.png" for k in range(5)]
  with Image.open(masks[0]) as picture:
    assert picture.size == (32, 32) and set(np.unique(np.asarray(picture))) <= {0, 255}
  lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
  assert [line["index"] for line in lines] == list(range(5)) and lines[0]["step"] == 2
  assert (out / "grid.png").exists()
  # The first two are the same whatever the number; another seed gives others, and not into the same folder.
  for k in range(2):
    assert (few / f"masks/{k:06d}.png").read_bytes() == masks[k].read_bytes()
  assert any((other / f"masks/{k:06d}.png").read_bytes() != masks[k].read_bytes() for k in range(2))
  assert "holds another run (seed is 0 there and 4 here): use another --out" in results[3][1]
  scores = json.loads((trained / "evaluation.json").read_text())
  assert scores["step"] == 2 and scores["scores"]["heldout_loss"] > 0
  assert "Resumed from step 2" in results[5][1]
  assert "--workdir: Folder of the run" in results[6][1]


BAD = {
  "no config": ([], "--config is missing: give for example --config tree:tiny"),
  "no such config file": (["--config", "configs/branch.py"], "there is no config file configs/branch.py: name one"),
  "wrong variant": (["--config", "configs/tree.py:huge"], "variant 'huge' is unknown: write configs/tree.py alone"),
  "misspelt field": (
    [*TREE, "--config.train.num_step=3"],
    'the config has no such field: did you mean "num_steps" instead of "num_step"?',
  ),
  "field like no other": ([*TREE, "--config.train.stepz=3"], "the config has no field 'stepz': see retree_jax/config/defaults"),
  "misspelt section": ([*TREE, "--config.trian.num_steps=3"], "trian"),
  "wrong type": ([*TREE, "--config.train.num_steps=many"], "train.num_steps"),
  "unknown flag": ([*TREE, "--wordkir=x"], "wordkir"),
  "wrong mode": ([*TREE, "--mode=paint"], "paint"),
  "unknown network setting": (["--config", "configs/tree.py:tiny", "--config.model.width=3"], "width"),
  "unknown network": ([*TREE, "--config.model.name=unet"], "There is no network 'unet'"),
  "size": ([*without("data.image_size"), "--config.data.image_size=(30, 33)"], "cannot take 30x33 pixels"),
  "size of three numbers": ([*without("data.image_size"), "--config.data.image_size=(32, 32, 3)"], "must be (height, width)"),
  "batch": ([*TREE, "--config.train.batch_size=6"], "batch_size=6 is not divisible by 4 devices"),
  "no folder": ([*TREE, "--config.data.source=folder:NOWHERE"], "NOWHERE"),
  "unknown source": ([*TREE, "--config.data.source=eyes"], "Unknown data source 'eyes': write phantom"),
  "half a coordinator": ([*TREE, "--coordinator=localhost:1"], "--coordinator needs --num_processes and --process_id"),
  "bad seed": ([*TREE, "--config.seed=-1"], "seed -1 is not a whole number"),
  "bad seed flag": ([*TREE, "--seed=-1"], "--seed=-1"),
}


def test_bad_input_is_answered_in_one_sentence(trained, tmp_path):
  before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
  folder = tmp_path / "runs"
  cases = {name: ([*argv, f"--workdir={folder / name.replace(' ', '_')}"], words) for name, (argv, words) in BAD.items()}
  sample = ["--config", "configs/tree.py:tiny", "--mode=sample", "--num=1"]
  cases |= {
    "another config": (
      [*TREE, "--config.optimizer.b2=0.5", f"--workdir={trained}"],
      "optimizer.b2 (0.99 there, 0.5 here). Use another --workdir",
    ),
    "another architecture": (
      [*without("model.widths"), "--config.model.widths=(16,)", f"--workdir={trained}"],
      "model.widths ([8] there, [16] here)",
    ),
    "nothing trained": ([*sample, f"--workdir={tmp_path}"], "holds no checkpoint of retree_jax"),
    "no workdir": ([*sample, f"--workdir={tmp_path / 'none'}"], "does not exist: give a workdir"),
    "no such step": ([*sample, "--step=9", f"--workdir={trained}"], "holds no step 9: it has 2"),
    "wrong step": ([*sample, "--step=last", f"--workdir={trained}"], "--step=last is unknown: use best, latest or a number"),
    "wrong step to evaluate": (
      ["--config", "configs/tree.py:tiny", "--mode=evaluate", "--step=last", f"--workdir={trained}"],
      "--step=last is unknown",
    ),
    "another stage": (
      ["--config", "configs/fundus.py:tiny", "--mode=sample", f"--workdir={trained}"],
      "a checkpoint of the tree stage, not of the fundus stage",
    ),
    "wrong sampler": ([*sample, "--config.sampler.name=euler", f"--workdir={trained}"], "name='euler' is unknown: use "),
  }
  wrong, results = [], run(*(argv for argv, _ in cases.values()), devices=4)
  for (name, (_, words)), (code, text) in zip(cases.items(), results, strict=True):
    said = [line for line in text.splitlines() if line.startswith("error: ")]
    if code not in (1, 2) or "Traceback" in text or len(said) != 1 or words not in said[0]:
      wrong.append(f"{name}: exit {code}, wanted {words!r}, got\n{text}")
  assert not wrong, "\n".join(wrong)
  assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
  "error, code, words",
  [
    (OSError(errno.ENOSPC, "No space left on device"), 1, "no space is left on the disk: free some"),
    (
      PermissionError(errno.EACCES, "denied", "/closed/x"),
      2,
      "no permission for /closed/x: change its permissions, or use another file or folder",
    ),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 1, "lower config.train.batch_size"),
    (NotFiniteError("The loss is\n  not finite"), 1, "The loss is not finite"),
    (KeyboardInterrupt(), 130, "rerun the same command to go on"),
    (ZeroDivisionError("oh"), 1, "ZeroDivisionError: oh (RETREE_JAX_TRACEBACK=1 shows where)"),
  ],
)
def test_errors_become_sentences(error, code, words, capsys, monkeypatch):
  def fail():
    raise error

  assert errors.run(fail) == code
  said = capsys.readouterr().err
  assert said.startswith("error: ") and words in said and said.count("\n") == 1
  if isinstance(error, ZeroDivisionError):
    monkeypatch.setenv("RETREE_JAX_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
      errors.run(fail)


def test_a_command_that_succeeds_exits_with_0():
  assert errors.run(lambda: None) == 0
