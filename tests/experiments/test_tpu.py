"""The report of the TPU compiler: HLO as libtpu writes it, arithmetic against XLA's own count, minima worked out by hand,
and the whole tool on a small network where libtpu is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks.tpu import chips, flops, hlo, measure, programs, scaling, table
from tests import small

# As libtpu 0.0.42 writes them, shortened: a gather in two steps beside other work, a sum that is scattered and one over
# everything; and a loop of twenty rounds.
_HLO = small.ROOT / "tests" / "experiments" / "hlo"
PROGRAM, LOOP = (_HLO / "sharded.txt").read_text(), (_HLO / "loop.txt").read_text()


def test_sizes_of_types():
  assert hlo.size("bf16[8,64]{1,0:T(8,128)(2,1)}") == 8 * 128 * 2
  assert hlo.size("bf16[8,64]{1,0:T(8,128)(2,1)}", padded=False) == 8 * 64 * 2
  # The tile lies over the axes whose values are neighbours, here the first and the last but one.
  assert hlo.size("f32[3,10,5,200]{0,2,3,1:T(8,128)}") == 128 * 10 * 8 * 200 * 4
  assert hlo.size("(f32[4]{0:T(128)S(1)}, /*index=1*/pred[2,2]{1,0:T(2,128)}, u32[]{:S(2)}, token[])") == 512 + 2 * 128 + 4
  assert hlo.size("(f32[4]{0:T(128)S(1)}, pred[2,2]{1,0:T(2,128)}, u32[]{:S(2)})", hbm_only=True) == 2 * 128
  assert hlo.size("f8e4m3fn[16]") == 16 and hlo.size("s4[16]") == 8


def test_collectives_of_a_program():
  found = {c.kind: c for c in hlo.collectives(PROGRAM, devices=8)}
  assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"} and len(hlo.collectives(PROGRAM, devices=8)) == 3
  whole = 64 * 128 * 2
  assert found["all-gather"] == hlo.Collective("all-gather", whole, 4, 1)  # once, although in two fusions
  assert found["reduce-scatter"] == hlo.Collective("reduce-scatter", whole, 4, 1)
  assert found["all-reduce"].devices == 8
  # By a ring, a sum of n parts sends each part twice but for one's own.
  assert found["all-gather"].sent == found["reduce-scatter"].sent == 3 / 4 * whole
  assert hlo.Collective("all-reduce", 100, 4, 3).sent == 3 * 2 * 3 / 4 * 100


def test_loops_count_every_round():
  (permuted,) = hlo.collectives(LOOP, devices=2)
  assert permuted == hlo.Collective("collective-permute", 8 * 100 * 4, 2, 20) and permuted.sent == 20 * 3200
  tile, half = 8 * 128 * 4, 4 * 128 * 4
  # The copy and the slice into vector memory read; each round reads and writes.
  assert hlo.traffic(LOOP) == tile + half + 20 * 2 * tile
  assert hlo.traffic(LOOP.replace("direction=LT", "direction=NE")) == tile + half + 2 * tile


def test_traffic_leaves_vector_memory_out():
  small_part, whole = 16 * 128 * 2, 64 * 128 * 2
  # Reads: a three times, g once; writes: the first fusion's copy of a, the scalar, the last fusion's part.
  assert hlo.traffic(PROGRAM) == 3 * small_part + whole + small_part + 4 + small_part


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no HLO text"):
    hlo.collectives("HloModule nothing", devices=1)


@pytest.mark.parametrize("stride", [1, 2])
def test_arithmetic_is_what_xla_counts(stride):
  x, kernel = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 8), jnp.float32)

  def convolved(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  assert flops.count(convolved, x, kernel) == jax.jit(convolved).lower(x, kernel).cost_analysis()["flops"]
  gradient = jax.grad(lambda x, kernel: jnp.sum(convolved(x, kernel) ** 2), (0, 1))
  # The gradients of a layer cost what the layer costs, once for each of its arguments.
  assert flops.count(gradient, x, kernel) == 3 * flops.count(convolved, x, kernel)


def test_arithmetic_in_loops_branches_and_shards():
  a = jax.ShapeDtypeStruct((4, 8), jnp.float32)
  product = lambda x: x @ jnp.ones((8, 8))  # noqa: E731
  once = 2 * 4 * 8 * 8
  scanned = lambda x: jax.lax.scan(lambda c, _: (product(c), None), x, None, length=5)[0]  # noqa: E731
  assert flops.count(jax.jit(product), a) == once
  assert flops.count(scanned, a) == 5 * once and flops.count(scanned, a, loops=False) == once
  assert flops.count(lambda x: jax.lax.cond(x[0, 0] > 0, scanned, product, x), a) == 5 * once
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
  spec = jax.sharding.PartitionSpec("data")
  assert flops.count(jax.shard_map(product, mesh=mesh, in_specs=spec, out_specs=spec), a) == once


def test_topologies():
  assert chips.parse("v5e:4x8") == (chips.CHIPS["v5e"], 32) and chips.parse("v5p:2x2x1")[1] == 4
  for wrong in ("v5e", "v5e:2xx", "v9:2x2", "v5e:0x2"):
    with pytest.raises(ValueError, match="write a chip of v5e, v5p, v6e and its grid"):
      chips.parse(wrong)
  assert chips.CHIPS["v5e"].ring == 100e9  # two of four links of 400 Gbit/s


def program(**changes):
  facts = dict(images=64, flops=8e12, rounds=1.0, parameters=1000, sharded=0, width=2, trains=True)
  return programs.Program(lowered=None, **(facts | changes))


def test_least_that_must_be_sent():
  # Data-parallel: the gradients, 2000 bytes, summed over 8 devices.
  assert measure.least_sent(program(), 8, 1) == 2 * 7 / 8 * 2000
  # All of it over 8: gathered and scattered once each. Over 4 with two copies: the parts are summed over the copies besides.
  assert measure.least_sent(program(sharded=1000), 8, 8) == 2 * 7 / 8 * 2000
  assert measure.least_sent(program(sharded=1000), 8, 4) == 2 * 3 / 4 * 2000 + 2 * (2000 / 4) / 2
  assert measure.least_sent(program(sharded=800), 8, 8) == 2 * 7 / 8 * 1600 + 2 * 7 / 8 * 400
  assert measure.least_sent(program(trains=False), 8, 1) == 0
  assert measure.least_sent(program(trains=False, sharded=1000), 8, 8) == 7 / 8 * 2000


def test_a_row_and_its_table():
  memory = {"argument": 2**30, "output": 2**30, "alias": 2**30, "temp": 2**30, "generated_code": 0}
  found = {"text": PROGRAM, "cost": {"flops": 2e12, "bytes accessed": 5e9}, "memory": memory, "seconds": 1.0}
  row = measure.row(program(rounds=2.0), found, "v5e:2x4", 1)
  assert row["peak_bytes"] == 2 * 2**30 and row["chip_bytes"] == 16 * 2**30
  assert row["model_flops"] == 1e12 and row["executed_flops"] == 4e12 and row["xla_bytes"] == 1e10
  # Nothing here takes longer than the arithmetic, of which a quarter is the model's.
  assert row["seconds"]["arithmetic"] == 4e12 / 197e12 and row["mfu"] == pytest.approx(0.25)
  assert row["images_per_second"] == pytest.approx(64 / (4e12 / 197e12))
  named = {"config": "configs/tree.py", "program": "train", "topology": "v5e:2x4", "fsdp": 1, "parts": 1, "hash": "0"}
  failed = named | {"fsdp": 8} | measure.row(program(), {"error": "RESOURCE_EXHAUSTED"}, "v5e:2x4", 8)
  text = table.table([failed, named | row])
  assert "| tree, train | v5e:2x4 | 64 | 1 | 2.00 of 16 | 1.00 / 4.00 | 0.0 / 10.0 |" in text
  assert "| tree, train | v5e:2x4 | 64 | 8 | does not fit 16 | 1.00 |" in text
  document = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
  assert table.inserted(document, [named | row]) == document.replace("old\n", table.table([named | row]))
  with pytest.raises(ValueError, match="no place for the table"):
    table.inserted("before", [])


def test_the_document_shows_the_results():
  folder = small.ROOT / "experiments" / "benchmarks"
  rows, text = json.loads((folder / "tpu" / "results.json").read_text()), (folder / "RESULTS.md").read_text()
  assert table.inserted(text, rows) == text
  text = (small.ROOT / "docs" / "scaling.md").read_text()
  assert scaling.inserted(text, rows) == text


def test_more_chips_share_the_work_and_sum_the_gradients():
  row = {
    "topology": "v5e:2x4",
    "chips": 8,
    "images": 64,
    "fsdp": 1,
    "parts": 1,
    "program": "train",
    "config": "configs/tree.py",
  }
  row |= {"sent_bytes": 2 * 7 / 8 * 100e6, "seconds": {"arithmetic": 0.02, "memory": 0.03}, "peak_bytes": 1, "chip_bytes": 2}
  eight, many = scaling.on(row, 8), scaling.on(row, 256)
  assert eight["images"] == 64 and many["images"] == 2048 and eight["sent_bytes"] == row["sent_bytes"]
  assert many["sent_bytes"] == pytest.approx(2 * 255 / 256 * 100e6)
  links = 2 * 255 / 256 * 100e6 / 100e9  # through two links of 50 GB/s
  assert many["hidden"] == pytest.approx(2048 / 0.03) and many["exposed"] == pytest.approx(2048 / (0.03 + links))
  assert many["chip_hours"] == pytest.approx(1e6 / many["exposed"] * 256 / 3600)
  other = row | {"topology": "v5e:4x8", "chips": 32, "images": 256}
  one, shared = row | {"topology": "v5e:1x1", "chips": 1}, row | {"fsdp": 8}
  assert scaling.rows_of([other, shared, one, row]) == [row]


@pytest.mark.parametrize("spec", ["tree", "refine", "fundus", "filter", "superres", "segmentation"])
def test_every_stage_is_lowered_for_eight_devices(spec, monkeypatch):
  """On CPU devices, tiny variants: programs as the loop and the inference build them."""
  from experiments.benchmarks import stages

  monkeypatch.setattr(programs, "_FILTER_TREES", 10)
  config = stages.load_config(f"configs/{spec}.py:tiny")
  config.train.batch_size = 8
  if spec == "tree":
    config.data.attributes = ("outline", "density")
  built = programs.build(config, "train", jax.devices())
  assert built.images == config.train.batch_size and built.flops > 0 and built.trains and built.sharded == 0
  if spec == "filter":
    with pytest.raises(ValueError, match="no program for devices beside its training step"):
      programs.build(config, "use", jax.devices())
    return
  config.mesh.fsdp = -1
  used = programs.build(config, "use", jax.devices())
  assert used.images % 8 == 0 and used.sharded < used.parameters and not used.trains
  assert (used.sharded > 0) == (
    spec in ("tree", "refine", "fundus")
  )  # the other tiny networks have no array that is worth a gather
  assert used.rounds == pytest.approx({"tree": 20, "fundus": 20}.get(spec, used.rounds))


def test_a_program_is_known_by_what_it_computes():
  key = lambda **changes: programs.build(small.config(**changes), "train", jax.devices()).key  # noqa: E731
  assert key() == key(seed=3) == key(log__every=7) != key(optimizer__learning_rate=0.5)


def test_what_was_compiled_is_not_compiled_again(tmp_path, monkeypatch):
  monkeypatch.setattr(measure.importlib.metadata, "version", lambda name: "1")
  memory = SimpleNamespace(**{f"{n}_size_in_bytes": 1 for n in measure._MEMORY})
  made = SimpleNamespace(
    as_text=lambda: LOOP, cost_analysis=lambda: {"flops": 1.0, "bytes accessed": 2.0}, memory_analysis=lambda: memory
  )
  calls = []

  def lowered(text, answer):
    def compile():
      calls.append(text)
      if isinstance(answer, Exception):
        raise answer
      return answer

    return SimpleNamespace(as_text=lambda: text, compile=compile)

  fits = programs.Program(lowered("a", made), 1, 1, 1.0, 1, 0, 2, True)
  first, again = (measure.compiled(fits, "v5e:2x4", tmp_path) for _ in range(2))
  assert first == again and again["text"] == LOOP and calls == ["a"]
  measure.compiled(fits, "v6e:2x4", tmp_path)
  assert calls == ["a", "a"]  # another chip
  large = programs.Program(lowered("b", RuntimeError("RESOURCE_EXHAUSTED: Ran out\nof memory")), 1, 1, 1.0, 1, 0, 2, True)
  for _ in range(2):
    assert measure.compiled(large, "v5e:2x4", tmp_path) == {"error": "RESOURCE_EXHAUSTED: Ran out of memory"}
  assert calls == ["a", "a", "b"]
  broken = programs.Program(lowered("c", RuntimeError("INTERNAL: a fault")), 1, 1, 1.0, 1, 0, 2, True)
  for _ in range(2):  # no verdict on the program, hence nothing to keep
    with pytest.raises(RuntimeError, match="a fault"):
      measure.compiled(broken, "v5e:2x4", tmp_path)
  assert calls == ["a", "a", "b", "c", "c"]


CHILD = """
import json, pathlib, sys
from experiments.benchmarks.tpu import chips, measure, programs
from tests import small
config = small.config(model__widths=(128,), model__dtype="bfloat16", mesh__fsdp=4)
built = programs.build(config, "train", chips.devices("v5e:2x2"))
found = measure.compiled(built, "v5e:2x2", pathlib.Path(sys.argv[1]))
print(json.dumps(measure.row(built, found, "v5e:2x2", 4)))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'")
def test_the_compiler_of_a_tpu_that_is_not_there(tmp_path):
  """A small network over four chips that share its parameters: it compiles, fits, and gathers and scatters what it must."""
  from experiments.benchmarks.tpu.__main__ import ENVIRONMENT

  environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
  done = subprocess.run(
    [sys.executable, "-c", CHILD, str(tmp_path)],
    env={**environment, **ENVIRONMENT},
    cwd=small.ROOT,
    text=True,
    capture_output=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  row = json.loads(done.stdout.splitlines()[-1])
  assert 0 < row["peak_bytes"] < 2**28 and 0 < row["hbm_bytes"] < row["xla_bytes"]
  assert row["model_flops"] == pytest.approx(row["executed_flops"], rel=0.5)
  assert {"all-gather", "reduce-scatter"} <= set(row["collectives"])
  assert row["least_sent_bytes"] <= row["sent_bytes"] < 2 * row["least_sent_bytes"]
