"""The flags that name the stages of a generator, for all commands that take one."""

from absl import flags

_TEXTS = {
  "tree": "Workdir or name of the tree stage.",
  "refine": "Workdir or name of the stage that refines trees to twice the size; several, one after the other, by commas.",
  "filter": "Workdir or name of the tree filter.",
  "fundus": "Workdir or name of the fundus stage.",
  "detail": "Workdir or name of the stage that draws the fine detail of photographs; several, from coarse to fine, by commas.",
  "superres": "Workdir or name of the super-resolution stage.",
}


def define(f: flags.FlagValues) -> None:
  """Adds the flags to a command's."""
  for name, text in _TEXTS.items():
    flags.DEFINE_string(name, None, text, flag_values=f)


def paths(f: flags.FlagValues) -> dict[str, str | None]:
  """{stage: workdir or name, None where it was not given}, as `inference.stages.load_models` takes them."""
  return {"filter_path" if name == "filter" else name: f[name].value for name in _TEXTS}
