"""Every batch is a function of source, seed and position, whatever the threads, the hosts and the restarts."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from scipy import ndimage

from retree_jax.data import pipeline, reduction, sources, transforms
from retree_jax.metrics.topology import betti_numbers

AUGMENT = transforms.Augment()
SIZE = (16, 16)


class Numbered:
  """Eyes that are known by the value of all their pixels."""

  title = "numbered"

  def __init__(self, count, treeless=()):
    self.names, self.read, self._treeless = [f"eye{i}" for i in range(count)], [], treeless

  def __len__(self):
    return len(self.names)

  def __getitem__(self, index):
    self.read.append(int(index))
    full = np.full((20, 20, 1), 255, np.uint8)
    tree = {} if index in self._treeless else {"tree": np.zeros((20, 20, 1), np.uint8)}
    image = np.full((20, 20, 3), 10 + index, np.uint8)
    return {"name": self.names[index], "image": image, "fov": full, "label": "expert", **tree}


def drawn(batch):
  return batch["image"][:, 8, 8, 0].astype(int) - 10


def train(source, batch_size=4, size=SIZE, **settings):
  return pipeline.train_iterator(source, size=size, batch_size=batch_size, **{"num_threads": 2, **settings})


def take(iterator, count):
  with iterator:
    return [next(iterator) for _ in range(count)]


def assert_same(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_batches_have_the_fields_that_were_asked_for():
  (batch,) = take(train(Numbered(5)), 1)
  assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
    "image": ((4, 16, 16, 3), np.uint8),
    "tree": ((4, 16, 16, 1), np.uint8),
    "fov": ((4, 16, 16, 1), np.uint8),
  }
  (batch,) = take(train(Numbered(5), fields=("tree",)), 1)
  assert batch.keys() == {"tree"}


def test_every_epoch_has_every_eye_once_in_another_order():
  batches = take(train(Numbered(12)), 9)
  epochs = np.concatenate([drawn(b) for b in batches]).reshape(3, 12)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(12), (3, 1)))
  assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_seed_decides_and_threads_do_not():
  runs = [
    take(train(Numbered(7), augment=AUGMENT, seed=seed, num_threads=threads), 5)
    for seed, threads in ((3, 0), (3, 1), (3, 4), (4, 1))
  ]
  assert_same(runs[0], runs[1])
  assert_same(runs[0], runs[2])
  assert any((a["image"] != b["image"]).any() for a, b in zip(runs[0], runs[3], strict=True))


def test_views_of_one_eye_differ():
  batches = take(train(Numbered(1), batch_size=2, augment=AUGMENT), 2)
  images = np.concatenate([b["image"] for b in batches])
  assert len(np.unique(images.reshape(4, -1), axis=0)) == 4


@pytest.mark.parametrize("weighted", [False, True])
def test_a_restored_position_continues_the_run(weighted):
  source = Numbered(7)
  if weighted:
    source = sources.JoinedSource([Numbered(5), Numbered(3)], [1.0, 4.0])
  whole = take(train(source, augment=AUGMENT), 8)
  first = train(source, augment=AUGMENT)
  for _ in range(3):
    next(first)
  state = first.get_state()
  for _ in range(2):
    next(first)  # what a killed run had read beyond its last checkpoint
  first.close()
  second = train(source, augment=AUGMENT, num_threads=1)
  second.set_state(json.loads(json.dumps(state)))
  assert_same(take(second, 5), whole[3:])


def test_processes_prepare_the_same_batches_and_resume(tmp_path):
  source = sources.open_source("phantom:6", size=SIZE)
  whole = take(train(source, augment=AUGMENT, num_threads=0), 6)
  batches = train(source, augment=AUGMENT, num_threads=1, num_processes=2)
  first = [next(batches) for _ in range(3)]
  state = json.loads(json.dumps(batches.get_state()))
  next(batches)  # what a killed run had read beyond its last checkpoint
  batches.set_state(state)
  assert_same(first + take(batches, 1), whole[:4])
  alone = train(source, augment=AUGMENT)  # and the other way round: without processes
  alone.set_state(state)
  assert_same(take(alone, 3), whole[3:])

  source = sources.open_source(f"folder:{folder_with_a_damaged_file(tmp_path)}", split="all")
  with pytest.raises(ValueError, match=r"Cannot read .*images/b.png"):
    take(train(source, num_threads=1, num_processes=1), 3)


def test_states_of_other_things_are_refused():
  with train(Numbered(3)) as batches:
    for state in ({}, None, {"step": 3}):
      with pytest.raises(ValueError, match="no position of a data pipeline"):
        batches.set_state(state)


def test_changed_data_is_reported(caplog):
  with train(Numbered(3)) as batches:
    state = batches.get_state()
  with train(Numbered(4)) as batches:
    batches.set_state(state)
    assert next(batches)["image"].shape[0] == 4
  assert "not the one this run was saved with" in caplog.text


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_see_disjoint_parts_of_the_same_batches(hosts):
  def run(count, **settings):
    return take(train(Numbered(24), batch_size=8, **settings), count)

  whole = run(6, augment=AUGMENT)
  parts = [run(6, augment=AUGMENT, process_index=h, process_count=hosts) for h in range(hosts)]
  joined = [{key: np.concatenate([part[i][key] for part in parts]) for key in whole[0]} for i in range(6)]
  assert_same(joined, whole)
  # Within an epoch no eye comes to two hosts.
  plain = [run(3, process_index=h, process_count=hosts) for h in range(hosts)]
  seen = [set(np.concatenate([drawn(b) for b in part])) for part in plain]
  assert sum(map(len, seen)) == len(set().union(*seen)) == 24


def test_eyes_are_read_from_disk_once_while_they_fit():
  source = Numbered(6)
  take(train(source, augment=AUGMENT, num_threads=0), 9)
  assert sorted(source.read) == list(range(6))
  source = Numbered(6)
  cost = 32 * 32 * (3 + 1 + 1)  # prepared at twice the size, for the warp
  take(train(source, augment=AUGMENT, num_threads=0, cache_bytes=4 * cost), 9)
  assert len(source.read) == 6 + 2 * 5  # four stay, two are read again in each of the other five epochs


def test_eyes_without_a_tree():
  batches = take(train(Numbered(4, treeless=(1, 3)), fields=("image", "tree?")), 1)
  has = {int(i): bool(h) for i, h in zip(drawn(batches[0]), batches[0]["has_tree"], strict=True)}
  assert has == {0: True, 1: False, 2: True, 3: False} and batches[0]["tree"].shape == (4, 16, 16, 1)
  with pytest.raises(ValueError, match="The eye eye[13] has no tree: use a source that has one, or ask for 'tree[?]'"):
    take(train(Numbered(4, treeless=(1, 3)), num_threads=0), 1)


def folder_with_a_damaged_file(folder):
  for kind in ("images", "masks"):
    (folder / kind).mkdir()
  for name in "ab":
    Image.fromarray(np.full((20, 20, 3), 99, np.uint8)).save(folder / f"images/{name}.png")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / f"masks/{name}.png")
  path = folder / "images/b.png"
  path.write_bytes(path.read_bytes()[:60])
  return folder


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_file_ends_the_run_with_its_name(tmp_path, threads):
  source = sources.open_source(f"folder:{folder_with_a_damaged_file(tmp_path)}", split="all")
  with pytest.raises(ValueError, match=r"Cannot read .*images/b.png"):
    take(train(source, num_threads=threads), 3)


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"batch_size": 0}, "batch size 0 cannot be shared"),
    ({"batch_size": 5, "process_count": 2}, "make it a multiple of 2"),
    ({"process_index": 2, "process_count": 2}, "process_index is 2, but it must lie in 0..1"),
    ({"fields": ("image", "mask")}, r"Unknown fields \['mask'\]"),
    ({"fit": "stretch"}, "Unknown way to fit"),
  ],
)
def test_impossible_settings(settings, words):
  with pytest.raises(ValueError, match=words):
    train(Numbered(3), **settings)
  with pytest.raises(ValueError, match=words):
    pipeline.evaluation_batches(Numbered(3), size=SIZE, **{"batch_size": 2, **settings})


def test_an_empty_source():
  with pytest.raises(ValueError, match="source is empty"):
    train(Numbered(0))


def test_evaluation_has_every_eye_once_and_says_what_is_padding():
  batches = list(pipeline.evaluation_batches(Numbered(10), size=SIZE, batch_size=4))
  assert len(batches) == 3 and all(b["image"].shape == (4, 16, 16, 3) for b in batches)
  valid, index, eyes = (np.concatenate(x) for x in zip(*((b["valid"], b["index"], drawn(b)) for b in batches), strict=True))
  np.testing.assert_array_equal(eyes[valid], np.arange(10))
  np.testing.assert_array_equal(eyes, index)
  assert valid.sum() == 10 and valid.dtype == bool and index.dtype == np.int32
  again = list(pipeline.evaluation_batches(Numbered(10), size=SIZE, batch_size=4, num_threads=1))
  assert_same(batches, again)


def test_evaluation_over_hosts_covers_all_with_equal_numbers_of_batches():
  hosts = [
    list(pipeline.evaluation_batches(Numbered(9), size=SIZE, batch_size=4, process_index=h, process_count=2)) for h in (0, 1)
  ]
  assert len(hosts[0]) == len(hosts[1]) == 3
  seen = [i for host in hosts for b in host for i in b["index"][b["valid"]]]
  assert sorted(seen) == list(range(9))
  assert not hosts[1][-1]["valid"].any()  # the ninth eye is host 0's; host 1 has padding to stay in step


def batch_sharding():
  return NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))


def test_prefetched_batches_are_the_batches_on_the_devices():
  whole = take(train(Numbered(24), batch_size=8), 3)
  ahead = pipeline.device_prefetch(train(Numbered(24), batch_size=8), batch_sharding())
  got = [next(ahead) for _ in range(3)]
  ahead.close()
  assert all(isinstance(v, jax.Array) and len(v.sharding.device_set) == 8 for v in got[0].values())
  assert_same([{k: np.asarray(v) for k, v in b.items()} for b in got], whole)
  with pytest.raises(ValueError, match="keep at least one batch"):
    pipeline.device_prefetch(train(Numbered(3)), batch_sharding(), depth=0)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_position_is_what_was_consumed_not_what_was_fetched(depth):
  whole = take(train(Numbered(24), batch_size=8, augment=AUGMENT), 6)
  ahead = pipeline.device_prefetch(train(Numbered(24), batch_size=8, augment=AUGMENT), batch_sharding(), depth)
  start = ahead.get_state()
  next(ahead)
  next(ahead)
  state = ahead.get_state()
  ahead.close()
  for position, rest in ((state, whole[2:4]), (start, whole[:2])):
    fresh = pipeline.device_prefetch(train(Numbered(24), batch_size=8, augment=AUGMENT), batch_sharding(), depth)
    next(fresh)  # what was fetched before the position is set must not come out afterwards
    fresh.set_state(position)
    assert_same([{k: np.asarray(v) for k, v in next(fresh).items()} for _ in range(2)], rest)
    fresh.close()


def test_arrays_in_memory_keep_the_same_promises():
  arrays = {"image": np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)}
  whole = take(pipeline.array_iterator(arrays, 4, seed=1, augment=AUGMENT), 7)
  plain = np.concatenate([b["image"][:, 0, 0, 0] for b in take(pipeline.array_iterator(arrays, 4, seed=1), 7)])
  np.testing.assert_array_equal(np.sort(plain.reshape(4, 7)), np.tile(np.arange(7), (4, 1)))
  part = pipeline.array_iterator(arrays, 4, seed=1, augment=AUGMENT)
  next(part)
  state = part.get_state()
  fresh = pipeline.array_iterator(arrays, 4, seed=1, augment=AUGMENT)
  fresh.set_state(state)
  assert_same(take(fresh, 6), whole[1:])
  halves = [
    take(pipeline.array_iterator(arrays, 4, seed=1, augment=AUGMENT, process_index=h, process_count=2), 7) for h in (0, 1)
  ]
  assert_same([{"image": np.concatenate([a["image"], b["image"]])} for a, b in zip(*halves, strict=True)], whole)
  for wrong in ({}, {"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.zeros((0, 2))}):
    with pytest.raises(ValueError, match="all have the same number of examples"):
      pipeline.array_iterator(wrong, 2)
  with pytest.raises(ValueError, match="Only uint8 image, tree and fov can be augmented, not latent"):
    pipeline.array_iterator({"latent": np.zeros((3, 4))}, 2, augment=AUGMENT)


def test_the_default_path_needs_no_other_framework():
  code = """
