"""Checkpoints: what is kept, what is found again, on which devices, and what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import checkpoint, keys, models, sharding
from retree_jax.state import TrainState
from tests import small


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  monkeypatch.setattr(models, "build", small.Toy)


def make_state(step: int, mesh=None, width: int = 4) -> TrainState:
  """A state with numbers that tell steps apart."""
  value = jnp.arange(8 * width, dtype=jnp.float32).reshape(8, width) + 100 * step
  state = TrainState(
    step=jnp.int32(step),
    params={"w": value},
    ema={"w": value / 2},
    opt_state=({"mu": value / 4}, jnp.int32(step)),
    key=keys.stream(3, "tests"),
    extra={"bar": jnp.float32(jnp.inf)},
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
  return jax.device_put(state, sharding.infer_shardings(state, mesh, min_size=16))


def like(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(workdir, losses: dict, keep_latest=2, keep_best=1, config=None) -> None:
  """Saves {step: held-out loss} one after the other."""
  checkpoints = checkpoint.Checkpoints(workdir, keep_latest, keep_best)
  for step, loss in losses.items():
    checkpoints.save(make_state(step), {"next_index": step}, config or small.config(), loss)
  checkpoints.close()


def kept(workdir) -> list[int]:
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.mark.parametrize(
  "losses, keep_latest, keep_best, wanted",
  [
    # The newest stays however bad it is.
    ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, 1, 1, [1, 4]),
    ({1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1}, 1, 1, [4]),
    ({1: 0.4, 2: 0.1, 3: 0.2, 4: 0.3, 5: 0.5}, 2, 2, [2, 3, 4, 5]),
    ({1: 0.1, 2: 0.2, 3: 0.3}, 1, 0, [3]),
    # Steps that were not evaluated are never the best.
    ({1: 0.2, 2: None, 3: 0.3, 4: None, 5: None}, 1, 1, [1, 5]),
    ({1: None, 2: None, 3: None}, 2, 1, [2, 3]),
  ],
)
def test_newest_and_best_are_kept(losses, keep_latest, keep_best, wanted, tmp_path):
  save(tmp_path, losses, keep_latest, keep_best)
  assert kept(tmp_path) == wanted
  assert checkpoint.load(tmp_path, step="latest").step == max(losses)
  scored = {step: loss for step, loss in losses.items() if loss is not None}
  if scored and keep_best:
    assert checkpoint.load(tmp_path).step == min(scored, key=scored.get)


def test_everything_comes_back_bit_for_bit(tmp_path):
  written = make_state(7)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert checkpoints.restore(like(written)) is None and checkpoints.latest_step() is None
  position = {"position": {"next_index": 5, "inner": [1, {"a": "b"}]}, "source": 12345}
  checkpoints.save(written, position, small.config(), 0.5)
  checkpoints.save(written, position, small.config(), 0.5)  # the same step again is no second checkpoint, and no error
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(tmp_path)
  state, found = checkpoints.restore(like(written)), checkpoints.position()
  checkpoints.close()
  small.assert_same(state, written)
  assert found == position
  assert jax.random.key_impl(state.key) == jax.random.key_impl(written.key)


def test_the_state_may_be_overwritten_while_it_is_being_saved(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  wanted = np.asarray(make_state(1).params["w"])
  state = make_state(1)
  checkpoints.save(state, {}, small.config())
  overwrite((state.params, state.ema, state.opt_state))
  checkpoints.close()
  np.testing.assert_array_equal(checkpoint.load(tmp_path).params["w"], wanted / 2)


@pytest.mark.parametrize("writer, reader", [((8, 8), (1, 1)), ((8, 4), (2, 2)), ((1, 1), (8, 8))])
def test_any_number_of_devices_reads_what_any_other_wrote(writer, reader, tmp_path):
  """(devices, devices that share a copy) of the run that wrote and of the one that goes on."""
  meshes = [sharding.make_mesh(fsdp, jax.devices()[:n]) for n, fsdp in (writer, reader)]
  written = make_state(3, meshes[0])
  assert len(written.params["w"].addressable_shards) == writer[0]
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(written, {"next_index": 1}, small.config())
  checkpoints.close()
  wanted = like(make_state(0, meshes[1]))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  state = checkpoints.restore(wanted)
  checkpoints.close()
  small.assert_same(state, written)
  assert state.params["w"].sharding.is_equivalent_to(wanted.params["w"].sharding, 2)
  # For inference: one device, or a copy on each.
  loaded = checkpoint.load(tmp_path)
  assert loaded.params["w"].devices() == {jax.devices()[0]}
  np.testing.assert_array_equal(loaded.params["w"], written.ema["w"])
  spread = checkpoint.load(tmp_path, mesh=meshes[1]).params["w"]
  assert len(spread.devices()) == reader[0] and spread.sharding.is_fully_replicated


def test_a_checkpoint_carries_its_config(tmp_path):
  config = small.config(train__num_steps=123)
  save(tmp_path, {5: 0.1}, config=config)
  loaded = checkpoint.load(tmp_path, stage="tree")
  assert checkpoint.to_json(loaded.config) == checkpoint.to_json(config)
  assert loaded.step == 5 and loaded.network.settings["name"] == "denoiser"
  # A single checkpoint folder will do too.
  assert checkpoint.load(tmp_path / "checkpoints" / "5").identity() == loaded.identity()


def test_steps_are_found_by_number(tmp_path):
  save(tmp_path, {1: 0.1, 2: 0.5, 3: 0.4}, keep_latest=3)
  assert [checkpoint.load(tmp_path, step=s).step for s in ("best", "latest", 2)] == [1, 3, 2]
  with pytest.raises(ValueError, match="holds no step 9: it has 1, 2, 3"):
    checkpoint.load(tmp_path, step=9)


def test_weights_have_an_identity_of_their_own(tmp_path):
  save(tmp_path, {1: None, 2: None})
  one, two = (checkpoint.load(tmp_path, step=s) for s in (1, 2))
  shutil.copytree(tmp_path, tmp_path / "elsewhere")
  assert checkpoint.load(tmp_path / "elsewhere", step=1).identity() == one.identity() != two.identity()


def test_exported_weights_are_half_as_many_bytes_and_the_same_model(tmp_path):
  save(tmp_path, {4: None})
  loaded = checkpoint.load(tmp_path)
  checkpoint.export(loaded, tmp_path / "shipped")
  shipped = checkpoint.load(tmp_path / "shipped", stage="tree")
  assert shipped.step == 4 and shipped.params["w"].dtype == jnp.float32
  np.testing.assert_array_equal(shipped.params["w"], loaded.params["w"].astype(jnp.bfloat16).astype(jnp.float32))


def test_what_cannot_be_loaded_is_answered_in_a_sentence(tmp_path):
  with pytest.raises(ValueError, match="does not exist: give a workdir"):
    checkpoint.load(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="holds no checkpoint of retree_jax"):
    checkpoint.load(tmp_path)
  (tmp_path / "young" / "checkpoints").mkdir(parents=True)
  with pytest.raises(ValueError, match="holds no finished checkpoint yet: train longer"):
    checkpoint.load(tmp_path / "young")
  save(tmp_path / "run", {1: None})
  with pytest.raises(ValueError, match="a checkpoint of the tree stage, not of the fundus stage"):
    checkpoint.load(tmp_path / "run", stage="fundus")
  wider = make_state(1, width=5)
  checkpoints = checkpoint.Checkpoints(tmp_path / "run")
  with pytest.raises(ValueError, match=r"another architecture: \['w'\] has shape \(8, 4\) there and \(8, 5\) in this"):
    checkpoints.restore(like(wider))
  checkpoints.close()
  for file in (tmp_path / "run" / "checkpoints" / "1").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(ValueError, match="holds no checkpoint of retree_jax"):
    checkpoint.load(tmp_path / "run", step="latest")


@pytest.mark.parametrize("item", ["ema", "state"])
@pytest.mark.parametrize("cut_short", [False, True])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(item, cut_short, tmp_path):
  save(tmp_path, {1: None, 2: None})
  broken = tmp_path / "checkpoints/2"
  if cut_short:
    for file in (broken / item).rglob("*"):
      if file.is_file():
        file.write_bytes(file.read_bytes()[:20])
  else:
    shutil.rmtree(broken / item)
  for read in (
    lambda: checkpoint.Checkpoints(tmp_path).restore(like(make_state(2))),
    *([lambda: checkpoint.load(tmp_path, step="latest")] if item == "ema" else []),
  ):
    with pytest.raises(ValueError, match=r"checkpoints/2 is damaged, .*remove this folder"):
      read()
  shutil.rmtree(broken)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  restored = checkpoints.restore(like(make_state(1)))
  assert checkpoints.position() == {"next_index": 1}
  small.assert_same(restored.params, make_state(1).params)


def test_the_shipped_weights_are_found_whatever_is_here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "filter").mkdir()
  with pytest.raises(ValueError, match="holds no checkpoint"):
    checkpoint.load("filter")
  loaded = checkpoint.load("shipped:filter")
  assert loaded.config.stage == "filter" and loaded.step == 200
  with pytest.raises(ValueError, match="holds no step 7, only 200: leave --step out"):
    checkpoint.load("shipped:filter", step=7)
  with pytest.raises(ValueError, match="shipped:none does not exist.*filter, fundus"):
    checkpoint.load("shipped:none")
