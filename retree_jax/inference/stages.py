"""The stages that make up a generator of pairs: loaded by name, and checked for what does not go together."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Models:
  """The stages of one generator; a stage that is None is left out.

  Attributes:
    tree, fundus, superres: `retree_jax.checkpoint.Loaded`.
    tree_filter: `retree_jax.inference.tree_filter.LoadedFilter` that scores trees.
    refine: `retree_jax.checkpoint.Loaded`s that are used one after the other, each doubling the trees' size.
    detail: `retree_jax.checkpoint.Loaded`s that are used one after the other, each at twice the size of the one before and the
      last at that of photographs.
  """

  tree: object = None
  fundus: object = None
  superres: object = None
  tree_filter: object = None
  refine: tuple = ()
  detail: tuple = ()


def load_models(
  tree=None, fundus=None, superres=None, filter_path=None, threshold: float | None = None, mesh=None, refine=None, detail=None
) -> Models:
  """Loads stages by path or name.

  Args:
    tree, fundus, superres, filter_path, refine, detail: workdirs, checkpoint folders or names of shipped weights; None leaves
      the stage out. Several stages that refine trees, or that draw detail, each at twice the size, are joined by commas.
    threshold: least filter score; None takes the one chosen on the filter's validation data.
    mesh: devices to hold the parameters.

  Raises:
    ValueError: a path that holds no checkpoint, or one of another stage.
  """
  from retree_jax import checkpoint
  from retree_jax.inference import tree_filter

  def stage(path, name):
    return None if path is None else checkpoint.load(path, mesh=mesh, stage=name)

  loaded_filter = None if filter_path is None else tree_filter.load(filter_path, threshold)
  refine, detail = (
    tuple(stage(path, name) for path in str(paths or "").split(",") if path)
    for name, paths in (("refine", refine), ("detail", detail))
  )
  return Models(stage(tree, "tree"), stage(fundus, "fundus"), stage(superres, "superres"), loaded_filter, refine, detail)


def check_fit(models: Models) -> None:
  """Raises ValueError for stages that cannot follow one another."""
  if models.tree is None and models.fundus is None:
    raise ValueError("nothing to generate with: give --tree, --fundus or both")
  if models.refine and models.tree is None:
    raise ValueError("the refine stage refines drawn trees, and there is no tree stage to draw them: give --tree")
  if models.detail and models.fundus is None:
    raise ValueError("the detail stage sharpens painted photographs, and there is no fundus stage to paint them: give --fundus")
  for number, stage in enumerate(reversed(models.detail)):
    drawn = tuple(side // 2**number for side in models.fundus.config.data.image_size)
    if drawn != (trained := tuple(stage.config.data.image_size)):
      raise ValueError(
        f"a detail stage draws at {drawn[0]}x{drawn[1]} pixels here and was trained at {trained[0]}x{trained[1]}: give one "
        "that was trained at the fundus stage's config.data.image_size, after those trained at half of it"
      )
  if models.superres is not None and models.fundus is None:
    raise ValueError("the superres stage enlarges pairs, and there is no fundus stage to make them: give --fundus")
  if models.tree is not None and "tree" not in models.tree.config.data.target:
    raise ValueError("the tree stage makes no trees: its config.data.target must hold 'tree'")
  if models.fundus is not None and (other := set(models.fundus.config.data.condition) - {"tree", "fov"}):
    raise ValueError(
      f"the fundus stage asks for {sorted(other)[0]!r}, which no stage makes: train it with "
      "config.data.condition=('tree', 'fov')"
    )
  # A filter may be any function.
  loaded = {"tree": models.tree, "filter": getattr(models.tree_filter, "loaded", None), "fundus": models.fundus}
  sides = {name: tuple(stage.config.data.image_size) for name, stage in loaded.items() if stage is not None}
  for name, (height, width) in sides.items():
    first, (rows, columns) = next(iter(sides.items()))
    if height * columns != width * rows:
      raise ValueError(
        f"the {first} stage works on {rows}x{columns} pixels and the {name} stage on {height}x{width}, of another shape, which "
        "would squash every eye: give stages whose config.data.image_size have the same ratio"
      )


def check_share(share: float, tree, ask: dict[str, float]) -> None:
  """Raises ValueError for a share of cut outlines that cannot be drawn."""
  if not 0 <= share <= 1:
    raise ValueError(f"--cut_share={share:g} is no share: give a number from 0 (all whole) to 1 (all cut)")
  if tree is None or "outline" not in tree.config.data.get("attributes", ()):
    raise ValueError("--cut_share is for sampling trees with a tree stage that knows outlines: leave it out")
  if "outline" in ask:
    raise ValueError("--cut_share and --ask outline=... contradict each other: leave one of the two out")


def changed(config, **sampler):
  """A copy of a config with some of its sampler's fields changed; None leaves a field as it is, and so does spacing="full" the
  number of steps."""
  changes = {k: v for k, v in sampler.items() if v is not None}
  if "num_steps" in changes and config.sampler.spacing == "full":
    del changes["num_steps"]
  if not changes:
    return config
  config = config.copy_and_resolve_references()
  config.sampler.update(changes)
  return config
