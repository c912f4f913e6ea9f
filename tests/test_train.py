"""The loop: what it writes, that stopping changes nothing, what it refuses; and the arithmetic inside a step."""

import gc
import json
import math
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from retree_jax import checkpoint, keys, models, sharding, tasks, train
from retree_jax.data import phantom, writing
from retree_jax.data.examples import Examples
from retree_jax.tasks.evaluator import Evaluator
from tests import small


@pytest.fixture
def toy(monkeypatch):
  monkeypatch.setattr(models, "build", small.Toy)


def run(workdir, devices=1, **changes):
  return train.train(small.config(**changes), workdir, arrays=small.arrays(), devices=jax.devices()[:devices])


def lines(workdir) -> list[dict]:
  """metrics.jsonl without the speed, which no two runs share."""
  found = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != "images_per_second"} for line in found]


EVERYTHING = dict(
  train__num_steps=6, checkpoint__every=2, checkpoint__keep_latest=9, evaluate__every=3, preview__every=6, log__tensorboard=True
)


def test_a_run_writes_what_it_promises_and_stopping_changes_nothing(toy, tmp_path):
  whole = run(tmp_path / "whole", **EVERYTHING)
  written = lines(tmp_path / "whole")
  assert [line["step"] for line in written if "loss" in line] == [1, 2, 3, 4, 5, 6]
  scores = [line for line in written if "heldout_loss" in line]
  assert [line["step"] for line in scores] == [3, 6] and all(line["training_loss"] > 0 for line in scores)
  assert written[0]["loss"] > written[-2]["loss"]
  # A preview of 3 samples of 16×16 in a grid of 2×2, 2 pixels apart.
  with Image.open(tmp_path / "whole/previews/samples_tree_0000006.png") as picture:
    assert picture.size == (34, 34)
  assert json.loads((tmp_path / "whole/config.json").read_text())["train"]["num_steps"] == 6
  assert "first" in (tmp_path / "whole/parameters.txt").read_text()
  assert list((tmp_path / "whole/tensorboard").iterdir())

  # A run that lost everything after step 2 but its log, which is ahead of it.
  shutil.copytree(tmp_path / "whole", tmp_path / "set_back")
  for step in (4, 6):
    shutil.rmtree(tmp_path / f"set_back/checkpoints/{step}")
  with (tmp_path / "set_back/metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "lo')  # a crash in the middle of a line
  small.assert_same(run(tmp_path / "set_back", **EVERYTHING), whole)
  assert lines(tmp_path / "set_back") == written

  # A run that is told to go on only later.
  for steps in (5, 6):
    stopped = run(tmp_path / "stopped", **{**EVERYTHING, "train__num_steps": steps})
  small.assert_same(stopped, whole)
  losses = [{**line, "loss": line.get("loss")} for line in lines(tmp_path / "stopped") if "loss" in line]
  assert losses == [line for line in written if "loss" in line]
  # A finished run rerun does nothing.
  small.assert_same(run(tmp_path / "stopped", **EVERYTHING), whole)


def test_muon_stopped_and_rerun_is_the_same_run(toy, tmp_path):
  muon = dict(optimizer__name="muon", train__num_steps=4)
  whole = run(tmp_path / "whole", **muon)
  for steps in (2, 4):
    stopped = run(tmp_path / "stopped", **{**muon, "train__num_steps": steps})
  small.assert_same(stopped, whole)


def test_another_seed_is_another_run(toy, tmp_path):
  a, b = run(tmp_path / "a", train__num_steps=1), run(tmp_path / "b", train__num_steps=1, seed=1)
  assert not np.array_equal(a.params["last"], b.params["last"])


@pytest.mark.parametrize("start", [1, 3])
def test_a_profile_is_taken_in_its_window_and_ends_with_the_run(toy, tmp_path, monkeypatch, start):
  """Of a run of 4 steps; from step 3 on, the window of 2 steps would end after the run."""
  waited = []
  block = jax.block_until_ready
  monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(int(x.step)) or block(x))
  run(tmp_path, log__profile_start=start, log__profile_steps=2)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  assert waited == [start, start + 2][: 2 if start == 1 else 1]
  jax.profiler.start_trace(str(tmp_path / "another"))  # fails if one is still running
  jax.profiler.stop_trace()


