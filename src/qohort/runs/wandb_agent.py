"""The run of a W&B agent: one value for all seeds, which the sweep of W&B optimises."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qohort.config.identity import config_tree
from qohort.runs.members import Member
from qohort.runs.wandb_runs import Agent, start_wandb, wandb_agent, wandb_mode
from qohort.statistics import iqm


class CohortEvaluations:
    """Logs the evaluations of all members to the agent's run, one row for each evaluation.

    Args:
        agent: The agent.
        members: The members, also those that are finished.
        directory: W&B writes to it.
    """

    def __init__(self, agent: Agent, members: Sequence[Member], directory: Path) -> None:
        import wandb

        first = members[0]
        options = first.config.logger["wandb"]
        self._count = len(members)
        self._scores: dict[int, dict[int, float]] = {}
        self._rows = 0
        self._run, self._known = start_wandb(
            directory,
            agent.run,
            settings=wandb.Settings(sweep_id=agent.sweep),
            project=options.get("project"),
            entity=options.get("entity"),
            name=f"{first.directory.path.parent.parent.name}/{first.directory.path.parent.name}",
            job_type="agent",
            tags=list(options.get("tags") or ()),
            config={
                **config_tree(first.config),
                "seed": [member.config.seed for member in members],
                **agent.parameters,
            },
        )

    def add(self, member: int, row: Mapping[str, Any]) -> None:
        """Take a row of a member. A row of the cohort is logged with the last of its members.

        Args:
            member: Index of the member.
            row: The member's row; only its evaluations count.
        """
        if row.get("eval/return") is None:
            return
        scores = self._scores.setdefault(row["env_steps"], {})
        complete = len(scores) == self._count
        scores[member] = row["eval/return"]
        if complete or len(scores) < self._count:
            return
        if self._rows >= self._known:
            self._run.log({"env_steps": row["env_steps"], **summary(list(scores.values()))}, step=self._rows)
        self._rows += 1

    def finish(self, failed: bool) -> None:
        """Finish the agent's run.

        Args:
            failed: Whether training stopped early.
        """
        self._run.finish(exit_code=int(failed))


def summary(returns: Sequence[float]) -> dict[str, float]:
    """Return what is logged of an evaluation of all members.

    Args:
        returns: The return of each member.
    """
    return {
        "eval/return": iqm(returns),
        "eval/return_mean": sum(returns) / len(returns),
        "eval/return_min": min(returns),
        "eval/return_max": max(returns),
    }


class _MemberEvaluations:
    """Hands the rows of one member on to the agent's run."""

    def __init__(self, evaluations: CohortEvaluations, member: int) -> None:
        self._evaluations, self._member = evaluations, member

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand a row on."""
        self._evaluations.add(self._member, row)

    def finish(self, failed: bool) -> None:
        """Do nothing: other members may go on."""


@contextlib.contextmanager
def agent_follows(members: Sequence[Member]) -> Iterator[None]:
    """Log the evaluations of the members to the run of the agent that started this process, if one did.

    Args:
        members: The members, also those that are finished.
    """
    agent = wandb_agent()
    if agent is None or "wandb" not in members[0].config.logger or wandb_mode() == "disabled":
        yield
        return
    failed = True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        evaluations = CohortEvaluations(agent, members, Path(place))
        try:
            for m, member in enumerate(members):
                if member.directory.result() is not None and not member.config.overwrite:
                    for row in member.directory.rows():
                        evaluations.add(m, row)
                else:
                    member.sinks.append(_MemberEvaluations(evaluations, m))
            yield
            failed = any(member.directory.result() is None for member in members)
        finally:
            evaluations.finish(failed)
