"""The benchmark of host work, on tiny stages with random weights."""

import numpy as np
import pytest

from experiments.benchmarks import host
from retree_jax.inference import dataset_writer, pairs
from tests import stages


def test_a_tape_returns_what_was_recorded_in_the_same_order():
  tape = host.Tape(lambda n: {"x": np.arange(n)})
  first, second = tape(2), tape(3)
  first["x"][:] = 7  # what a caller does with it does not reach the tape
  tape.replays = True
  np.testing.assert_array_equal(tape("anything")["x"], [0, 1])
  np.testing.assert_array_equal(tape()["x"], second["x"])
  with pytest.raises(IndexError):
    tape()


def test_each_network_of_the_shipped_chain_has_a_tape():
  generator = pairs.Generator(pairs.load_models(**dataset_writer.shipped()))
  tapes = host.taped(generator)
  called = [function for _, function, _ in generator._refiners + generator._detailers]
  called += [generator.samplers["tree"], generator.samplers["fundus"], generator._enlarger]
  assert len(called) == 7 and all(any(function is tape for tape in tapes) for function in called)


def test_host_work_is_measured_without_the_networks(tmp_path):
  made = stages.chain(tmp_path)
  row = host.measure(2, {name: str(made[name]) for name in ("tree", "fundus")})
  assert row["pairs"] == 2 and 0 < row["core_seconds"] < 60 and row["wall"] > 0
  assert set(row["stages"]) >= {"tree", "fundus"}
  assert len(host.table(row).splitlines()) == 3


def test_mending_by_processes_is_timed():
  tree = np.zeros((32, 32, 1), np.uint8)
  tree[16, 4:28] = 255
  assert all(host.mended_per_second([[tree, tree]] * 3, count) > 0 for count in (0, 1))
  row = {"pairs": 1, "cores": 2, "core_seconds": 1.0, "wall": 1.0, "stages": {}, "mended": {"0": 3.0, "1": 2.5}}
  assert host.table(row).splitlines()[-2:] == ["| 0 | 3.0 |", "| 1 | 2.5 |"]
