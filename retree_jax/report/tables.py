"""All numbers of the report as tables of text, which the page and the Markdown file both show."""

import dataclasses

from retree_jax.report.formatting import (
  PRIVACY_KINDS,
  biomarker_name,
  interval,
  number,
  percent,
  share_with_interval,
  with_interval,
)

_DISTANCES = {
  "kernel": ("Kernel distance", "difference between the sets; about 0 for samples of one distribution, whatever their size"),
  "kernel_floor": (
    "… real against real",
    "between random halves of the real set: 0 on average; 95 % of splits lie in the range",
  ),
  "frechet": ("Fréchet distance", "difference between the sets; larger the fewer the images"),
  "frechet_matched": ("… at equal counts", "generated against real, at the numbers of images of the next row"),
  "frechet_floor": ("… real against real", "the same between random halves of the real set"),
  "precision": ("Precision", "share of generated images that lie among the real ones"),
  "recall": ("Recall", "share of real images that lie among the generated ones"),
  "density": ("Density", "how closely real images surround the generated ones; about 1 for samples of one distribution"),
  "coverage": ("Coverage", "share of real images with a generated image close by"),
}


@dataclasses.dataclass(frozen=True)
class Table:
  """One table of the report: a title, a paragraph before the table, column headings, and rows of texts."""

  title: str
  lead: str
  head: list[str]
  rows: list[list[str]]


def tables(result: dict) -> list[Table]:
  """The report's tables, from the result of `evaluation.evaluate`."""
  parts = [_image_distances(result, space) for space in result["distances"]]
  parts += [_vessels(result["vessels"]), _labels(result["fidelity"])]
  if result["segmenter"]:
    parts.append(_segmenter(result))
  if result["privacy"]:
    parts += [_privacy(kind, audit) for kind, audit in result["privacy"].items()]
  return parts


def _image_distances(result: dict, space: str) -> Table:
  entries = result["distances"][space]
  rows = []
  for name, (title, meaning) in _DISTANCES.items():
    if name in entries:
      e = entries[name]
      note = f". {e['note']}" if e["note"] else ""
      rows.append([title, number(e["value"]), interval(e), f"{e['num_a']} / {e['num_b']}", meaning + note])
  lead = f"Features: {result['settings']['features'][space]}. {entries.get('refused', '')}".strip()
  return Table(f"Image distances: {space}", lead, ["Measure", "Value", "95 % interval", "Images", "Meaning"], rows)


def _vessels(vessels: dict) -> Table:
  head = ["Measure", "Unit", "Generated", "Real", "Distance / real SD", "At equal counts", "Real against real", "KS", "p"]
  if "refused" in vessels:
    return Table("Vessel measures", vessels["refused"], head, [])
  rows = [
    [
      biomarker_name(name),
      vessels["definitions"][name][0],
      f"{number(e['mean_a'])} ± {number(e['std_a'])}",
      f"{number(e['mean_b'])} ± {number(e['std_b'])}",
      number(e["wasserstein_normalised"]),
      with_interval(e["matched"], "value"),
      with_interval(e["floor"], "value"),
      number(e["ks"]),
      number(e["ks_p"]),
    ]
    for name, e in vessels["distances"].items()
  ]
  lead = (
    "Mean ± standard deviation over trees. The distance is the Wasserstein distance divided by the standard deviation of the "
    "real trees. It is also given at equal numbers of trees, beside the distance between random halves of the real trees. KS: "
    "largest difference between the two cumulative distributions; p is not corrected for the number of measures."
  )
  return Table("Vessel measures", lead, head, rows)


def _labels(fidelity: dict) -> Table:
  rows = [
    [
      name,
      *(with_interval(e[side], "mean") for side in ("generated", "real", "shuffled")),
      number(e["position"]),
      fidelity["definitions"][name][1],
    ]
    for name, e in fidelity["measures"].items()
  ]
  lead = "Means over pairs with 95 % intervals. Position: 0 for the labels of other eyes (chance), 1 for real pairs."
  head = ["Measure", "Generated", "Real", "Labels of other eyes", "Position", "Definition"]
  return Table("Labels on photographs", lead, head, rows)


def _segmenter(result: dict) -> Table:
  scores = result["segmenter"]
  rows = [[name, *(with_interval(scores[side][name], "mean") for side in ("generated", "real"))] for name in scores["real"]]
  lead = f"Segmenter: {result['settings']['segmenter']}. Means over photographs, inside the field of view, with 95 % intervals."
  return Table("A segmenter against the labels", lead, ["Score", "Generated", "Real"], rows)


def _privacy(kind: str, audit: dict) -> Table:
  title = f"Privacy audit: {PRIVACY_KINDS[kind]}"
  if "refused" in audit:
    return Table(title, audit["refused"], [], [])
  rows = []
  for name, space in audit["spaces"].items():
    median = space["median_distance"]
    rows.append(
      [
        name,
        share_with_interval(space["copied"]),
        f"{share_with_interval(space['near'])}; {percent(space['near_expected'])} expected",
        f"{share_with_interval(space['isolated'])}; held-out {percent(space['isolated_heldout']['share'])}",
        number(median["generated_to_train"]),
        number(median["heldout_to_train"]),
        number(median["generated_to_heldout"]),
        with_interval(space["closer_to_train"], "mean"),
      ]
    )
  lead = (
    "Shares of the generated images, with 95 % intervals. Near: more similar to a training image "
    f"than the {audit['percentile']:.0f}th percentile of held-out images. Isolated: the nearest "
    "training image is less than a third as far as the second nearest. Distances are 1 − "
    "correlation. Closer to training: probability that, among equally many training and held-out images, "
    "the nearest one is a training image; about 0.5 without memorisation."
  )
  medians = [
    f"Median distance: {sides}" for sides in ("generated to training", "held-out to training", "generated to held-out")
  ]
  return Table(title, lead, ["Compared by", "Copies", "Near", "Isolated", *medians, "Closer to training"], rows)
