"""Ratios of generated to real eyes: what is drawn, what is concluded, and a small run."""

import xml.etree.ElementTree

import numpy as np
import pytest
from scipy import stats

from experiments import mixing, validation
from retree_jax.data import sources
from retree_jax.metrics import intervals
from tests.experiments.test_validation import plan_of, sets, small  # noqa: F401  (a fixture)


def test_ratios_become_arms():
  assert mixing.arms(["0", "2", "0.5", "2.0"]) == ("real", "mix_0.5", "mix_2")
  assert [mixing.ratio(arm) for arm in ("real", "mix_0.5", "both", "mix_x")] == [0.0, 0.5, None, None]
  for wrong, message in ((["0"], "at least one number above 0"), (["-1"], "'-1' is no ratio"), (["x"], "'x' is no ratio")):
    with pytest.raises(ValueError, match=message):
      mixing.arms(wrong)


def test_a_mixture_holds_all_real_eyes_and_the_first_generated_pairs(sets, tmp_path):  # noqa: F811
  spec = mixing.source(sets["real"], sets["generated"], 2 / 3)
  opened = sources.open_source(spec, split="train")
  assert [part.title for part in opened.parts] == ["real", "generated"] and opened.weights == [1.0, 1.0]
  assert opened.parts[1].names == ["eye_0", "eye_1"] and len(opened.parts[0]) == 3
  with pytest.raises(
    ValueError, match=r"ratio 4 needs 12 generated pairs for 3 real eyes.*has 4 for training: .* at most 1.33"
  ):
    validation.run(plan_of(sets, arms=("real", "mix_4")), small(), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_the_first_eyes_of_a_source(sets, tmp_path):  # noqa: F811
  whole, some = (sources.open_source(sets["generated"] + end, split="train") for end in ("", "[:3]"))
  assert some.names == whole.names[:3]
  np.testing.assert_array_equal(some[2]["image"], whole[2]["image"])
  (part,) = sources.weighted_parts(sets["generated"] + "[:3]*2")
  assert part == (sets["generated"] + "[:3]", 2.0)
  with pytest.raises(ValueError, match="asks for 9 of 4 eyes: give a number from 1 to 4"):
    sources.open_source(sets["generated"] + "[:9]", split="train")


def test_few_numbers_have_student_s_interval():
  values = [0.1, 0.3, 0.4]
  expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
  np.testing.assert_allclose(intervals.student(values), expected)
  with pytest.raises(ValueError, match="at least two"):
    intervals.student([1.0])


def results(gains, seeds=3):
  """Results of a validation whose `real` has F1 .70 in every seed; {ratio: gain of each seed}."""
  arms = {"real": [0.7] * seeds} | {f"mix_{r:g}": [0.7 + g for g in each] for r, each in gains.items()}
  spread = {name: {"native": {"f1": {"mean": float(np.mean(v)), "std": None, "values": v}}} for name, v in arms.items()}
  gain = {
    name: {"mean": float(np.mean(v)) - 0.7, "low": min(v) - 0.7, "high": max(v) - 0.7, "seeds": list(range(seeds))}
    for name, v in arms.items()
    if name != "real"
  }
  return {
    "plan": {"arms": list(arms)},
    "scores": {"A&B": spread},
    "gain": {"A&B": gain},
    "seeds": {name: list(range(seeds)) for name in arms},
  }


def test_the_best_ratio_is_named_only_where_it_helps_beyond_chance():
  helps = results({0.5: [0.02, 0.021, 0.019], 1: [0.05, -0.01, 0.04], 2: [0.01, 0.011, 0.012]})
  found = mixing.gains(helps, "A&B")
  assert [entry["ratio"] for entry in found] == [0.5, 1, 2] and [entry["helps"] for entry in found] == [True, False, True]
  assert mixing.verdict(found, "A").startswith("On A the best ratio is 0.5: F1 rises by 0.020")
  noise = mixing.gains(results({1: [0.05, -0.01, 0.04], 4: [-0.02, -0.01, 0.0]}), "A&B")
  assert mixing.verdict(noise, "A").startswith("On A no ratio helps beyond chance: the highest gain is +0.027, at 1")
  single = mixing.gains(results({1: [0.05]}, seeds=1), "A&B")
  assert "one seed cannot say" in mixing.verdict(single, "A") and not single[0]["helps"]
  # A lucky ratio with one seed does not hide those with several.
  lucky = single[0] | {"ratio": 8.0, "gain": 0.5}
  assert "highest gain is +0.027, at 1 (-0.010 to +0.050 over the photographs, " in mixing.verdict([*noise, lucky], "A")
  for arm in ("mix_0", "mix_-1", "mix_nan", "mix_inf", "mix_a", "both"):
    assert mixing.ratio(arm) is None
  assert "no ratio is finished" in mixing.verdict([], "A")
  lines = "\n".join(mixing.section(helps))
  assert "| A&B | 0.5 | +0.020 |" in lines and "![Gain in F1" in lines
  assert mixing.section({"plan": {"arms": ["real", "both"]}}) == []


@pytest.mark.parametrize("gains, seeds", [({0.5: [0.02, 0.03, 0.01], 2: [-0.01, 0.0, 0.01]}, 3), ({1: [0.0]}, 1)])
def test_the_plot_is_well_formed_and_higher_gains_stand_higher(gains, seeds):
  root = xml.etree.ElementTree.fromstring(mixing.plot(results(gains, seeds)))
  dots = [e for e in root if e.tag.endswith("circle") and e.get("r") == "5"]
  assert len(dots) == len(gains)
  heights = [float(dot.get("cy")) for dot in dots]
  assert heights == sorted(heights) and all(20 <= h <= mixing.BOTTOM for h in heights)
  assert any(e.text == "tested on A&B" for e in root)


def test_a_small_run_compares_two_ratios(sets, tmp_path):  # noqa: F811
  plan = plan_of(sets, arms=mixing.arms(["0", "1"]), tests={"real": sets["real"]}, steps=2, fidelity=0, seeds=(0, 1))
  found = validation.run(plan, small(), tmp_path)
  assert found["seeds"] == {"real": [0, 1], "mix_1": [0, 1]}
  assert [entry["ratio"] for entry in mixing.gains(found, "real")] == [1.0]
  text = (tmp_path / "real" / "RESULTS.md").read_text()
  assert "## How much to mix" in text and "(mixing.svg)" in text and (tmp_path / "real" / "mixing.svg").is_file()