def test_the_log_means_over_every_step_whatever_is_saved_between(toy, tmp_path):
  settings = dict(train__num_steps=6, log__every=3)
  run(tmp_path / "each", train__num_steps=6)
  run(tmp_path / "means", checkpoint__every=2, **settings)
  each = [line["loss"] for line in lines(tmp_path / "each")]
  assert [line["loss"] for line in lines(tmp_path / "means")] == pytest.approx([np.mean(each[:3]), np.mean(each[3:])], rel=1e-6)


def test_neither_threads_nor_files_stay_open_after_a_run(toy, tmp_path):
  """As in a notebook, where one process trains again and again; also where a run is refused half-way."""
  settings = dict(
    data__source="phantom:6",
    data__image_size=(32, 32),
    data__num_threads=2,
    checkpoint__every=1,
    log__tensorboard=True,
    train__num_steps=2,
  )

  def train_and_fail(name):
    train.train(small.config(**settings), tmp_path / name, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="another config"):
      train.train(small.config(**settings, loss__l1=0.5), tmp_path / name, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="does not exist"):
      changes = dict(train__start_from=str(tmp_path / "none"))
      train.train(small.config(**settings, **changes), tmp_path / f"{name}_2", devices=jax.devices()[:1])
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

  train_and_fail("first")
  second = train_and_fail("second")
  assert [train_and_fail(f"run_{i}") for i in range(3)] == [second] * 3, [t.name for t in threading.enumerate()]


