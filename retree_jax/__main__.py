"""`retree-jax COMMAND` and `python -m retree_jax COMMAND`: the table of commands.

What a command needs is imported when it runs, so that help answers at once.
"""

import difflib
import importlib
import importlib.util
import pathlib
import sys
from typing import NamedTuple

import retree_jax
from retree_jax.cli import compile_cache, cpu, errors


class Command(NamedTuple):
  """One row of the table.

  Attributes:
    module: module that implements it.
    function: function of that module; reads `sys.argv`, returns None or an exit code.
    summary: one line for the list of commands.
    cpu_settings: whether the process restarts once with the settings of `cli.cpu`.
  """

  module: str
  function: str
  summary: str
  cpu_settings: bool = True


COMMANDS = {
  "train": Command("retree_jax.main", "train", "Train a stage, or resume its training."),
  "sample": Command("retree_jax.main", "sample", "Sample from one trained stage."),
  "generate": Command("retree_jax.generate", "main", "Generate pairs of photograph and vessel tree."),
  "evaluate": Command("retree_jax.evaluate", "main", "Compare generated pairs with real ones; write a report.", False),
  "segment": Command("retree_jax.cli.segment", "main", "Segment the vessels in photographs."),
  "demo": Command("retree_jax.demo", "main", "Play with the models on a page in the browser."),
  "convert": Command("retree_jax.convert", "main", "Convert a PyTorch checkpoint of the original ReTree."),
  "reproduce": Command("retree_jax.experiments.reproduce", "main", "Run the whole chain, from eyes to a report.", False),
  "validate": Command("retree_jax.experiments.validation", "main", "Measure what generated pairs add to a segmenter."),
  "info": Command("retree_jax.cli.info", "main", "Show version, devices, shipped models and built-in configs.", False),
}

_EXIT_CODES = """Exit codes:
  0    success
  1    the run failed (a full disk, too little memory, a loss that is not finite), or evaluate --gate found a bound violated
  2    bad input: a flag, a config field, a file
  130  stopped with Ctrl-C
  143  stopped by SIGTERM (129: SIGHUP) before the run was complete; rerun the same command to resume

--nocompile_cache, with any command, neither reads nor writes the cache of compiled programs (~/.cache/retree_jax).
RETREE_JAX_TRACEBACK=1 shows where an error was raised."""


def usage() -> str:
  """The text of `retree-jax --help`."""
  rows = "\n".join(f"  {name:10} {command.summary}" for name, command in COMMANDS.items())
  return (
    f"retree-jax {retree_jax.__version__}: {retree_jax.__doc__.splitlines()[0]}\n\n"
    f"Usage: retree-jax COMMAND [FLAGS]; retree-jax COMMAND --help lists the flags.\n\n{rows}\n\n{_EXIT_CODES}"
  )


def main() -> int:
  """Runs the command that the command line names; returns the exit code."""
  compile_cache.take_flag()
  name, *rest = sys.argv[1:] or [""]
  if name in ("-h", "--help", "help"):
    print(usage())
    return 0
  if name == "--version":
    print(retree_jax.__version__)
    return 0
  return errors.run(lambda: _run(name, errors.expand_home(rest)))


def _run(name: str, arguments: list[str]) -> int | None:
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    reason = f"there is no command {name!r}" if name else "the command is missing"
    raise ValueError(f"{reason}: {hint}use {', '.join(COMMANDS)}, or --help")
  command = COMMANDS[name]
  if command.cpu_settings and not {"-h", "-help", "--help"} & set(arguments):
    cpu.restart_with_settings()
  sys.argv = [f"retree-jax {name}", *arguments]
  return getattr(_import(command.module), command.function)()


def _import(module: str):
  """Imports a module; of `retree_jax.experiments`, which a checkout keeps beside the package, from there if necessary."""
  parent = module.rpartition(".")[0]
  if importlib.util.find_spec(parent) is None:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    module = module.removeprefix("retree_jax.")
  return importlib.import_module(module)


if __name__ == "__main__":
  sys.exit(main())
