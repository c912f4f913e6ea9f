"""What can be asked of a retina: measured on drawn eyes, told to the network, moved along with a mirrored eye."""

import jax
import numpy as np
import pytest

from retree_jax import tasks
from retree_jax.config import validate
from retree_jax.data import attributes, examples, field_of_view, phantom, pipeline, sources, transforms
from retree_jax.data.attributes import ATTRIBUTES
from retree_jax.inference.sampler import Sampler
from retree_jax.models import build
from retree_jax.report.sets import ArraySource
from tests import small

SIZE = 512


def eye(column: int, width: int = 4):
  """A round eye with a trunk of vessels that leave `column` in all directions; (tree, fov) uint8 [SIZE, SIZE, 1]."""
  fov = transforms.binarise(field_of_view.inscribed((SIZE, SIZE), SIZE))
  rows, columns = np.mgrid[:SIZE, :SIZE]
  y, x = rows - SIZE / 2, columns - column
  tree = np.zeros((SIZE, SIZE), bool)
  for degrees in range(0, 360, 40):
    a = np.deg2rad(degrees)
    along, across = y * np.sin(a) + x * np.cos(a), y * np.cos(a) - x * np.sin(a)
    tree |= (along > 0) & (along < 150) & (abs(across) < width / 2)
  return (tree[..., None] & (fov >= 128)) * np.uint8(255), fov


def test_attributes_of_drawn_eyes():
  left, right = (attributes.measure(*eye(column)) for column in (120, 392))
  assert list(left) == list(ATTRIBUTES)
  assert left["side"] == pytest.approx(-1) and right["side"] == pytest.approx(1)
  middle = attributes.measure(*eye(256))
  assert middle["side"] == pytest.approx(0, abs=0.02)
  assert left["outline"] == 0
  wide = attributes.measure(*eye(256, 8))
  assert wide["width"] == pytest.approx(8, rel=0.1) and middle["width"] == pytest.approx(4, rel=0.15)
  assert wide["density"] > 1.6 * middle["density"]
  assert middle["tortuosity"] == pytest.approx(1, abs=0.02)
  tree, fov = eye(256)
  fov[:60] = fov[-60:] = 0
  assert attributes.measure(tree & fov, fov)["outline"] == 1


def test_an_eye_without_vessels_has_no_width():
  fov = eye(256)[1]
  encoded = attributes.encode(attributes.measure(np.zeros_like(fov), fov))
  known = dict(zip(ATTRIBUTES, np.isfinite(encoded), strict=True))
  assert known["density"] and not known["width"] and not known["side"]
  told = np.asarray(attributes.told(encoded[None]))
  assert told.shape == (1, 12) and np.isfinite(told).all()
  np.testing.assert_array_equal(told[0, 6:], list(known.values()))


def test_encoding_is_the_standard_score():
  encoded = attributes.encode({"density": 0.11, "outline": 1}, ("density", "outline", "side"))
  np.testing.assert_allclose(encoded[:2], [1.0, 1.0], rtol=1e-6)
  assert np.isnan(encoded[2])


@pytest.mark.parametrize(
  "text, wanted", [("side=left", {"side": -1.0}), ("outline=cut", {"outline": 1.0}), ("density=.11", {"density": 0.11})]
)
def test_what_is_asked(text, wanted):
  assert attributes.parse([text]) == wanted


@pytest.mark.parametrize(
  "text, message",
  [
    ("age=40", "there is no attribute 'age'; ask for outline, side,"),
    ("side=up", "write side=left or right"),
    ("side=3", "write side=left or right"),
    ("density=much", "write density=a number from 0 to 1, such as 0.09"),
    ("density=nan", "write density=a number"),
    ("density", "write density=a number"),
    ("density=11", "write density=a number from 0 to 1"),
    ("width=-3", "write width=a number from 0"),
    ("tortuosity=0.9", "write tortuosity=a number from 1"),
    ("outline=-1", "write outline=whole or cut"),
  ],
)
def test_what_cannot_be_asked(text, message):
  with pytest.raises(ValueError, match=message):
    attributes.parse([text])


def test_nothing_is_asked_for_twice():
  with pytest.raises(ValueError, match="density is asked for twice"):
    attributes.parse(["density=.1", "side=left", "density=.2"])


class OneEye:
  """A source of one eye with the optic disc on the left."""

  names, title = ["left"], "drawn"

  def __len__(self):
    return 1

  def __getitem__(self, index):
    tree, fov = eye(120)
    return {"name": "left", "tree": tree, "fov": fov}


def test_the_pipeline_moves_the_side_with_a_mirrored_eye():
  augment = transforms.Augment(**{**vars(transforms.Augment.none()), "horizontal_flip": 0.5})
  with pipeline.train_iterator(
    OneEye(), size=(64, 64), batch_size=16, augment=augment, fields=("tree", "fov", "attributes"), num_threads=0
  ) as batches:
    batch = next(batches)
  side = batch["attributes"][:, list(ATTRIBUTES).index("side")]
  columns = np.array([np.average(np.arange(64), weights=tree[..., 0].sum(0)) for tree in batch["tree"]])
  assert set(np.sign(side)) == {-1, 1}
  np.testing.assert_array_equal(side > 0, columns > 32)
  fixed = next(iter(pipeline.evaluation_batches(OneEye(), size=(64, 64), batch_size=1, fields=("tree", "fov", "attributes"))))
  np.testing.assert_allclose(fixed["attributes"][0], attributes.encode(attributes.measure(*eye(120))), atol=0.1)


