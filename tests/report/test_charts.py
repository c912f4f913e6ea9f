"""Numbers as text, and the geometry of charts."""

import numpy as np
import pytest

from retree_jax.report import charts, formatting


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0, "0"),
    (1.23456, "1.23"),
    (-0.5, "−0.500"),
    (1234.5, "1234"),
    (0.000774, "0.000774"),
    (3e-9, "3.00e-09"),
    (float("nan"), "–"),
    (None, "–"),
    (0.9999, "1.00"),
  ],
)
def test_numbers(value, text):
  assert formatting.number(value) == text


def corners(points):
  return [tuple(map(float, point.split(","))) for point in points.split()]


def test_histogram_draws_shares():
  """Two samples in two bins: bars and outline have the heights of the shares, marks stand at the means."""
  chart = charts.histogram([0, 0, 0, 1], [1, 1, float("nan"), None], "thing", "px", bins=2)
  heights = [[charts.HEIGHT - corners(points)[i][1] for i in (1, 3)] for points in (chart.bars, chart.outline)]
  # The highest bar, the share 1, is 84 units high.
  assert heights[0] == pytest.approx([63, 21], abs=0.1) and heights[1] == pytest.approx([0, 84], abs=0.1)
  assert chart.label == "thing: real mean 0.250 over 4 eyes, generated mean 1.00 over 2 eyes, in px."
  assert chart.means == [("real", pytest.approx(0.25 * charts.WIDTH)), ("generated", pytest.approx(charts.WIDTH))]
  assert (chart.low, chart.high, chart.clipped) == ("0", "1.00", False)


def test_histogram_without_values():
  assert charts.histogram([], [None, float("nan")], "thing", "") is None


@pytest.mark.parametrize("values", [[2.0], [1.0] * 5])
def test_histogram_of_equal_values_stands_in_the_middle(values):
  chart = charts.histogram(values, [], "thing", "px")
  assert chart.means == [("real", charts.WIDTH / 2)] and max(y for _, y in corners(chart.bars)) == charts.HEIGHT
  assert float(chart.high) - float(chart.low) == 1 and "generated none over 0 eyes" in chart.label


def test_histogram_counts_outliers_in_the_last_bar():
  values = [*np.linspace(1, 2, 40), 1e6]
  chart = charts.histogram(values, [], "thing", "px")
  assert chart.clipped and float(chart.high) < 10
  last = charts.HEIGHT - corners(chart.bars)[-2][1]
  assert last > 0
  whole = charts.histogram(values, [], "thing", "px", clip=False)
  assert not whole.clipped and whole.high == "1.00e+06"


def test_range_chart_places_shares_and_leaves_out_what_is_not_defined():
  nan = float("nan")
  rows = [("one", "real", nan, 0, 1), ("two", "generated", 0.5, nan, nan), ("three", "shuffled", 0.25, 0.0, 2.0)]
  chart = charts.range_chart(rows, "Shares.")
  middle = (chart.left + chart.right) / 2
  assert [row.x for row in chart.rows] == [None, middle, (chart.left + middle) / 2]
  assert [(row.start, row.end) for row in chart.rows] == [(None, None), (None, None), (chart.left, chart.right)]
  assert [row.value for row in chart.rows] == ["–", "50 %", "25 %"]
  assert chart.label == "Shares. two: 50 %; three: 25 %."
