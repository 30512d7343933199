"""The summary after training: a table of results, the IQM with its interval, and the cohort's learning curve."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qohort.config.identity import named_keys
from qohort.config.labels import GROUPS
from qohort.config.schema import TrainConfig
from qohort.runs.directory import RunDirectory
from qohort.runs.learning_curve import draw_cohort
from qohort.runs.listing import in_table
from qohort.statistics import format_returns


def run_title(config: TrainConfig) -> str:
    """Return the title of a run in figures."""
    return f"{config.agent} on {config.env.name}, seed {config.seed}"


def summarise(finished: Sequence[tuple[TrainConfig, RunDirectory]]) -> None:
    """Print a table for each set of finished runs that differ only in their seed, and draw their learning curve.

    Args:
        finished: The configuration and directory of each finished run.
    """
    alike: dict[Path, list[tuple[TrainConfig, RunDirectory]]] = defaultdict(list)
    for config, directory in finished:
        alike[directory.path.parent].append((config, directory))
    for parent, runs in alike.items():
        _summarise_alike(parent, runs)


def summarise_sweep(planned: Sequence[tuple[TrainConfig, RunDirectory]], title: str = "the whole sweep") -> None:
    """Print one table over all experiments of a sweep, also those that were finished before.

    Each row is named by the keys in which it differs from others. Nothing is printed for a single experiment.

    Args:
        planned: The configuration and directory of each run of the sweep.
        title: Title of the table.
    """
    alike: dict[Path, list[tuple[TrainConfig, RunDirectory]]] = defaultdict(list)
    for config, directory in planned:
        alike[directory.path.parent].append((config, directory))
    if len(alike) < 2:
        return
    firsts = {parent: runs[0][0] for parent, runs in alike.items()}
    trees = dict(zip(firsts, named_keys(list(firsts.values())), strict=True))
    said = ("agent", "env.id", *_classes_of_agents(firsts, trees))
    keys = dict.fromkeys(key for tree in trees.values() for key in tree if key not in said)
    differing = [key for key in keys if len({repr(tree.get(key)) for tree in trees.values()}) > 1]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    differs = ("differs in",) if differing else ()
    for heading in ("env", "agent", *differs, "finished", "final return"):
        table.add_column(heading, overflow="fold")
    for parent, runs in alike.items():
        config, tree = firsts[parent], trees[parent]
        results = [result for _, directory in runs if (result := directory.result()) is not None]
        words = ", ".join("=".join(in_table(key, tree[key])) for key in differing if key in tree)
        table.add_row(
            config.env.name,
            config.agent,
            *((words if len(words) <= 120 else words[:117] + "...",) if differing else ()),
            f"{len(results)} of {len(runs)}",
            format_returns([result["final_return"] for result in results]) if results else "",
        )
    width = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def _classes_of_agents(firsts: Mapping[Path, TrainConfig], trees: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Return the keys of an agent's classes that are the same in all experiments of an agent, whose name says them.

    Args:
        firsts: A configuration of each experiment.
        trees: Its keys and values.
    """
    keys = [f"{group}._target_" for group in GROUPS]
    pairs = {key: {(firsts[one].agent, repr(tree.get(key))) for one, tree in trees.items()} for key in keys}
    return [key for key, values in pairs.items() if len(values) == len({agent for agent, _ in values})]


def _summarise_alike(parent: Path, runs: Sequence[tuple[TrainConfig, RunDirectory]]) -> None:
    """Print a table with one row per seed, the IQM with its interval, and the directories."""
    results = [result for _, directory in runs if (result := directory.result()) is not None]
    config = runs[0][0]
    title = f"{config.agent} on {config.env.name}"
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    table = Table(title=title, title_justify="left")
    for heading in ("seed", "final return", "best return", "area under curve", "env_steps", "seconds"):
        table.add_column(heading, justify="right")
    for result in results:
        scores = (f"{result[key]:.1f}" for key in ("final_return", "best_return", "auc"))
        table.add_row(str(result["seed"]), *scores, f"{result['env_steps']:,}", f"{result['wall_s']:.1f}")
    with console.capture() as drawn:
        console.print(table)
    lines = [drawn.get().rstrip("\n")]
    if not config.env.deterministic:
        lines.append("not deterministic (env.deterministic=false): these runs cannot be repeated")
    finals = [result["final_return"] for result in results]
    if len(finals) > 1:
        lines.append(f"final return: {format_returns(finals)}")
    _print_at_once(lines)
    lines = [f"seed {config.seed}: {directory.path}" for config, directory in runs]
    if len(finals) > 1:
        draw_cohort(parent / "learning_curve.png", [directory.rows() for _, directory in runs], title)
        lines.insert(0, f"learning curve: {parent / 'learning_curve.png'}")
    _print_at_once(lines)


def _print_at_once(lines: Sequence[str]) -> None:
    """Print lines in one write: the processes of a sweep share one output."""
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
