"""Verdicts follow from made-up numbers with known answers."""

import pytest

from retree_jax.report import verdicts
from tests.report.made_up import mean, result


def verdicts_of(**changes):
  return {verdict["id"]: verdict for verdict in verdicts.verdicts(result(**changes))}


def test_no_problem_is_found_in_good_numbers():
  levels = {name: verdict["level"] for name, verdict in verdicts_of().items()}
  assert levels == {"photographs": "good", "trees": "good", "vessels": "good", "labels": "good", "privacy": "unknown"}


@pytest.mark.parametrize(
  ("changes", "name", "level"),
  [
    ({"p": 0.01}, "photographs", "caution"),  # told apart, but overlapping
    ({"p": 0.01, "precision": 0.2}, "photographs", "bad"),
    ({"count": 6, "p": 0.9}, "photographs", "unknown"),
    ({"ks_p": 1e-6}, "vessels", "bad"),
    ({"count": 6, "p": 0.9}, "vessels", "unknown"),
    ({"position": 0.7, "darker": 0.8}, "labels", "caution"),
    ({"position": 0.1, "darker": 0.5}, "labels", "bad"),
    ({"shift": (0, -3)}, "labels", "caution"),
  ],
)
def test_verdicts_follow_the_numbers(changes, name, level):
  assert verdicts_of(**changes)[name]["level"] == level


def test_a_shift_of_the_labels_is_described():
  assert (
    "The labels would fit best if moved 3 px left, those of real pairs where they are."
    in verdicts_of(shift=(0, -3))["labels"]["answer"]
  )
  assert "if moved 2 px down and 1 px right, " in verdicts_of(shift=(2, 1))["labels"]["answer"]


def test_no_verdict_claims_sameness_from_few_eyes():
  for name in ("photographs", "vessels"):
    few, many = (verdicts_of(count=count)[name] for count in (20, 60))
    assert "No difference was found" in few["answer"] and "only large differences can be found" in few["answer"]
    assert "No difference was found" in many["answer"] and "only large differences" not in many["answer"]
    assert "20 generated and 20 real" in few["basis"] and "60 generated and 60 real" in many["basis"]


def test_holm():
  """p-values 0.001, 0.01, 0.02, 0.2 of four: 0.05/4, 0.05/3, 0.05/2 let three pass; with 0.03 the third stops it."""
  comparison = result()
  part = comparison["vessels"]
  part["distances"] = {
    n: dict(part["distances"][n], ks_p=p)
    for n, p in zip(("density", "length", "width", "loops"), (0.02, 0.001, 0.2, 0.01), strict=True)
  }
  assert verdicts.differing(comparison) == (["density", "length", "loops"], ["density", "length", "width", "loops"])
  part["distances"]["density"]["ks_p"] = 0.03
  assert verdicts.differing(comparison)[0] == ["length", "loops"]


@pytest.mark.parametrize(
  ("generated", "real", "level"),
  [(0.78, 0.8, "good"), (0.7, 0.8, "caution"), (0.5, 0.8, "bad"), (0.9, 0.8, "caution"), (0.3, 0.3, "unknown")],
)
def test_segmenter(generated, real, level):
  comparison = result()
  comparison["segmenter"] = {"generated": {"f1": mean(generated)}, "real": {"f1": mean(real)}}
  comparison["settings"]["segmenter"] = "abc, step 1"
  verdict = {v["id"]: v for v in verdicts.verdicts(comparison)}["segmenter"]
  assert (
    verdict["level"] == level and f"F1 is {generated:.3f} (" in verdict["answer"] and f" and {real:.3f} (" in verdict["answer"]
  )
