"""Reports several ablations as one: `ablation=[a,b]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qohort.config.errors import ConfigError
from qohort.config.messages import format_value
from qohort.experiments.ablation import Ablation, Arm, EnvironmentChoice
from qohort.report.scores import PlannedRun
from qohort.runs.listing import in_words

Planned = tuple[Ablation, Sequence[PlannedRun]]
"""An ablation, and every run that it asks for."""


@dataclass(frozen=True)
class CombinedAblation(Ablation):
    """Several ablations as one: their arms and their environments. `name` is the report's.

    Attributes:
        parts: Their names.
    """

    parts: tuple[str, ...]

    @property
    def selector(self) -> str:
        """The override that selects them."""
        return f"ablation=[{','.join(self.parts)}]"

    @property
    def sweep(self) -> str:
        """The override that trains them."""
        return f"ablation={','.join(self.parts)}"


def combine(parts: Sequence[Planned], name: str | None) -> tuple[CombinedAblation, list[PlannedRun]]:
    """Return several ablations as one, and its runs.

    Arms with the same label are one arm if their runs are the same experiments wherever both have an environment. If
    not, all arms of the later ablation that differ get its name. Each arm is compared with the arm that its own
    manifest says. The first ablation decides the baseline, and what is shown.

    Args:
        parts: The ablations.
        name: Name of the report; None to derive it from theirs.

    Raises:
        ConfigError: If an ablation is named twice, or they do not fit together.
    """
    names = [ablation.name for ablation, _ in parts]
    for one in names:
        if names.count(one) > 1:
            raise ConfigError(f"ablation={format_value(names)} names {one} twice: name each once")
    renamed: list[Planned] = []
    for ablation, planned in parts:
        renamed.append(_renamed(ablation, planned, [run for _, runs in renamed for run in runs]))
    environments = _environments([ablation for ablation, _ in renamed])
    arms = {arm.label: arm for ablation, _ in reversed(renamed) for arm in ablation.arms}
    labels = dict.fromkeys(arm.label for ablation, _ in renamed for arm in ablation.arms)
    runs = {run.directory: run for _, planned in reversed(renamed) for run in planned}
    order = {one: place for place, one in enumerate(environments)}, {one: place for place, one in enumerate(labels)}
    ordered = sorted(
        runs.values(), key=lambda run: (order[0][run.environment], order[1][run.arm.label], run.config.seed)
    )
    first = renamed[0][0].manifest
    manifest = replace(
        first,
        title=" · ".join(dict.fromkeys(ablation.manifest.title for ablation, _ in renamed)),
        seeds=in_words(list({run.config.seed for run in ordered})),
        environments=environments,
    )
    own = name or "+".join(one.replace("/", "_") for one in names)
    extra = parts[0][0].extra
    return CombinedAblation(own, manifest, tuple(arms[one] for one in labels), extra, tuple(names)), ordered


def _environments(ablations: Sequence[Ablation]) -> dict[str, EnvironmentChoice]:
    """Return the environments of all ablations, in their order."""
    found: dict[str, EnvironmentChoice] = {}
    for ablation in ablations:
        for name, choice in ablation.manifest.environments.items():
            before = found.setdefault(name, choice)
            if (before.low, before.high) != (choice.low, choice.high):
                raise ConfigError(
                    f"ablation={ablation.name} has low={choice.low:g}, high={choice.high:g} for {name}, and the one "
                    f"before it low={before.low:g}, high={before.high:g}: normalised scores need the same ones"
                )
    return found


def _renamed(ablation: Ablation, planned: Sequence[PlannedRun], before: Sequence[PlannedRun]) -> Planned:
    """Return an ablation and its runs with other labels for arms that are other experiments than those before."""
    theirs: dict[tuple[str, str], set[str]] = {}
    for run in before:
        theirs.setdefault((run.arm.label, run.environment), set()).add(run.directory.parent.name)
    differs = {
        run.arm.label
        for run in planned
        if run.directory.parent.name not in theirs.get((run.arm.label, run.environment), {run.directory.parent.name})
    }
    if not differs:
        return ablation, planned

    def own(arm: Arm) -> Arm:
        if arm.label in differs:
            arm = replace(arm, label=f"{arm.label}@{ablation.name}", title=f"{arm.title} ({ablation.manifest.title})")
        against = f"{arm.against}@{ablation.name}" if arm.against in differs else arm.against
        return replace(arm, against=against)

    arms = {arm.label: own(arm) for arm in ablation.arms}
    runs = [replace(run, arm=arms[run.arm.label]) for run in planned]
    return replace(ablation, arms=tuple(arms.values())), runs
