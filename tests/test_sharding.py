"""Meshes and shardings: shapes, what lies where, and that eight devices compute what one does."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from retree_jax import checkpoint, sharding, train
from tests import small

# Its convolutions are large enough to be worth splitting.
WIDE = dict(model__widths=(96,), data__image_size=(8, 8), train__num_steps=3, checkpoint__every=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The same three steps on one device, on eight with a copy each, and on eight that share copies by fours."""
  out = {}
  for name, devices, fsdp in (("one", 1, 1), ("data", 8, 1), ("fsdp", 8, 4)):
    workdir = tmp_path_factory.mktemp(name)
    state = train.train(small.config(**WIDE, mesh__fsdp=fsdp), workdir, arrays=small.arrays(8), devices=jax.devices()[:devices])
    out[name] = (state, workdir)
  return out


@pytest.mark.parametrize("name", ["data", "fsdp"])
def test_eight_devices_compute_what_one_does(runs, name):
  one, many = runs["one"][0], runs[name][0]
  assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == 8
  # Adam divides by the gradient's size: what is nearly 0 has no sign that rounding leaves alone, hence the absolute part,
  # a hundredth of the way that three steps of at most 1e-3 go.
  small.assert_close(one.params, many.params, rtol=1e-4, atol=2e-5)
  small.assert_close(one.ema, many.ema, rtol=1e-4, atol=2e-5)
  np.testing.assert_array_equal(jax.random.key_data(one.key), jax.random.key_data(many.key))


def bytes_on(tree, device) -> int:
  return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.device == device)


def test_fsdp_shares_parameters_and_optimizer(runs):
  """Whole copies with data parallelism; with FSDP over four, a quarter of every large array and the small ones whole."""
  for part in ("params", "ema", "opt_state"):
    tree, shared = (getattr(runs[name][0], part) for name in ("data", "fsdp"))
    sizes = [x.nbytes for x in jax.tree.leaves(tree)]
    large = sum(x.nbytes for x in jax.tree.leaves(tree) if x.size >= 2**16)
    assert large > 0.8 * sum(sizes)
    for device in jax.devices():
      assert bytes_on(tree, device) == sum(sizes)
      assert bytes_on(shared, device) == large / 4 + sum(sizes) - large


def test_what_eight_devices_wrote_goes_on_on_one(runs, tmp_path):
  state, workdir = runs["fsdp"]
  loaded = checkpoint.load(workdir)
  assert all(x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(loaded.params))
  small.assert_same(loaded.params, state.ema)
  more = {**WIDE, "train__num_steps": 5}
  further = train.train(small.config(**more), workdir, arrays=small.arrays(8), devices=jax.devices()[:1])
  whole = train.train(small.config(**more), runs["one"][1], arrays=small.arrays(8), devices=jax.devices()[:1])
  assert int(further.step) == int(whole.step) == 5
  small.assert_close(whole.params, further.params, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("devices, fsdp, shape", [(8, 1, (8, 1)), (8, -1, (1, 8)), (8, 2, (4, 2)), (1, -1, (1, 1))])
def test_mesh_shapes(devices, fsdp, shape):
  mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
  assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp")


@pytest.mark.parametrize("fsdp", [0, 3, 16, -2])
def test_a_mesh_must_fit_the_devices(fsdp):
  with pytest.raises(ValueError, match=f"fsdp={fsdp} does not divide the 8 devices: use a divisor of 8, or -1"):
    sharding.make_mesh(fsdp)


def test_large_arrays_are_split_along_their_longest_divisible_axis():
  mesh = sharding.make_mesh(4)

  def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)

  arrays = {"last": shape(3, 3, 64, 128), "middle": shape(3, 128, 126), "whole": shape(3, 126, 501), "small": shape(8, 8)}
  specs = {k: s.spec for k, s in sharding.infer_shardings(arrays, mesh, min_size=1000).items()}
  assert specs == {
    "last": PartitionSpec(None, None, None, "fsdp"),
    "middle": PartitionSpec(None, "fsdp", None),
    "whole": PartitionSpec(),
    "small": PartitionSpec(),
  }
  key = {"key": jax.random.split(jax.random.key(0), 4096)}
  assert sharding.infer_shardings(key, mesh, min_size=1)["key"].spec == PartitionSpec()