def test_fine_tuning_starts_from_the_average_of_another_run(toy, tmp_path, monkeypatch):
  source = run(tmp_path / "source", train__num_steps=3)
  tuned = run(tmp_path / "tuned", train__num_steps=0, train__start_from=str(tmp_path / "source"))
  small.assert_same(tuned.ema, source.ema)
  small.assert_same(tuned.params, source.ema)
  assert int(tuned.step) == 0
  monkeypatch.setattr(models, "build", lambda settings: small.Toy(settings, width=4))
  with pytest.raises(ValueError, match="start_from is of another architecture"):
    run(tmp_path / "narrow", train__num_steps=1, train__start_from=str(tmp_path / "source"))


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(train__batch_size=6), r"batch_size=6 is not divisible by 8 devices .* --config.train.batch_size=8"),
    (dict(train__accumulate=2), r"batch_size=8 is not divisible by 8 devices × 2 .*batch_size=16"),
    (dict(mesh__fsdp=3), r"fsdp=3 does not divide the 8 devices"),
    (dict(data__image_size=(16, 15), model__widths=(8, 8)), r"cannot take 16x15 pixels: .*16x16"),
    (dict(data__target=("veins",)), r"unknown field 'veins': use image, tree, fov"),
    (dict(optimizer__schedule="linear"), r"schedule='linear' is unknown: use 'constant' or 'cosine'"),
    (dict(optimizer__schedule="cosine"), r"decay_steps=0 must exceed warmup_steps=2"),
    (dict(diffusion__prediction="score"), r"prediction='score' is unknown: use "),
    (
      dict(diffusion__prediction="eps"),
      r"prediction='eps' cannot start from pure noise.* or config.diffusion.zero_terminal_snr=False",
    ),
    (dict(loss__mse=0.0, loss__l1=0.0), r"are both 0, so that nothing would be learnt: set config.loss.mse=1.0"),
    (dict(stage="veins"), r"stage='veins' is unknown: use tree, refine, fundus"),
    (dict(checkpoint__keep_latest=0), r"keep_latest=0 would delete the newest checkpoint: use 1"),
    (dict(train__batch_size=0), r"batch_size=0 is invalid: it must be at least 1"),
    (dict(train__accumulate=0), r"accumulate=0 is invalid: it must be at least 1"),
    (dict(train__ema_decay=1.0), r"ema_decay=1.0 is invalid: it must be at least 0 and below 1"),
    (dict(log__every=0), r"log.every=0 is invalid: it must be at least 1"),
    (dict(checkpoint__every=-5), r"checkpoint.every=-5 is invalid: it must be at least 1"),
    (dict(optimizer__learning_rate=0.0), r"learning_rate=0.0 is invalid: it must be above 0"),
    (dict(optimizer__learning_rate=float("nan")), r"learning_rate=nan is invalid"),
    (dict(data__fit="stretch"), r"fit='stretch' is unknown: use fov, pad, crop, squash"),
    (dict(data__augment=dict(rotation=-3.0)), r"augment.rotation is -3.0"),
    (dict(diffusion__time_sampling="even"), r"time_sampling='even' is unknown: use stratified, uniform"),
    (dict(diffusion__first_step=1000), r"first_step=1000 leaves no time step"),
    # What only previews would have met, thousands of steps later.
    (dict(sampler__name="euler"), r"sampler.name='euler' is unknown: use ddpm, ddim, dpmpp_2m, heun"),
    (dict(sampler__clip="hard"), r"sampler.clip='hard' is unknown: use none, static, dynamic"),
    (dict(sampler__spacing="even"), r"sampler.spacing='even' is unknown: use full, trailing"),
    (dict(sampler__num_steps=2000), r"2000 sampling steps are more than"),
    (dict(sampler__guidance=2.0), r"guidance=2.0 needs a model trained with config.data.attributes, or with a tree"),
    # Which nothing would ever hide.
    (dict(sampler__guidance=2.0, diffusion__condition_dropout=0.1), r"guidance=2.0 needs a model trained with"),
    (dict(sampler__seed=-1), r"config.sampler.seed -1 is not a whole number from 0"),
    (dict(sampler__spacing="trailing_fine", sampler__num_steps=12), r"12 steps of spacing 'trailing_fine' are too many"),
    (
      dict(optimizer__schedule="cosine", optimizer__decay_steps=5, train__num_steps=6),
      r"set --config.optimizer.decay_steps=6 too",
    ),
    (dict(sampler__eta=1.5), r"eta=1.5 is invalid: it must be from 0 to 1"),
    (dict(sampler__time_shift=0.0), "time_shift=0.0 is invalid: it must be above 0 and at most 1"),
  ],
)
def test_impossible_settings_are_answered_in_a_sentence(changes, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    train.train(small.config(**changes), tmp_path, arrays=small.arrays())
  assert not (tmp_path / "config.json").exists()  # the corrected command may use the same workdir


def test_a_painter_is_not_trained_on_photographs_alone(tmp_path):
  (tmp_path / "eyes").mkdir()
  for i in range(8):
    writing.write_png(tmp_path / "eyes" / f"{i}.png", phantom.eye(i, (32, 32))["image"])
  config = small.config(data__source=f"folder:{tmp_path / 'eyes'}", data__target=("image",), data__condition=("tree", "fov"))
  config.stage, config.diffusion.condition_dropout = "fundus", 0.1
  with pytest.raises(ValueError, match="no photograph of .* has a vessel mask, and the fundus stage learns to paint trees"):
    train.train(config, tmp_path / "run")


def test_evaluation_counts_every_held_out_example_once(toy, tmp_path):
  """Five examples on eight devices: three rows of padding must not count."""
  config = small.config(evaluate__num=5)
  task, mesh = tasks.make(config), sharding.make_mesh()
  params = task.init(keys.stream(0, "here")).params
  evaluator = Evaluator(task, Examples(config, small.arrays(), task.fields), mesh, config.train.batch_size, config.evaluate.num)
  scores = evaluator(jax.device_put(params, sharding.replicated(mesh)))
  for prefix, split in (("heldout", "heldout"), ("training", "train")):
    batch = {"tree": small.arrays()[split]["tree"][:5]}
    wanted = task.evaluate(params, batch, np.arange(5, dtype=np.int32))["loss"]
    assert scores[f"{prefix}_loss"] == pytest.approx(float(np.mean(wanted)), rel=1e-5)


def test_without_an_average_the_parameters_themselves_are_what_is_looked_at_saved_and_resumed(toy, tmp_path):
  settings = {**EVERYTHING, "train__ema_decay": 0.0}
  whole = run(tmp_path / "whole", **settings)
  assert whole.ema is None
  small.assert_same(checkpoint.load(tmp_path / "whole").params, whole.params)
  for steps in (4, 6):
    stopped = run(tmp_path / "stopped", **{**settings, "train__num_steps": steps})
  small.assert_same(stopped, whole)
  # Averaging only looks on: the parameters are those of a run with an average, the scores are not.
  averaged = run(tmp_path / "averaged", **EVERYTHING)
  small.assert_same(averaged.params, whole.params)
  scores, others = (lines(tmp_path / name)[-1]["heldout_loss"] for name in ("whole", "averaged"))
  assert scores != others
  tuned = run(tmp_path / "tuned", train__num_steps=0, train__ema_decay=0.0, train__start_from=str(tmp_path / "averaged"))
  assert tuned.ema is None
  small.assert_same(tuned.params, averaged.ema)


def test_a_run_in_parts_is_the_run_in_one(toy, tmp_path):
  whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts", train__accumulate=4)
  small.assert_close(whole.params, parts.params, rtol=1e-4, atol=2e-5)


def test_repetitions_are_counted_as_the_original_counts_them(toy, tmp_path):
  """RTT against a simulation in plain Python: bar, epoch means and repetitions over three epochs of three batches."""
  changes = dict(train__num_steps=9, train__rtt=True, optimizer__learning_rate=0.02)
  final = run(tmp_path, **changes)
  written = lines(tmp_path)

  config = small.config(**changes)
  task = tasks.make(config)
  current = task.init(keys.stream(config.seed, "tree training"))
  params, opt_state = current.params, current.opt_state
  data = Examples(config, small.arrays(), task.fields).train_iterator()
  grad = jax.jit(lambda p, d: jax.value_and_grad(lambda q: task.loss(q, d)[0])(p))
  prepare = jax.jit(lambda b, step: task.prepare(b, keys.at_step(current.key, step)))

  @jax.jit
  def descend(params, opt_state, grads):
    updates, opt_state = task.optimizer.update(grads, opt_state, params)
    return jax.tree.map(jnp.add, params, updates), opt_state

  lowest, last_losses, counts = math.inf, [], []
  for step in range(9):
    prepared = prepare(next(data), step)
    loss, count = math.inf, 0
    while count < 5 and not loss < lowest:
      loss, grads = grad(params, prepared)
      params, opt_state = descend(params, opt_state, grads)
      count += 1
    counts.append(count)
    last_losses.append(float(loss))
    if step % 3 == 2:  # 24 trees in batches of 8
      lowest = min(lowest, float(np.mean(last_losses[-3:])))
  assert counts[:3] == [1, 1, 1] and len({*counts}) > 1
  assert [line["repetitions"] for line in written] == counts
  np.testing.assert_allclose([line["loss"] for line in written], last_losses, rtol=1e-4)
  assert float(final.extra["bar"]) == pytest.approx(lowest, rel=1e-4)
  small.assert_close(final.params, params, rtol=1e-3, atol=1e-4)
  # The optimizer has taken every repetition as a step.
  counts_taken = [x for x in jax.tree.leaves(final.opt_state) if x.dtype == jnp.int32]
  assert all(int(x) == sum(counts) for x in counts_taken) and counts_taken
