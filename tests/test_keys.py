"""Keys depend on what they are for, and on nothing else."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retree_jax import keys


def bits(key):
  return np.asarray(jax.random.key_data(key))


def test_streams_and_steps_and_samples_are_all_different():
  made = [keys.stream(seed, name) for seed in (0, 1, 2**32 - 1) for name in ("noise", "times", "dropout")]
  made += [keys.at_step(keys.stream(0, "noise"), step) for step in range(50)]
  made += list(keys.per_sample(0, range(50), "trees"))
  assert len({tuple(bits(key)) for key in made}) == len(made)


def test_a_stream_is_the_same_in_another_process():
  # Python hashes strings differently in each process; the stream must not.
  code = (
    "import jax; from retree_jax import keys;print(jax.random.key_data(keys.at_step(keys.stream(7, 'tree noise'), 3)).tolist())"
  )
  here = bits(keys.at_step(keys.stream(7, "tree noise"), 3)).tolist()
  there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
  assert there.strip() == str(here)


def test_the_key_of_sample_k_depends_on_k_alone():
  alone = bits(keys.per_sample(3, [41], "trees"))[0]
  among = bits(keys.per_sample(3, jnp.arange(7, 90, 2), "trees"))[17]
  traced = bits(jax.jit(lambda i: keys.per_sample(3, i, "trees"))(jnp.array([5, 41], jnp.uint32)))[1]
  by_hand = bits(keys.at_step(keys.stream(3, "trees"), 41))
  for other in (among, traced, by_hand):
    np.testing.assert_array_equal(alone, other)


def test_traced_steps_give_the_same_key():
  key = keys.stream(0, "noise")
  np.testing.assert_array_equal(bits(jax.jit(keys.at_step)(key, jnp.int32(12))), bits(keys.at_step(key, 12)))


def test_keys_are_threefry_whatever_the_default_generator_is():
  with jax.default_prng_impl("rbg"):
    key = keys.stream(0, "noise")
  assert key.dtype == keys.stream(0, "noise").dtype
  np.testing.assert_array_equal(bits(key), bits(keys.stream(0, "noise")))


def test_normal_draws_each_row_from_its_own_key():
  some = keys.per_sample(0, [4, 9, 2], "x")
  rows = keys.normal(some, (8, 5, 2))
  assert rows.shape == (3, 8, 5, 2) and rows.dtype == jnp.float32
  np.testing.assert_array_equal(rows[1], keys.normal(some[1:2], (8, 5, 2))[0])
  np.testing.assert_array_equal(rows[2], jax.random.normal(some[2], (8, 5, 2)))
  # 8000 draws: mean within 5 / sqrt(8000) of 0, neighbours' correlation likewise.
  many = np.asarray(keys.normal(keys.per_sample(1, range(8), "x"), (1000,)))
  assert abs(many.mean()) < 0.056 and abs(many.std() - 1) < 0.04
  assert np.abs(np.corrcoef(many) - np.eye(8)).max() < 5 / np.sqrt(1000)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "0", None])
def test_seeds_that_are_none(seed):
  with pytest.raises(ValueError, match="whole number from 0"):
    keys.stream(seed, "noise")


def test_other_bad_input():
  with pytest.raises(ValueError, match="non-empty string"):
    keys.stream(0, "")
  with pytest.raises(ValueError, match="one-dimensional array of whole numbers"):
    keys.per_sample(0, jnp.zeros((2, 2), jnp.int32), "x")
  with pytest.raises(ValueError, match="one-dimensional array of whole numbers"):
    keys.per_sample(0, [0.5], "x")
