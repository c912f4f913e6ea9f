"""x"""

import sys


def main():
  from absl import flags

  from retree_jax.cli import errors

  errors.parse(flags.FlagValues(), sys.argv, "retree-jax info --json")
