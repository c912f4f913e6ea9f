"""Two processes over loopback train, preview, stop at one's signal, save, restore, sample and evaluate as one process does."""

import json
import signal
import socket
import time

import jax
import numpy as np
from PIL import Image

from retree_jax import checkpoint
from retree_jax.data import lease
from tests import small, stages

COMMAND = ("-m", "retree_jax.main", "--config", "configs/tree.py:tiny")
FLAGS = (*COMMAND, *small.FLAGS, "--config.evaluate.num=3", "--config.preview.num=3")


def start_both(workdir, *flags, command=FLAGS):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    small.start(
      *command, f"--workdir={workdir}", f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={rank}", *flags
    )
    for rank in range(2)
  ]


def losses(workdir) -> dict[int, float]:
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_two_processes_are_one_run(tmp_path):
  both, one = tmp_path / "both", tmp_path / "one"
  processes = start_both(both, "--config.train.num_steps=100000", "--config.checkpoint.every=1000")
  try:
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline and all(p.poll() is None for p in processes):
      if (both / "metrics.jsonl").exists() and len(losses(both)) >= 3:
        break
      time.sleep(0.05)
    # The signal comes to one process only; both stop at the same step.
    processes[1].send_signal(signal.SIGTERM)
    texts = [p.communicate()[0] for p in processes]
    assert [p.returncode for p in processes] == [143, 143], texts
  finally:
    small.stop(*processes)
  stopped = checkpoint.load(both, step="latest").step
  assert f"Stopped by a signal at step {stopped}" in texts[0] and "step 1:" not in texts[1]

  # They go on where they were; the last step is evaluated, shown and saved.
  last = stopped + 3
  final = (f"--config.train.num_steps={last}", f"--config.evaluate.every={last}", f"--config.preview.every={last}")
  processes = start_both(both, *final)
  alone = None
  try:
    texts = [small.finish(p) for p in processes]
    alone = small.start(*FLAGS, f"--workdir={one}", *final, devices=2)
    small.finish(alone)
  finally:
    small.stop(*processes, alone)
  assert f"Resumed from step {stopped}" in texts[0]

  # The same data in the same order, hence the same losses and parameters, up to the order of sums.
  ours, theirs = losses(both), losses(one)
  assert list(ours) == list(theirs) == list(range(1, last + 1))
  np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-3)
  a, b = (checkpoint.load(workdir) for workdir in (both, one))
  assert a.step == b.step == last and jax.process_count() == 1
  small.assert_close(a.params, b.params, rtol=1e-2, atol=1e-3)
  previews = []
  for workdir in (both, one):
    scores = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert scores["step"] == last and scores["heldout_loss"] > 0
    with Image.open(next((workdir / "previews").glob("samples_tree_*.png"))) as picture:
      previews.append((scores["heldout_loss"], np.asarray(picture, np.int32)))
  assert np.isclose(previews[0][0], previews[1][0], rtol=2e-3)
  assert np.abs(previews[0][1] - previews[1][1]).mean() < 4

  # Samples that both draw are those of one process, byte for byte.
  sampling = ("--mode=sample", "--num=5", "--seed=3")
  processes = start_both(both, *sampling, f"--out={tmp_path / 'of_both'}", command=COMMAND)
  try:
    for process in processes:
      small.finish(process)
  finally:
    small.stop(*processes)
  small.finish(small.start(*COMMAND, f"--workdir={both}", *sampling, f"--out={tmp_path / 'of_one'}"))
  drawn = stages.files(tmp_path / "of_both")
  assert sum(name.endswith(".png") for name in drawn) >= 5 and drawn == stages.files(tmp_path / "of_one")

  # Scores of all test examples by both are those of one.
  evaluation = (*COMMAND, f"--workdir={both}", "--mode=evaluate")
  found = []
  processes = start_both(both, "--mode=evaluate", command=COMMAND)
  try:
    for process in processes:
      small.finish(process)
    found.append(json.loads((both / "evaluation.json").read_text()))
  finally:
    small.stop(*processes)
  (both / "evaluation.json").unlink()
  small.finish(small.start(*evaluation))
  found.append(json.loads((both / "evaluation.json").read_text()))
  assert found[0]["step"] == found[1]["step"] == last and found[0]["scores"].keys() == found[1]["scores"].keys()
  for name, score in found[1]["scores"].items():
    np.testing.assert_allclose(found[0]["scores"][name], score, rtol=2e-3, err_msg=name)


def test_a_folder_that_is_refused_leaves_no_process_waiting(tmp_path):
  """Process 0 looks; both say so and leave."""
  with lease.hold(tmp_path / "run", "training"):
    processes = start_both(tmp_path / "run", "--config.train.num_steps=2")
    try:
      texts = [p.communicate(timeout=300)[0] for p in processes]
    finally:
      small.stop(*processes)
  for process, text in zip(processes, texts, strict=True):
    assert process.returncode == 2 and "Traceback" not in text
    assert sum("run is in use: process" in line for line in text.splitlines()) == 1, text


def test_parameters_that_are_shared_between_hosts_are_gathered(tmp_path):
  """As the preview of super-resolution needs them with config.mesh.fsdp=-1."""
  script = """
import sys
import jax, numpy as np
from retree_jax import sharding
rank, port = map(int, sys.argv[1:])
sharding.initialize_distributed("on", f"localhost:{port}", 2, rank)
mesh = sharding.make_mesh(-1)
value = np.arange(1 << 17, dtype=np.float32).reshape(2, -1)
shared = jax.make_array_from_callback(value.shape, sharding.infer_shardings({"x": value}, mesh)["x"], lambda i: value[i])
assert not shared.is_fully_addressable and not shared.is_fully_replicated
whole = sharding.replicate({"x": shared, "y": value}, mesh)
assert all((np.asarray(x) == value).all() for x in whole.values())
"""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [small.start("-c", script, str(rank), str(port), devices=2) for rank in range(2)]
  try:
    for process in processes:
      small.finish(process)
  finally:
    small.stop(*processes)
