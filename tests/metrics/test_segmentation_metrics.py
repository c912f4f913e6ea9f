"""Scores of vessel maps against scikit-learn, drawn shapes, and the second observer of CHASE_DB1."""

import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from skimage.morphology import skeletonize
from sklearn import metrics as reference

from retree_jax.metrics import segmentation
from retree_jax.metrics.intervals import mean_with_interval, wilson


def _case(seed=0, shape=(37, 53)):
  rng = np.random.default_rng(seed)
  target = rng.random(shape) < 0.15
  # Rounded, so that many pixels share a value and ties count.
  prediction = np.round(np.clip(0.5 * target + rng.normal(0.25, 0.2, shape), 0, 1), 2)
  return prediction, target, rng.random(shape) < 0.7


def _by_scikit_learn(prediction, target, threshold=0.5):
  y, p = target.ravel(), prediction.ravel() > threshold
  return {
    "accuracy": reference.accuracy_score(y, p),
    "precision": reference.precision_score(y, p),
    "recall": reference.recall_score(y, p),
    "specificity": reference.recall_score(~y, ~p),
    "f1": reference.f1_score(y, p),
    "jaccard": reference.jaccard_score(y, p),
    "kappa": reference.cohen_kappa_score(y, p),
    "mcc": reference.matthews_corrcoef(y, p),
    "auc": reference.roc_auc_score(y, prediction.ravel()),
  }


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learn(seed, threshold):
  prediction, target, _ = _case(seed)
  found = segmentation.scores(prediction, target, threshold=threshold)
  assert tuple(found) == segmentation.METRICS
  for name, value in _by_scikit_learn(prediction, target, threshold).items():
    assert found[name] == pytest.approx(value, abs=1e-12), name


def test_only_the_field_of_view_counts():
  prediction, target, fov = _case()
  found = segmentation.scores(prediction, target, fov)
  for name, value in _by_scikit_learn(prediction[fov], target[fov]).items():
    assert found[name] == pytest.approx(value, abs=1e-12), name
  spoiled = np.where(fov, prediction, 1 - prediction)
  assert segmentation.scores(spoiled, target, fov) == found


def test_masks_and_probabilities_of_zero_and_one_agree():
  prediction, target, _ = _case()
  mask = prediction > 0.5
  expected = segmentation.scores(mask, target)
  for same in (mask * 255, mask.astype(float), mask[..., None]):
    assert segmentation.scores(same, target * np.uint8(255)) == expected
  assert expected["auc"] == pytest.approx((expected["recall"] + expected["specificity"]) / 2)


def test_pooled_is_one_image_with_all_pixels():
  cases = [_case(seed, shape) for seed, shape in ((0, (37, 53)), (1, (20, 60)), (2, (9, 9)))]
  found = segmentation.pooled(*zip(*cases, strict=True))
  flat = [np.concatenate([case[i][case[2]] for case in cases]) for i in (0, 1)]
  for name, value in _by_scikit_learn(*flat).items():
    assert found[name] == pytest.approx(value, abs=1e-12), name
  single = [segmentation.scores(*case) for case in cases]
  assert found["betti0_error"] == pytest.approx(np.mean([one["betti0_error"] for one in single]))


def test_counts_of_large_images_do_not_overflow():
  target = np.zeros((400, 600), bool)
  target[:, :180] = True
  found = segmentation.scores(np.roll(target, 30, 1), target)
  tp, fp, tn = 150, 30, 390  # times 400: the four sums multiply to 1.5e20, above 64 bits
  assert found["mcc"] == pytest.approx((tp * tn - fp * fp) / ((tp + fp) * (tn + fp)))


def test_cldice_of_shifted_lines_is_by_hand():
  target = np.zeros((40, 60), bool)
  target[10:15, 5:55] = True
  half = target.copy()
  half[:, 30:] = False
  found = segmentation.scores(half, target)["cldice"]
  whole, part = skeletonize(target), skeletonize(half)
  sensitivity = (whole & half).sum() / whole.sum()
  assert (part & target).sum() == part.sum()
  assert found == pytest.approx(2 * sensitivity / (1 + sensitivity))
  assert 0.6 < found < 0.72
  assert segmentation.scores(np.roll(target, 10, 0), target)["cldice"] == 0
  thick = np.zeros_like(target)
  thick[9:16, 5:55] = True
  assert segmentation.scores(thick, target)["cldice"] > 0.95