@pytest.mark.parametrize("size, accumulate, good", [(12, 1, 16), (3, 1, 8), (24, 2, 32), (20, 1, 16)])
def test_batches_must_split_over_the_devices(size, accumulate, good):
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match=f"batch_size={size} is not divisible by 8 devices .*batch_size={good}"):
    sharding.check_batch(size, mesh, accumulate)
  sharding.check_batch(good, mesh, accumulate)


def test_a_batch_goes_to_the_devices_and_back_in_order():
  mesh = sharding.make_mesh(2)
  rows = np.arange(32).reshape(16, 2)
  array = sharding.to_global({"x": rows}, mesh)["x"]
  assert [shard.data.shape for shard in array.addressable_shards] == [(2, 2)] * 8
  np.testing.assert_array_equal(sharding.to_host(array), rows)


def test_what_does_not_describe_a_job_is_answered_in_a_sentence():
  with pytest.raises(ValueError, match="--distributed=maybe is unknown: use auto, on or off"):
    sharding.initialize_distributed("maybe")
  with pytest.raises(ValueError, match="--coordinator needs --num_processes and --process_id"):
    sharding.initialize_distributed("auto", "localhost:1", 2)


def test_one_host_needs_nothing(monkeypatch):
  """No job is joined on a plain host, nor under Slurm with one task; with two tasks, on a pod or on request it is."""
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **kw: joined.append((*a, *kw.values())))
  for name in ("SLURM_PROCID", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"):
    monkeypatch.delenv(name, raising=False)
  sharding.initialize_distributed()
  monkeypatch.setenv("SLURM_PROCID", "0")
  monkeypatch.setenv("SLURM_NTASKS", "1")
  sharding.initialize_distributed()
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "alone")
  sharding.initialize_distributed()
  assert not joined
  monkeypatch.setenv("SLURM_NTASKS", "2")
  sharding.initialize_distributed()
  sharding.initialize_distributed("off")
  monkeypatch.setenv("SLURM_NTASKS", "1")
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
  sharding.initialize_distributed()
  sharding.initialize_distributed("auto", "host:1", 2, 1)
  assert joined == [(None,), (None,), ("host:1", 2, 1)]


@pytest.mark.parametrize(
  "environment, devices",
  [
    ({}, [0, 1, 2, 3]),
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1", "SLURM_PROCID": "1"}, [0, 1, 2, 3]),
    ({"SLURM_STEP_TASKS_PER_NODE": "1,2(x3)", "SLURM_NODEID": "3", "SLURM_LOCALID": "1"}, [2, 3]),
    ({"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_LOCALID": "3"}, [3]),
    # --gpus-per-task binds: each process sees its own from 0 on.
    ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, [0, 1]),
    ({"CUDA_VISIBLE_DEVICES": ""}, [0, 1, 2, 3]),
    ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
    ({"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": ""}, None),
    ({"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "2"}, [0, 1]),
    ({"JAX_LOCAL_DEVICE_IDS": "2"}, None),
  ],
)
def test_a_process_takes_all_gpus_that_slurm_means_for_it(environment, devices):
  node = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
  assert sharding._slurm_devices(node | environment) == devices


def test_processes_that_cannot_share_the_gpus_of_a_node_are_refused():
  node = {"SLURM_PROCID": "0", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "3"}
  with pytest.raises(ValueError, match="3 processes cannot share 4 GPUs of a node evenly: set --ntasks-per-node=1"):
    sharding._slurm_devices(node)
  assert sharding._slurm_devices({"CUDA_VISIBLE_DEVICES": "0,1"}) is None  # no Slurm


def test_jax_under_slurm_sees_all_gpus_of_the_node():
  """In a process of its own, which joins a job of one as Slurm describes it: what JAX then takes for visible."""
  text = small.finish(
    small.start(
      "-c",
      "import jax; from retree_jax import sharding; sharding.initialize_distributed('on'); "
      "print('sees', jax.config.values['jax_cuda_visible_devices'], jax.process_count())",
      SLURM_JOB_ID=str(os.getpid()),
      SLURM_STEP_NODELIST="localhost",
      SLURM_NTASKS="1",
      SLURM_PROCID="0",
      SLURM_LOCALID="0",
      SLURM_STEP_TASKS_PER_NODE="1",
      SLURM_GPUS_ON_NODE="4",
      CUDA_VISIBLE_DEVICES="0,1,2,3",
    )
  )
  assert "sees 0,1,2,3 1" in text
