"""The command `qohort`, which is also `python -m qohort`: one word, and the rest is for the command that it names."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path

from qohort.cli.arguments import fail
from qohort.config.errors import ConfigError
from qohort.config.instructions import check_bits_variable
from qohort.config.messages import nearest

COMMANDS = {
    "new": "make a project of your own",
    "train": "train a cohort, or a sweep with -m",
    "evaluate": "play episodes with trained runs",
    "export": "write a trained policy as plain files: safetensors, torch.export, ONNX, a model card",
    "runs": "list runs: what is finished, running, interrupted, failed",
    "diff": "the keys in which two runs differ",
    "rm": "delete runs",
    "report": "tables and figures of an ablation",
    "verify": "train some runs of a report again, and compare",
    "ledger": "write the ledger of finished runs: commands, code, machine, fingerprints",
    "reproduce": "train runs of the ledger again, and compare",
    "tune": "search for hyperparameters with Optuna",
    "sensitivity": "how much performance depends on hyperparameters",
    "completion": "print the tab completion for bash",
    "benchmark": "measure speed beside Stable-Baselines3 and JAX (in a clone of the repository)",
}
"""The commands, each a module of this folder with a function `main`."""


def main() -> None:
    """Run the command that the command line names. What it imports may be in the current directory."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0)
    name, *rest = arguments
    if name == "--version":
        from qohort import __version__

        print(f"qohort {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        words = "write the command first, as in qohort train" if "=" in name or name.startswith("-") else ""
        if close := difflib.get_close_matches(name, ["--help", "--version"], n=1, cutoff=0.8):
            words = f"did you mean {close[0]}?"
        fail(f"{name} is not a command: {words or nearest(name, COMMANDS)}")
    try:
        check_bits_variable()
    except ConfigError as error:
        fail(str(error))
    sys.argv = [f"{sys.argv[0]} {name}", *rest]
    for directory in (Path.cwd(), Path.cwd() / "src"):  # a project's own packages
        if os.path.isdir(directory) and str(directory) not in sys.path:
            sys.path.insert(0, str(directory))
            os.environ["PYTHONPATH"] = os.pathsep.join(  # for the processes of launchers and environments
                filter(None, (str(directory), os.environ.get("PYTHONPATH")))
            )
    importlib.import_module(f"qohort.cli.{name}").main()


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<10}  {words}" for name, words in COMMANDS.items()]
    return "\n".join(
        ["qohort COMMAND [key=value ...]", "", *lines, "", "qohort COMMAND --help lists the options and the keys."]
    )