def test_betti_errors_of_drawn_shapes():
  target = np.zeros((30, 60), bool)
  target[5:25, 5:25] = True
  target[10:20, 10:20] = False  # one ring
  prediction = target.copy()
  prediction[5:8, 40:50] = prediction[15:18, 40:50] = True  # two pieces more
  prediction[14, 20:25] = False  # and the ring opened
  found = segmentation.scores(prediction, target)
  assert (found["betti0_error"], found["betti1_error"]) == (2, 1)
  inside = np.zeros_like(target)
  inside[:, :35] = True
  assert segmentation.scores(prediction, target, inside)["betti0_error"] == 0


EMPTY, FULL = np.zeros((8, 8), bool), np.ones((8, 8), bool)
SOME = np.eye(8, dtype=bool)
OVERLAP = ("precision", "recall", "f1", "jaccard", "cldice", "kappa", "mcc")


def test_maps_without_vessels_are_defined():
  both = segmentation.scores(EMPTY, EMPTY)
  assert all(both[name] == 1 for name in OVERLAP) and both["accuracy"] == both["specificity"] == 1
  assert math.isnan(both["auc"])
  no_target = segmentation.scores(SOME, EMPTY)
  assert math.isnan(no_target["recall"]) and math.isnan(no_target["auc"])
  assert all(no_target[name] == 0 for name in ("precision", "f1", "jaccard", "cldice", "kappa", "mcc"))
  assert no_target["specificity"] == 7 / 8
  no_prediction = segmentation.scores(EMPTY, SOME)
  assert all(no_prediction[name] == 0 for name in OVERLAP) and no_prediction["auc"] == 0.5


def test_maps_of_nothing_but_vessels_are_defined():
  both = segmentation.scores(FULL, FULL)
  assert both["kappa"] == both["mcc"] == both["f1"] == 1
  assert math.isnan(both["specificity"]) and math.isnan(both["auc"])
  some = segmentation.scores(SOME, FULL)
  assert some["recall"] == 1 / 8 and some["kappa"] == some["mcc"] == 0


def test_constant_probability_has_auc_one_half():
  assert segmentation.scores(np.full((8, 8), 0.3), SOME)["auc"] == 0.5


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ((np.full((8, 8), np.nan), SOME), "NaN"),
    ((np.where(SOME, np.nan, 0.5), SOME), "NaN"),
    ((np.full((8, 8), 3.0), SOME), "sigmoid"),
    ((np.full((8, 8), -0.1), SOME), "sigmoid"),
    ((np.zeros((8, 9)), SOME), "resize"),
    ((np.zeros((8, 8)), SOME, np.ones((9, 8))), "resize"),
    ((np.zeros((8, 8)), SOME, EMPTY), "fov=None"),
    ((np.zeros((8, 8)), SOME * 0.4), "threshold it first"),
    ((np.arange(64).reshape(8, 8), SOME), "probabilities as floats"),
    ((np.zeros((2, 8, 8)), SOME), "one image at a time"),
    ((np.zeros((8, 8)), SOME, None, 1.5), "no probability"),
  ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    segmentation.scores(*arguments)
  assert "\n" not in str(caught.value)


def test_lists_that_do_not_go_together_are_refused():
  with pytest.raises(ValueError, match="2 predictions, 1 targets"):
    segmentation.pooled([SOME, SOME], [SOME])
  with pytest.raises(ValueError, match="at least 1"):
    segmentation.pooled([], [])


def test_chosen_threshold_is_the_best_of_all():
  cases = [_case(seed) for seed in range(3)]
  chosen = segmentation.choose_threshold(*zip(*cases, strict=True))
  y = np.concatenate([case[1][case[2]] for case in cases])
  p = np.concatenate([case[0][case[2]] for case in cases])
  best = max(reference.f1_score(y, p > t) for t in np.arange(0.005, 1, 0.01))
  assert reference.f1_score(y, p > chosen) == pytest.approx(best, abs=1e-12)
  with pytest.raises(ValueError, match="labelled images"):
    segmentation.choose_threshold([np.zeros((8, 8))], [EMPTY])


