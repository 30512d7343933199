"""What a report says of an ablation whose arms stopped when they were told apart (`until=decided`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qohort.config.composition import override
from qohort.experiments.ablation import Ablation
from qohort.experiments.sequential import Cell, Comparison, Progress, SequentialAblation, as_begun, comparisons
from qohort.experiments.stopping import GROUP, UNTIL
from qohort.report.cells import NOTHING, Table, column_name, number
from qohort.report.cells import Cell as TableCell
from qohort.report.scores import PlannedRun
from qohort.runs.directory import RunDirectory


@dataclass(frozen=True)
class Stopping:
    """How the arms of an ablation were stopped.

    Attributes:
        sequential: The ablation, with the settings that it was begun with.
        progress: Its decisions.
    """

    sequential: SequentialAblation
    progress: Progress

    def asked_for(self, planned: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Return the runs that were asked for before their arms stopped."""
        seeds = self.progress.seeds
        return [run for run in planned if run.config.seed in seeds[run.arm.label, run.environment]]

    def overrides(self, ablation: Ablation) -> list[str]:
        """Return the overrides of the training command that the manifest and the command line do not have.

        Args:
            ablation: The ablation, as its manifest and the command line say.
        """
        if ablation.manifest.until == "decided":
            return []
        kept = asdict(self.sequential.ablation.manifest.sequential)
        own = asdict(ablation.manifest.sequential)
        if own["max_seeds"] is None and kept["max_seeds"] == len(next(iter(self.sequential.runs.values()))):
            own["max_seeds"] = kept["max_seeds"]
        return [
            f"{UNTIL}=decided",
            *(override(f"{GROUP}.{key}", value) for key, value in kept.items() if value != own[key]),
        ]

    def tables(self) -> list[Table]:
        """Return the table of decisions in each environment."""
        ablation = self.sequential.ablation
        score = column_name(ablation, ablation.manifest.show.score)
        return [
            Table(
                f"decisions_{environment.replace('/', '_')}",
                f"{environment}: decisions, made group by group, {score}",
                ("arm", "compared with", "seeds", "decision", "after seeds", "mean difference"),
                tuple(self._row(one) for one in comparisons(ablation) if one.environment == environment),
            )
            for environment in ablation.manifest.environments
        ]

    def _row(self, one: Comparison) -> tuple[TableCell, ...]:
        titles = {arm.label: arm.title for arm in self.sequential.ablation.arms}
        decision, margin = self.progress.decisions[one], self.sequential.margins[one]
        within = f"equivalent (within {margin:g})" if margin else ""
        words = {"equivalent": within, "open": "not decided"}.get(decision.verdict, decision.verdict)
        digits = 3 if self._width(one) < 10 else 1
        difference = number(decision.difference, digits, sign=True) if decision.seeds else NOTHING
        asked = (str(len(self.progress.seeds[cell])) for cell in one.cells)
        cells = (titles[one.arm], titles[one.against], ", ".join(asked), words, str(decision.seeds), difference)
        return tuple(map(TableCell, cells))

    def _width(self, one: Comparison) -> float:
        choice = self.sequential.ablation.manifest.environments[one.environment]
        return choice.high - choice.low


def stopping_of(ablation: Ablation, planned: Sequence[PlannedRun]) -> Stopping | None:
    """Return how the arms of an ablation were stopped; None if every arm has all seeds.

    Args:
        ablation: The ablation.
        planned: All runs of the ablation.

    Raises:
        ConfigError: If it was begun with other settings than these.
    """
    runs: dict[Cell, dict[int, RunDirectory]] = defaultdict(dict)
    for run in planned:
        runs[run.arm.label, run.environment][run.config.seed] = RunDirectory(run.directory)
    sequential = as_begun(ablation, runs)
    return None if sequential is None else Stopping(sequential, sequential.follow())
