"""Seeds → layouts → refinement → filter → photographs → super-resolution: labelled pairs as arrays.

Pair k is a function of (models, settings, seed, k): not of the batch, the number of devices or hosts, or a restart.
`retree_jax.inference.dataset_writer` writes the same pairs to disk.
"""

import collections
import time
from collections.abc import Mapping, Sequence

import numpy as np

from retree_jax.data import attributes, field_of_view, reduction, transforms
from retree_jax.data.workers import Workers
from retree_jax.inference import host_work, stages
from retree_jax.inference.stages import Models, load_models  # noqa: F401

ASK_GUIDANCE = 2.0  # of the tree stage where a vessel measure other than tortuosity is asked for
CANDIDATES = 6  # trees drawn for each pair where a tortuosity is asked for
MAX_ATTEMPTS = 20  # trees drawn for one pair before the best of them is taken and marked as not accepted


class Generator:
  """Compiled stages over a mesh.

  Args:
    models: the stages.
    mesh: devices; one local device by default.
    guidance: guidance scale of the fundus stage; None keeps its config's.
    num_steps: sampler steps of the diffusion stages; None keeps their configs'.
    ask: {attribute: value} that trees are asked to have (`retree_jax.data.attributes`); the others are left open.
    ask_guidance: guidance scale of the tree stage, by which what is asked for is exaggerated. None takes `ASK_GUIDANCE` where a
      measure other than tortuosity is asked for, which trees else follow weakly (docs/asking.md), and otherwise its config's.
    cut_share: share of trees in a disc that the camera cuts above and below, 0 to 1. None takes the tree stage's config's where
      nothing is asked for, and otherwise leaves the outline to the model, with which other attributes go.
    workers: processes that mend and turn trees; None does it in the calling thread.
    candidates: trees drawn for each pair, of which the one is taken that measures most like what is asked for, in as many times
      the time. None takes `CANDIDATES` where a tortuosity is asked for, which the networks hardly follow, and otherwise 1.
    batch_size: samples of each stage in one call, on each device; None keeps the configs'. On accelerators the last bits of a
      pair may depend on it.

  Attributes:
    samplers: {"tree": ..., "fundus": ...}, the `retree_jax.inference.sampler.Sampler` of each diffusion stage there is;
      "refine_256" and "detail_256" and so on for those that refine trees and draw detail, by the height that they draw at.
    candidates: trees drawn for each pair.
    seconds: {"tree", "refine", "filter", "mend", "measure", "turn", "fundus", "detail", "superres"}: time spent in each so far.

  Raises:
    ValueError: stages that do not fit each other.
  """

  def __init__(
    self,
    models: Models,
    mesh=None,
    guidance: float | None = None,
    num_steps: int | None = None,
    ask: dict[str, float] | None = None,
    ask_guidance: float | None = None,
    cut_share: float | None = None,
    workers: Workers | None = None,
    candidates: int | None = None,
    batch_size: int | None = None,
  ):
    from retree_jax.inference.sampler import Sampler

    stages.check_fit(models)
    self.models, self.samplers, self.seconds, self.ask = models, {}, collections.Counter(), dict(ask or {})
    self._share_is_given = cut_share is not None
    self._workers = Workers() if workers is None else workers
    if self.ask and models.tree is None:
      raise ValueError(f"there is no tree stage to ask for {next(iter(self.ask))!r}: give one, or leave --ask out")
    if cut_share is not None:
      stages.check_share(cut_share, models.tree, self.ask)
    loaded = [stage for stage in (models.tree, *models.refine, models.fundus, *models.detail) if stage is not None]
    if num_steps is not None and all(stage.config.sampler.spacing == "full" for stage in loaded):
      raise ValueError("--steps has no effect on samplers that take all steps (config.sampler.spacing='full'): leave it out")
    sizes = {"batch_size": batch_size}
    self.candidates = candidates or (CANDIDATES if "tortuosity" in self.ask else 1)
    if ask_guidance is None and attributes.measures_in(self.ask) - {"tortuosity"}:
      ask_guidance = ASK_GUIDANCE
    if models.tree is not None:
      config = stages.changed(models.tree.config, **sizes, num_steps=num_steps, guidance=ask_guidance, cut_share=cut_share)
      self.samplers["tree"] = Sampler(config, models.tree.network, mesh)
      self.samplers["tree"].check_asked(self.ask)
    self._refiners, size = [], self.samplers["tree"].size if models.refine else ()
    for loaded in models.refine:
      from retree_jax.inference.refiner import Refiner

      size = tuple(2 * side for side in size)
      config = stages.changed(loaded.config, **sizes, num_steps=num_steps)
      name, refiner = f"refine_{size[0]}", Refiner(config, loaded.network, mesh, size)
      self.samplers[name] = refiner
      self._refiners.append((name, refiner, loaded.params))
    if models.fundus is not None:
      config = stages.changed(models.fundus.config, **sizes, num_steps=num_steps, guidance=guidance)
      self.samplers["fundus"] = Sampler(config, models.fundus.network, mesh)
    self._detailers = []
    for loaded in models.detail:
      from retree_jax.inference.detailer import Detailer

      detailer = Detailer(stages.changed(loaded.config, **sizes, num_steps=num_steps), loaded.network, mesh)
      name = f"detail_{detailer.size[0]}"
      self.samplers[name] = detailer
      self._detailers.append((name, detailer, loaded.params))
    self._enlarger = None
    if models.superres is not None:
      from retree_jax.inference.superres import Enlarger

      self._enlarger = Enlarger(stages.changed(models.superres.config, **sizes), models.superres.network, mesh)
      wanted, size = self._enlarger.input_size, self.samplers["fundus"].size
      if wanted != size:
        raise ValueError(
          f"the superres stage enlarges {wanted[0]}x{wanted[1]} pixels and the fundus stage makes "
          f"{size[0]}x{size[1]}: give stages that were trained for one another"
        )

  @property
  def attributes(self) -> tuple[str, ...]:
    """The attributes that trees can be asked to have."""
    return self.samplers["tree"].attributes if "tree" in self.samplers else ()

  @property
  def workers(self) -> int:
    """Processes that mend and turn trees; 0 where the calling thread does."""
    return self._workers.count

  @property
  def batch_size(self) -> int:
    """Pairs that keep all devices busy in one call."""
    return max(s.batch_size for s in self.samplers.values())

  def trees(
    self, indices: np.ndarray, seed: int, ask: Sequence[Mapping[str, float]] | None = None
  ) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Trees that pass the filter, one for each index; of several candidates, the one that measures most like what is asked for.

    Args:
      indices: [N] numbers of the pairs, below 2³² / MAX_ATTEMPTS.
      seed: root of the randomness.
      ask: what each of the N trees is asked for, in place of the generator's.

    Returns:
      Fields "tree" and "fov" (coverage), uint8 [N, H, W, 1], where trees are refined also "vessels" (the mask, 0/255), and N
      records: "attempts" (trees drawn), "accepted" (False where none of MAX_ATTEMPTS passed; the one with the best score is
      taken), "filter_score" (None without a filter), "dropped" (why each of the others went), "tilt" (degrees
      counter-clockwise by which the cuts of its field of view are turned) and, where trees are refined, "gaps" closed,
      "holes" filled, "spurs" and "specks" removed in its mask. Where a tree was chosen from several candidates, "candidates"
      is their number and "measured" what the chosen one measures of what was asked for; the rest is of the chosen one alone.

    Raises:
      ValueError: there is no tree stage.
    """
    if "tree" not in self.samplers:
      raise ValueError("there is no tree stage to draw trees with: give --tree, or trees to paint with --trees")
    indices = np.asarray(indices, np.int64)
    asked = [self._asked(k, seed) for k in indices] if ask is None else [dict(one) for one in ask]
    fields, records = self._candidates(indices, seed, asked, "trees")
    if self.candidates == 1 or not any(asked):
      return fields, records
    best = self._missed(fields, records, asked)
    for number in range(1, self.candidates):
      drawn, others = self._candidates(indices, seed, asked, f"trees, candidate {number}")
      missed = self._missed(drawn, others, asked)
      for i in np.flatnonzero(missed < best):
        records[i], best[i] = others[i], missed[i]
        for name, pixels in drawn.items():
          fields[name][i] = pixels[i]
    return fields, [record | {"candidates": self.candidates} for record in records]

  def _missed(self, fields, records, asked) -> np.ndarray:
    """How far trees are from what they are asked for: sums of squares, in standard deviations, [N]; infinite for trees that
    the filter does not accept. Adds "measured" to their records."""
    started = time.monotonic()
    masks = fields["vessels"] if "vessels" in fields else transforms.binarise(fields["tree"])
    missed = np.zeros(len(asked))
    for i, values in enumerate(self._workers.map(host_work.measure, masks, fields["fov"])):
      records[i]["measured"] = {name: round(values[name], 6) if np.isfinite(values[name]) else None for name in asked[i]}
      off = [(values[name] - wanted) / attributes.ATTRIBUTES[name][1] for name, wanted in asked[i].items()]
      missed[i] = np.nan_to_num(np.sum(np.square(off)), nan=np.inf) if records[i]["accepted"] else np.inf
    self.seconds["measure"] += time.monotonic() - started
    return missed

  def _candidates(self, indices: np.ndarray, seed: int, asked: Sequence[Mapping], stream: str):
    """One tree for each index, see `trees`."""
    sampler, tree_filter = self.samplers["tree"], self.models.tree_filter
    n = len(indices)
    records = [{"attempts": 0, "accepted": False, "filter_score": None, "dropped": [], "tilt": 0} for _ in range(n)]
    fields: dict[str, np.ndarray] = {}
    waiting, drawn_before = np.arange(n), 0
    while len(waiting) and drawn_before < (1 if tree_filter is None else MAX_ATTEMPTS):
      # Where a compiled block has room, the next attempts are drawn along; which tree is taken does not change.
      unit = sampler.block * sampler.mesh.size
      ahead = min(MAX_ATTEMPTS - drawn_before, max(1, unit // len(waiting))) if drawn_before else 1
      rows = np.repeat(waiting, ahead)
      attempts = np.tile(np.arange(drawn_before, drawn_before + ahead), len(waiting))
      started = time.monotonic()
      numbers = indices[rows] * MAX_ATTEMPTS + attempts
      drawn = sampler(
        self.models.tree.params, numbers, seed=seed, stream=stream, slots=indices[rows] + attempts, ask=[asked[i] for i in rows]
      )
      drawn, tilts = field_of_view.with_fov(drawn, sampler.config.data.fit == "fov")
      self.seconds["tree"] += time.monotonic() - started
      # The filter judges refined trees; what follows the first refinement is done for those alone that are taken.
      drawn = self._refined(drawn, self._refiners[:1], numbers, seed, indices[rows] + attempts, stream)
      started = time.monotonic()
      verdicts = [None] * len(rows) if tree_filter is None else tree_filter(drawn["tree"], drawn["fov"])
      self.seconds["filter"] += time.monotonic() - started
      for name, pixels in drawn.items():
        fields.setdefault(name, np.zeros((n, *pixels.shape[1:]), np.uint8))
      for place, (i, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        if not records[i]["accepted"] and record_attempt(records[i], verdict):
          records[i]["tilt"] = tilts[place]
          for name, pixels in drawn.items():
            fields[name][i] = pixels[place]
          records[i]["attempt"] = int(attempts[place])
      drawn_before += ahead
      waiting = np.array([i for i in waiting if not records[i]["accepted"]], int)
    taken = np.array([record.pop("attempt") for record in records])
    fields = self._refined(fields, self._refiners[1:], indices * MAX_ATTEMPTS + taken, seed, indices + taken, stream)
    if self._refiners:
      self._mend(fields, records)
    return fields, records

  def _asked(self, index: int, seed: int) -> dict[str, float]:
    """What the tree of a pair is asked for: what the user asks, or else an outline in the shares of the training eyes."""
    share = self.samplers["tree"].config.sampler.get("cut_share", -1.0)
    if share < 0 or "outline" in self.ask or (self.ask and not self._share_is_given):
      return self.ask
    return {"outline": float(np.random.default_rng([seed, int(index)]).random() < share), **self.ask}

  def _refined(self, fields, refiners, numbers, seed, slots, stream):
    """Trees at twice the size, once for each of `refiners`; beside "tree" and "fov" the drawn mask, "vessels"."""
    started = time.monotonic()
    for name, refiner, params in refiners:
      fov = np.stack([transforms.area_resize(p, refiner.size) for p in fields["fov"]])
      given = {"tree": fields["tree"], "fov": transforms.binarise(fov)}
      drawn = refiner(params, numbers, given, seed=seed, stream=f"{stream} {name}", slots=slots)
      inside = given["fov"] > 0
      fields = {"fov": fov, **{key: np.where(inside, drawn[key], 0).astype(np.uint8) for key in ("tree", "vessels")}}
    self.seconds["refine"] += time.monotonic() - started
    return fields

  def _mend(self, fields, records) -> None:
    """Mends the drawn masks, and the coverage with them, and records what was done; in place."""
    started = time.monotonic()
    mended = self._workers.map(host_work.mend, transforms.binarise(fields["vessels"]), fields["tree"])
    for i, (mask, coverage, counts) in enumerate(mended):
      fields["vessels"][i], fields["tree"][i] = mask, coverage
      records[i].update(counts)
    self.seconds["mend"] += time.monotonic() - started

  def _detailed(self, photographs, fields, indices, seed):
    """Photographs with the detail that the stages draw, each at twice the size of the one before."""
    painted, started = photographs, time.monotonic()
    for name, detailer, params in self._detailers:
      given = {key: np.stack([transforms.area_resize(p, detailer.size) for p in fields[key]]) for key in ("tree", "fov")}
      given["fov"] = transforms.binarise(given["fov"])
      # A stream of its own: with the noise that the photograph was painted from, the detail would depend on it.
      photographs = detailer(params, indices, given | {"image": photographs}, seed=seed, stream=f"photographs {name}")["image"]
    photographs = field_of_view.fade_at_rim(painted, photographs, fields["fov"]) if self._detailers else photographs
    self.seconds["detail"] += time.monotonic() - started
    return photographs

  def given(self, trees: Sequence[np.ndarray], fovs: Sequence[np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Brings trees that a user has to the size and framing that the fundus stage was trained on.

    Args:
      trees: N arrays uint8 [H, W, 1] of any sizes, 0..255 (masks, or coverage).
      fovs: their visible discs, likewise. Where there is none, a disc as wide as the frame's longer side: that is
        how cameras cut it.

    Returns:
      Fields "tree" and "fov" (coverage), uint8 [N, H, W, 1] at one size. Vessels outside the disc are cut away.

    Raises:
      ValueError: arrays of another kind, or no fundus stage.
    """
    if "fundus" not in self.samplers:
      raise ValueError("there is no fundus stage to paint these trees with: give --fundus")
    sampler, fields = self.samplers["fundus"], {"tree": [], "fov": []}
    for i, tree in enumerate(trees):
      tree = np.asarray(tree)
      if tree.dtype != np.uint8 or tree.ndim != 3 or tree.shape[-1] != 1:
        raise ValueError(f"a tree must be uint8 of shape [H, W, 1], not {tree.dtype} of shape {tree.shape}")
      fov = None if fovs is None else fovs[i]
      fov = field_of_view.inscribed(tree.shape[:2], max(tree.shape[:2])) if fov is None else fov
      hard = transforms.binarise(fov)
      fitted, disc = (
        transforms.fit({"tree": field, "fov": hard}, sampler.size, sampler.config.data.fit)["tree"] for field in (tree, fov)
      )
      fields["fov"].append(disc)
      fields["tree"].append(np.where(disc >= 128, fitted, 0).astype(np.uint8))
    return {name: np.stack(pixels) for name, pixels in fields.items()}

  def photographs(
    self, fields: dict[str, np.ndarray], indices: np.ndarray, seed: int, tilts: Sequence[float] | None = None
  ) -> dict[str, np.ndarray]:
    """Paints trees (and enlarges both).

    Args:
      fields: "tree" and "fov" as `trees` or `given` return them.
      indices: [N] numbers of the pairs.
      seed: root of the randomness.
      tilts: degrees by which the eyes are turned counter-clockwise, from the records of `trees`. Stages learn from turned
        eyes; cameras take upright ones, so they are turned back: refined trees before they are painted, which keeps
        photographs sharp, others with their photographs. None leaves them.

    Returns:
      "image", "tree" and "fov", uint8 [N, H, W, C]; without a fundus stage, the fields as they are. Where trees were refined,
      "tree" is their mask, 0/255, at the photograph's size.
    """
    if "fundus" not in self.samplers:
      return fields | {"fov": transforms.binarise(fields["fov"])}
    sampler, started = self.samplers["fundus"], time.monotonic()
    size = sampler.size
    refined = "vessels" in fields
    if refined and tilts is not None:
      turned = self._workers.map(host_work.turn_upright, *(fields[name] for name in ("vessels", "tree", "fov")), tilts)
      fields, tilts = {name: np.stack([tree[name] for tree in turned]) for name in turned[0]}, None
      self.seconds["turn"] += time.monotonic() - started
      started = time.monotonic()
    # A refined tree is painted from its mask: from drawn coverage, photographs lack contrast (docs/refinement.md).
    given = {"tree": fields["vessels" if refined else "tree"], "fov": fields["fov"]}
    sized = {name: np.stack([transforms.area_resize(p, size) for p in pixels]) for name, pixels in given.items()}
    hard = transforms.binarise(sized["fov"])
    condition = {name: {**sized, "fov": hard}[name] for name in sampler.condition}
    out = {**sized, **sampler(self.models.fundus.params, indices, condition, seed=seed)}
    self.seconds["fundus"] += time.monotonic() - started
    out["image"] = self._detailed(out["image"], sized, indices, seed)
    if self._enlarger is None:
      out |= {"fov": hard}
    else:
      started = time.monotonic()
      # With the disc's coverage, for a rim without steps and without what enlarging would make of a noisy edge.
      out = self._enlarger(self.models.superres.params, out | {"image": field_of_view.soft_rim(out["image"], out["fov"])})
      self.seconds["superres"] += time.monotonic() - started
    if refined:
      size = out["image"].shape[1:3]
      masks = [reduction.render(*tree, size)[..., None] for tree in zip(fields["vessels"], fields["tree"], strict=True)]
      return out | {"tree": np.where(out["fov"] >= 128, np.stack(masks), 0).astype(np.uint8)}
    return out if tilts is None else field_of_view.upright(out, tilts)


