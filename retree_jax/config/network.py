"""The settings of a stage's network that follow from other fields of its config."""

from retree_jax.data.fields import num_channels


def network_settings(config) -> dict:
  """Settings of the stage's network, for `retree_jax.models.build`.

  Args:
    config: a whole config; `config.model` and, for diffusion models, `data.target` and `data.attributes` are read.

  Returns:
    `config.model`, and for diffusion models "out_channels", as many as the fields of `config.data.target` have together, and
    "attributes", their number.
  """
  settings = dict(config.model)
  if "diffusion" in config:
    settings["out_channels"] = num_channels(config.data.target)
    if config.data.get("attributes"):
      settings["attributes"] = len(config.data.attributes)
  return settings
