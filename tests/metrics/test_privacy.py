"""Planted copies must be found in whatever pose and colour, independent images must not."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from retree_jax.data import writing
from retree_jax.metrics import alignment, privacy
from retree_jax.metrics.alignment import Pose
from retree_jax.metrics.features import Extractor


def _eye(seed: int, side: int = 64) -> np.ndarray:
  """A random landscape on a reddish disc: as much structure as a vessel tree, but quick to draw."""
  rng = np.random.default_rng(seed)
  detail = ndimage.gaussian_filter(rng.normal(size=(side, side)), 1.6)
  y, x = np.mgrid[:side, :side] - (side - 1) / 2
  light = (0.7 + 0.2 * x / side) * np.clip(1 + 0.25 * detail / detail.std(), 0.2, 2)
  colour = np.array([150, 80, 40]) * rng.uniform(0.8, 1.2, 3)
  return np.clip(light[..., None] * colour * (np.hypot(y, x) < side * 0.47)[..., None], 0, 255).astype(np.uint8)


def _tree(seed: int, side: int = 64) -> np.ndarray:
  rng = np.random.default_rng(seed)
  field = ndimage.gaussian_filter(rng.normal(size=(side, side)), 3)
  return ((np.abs(field) < 0.25 * field.std()) * np.uint8(255))[..., None]


def _recoloured(image: np.ndarray) -> np.ndarray:
  gains = np.array([0.6, 1.4, 1.1]) * 255 * (image / 255.0) ** np.array([0.8, 1.2, 1.0])
  lit = gains * np.linspace(0.7, 1.1, image.shape[0])[:, None, None]
  return np.clip(lit, 0, 255).astype(np.uint8)


def _turned(image: np.ndarray, degrees: float) -> np.ndarray:
  return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC))


def _thumbnail(images):
  """Block means around every picture's middle: features that know nothing of colour, and little of position."""
  grey = images.mean(-1)
  return grey.reshape(len(grey), 16, 8, 16, 8).mean((2, 4)).reshape(len(grey), -1)


@pytest.fixture(scope="module")
def eyes():
  return [_eye(seed) for seed in range(12)], [_eye(100 + seed) for seed in range(24)]


@pytest.fixture(scope="module")
def planted(eyes):
  train, heldout = eyes
  copies = [
    train[0][:, ::-1],
    train[1][::-1],
    np.rot90(train[2]),
    _turned(train[3], 17),
    _turned(train[4][:, ::-1], -71),
    _recoloured(train[5]),
    _recoloured(_turned(train[6], 100)),
    train[7][:, :, [1, 2, 0]],
    np.roll(train[8], (2, -1), (0, 1)),
    Pose(zoom=1.06)(train[9], 64),
  ]
  others = [_eye(1000 + seed) for seed in range(6)]
  return privacy.audit([*copies, *others], train, heldout, Extractor("blocks", _thumbnail))


def test_planted_copies_are_found_and_named(planted):
  pixels = planted.spaces["pixels"]
  np.testing.assert_array_equal(pixels.nearest[:10], range(10))
  assert pixels.copied[:10].all(), pixels.distance[:10]
  assert planted.verdict == "copies" and planted.copies.total == 16
  assert planted.copies.low < planted.copies.share < planted.copies.high


def test_independent_images_beside_them_are_not(planted):
  assert not planted.copied[10:].any()
  assert not planted.spaces["pixels"].isolated[10:].any()


def test_features_find_flips_and_quarter_turns(planted):
  blocks = planted.spaces["blocks"]
  np.testing.assert_array_equal(blocks.nearest[:3], range(3))
  assert blocks.copied[:3].all() and not blocks.copied[10:].any()
  assert (blocks.poses[0].mirrored, blocks.poses[0].degrees) == (True, 0)
  assert abs(blocks.poses[1].degrees) == 180 and blocks.poses[1].mirrored


@pytest.mark.parametrize("space", ["pixels", "blocks"])
def test_poses_lay_the_training_image_on_its_copy(eyes, planted, space):
  for number, copy in enumerate((eyes[0][0][:, ::-1], eyes[0][1][::-1], np.rot90(eyes[0][2]))):
    laid = planted.spaces[space].poses[number](eyes[0][number], 64).astype(float)
    inside = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 26
    assert np.corrcoef(laid[inside].ravel(), copy[inside].ravel().astype(float))[0, 1] > 0.98


def test_pose_of_a_rotation_is_measured(planted):
  pose = planted.spaces["pixels"].poses[3]
  assert not pose.mirrored and pose.degrees == pytest.approx(17, abs=0.5) and pose.zoom == pytest.approx(1, abs=0.01)
  down, right = planted.spaces["pixels"].poses[8].shift
  assert (down, right) == pytest.approx((-2 / 64, 1 / 64), abs=0.2 / 64)
  assert planted.spaces["pixels"].poses[9].zoom == pytest.approx(1.06, abs=0.01)


def test_copies_come_first_among_the_closest(planted):
  pairs = planted.spaces["pixels"].closest(16)
  assert [pair.copied for pair in pairs] == [True] * 10 + [False] * 6
  assert {pair.generated for pair in pairs[:10]} == set(range(10))
  assert all(pair.train == pair.generated for pair in pairs[:10])