def pairs(
  models: Models,
  num: int = 16,
  seed: int = 0,
  trees: np.ndarray | None = None,
  mesh=None,
  indices: Sequence[int] | None = None,
  **options,
) -> dict[str, np.ndarray]:
  """Generates pairs as arrays: the same as the command writes, before files.

  Args:
    models: the stages, e.g. from `load_models`.
    num: number of pairs; not read where `indices` or `trees` are given.
    seed: root of the randomness.
    trees: trees to paint, uint8 [N, H, W, 1] in 0..255, instead of sampling them.
    mesh: devices.
    indices: numbers of the pairs.
    **options: of `Generator`.

  Returns:
    "image" uint8 [N, H, W, 3], "tree" uint8 [N, H, W, 1] (coverage; binarise at 128), "fov" uint8 [N, H, W, 1], and
    "records", a list of N dicts.

  Raises:
    ValueError: stages that do not fit each other, or trees of another kind.
  """
  generator = Generator(models, mesh, **options)
  indices = np.arange(num if trees is None else len(trees)) if indices is None else np.asarray(indices)
  if not len(indices):
    raise ValueError("there is nothing to generate: give num of at least 1, or some trees or indices")
  if trees is not None and len(indices) != len(trees):
    raise ValueError(f"{len(trees)} trees and {len(indices)} indices do not go together: give one index for each tree")
  fields, records = generator.trees(indices, seed) if trees is None else (generator.given(trees), [{} for _ in trees])
  return {**generator.photographs(fields, indices, seed, tilts(records)), "records": records}


def tilts(records: Sequence[dict]) -> list[float]:
  """What `Generator.photographs` turns back, from the records of `Generator.trees`; 0 for trees that a user gave."""
  return [record.get("tilt", 0) for record in records]


def record_attempt(record: dict, verdict) -> bool:
  """Adds one drawn tree to a pair's record; returns whether it is the best tree of the pair so far."""
  record["attempts"] += 1
  if verdict is None:
    record["accepted"] = True
    return True
  score = round(float(verdict.score), 6)
  record["accepted"] = verdict.accepted
  if not verdict.accepted:
    record["dropped"].append(verdict.reason)
  taken = verdict.accepted or record["filter_score"] is None or score > record["filter_score"]
  if taken:
    record["filter_score"] = score
  return taken
