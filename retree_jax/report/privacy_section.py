"""The privacy audit's part of the report: verdicts, chart, closest pairs and table."""

import html as markup

from retree_jax.report.parts import Table, histogram, image, interval, number

_LEVELS = {"copies": "bad", "suspicious": "caution", "clear": "good", "unclear": "unknown"}
_THING = {"photographs": "photographs", "trees": "vessel trees"}


def verdict(kind: str, audit: dict) -> tuple[str, str, str]:
  """(level, answer, basis) of one audit: `metrics.privacy.Audit.to_json`, or {"refused": why}."""
  if "refused" in audit:
    return "unknown", audit["refused"], "No audit was made."
  basis = (
    f"{audit['num_generated']} generated {_THING[kind]} against {audit['num_train']} training and "
    f"{audit['num_heldout']} held-out ones, up to mirroring, rotation, zoom, colour and lighting. "
  )
  parts = [
    f"By {name}, {_share(space['near'])} are nearer to a training eye than all but "
    f"{_percent(space['near_expected'])} of the held-out eyes are"
    for name, space in audit["spaces"].items()
  ]
  basis += "; ".join(parts) + ". A copy of a part of an eye is not found." + "".join(f" {note}" for note in audit["notes"])
  return _LEVELS[audit["verdict"]], audit["sentence"], basis


def tables(privacy: dict) -> list:
  """One table per audit."""
  found = []
  for kind, audit in privacy.items():
    title = f"Privacy audit: {_THING[kind]}"
    if "refused" in audit:
      found.append(Table(title, audit["refused"], [], []))
      continue
    rows = []
    for name, space in audit["spaces"].items():
      median, closer = space["median_distance"], space["closer_to_train"]
      rows.append(
        [
          name,
          _share(space["copied"]),
          f"{_share(space['near'])}; {_percent(space['near_expected'])} expected",
          f"{_share(space['isolated'])}; held-out {_percent(space['isolated_heldout']['share'])}",
          number(median["generated_to_train"]),
          number(median["heldout_to_train"]),
          number(median["generated_to_heldout"]),
          f"{number(closer['mean'])} ({interval(closer)})",
        ]
      )
    lead = (
      "Shares of the generated images, with 95 % intervals. Near: more similar to a training image "
      f"than the {audit['percentile']:.0f}th percentile of held-out images. Isolated: the nearest "
      "training image is less than a third as far as the second nearest. Distances are 1 − "
      "correlation. Closer to training: probability that the nearest of as many training as held-out "
      "images is a training image; about 0.5 without memorisation."
    )
    found.append(
      Table(
        title,
        lead,
        [
          "Compared by",
          "Copies",
          "Near",
          "Isolated",
          "Median distance, generated to training",
          "held-out to training",
          "generated to held-out",
          "Closer to training",
        ],
        rows,
      )
    )
  return found


def section(result: dict) -> str:
  """Chart of distances and the closest pairs, as HTML."""
  charts, grids = [], []
  for kind, audit in result["privacy"].items():
    if "refused" in audit:
      continue
    for name, space in audit["spaces"].items():
      title = f"{_THING[kind]}, by {name}"
      distances = space["distances"]
      charts.append(
        f"<figure><figcaption>{_text(title)} <small>1 − correlation</small></figcaption>"
        + histogram(
          distances["heldout_to_train"],
          distances["generated_to_train"],
          title,
          "1 − correlation",
          real_name="held-out",
          whole=True,
        )
        + "</figure>"
      )
    pairs = result["pictures"].get("closest", {}).get(kind)
    if pairs:
      grids.append(f'<h3>Closest pairs: {_THING[kind]}</h3><div class="nears">' + "".join(map(_pair, pairs)) + "</div>")
  if not charts:
    return ""
  closest = (
    "<p>The generated eye on the left, the training eye nearest to it on the right, turned and "
    "mirrored to lie on it. Look whether the vessels are the same: a number can miss what an eye "
    "sees.</p>"
    if grids
    else ""
  )
  return (
    '<section aria-labelledby="privacy"><h2 id="privacy">Nearest training eyes</h2>'
    "<p>How far the nearest training eye is: a heap of generated eyes to the left of the held-out "
    "ones would be copies.</p>"
    '<p class="key"><span class="swatch real"></span>held-out to training<span class="swatch '
    'made"></span>generated to training, dashed</p><div '
    f'class="charts">{"".join(charts)}</div>{closest}{"".join(grids)}</section>'
  )


def _pair(pair: dict) -> str:
  style = "near copy" if pair["copied"] else "near"
  word = "Copy. " if pair["copied"] else ""
  one = image(pair["generated"], f"Generated eye {pair['generated_name']}")
  other = image(pair["train"], f"Training eye {pair['train_name']}, laid on it")
  return (
    f'<figure class="{style}"><div '
    f'class="two">{one}{other}</div><figcaption>{word}{_text(pair["generated_name"])} and '
    f"{_text(pair['train_name'])}, distance {number(pair['distance'])}; second nearest "
    f"{number(pair['second'])}</figcaption>"
    "</figure>"
  )


def _share(share: dict) -> str:
  return f"{_percent(share['share'])} ({100 * share['low']:.1f} to {100 * share['high']:.1f} %)"


def _percent(share: float) -> str:
  return f"{100 * share:.1f} %"


def _text(text) -> str:
  return markup.escape(str(text))