def test_threshold_is_the_95th_percentile_of_heldout_similarity(planted):
  pixels = planted.spaces["pixels"]
  assert 1 - pixels.threshold == pytest.approx(np.percentile(1 - pixels.heldout_distance, 95))
  np.testing.assert_array_equal(pixels.near, pixels.distance < pixels.threshold)
  np.testing.assert_array_equal(pixels.isolated, pixels.distance / pixels.second < 1 / 3)


def test_dict_is_json(planted):
  found = json.loads(json.dumps(writing.json_values(planted.to_dict()), allow_nan=False))
  assert found["copies"]["hits"] == 10 and found["copied"] == list(range(10))
  assert set(found["spaces"]) == {"pixels", "blocks"}
  assert "10 of 16" in found["sentence"]


@pytest.mark.parametrize("kind", ["eyes", "noise"])
def test_independent_sets_are_clear(kind):
  rng = np.random.default_rng(0)
  draw = _eye if kind == "eyes" else lambda _: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
  generated, train, heldout = ([draw(base + i) for i in range(n)] for base, n in ((0, 10), (50, 20), (90, 20)))
  result = privacy.audit(generated, train, heldout)
  assert result.verdict == "clear" and result.copies.hits == 0
  closer = result.spaces["pixels"].closer_to_train
  assert 0.1 < closer["mean"] < 0.9


def test_copies_of_an_image_that_is_there_twice_are_found(eyes):
  train = [*eyes[0][:6], eyes[0][0]]
  result = privacy.audit([eyes[0][0][:, ::-1]], train, eyes[1])
  assert not result.spaces["pixels"].isolated[0] and result.copied[0]


def test_copied_trees_are_found_and_others_not():
  train, heldout = [_tree(i) for i in range(8)], [_tree(100 + i) for i in range(20)]
  copies = [np.rot90(train[0]), train[1][:, ::-1], _turned(train[2][..., 0], 33)[..., None]]
  result = privacy.audit([*copies, *(_tree(200 + i) for i in range(4))], train, heldout)
  np.testing.assert_array_equal(result.copied, [True] * 3 + [False] * 4)


def test_closer_to_train_draws_equally_many():
  # One of 4 marked, 2 drawn: missed with probability C(3, 2) / C(4, 2) = 1/2; all marked are never missed.
  np.testing.assert_allclose(privacy._missed(4, np.array([0, 1, 2, 3, 4]), 2), [1, 1 / 2, 1 / 6, 0, 0], atol=1e-12)


def test_search_counts_and_agrees_with_brute_force(eyes):
  prepared, others = alignment.prepare(eyes[0][:4]), alignment.prepare(eyes[1][:6])
  # All 128 angles of both mirrorings, by rolling the polar pictures.
  polar, their = (np.fft.irfft(p, n=128, axis=2) for p in (prepared.spectra, others.spectra))
  wanted = np.full((4, 6), -1.0)
  for one in (their, np.roll(their[:, :, ::-1], 1, 2)):
    for shift in range(128):
      wanted = np.maximum(wanted, np.einsum("nra,mra->nm", polar, np.roll(one, shift, 2)))
  np.testing.assert_allclose(alignment._largest(prepared.spectra, others.spectra), wanted, atol=1e-5)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (lambda g, t, h: ([], t, h), "at least 1 generated"),
    (lambda g, t, h: (g, t[:2], h), "at least 3 training"),
    (lambda g, t, h: (g, t, h[:1]), "at least 2 held-out"),
    (lambda g, t, h: ([g[0].astype(float)], t, h), "generated image 0 is float64"),
    (lambda g, t, h: ([g[0][..., :1]], t, h), "images of one kind"),
    (lambda g, t, h: (g, [*t[:3], t[0][..., :1]], h), "Among the training images"),
  ],
)
def test_bad_input_is_refused_in_one_sentence(eyes, change, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    privacy.audit(*change([eyes[0][0]], eyes[0], eyes[1]))
  assert "\n" not in str(caught.value)


def test_too_few_heldout_images_are_noted(eyes):
  result = privacy.audit(eyes[1][10:12], eyes[0], eyes[1][:4])
  assert result.verdict in ("unclear", "suspicious") and "Only 4 held-out" in result.notes[0]


def test_augmented_copies_of_real_eyes_are_found(real_eyes):
  """Copies as augmentation makes them: mirrored, turned, zoomed, shifted, bent, other light; 24 real eyes."""
  from retree_jax.data import field_of_view, transforms

  paths = [real_eyes / "CHASE_DB1" / "images" / f"Image_{i:02d}{side}.jpg" for i in range(1, 13) for side in "LR"]
  eyes = []
  for path in paths:
    image = np.asarray(Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BOX))
    fov = field_of_view.find_fov(image)
    eyes.append(transforms.fit({"image": image, "fov": fov, "tree": fov}, (128, 128)))
  augment, rng = transforms.Augment(rotation=30, vertical_flip=0.5), np.random.default_rng(0)
  train, heldout = eyes[:10], eyes[10:]
  copies = [augment(eye, rng)["image"] for eye in train[:6]]
  plain = [eye["image"] for eye in heldout]
  result = privacy.audit([*copies, *plain[:4]], [eye["image"] for eye in train], plain[4:])
  np.testing.assert_array_equal(result.spaces["pixels"].nearest[:6], range(6))
  np.testing.assert_array_equal(result.copied, [True] * 6 + [False] * 4)