import sys
from retree_jax.data import pipeline, sources, transforms
from retree_jax import main
source = sources.open_source("phantom:4", size=(32, 32))
with pipeline.train_iterator(source, size=(32, 32), batch_size=2, augment=transforms.Augment()) as batches:
  next(batches)
loaded = {"tensorflow", "torch", "tensorflow_datasets", "sklearn"} & set(sys.modules)
assert not loaded, loaded
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


class Thin:
  """Eyes with one long vessel that is a third of a pixel wide at the batches' size."""

  title, names = "thin", ["a", "b", "c"]

  def __len__(self):
    return 3

  def __getitem__(self, index):
    tree = np.zeros((384, 384, 1), np.uint8)
    rows = np.arange(60, 330)
    columns = (150 + 40 * index + 30 * np.sin(rows / 40)).astype(int)
    for dx in (0, 1):
      tree[rows, columns + dx] = 255
    return {"name": self.names[index], "tree": tree, "fov": np.full((384, 384, 1), 255, np.uint8), "label": "expert"}


@pytest.mark.parametrize("augment", [AUGMENT, transforms.Augment.paper()])
def test_masks_follow_the_coverage_through_every_warp_and_flip_and_stay_whole(augment):
  batches = take(train(Thin(), augment=augment, size=(64, 64), fields=("vessels", "tree", "fov")), 4)
  for batch in batches:
    assert batch["vessels"].shape == batch["tree"].shape == (4, 64, 64, 1) and batch["vessels"].dtype == np.uint8
    for vessels, tree in zip(batch["vessels"][..., 0], batch["tree"][..., 0], strict=True):
      assert set(np.unique(vessels)) == {0, 255} and (tree >= 128).sum() < 20  # cut at one half hardly anything is left
      assert betti_numbers(vessels)[0] == 1
      assert 40 <= (vessels > 0).sum() <= 75
      # They lie on one another.
      assert tree[vessels > 0].sum() > 0.6 * tree.sum()
      assert tree[ndimage.binary_dilation(vessels > 0, np.ones((3, 3)))].sum() > 0.97 * tree.sum()


def test_evaluation_has_the_masks_that_the_rule_makes():
  (batch,) = pipeline.evaluation_batches(Thin(), size=(64, 64), batch_size=3, fields=("vessels", "tree"))
  for vessels, eye in zip(batch["vessels"], (Thin()[i] for i in range(3)), strict=True):
    np.testing.assert_array_equal(vessels[..., 0], reduction.reduce_mask(eye["tree"], (64, 64)))
  (alone,) = pipeline.evaluation_batches(Thin(), size=(64, 64), batch_size=3, fields=("tree",))
  np.testing.assert_array_equal(alone["tree"], batch["tree"])


def test_masks_of_arrays_in_memory_cannot_be_augmented():
  arrays = {"tree": np.zeros((4, 16, 16, 1), np.uint8), "vessels": np.zeros((4, 16, 16, 1), np.uint8)}
  with pytest.raises(ValueError, match="not vessels: leave augment out"):
    pipeline.array_iterator(arrays, 2, augment=AUGMENT)