def test_summary_leaves_out_nan_and_gives_a_covering_interval():
  rows = [{"f1": 0.7, "auc": math.nan}, {"f1": 0.8, "auc": 0.9}, {"f1": 0.9, "auc": math.nan}]
  found = segmentation.summary(rows)
  assert found["f1"]["mean"] == pytest.approx(0.8) and found["f1"]["std"] == pytest.approx(0.1)
  assert found["f1"]["low"] < 0.8 < found["f1"]["high"] and found["f1"]["count"] == 3
  assert found["auc"]["mean"] == 0.9 and found["auc"]["count"] == 1 and math.isnan(found["auc"]["std"])
  with pytest.raises(ValueError, match="same names"):
    segmentation.summary([{"f1": 1.0}, {"auc": 1.0}])
  with pytest.raises(ValueError, match="no scores"):
    segmentation.summary([])


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  samples = rng.exponential(size=(300, 40))
  hits = 0
  for sample in samples:
    interval = mean_with_interval(sample, 300)
    hits += interval["low"] < 1 < interval["high"]
  # 40 skewed values: the percentile bootstrap covers somewhat less than 95 %.
  assert 0.87 < hits / 300 < 0.98


def test_wilson_interval_by_its_defining_equation():
  quantile = stats.norm.ppf(0.975)
  for hits, total in ((0, 10), (3, 10), (50, 200), (10, 10)):
    for bound in wilson(hits, total):
      # Bounds are the p whose normal test of hits / total gives exactly the 97.5th percentile.
      assert (hits / total - bound) ** 2 == pytest.approx(quantile**2 * bound * (1 - bound) / total, abs=1e-12)
  with pytest.raises(ValueError, match="3 of 2 is not a proportion"):
    wilson(3, 2)


def test_paper_protocol_squashes_and_has_no_field_of_view():
  target = np.zeros((512, 768), bool)
  target[100:140, 50:700] = True
  prediction = np.where(target, 0.9, 0.2)
  paper = segmentation.protocol("paper")
  assert (paper.size, paper.use_fov, paper.threshold) == ((256, 256), False, 0.5)
  small, truth, fov = paper.prepare(prediction, target, np.zeros((512, 768), bool))
  assert small.shape == truth.shape == (256, 256) and fov is None
  # 512 -> 256 takes the mean of two neighbours: rows 100..139 become 50..69.
  np.testing.assert_array_equal(np.flatnonzero(truth.any(1)), np.arange(50, 70))
  assert paper.scores(prediction, target)["f1"] == 1
  assert paper.pooled([prediction], [target])["accuracy"] == 1
  same = np.asarray(Image.fromarray(target.astype(np.float32)).resize((300, 400), Image.Resampling.BILINEAR))
  assert segmentation.protocol("paper").prepare(same, same > 0.5)[0].max() <= 1


def test_resize_is_bilinear_at_pixel_centres():
  ramp = np.add.outer(np.arange(10.0), 2 * np.arange(20.0)) / 100
  found = segmentation._resize(ramp, (20, 10))
  # Inside, a plane is reproduced exactly at the new pixels' centres.
  rows, columns = (np.arange(20) + 0.5) / 2 - 0.5, (np.arange(10) + 0.5) * 2 - 0.5
  np.testing.assert_allclose(found[1:-1], (np.add.outer(rows, 2 * columns) / 100)[1:-1], atol=1e-12)


def test_native_protocol_needs_the_field_of_view():
  prediction, target, fov = _case()
  native = segmentation.protocol("native")
  assert native.scores(prediction, target, fov) == segmentation.scores(prediction, target, fov)
  with pytest.raises(ValueError, match="pass fov"):
    native.scores(prediction, target)
  with pytest.raises(ValueError, match="native, paper"):
    segmentation.protocol("drive")


def test_second_observer_of_chase(real_eyes):
  """All 28 eyes at full frame: accuracy .9695, F1 .7765, kappa .7603, MCC .7634."""
  folder = real_eyes / "CHASE_DB1"
  rows = []
  for path in sorted((folder / "masks").glob("*.png")):
    first = np.asarray(Image.open(path).convert("L")) > 127
    second = np.asarray(Image.open(next((folder / "masks_2nd").glob(f"{path.stem}*"))).convert("L")) > 127
    rows.append(segmentation.scores(second, first))
  found = segmentation.summary(rows, 10)
  assert len(rows) == 28
  expected = {
    "accuracy": 0.9695,
    "precision": 0.7965,
    "recall": 0.7677,
    "f1": 0.7765,
    "jaccard": 0.6353,
    "kappa": 0.7603,
    "mcc": 0.7634,
    "cldice": 0.8349,
  }
  for name, value in expected.items():
    assert found[name]["mean"] == pytest.approx(value, abs=1e-4), name