def asking(**changes):
  """A small tree stage that knows density and side, with random weights that tell them apart."""
  c = small.config(data__attributes=("density", "side"), **changes)
  task = tasks.make(c)
  params = task.init_parameters(jax.random.key(0))
  return c, task, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)


def test_asking_changes_samples_and_leaving_open_does_not():
  c, task, params = asking()
  sampler = Sampler(c, task.network)
  plain, again = (sampler(params, np.arange(3))["tree"] for _ in range(2))
  np.testing.assert_array_equal(plain, again)
  np.testing.assert_array_equal(plain, sampler(params, np.arange(3), ask={})["tree"])
  assert (plain != sampler(params, np.arange(3), ask={"density": 0.13})["tree"]).any()
  with pytest.raises(ValueError, match="does not know the attribute 'width': ask for density or side"):
    sampler(params, np.arange(3), ask={"width": 2.0})


def test_guidance_exaggerates_what_is_asked_and_nothing_else():
  c, task, params = asking()
  c.sampler.guidance = 2.0
  sampler = Sampler(c, task.network)
  plain = Sampler(small.config(data__attributes=("density", "side")), task.network)
  np.testing.assert_array_equal(sampler(params, np.arange(2))["tree"], plain(params, np.arange(2))["tree"])
  ask = {"density": 0.13}
  assert (sampler(params, np.arange(2), ask=ask)["tree"] != plain(params, np.arange(2), ask=ask)["tree"]).any()


def test_the_task_hides_attributes_as_often_as_told():
  c, task, _ = asking(diffusion__attribute_dropout=0.3, diffusion__attribute_noise=0.0)
  told = np.asarray(task._told(np.tile(np.arange(6, dtype=np.float32), (4000, 1)), jax.random.key(0)))
  density, side = list(ATTRIBUTES).index("density"), list(ATTRIBUTES).index("side")
  assert told[:, 2:].mean() == pytest.approx(0.7 * 0.7, abs=0.02)
  assert (1 - told[:, 2:]).all(axis=1).mean() == pytest.approx(0.3 + 0.7 * 0.09, abs=0.02)
  assert set(told[:, 0]) == {0.0, density} and set(told[:, 1]) == {0.0, side}


def test_of_a_photograph_without_a_tree_nothing_is_known():
  eyes = [phantom.eye(seed, (32, 32)) for seed in range(2)]
  source = ArraySource({field: np.stack([eye[field] for eye in eyes]) for field in ("image", "fov")}, "unlabelled")
  (batch,) = pipeline.evaluation_batches(source, size=(32, 32), batch_size=2, fields=("image", "tree?", "attributes"))
  assert np.isnan(batch["attributes"]).all() and not batch["has_tree"].any()


def test_unknown_attributes_in_a_config():
  with pytest.raises(ValueError, match="unknown attribute 'age': use outline, side"):
    tasks.make(small.config(data__attributes=("age",)))
  with pytest.raises(ValueError, match="config.diffusion.attribute_dropout=1.0 is invalid"):
    validate.check(small.config(diffusion__attribute_dropout=1.0))


def test_a_network_without_attributes_is_the_same_as_before():
  x = np.zeros((1, 16, 16, 1), np.float32)
  settings = {"name": "denoiser", "widths": (8,), "attention": (), "middle": 0, "head_width": 4, "patch": 1, "time_dim": 16}
  params = build(settings).init(jax.random.key(0), x, np.zeros(1))
  more = build(settings | {"attributes": 2}).init(jax.random.key(0), x, np.zeros(1))
  assert set(more) - set(params) == {"attributes_0", "attributes_1"}


def test_prepared_views_are_drawn_from_again_and_again():
  c = small.config(data__source="phantom:3", data__image_size=(32, 32), data__views=20, train__batch_size=10)
  c.data.augment.rotation = 10.0
  made = examples.Examples(c, None, ("tree",))
  with made.train_iterator() as batches:
    epochs = [np.concatenate([next(batches)["tree"] for _ in range(2)]) for _ in range(2)]
    state = batches.get_state()
    following = next(batches)["tree"]
  views = [sorted(view.tobytes() for view in epoch) for epoch in epochs]
  assert views[0] == views[1] and len(set(views[0])) == 20  # every view once an epoch
  with examples.Examples(c, None, ("tree",)).train_iterator() as batches:
    batches.set_state(state)
    np.testing.assert_array_equal(next(batches)["tree"], following)
  assert len(sources.open_source("phantom:3")) == 3


def test_what_can_be_asked_for_is_what_eyes_have():
  assert attributes.usual("density") == (0.09, 0.02)
  assert attributes.usual("tortuosity") == (1.046, 0.020)
  with pytest.raises(ValueError, match="such as 1.046"):
    attributes.parse(["tortuosity=high"])
