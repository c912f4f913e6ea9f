"""Sample k is a function of (weights, seed, k, condition): of no batch, no device; and guidance has its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import models, sharding
from retree_jax.inference.sampler import Sampler, _blocks_of
from tests import small


@pytest.fixture(scope="module")
def real():
  """A network with convolutions and attention, and weights that are not the initial ones, which predict 0."""
  config = small.config(
    model__widths=(8, 16),
    model__attention=(1,),
    data__target=("tree", "fov"),
    sampler__name="ddpm",
    sampler__spacing="full",
    diffusion__num_steps=4,
  )
  network = models.build({**config.model, "out_channels": 2})
  params = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 2)), jnp.zeros(1))
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return config, network, jax.tree.unflatten(structure, leaves)


def same(a: dict, b: dict, rows=slice(None)) -> None:
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_array_equal(a[name][rows], b[name])


def test_a_sample_is_bit_identical_in_any_batch_on_any_devices(real):
  config, network, params = real
  many = Sampler(config, network)
  all_nine = many(params, np.arange(9))
  assert {k: (v.shape, v.dtype) for k, v in all_nine.items()} == {
    "tree": ((9, 16, 16, 1), np.uint8),
    "fov": ((9, 16, 16, 1), np.uint8),
  }
  assert len({all_nine["tree"][k].tobytes() for k in range(9)}) == 9
  # Alone, out of order, in small batches, on eight devices.
  same(all_nine, many(params, [5]), rows=[5])
  same(all_nine, many(params, [7, 0, 3]), rows=[7, 0, 3])
  few = config.copy_and_resolve_references()
  few.sampler.batch_size = 2
  same(all_nine, Sampler(few, network)(params, np.arange(9)))
  mesh = sharding.make_mesh(4)
  spread = jax.device_put(params, sharding.replicated(mesh))
  same(all_nine, Sampler(few, network, mesh)(spread, np.arange(9)))
  # Another seed, or another use of randomness, gives others.
  for other in (dict(seed=1), dict(stream="previews")):
    assert (many(params, [5], **other)["tree"] != all_nine["tree"][5]).any()


def test_a_sample_has_its_place_in_a_block_on_a_cpu_whatever_comes_with_it():
  """The paper's network is sampled four at a time."""
  config = small.config(
    model={"name": "paper_denoiser", "dim": 64, "time_dim": 16, "heads": 2, "head_width": 8},
    sampler__name="ddpm",
    sampler__num_steps=3,
  )
  network = models.build(config.model)
  params = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)), jnp.zeros(1))
  sampler = Sampler(config, network)
  assert sampler.block == 4 and network.cpu_block(256, 256) == 1
  numbers = np.arange(11) + 3
  every = sampler(params, numbers)
  assert len({tree.tobytes() for tree in every["tree"]}) == 11
  for rows in ([5], [7, 0, 3], [0, 4, 8], [9, 10, 1, 2, 6]):
    same(every, sampler(params, numbers[rows]), rows=rows)
  config.sampler.batch_size = 1
  mesh = sharding.make_mesh(4)
  small_calls = Sampler(config, network, mesh)
  assert small_calls.batch_size == 32  # a block of four for each of eight devices
  same(every, small_calls(jax.device_put(params, sharding.replicated(mesh)), numbers))
  # The same seed's trees to rounding, whichever way they are put together: a block is no part of the randomness.
  config.sampler.block = 1
  alone = Sampler(config, network)(params, numbers)["tree"]
  assert np.abs(alone.astype(int) - every["tree"]).max() <= 1
  # Numbers a block apart would each have one of their own; slots that follow from them fill it.
  spread = sampler(params, 4 * numbers, slots=numbers)
  same(spread, sampler(params, 4 * numbers[[6, 2]], slots=numbers[[6, 2]]), rows=[6, 2])
  assert _blocks_of(4 * numbers, 4).shape == (11, 4) and _blocks_of(numbers, 4).shape == (3, 4)


@pytest.mark.parametrize("slots", [[], [0], [3], [0, 1, 2, 3, 4], [5, 1, 1, 9, 0, 2, 2]])
def test_blocks_hold_every_sample_once_at_its_slot(slots):
  table = _blocks_of(np.array(slots, int), 4)
  assert sorted(table[table >= 0]) == list(range(len(slots)))
  for i, slot in enumerate(slots):
    assert np.argwhere(table == i)[0, 1] == slot % 4
  assert (table >= 0).any(axis=1).all()
  assert len(table) == max((sum(s % 4 == k for s in slots) for k in range(4)), default=0)


class Known:
  """The clean image it predicts is 0.8 times the condition's first channel, everywhere and always."""

  def cpu_block(self, height, width):
    return 1

  def apply(self, params, x, t, cond=None):
    return jnp.broadcast_to(0.8 * cond[..., :1] * params["scale"], x.shape)


def conditional(**changes):
  config = small.config(
    data__target=("image",),
    data__condition=("tree", "fov"),
    diffusion__condition_dropout=0.1,
    diffusion__prediction="x0",
    **changes,
  )
  rng = np.random.default_rng(0)
  given = {"tree": rng.integers(0, 256, (3, 16, 16, 1), np.uint8), "fov": np.full((3, 16, 16, 1), 255, np.uint8)}
  given["fov"][:, :4] = 0
  return config, given


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("name", ["dpmpp_2m", "ddim", "heun"])
def test_guidance_is_linear_between_blank_and_given_condition(name, scale):
  """A blank tree predicts 0, so the guided prediction is the scale times the given one: 1 is no guidance."""
  config, given = conditional(sampler__guidance=scale, sampler__name=name)
  made = Sampler(config, Known())({"scale": jnp.float32(1)}, np.arange(3), given)["image"]
  x0 = np.clip(scale * 0.8 * (given["tree"] / 127.5 - 1), -1, 1)
  wanted = np.where(given["fov"] >= 128, np.broadcast_to(np.round((x0 + 1) * 127.5), made.shape), 0)
  assert made.shape == (3, 16, 16, 3) and made.dtype == np.uint8
  assert np.abs(made - wanted).max() <= 1  # a grey level of rounding
  assert (made[:, :4] == 0).all()  # nothing outside the field of view


def test_what_cannot_be_sampled_is_answered_in_a_sentence():
  config, given = conditional()
  sampler = Sampler(config, Known())
  params = {"scale": jnp.float32(1)}
  with pytest.raises(ValueError, match=r"needs the condition 'fov' of shape \[3, 16, 16, 1\]"):
    sampler(params, np.arange(3), {"tree": given["tree"]})
  with pytest.raises(ValueError, match=r"condition 'tree' has shape \(3, 16, 8\) but the model takes \[3, 16, 16\]: resize"):
    sampler(params, np.arange(3), {k: v[:, :, :8] for k, v in given.items()})
  with pytest.raises(ValueError, match="name='euler' is unknown: use "):
    Sampler(conditional(sampler__name="euler")[0], Known())
  with pytest.raises(ValueError, match="guidance=2.0 needs a model trained with config.data.attributes, or with a tree"):
    config.diffusion.condition_dropout = 0.0
    config.sampler.guidance = 2.0
    Sampler(config, Known())
