"""The report of an ablation: scores, statistics, tables and figures."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qohort.config.annotations import Range
from qohort.config.checks import build_config, resolve
from qohort.config.composition import without_hydra
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.config.paths import check_directory
from qohort.experiments.ablation import GROUP, Ablation, read_ablation
from qohort.experiments.sweep import fold_ablation
from qohort.report.cells import Table
from qohort.report.scores import (
    PlannedRun,
    Scores,
    format_problems,
    made_with_other_code,
    mixed_code,
    not_deterministic,
    read_scores,
    scores_csv,
)
from qohort.report.stopping import Stopping, stopping_of
from qohort.runs.files import write_atomically
from qohort.runs.members import members_of


@dataclass(frozen=True)
class ReportConfig:
    """The configuration of a report. `conf/report.yaml` says what each key is."""

    ablation: str
    overrides: Sequence[str]
    output_dir: str
    reports_dir: str
    allow_missing: bool
    other_code: Literal["refuse", "allow"]
    resamples: Annotated[int, Range(100)]
    wandb: bool


def report(config: DictConfig) -> Path:
    """Write the report of an ablation; its directory.

    Raises:
        ConfigError: If the configuration or the manifest is wrong, or runs are missing; nothing was written then.
    """
    name = HydraConfig.get().runtime.choices[GROUP]
    if name is None:
        raise ConfigError("ablation has no value: give it one with ablation=NAME, a file in conf/ablation")
    settings: ReportConfig = build_config(ReportConfig, {**resolve(config), GROUP: name})
    check_directory("reports_dir", settings.reports_dir)
    loader = GlobalHydra.instance().config_loader()
    ablation = read_ablation(settings.ablation, settings.overrides, loader)
    planned = plan_runs(ablation, loader, settings.output_dir)
    stopping = stopping_of(ablation, planned)
    if stopping is not None:
        ablation = replace(ablation, extra=(*ablation.extra, *stopping.overrides(ablation)))
        planned = stopping.asked_for(planned)
    scores = replace(read_scores(planned, ablation.manifest.show.last), sequential=stopping is not None)
    problems = format_problems(scores.problems)
    counted = len(planned) - len(scores.problems)
    if problems:
        print("\n".join(f"  {line}" for line in problems), file=sys.stderr)
        words = (
            f"{len(scores.problems)} of {len(planned)} runs of ablation={ablation.name} cannot be counted, listed above"
        )
        if not settings.allow_missing or not counted:
            command = " ".join(("scripts/train.py", "-m", f"ablation={ablation.name}", *ablation.extra))
            allowed = "" if not counted else ", or report the others with allow_missing=true"
            raise ConfigError(f"{words}: run {command} for what is left{allowed}")
        print(f"{words}: every table and figure says how many there are", file=sys.stderr)
    problems += _check_code(scores, settings)
    problems += not_deterministic(scores)
    directory = Path(settings.reports_dir) / ablation.name
    write(ablation, scores, stopping, problems, directory, settings)
    print(f"report of {counted} runs: {directory / 'report.html'}")
    return directory


def _check_code(scores: Scores, settings: ReportConfig) -> list[str]:
    """What is to be said of the code that made the runs, in lines.

    Raises:
        ConfigError: If it is not one code, and `other_code` does not allow that.
    """
    mixed = mixed_code(scores)
    if mixed:
        print("\n".join(f"  {line}" for line in mixed), file=sys.stderr)
        words = f"the runs of ablation={settings.ablation} were made with different code, listed above"
        if settings.other_code == "refuse":
            raise ConfigError(
                f"{words}: train them again with scripts/train.py -m ablation={settings.ablation} overwrite=true, "
                "or report them all the same with other_code=allow"
            )
        print(words, file=sys.stderr)
        return [f"different code: {line}" for line in mixed]
    if other := made_with_other_code(scores):
        print(other, file=sys.stderr)
        return [other]
    return []


def plan_runs(ablation: Ablation, loader: ConfigLoader, output_dir: str) -> list[PlannedRun]:
    """Every run that an ablation asks for, in the order of its environments, arms and seeds.

    Args:
        ablation: The ablation.
        loader: Composes configurations.
        output_dir: Where the runs are.

    Raises:
        ConfigError: If a run or an arm is wrong.
    """
    master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
    planned = []
    for cell, cohorts in fold_ablation(ablation, loader, master, (), sys.maxsize):
        configs = [config for cohort in cohorts for config in check_config(without_hydra(cohort.config))]
        members = members_of([replace(config, output_dir=output_dir) for config in configs])
        planned += [
            PlannedRun(cell.arm, cell.environment, member.config, member.directory.path)
            for member in sorted(members, key=lambda member: member.config.seed)
        ]
    return planned


def write(
    ablation: Ablation,
    scores: Scores,
    stopping: Stopping | None,
    problems: Sequence[str],
    directory: Path,
    settings: ReportConfig,
) -> None:
    """Write everything.

    Args:
        ablation: The ablation.
        scores: Its runs.
        stopping: How its arms were stopped; None if every arm has all seeds.
        problems: What is missing, in lines.
        directory: Where to.
        settings: The report's.
    """
    from qohort.report.analysis import analyse
    from qohort.report.cells import latex, markdown
    from qohort.report.charts import charts
    from qohort.report.figures import draw
    from qohort.report.page import Picture, page
    from qohort.report.tables import comparisons_csv, tables

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells every glyph that a PDF has
    places = analyse(ablation, scores, settings.resamples)
    made = [*(stopping.tables() if stopping is not None else []), *tables(ablation, places)]
    drawn = [
        (chart, draw(chart, "png"), draw(chart, "pdf"))
        for chart in charts(ablation, scores, places, settings.resamples)
    ]
    pictures = [Picture.of(chart, png) for chart, png, _ in drawn]
    html = page(ablation, scores, places, made, pictures, commands(ablation, settings, directory), problems, stopping)

    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    files: dict[Path, Any] = {
        directory / "scores.csv": scores_csv(ablation, scores),
        directory / "comparisons.csv": comparisons_csv(places),
        directory / "table.md": "\n".join(markdown(table) for table in made),
        directory / "table.tex": "\n".join(latex(table) for table in made),
        directory / "report.html": html,
    }
    for chart, png, pdf in drawn:
        files |= {figures / f"{chart.key}.png": png, figures / f"{chart.key}.pdf": pdf}
    for path, content in files.items():
        write_atomically(path, content if isinstance(content, bytes) else content.encode())
    for old in {*figures.glob("*.png"), *figures.glob("*.pdf")} - set(files):
        old.unlink()
    if settings.wandb:
        log_to_wandb(ablation.name, directory, made, {chart.key: chart.title for chart, _, _ in drawn})


def log_to_wandb(name: str, directory: Path, tables: Sequence[Table], figures: Mapping[str, str]) -> None:
    """Put a report's tables, figures and files in a W&B run, offline unless `WANDB_MODE` says otherwise.

    Args:
        name: The ablation's.
        directory: The report's; W&B writes to `wandb/` in it.
        tables: The tables.
        figures: Titles by key, of the files in `figures/`.
    """
    import wandb

    shutil.rmtree(directory / "wandb", ignore_errors=True)
    run = wandb.init(
        project="qohort",
        name=f"report/{name}",
        job_type="report",
        dir=directory,
        mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    try:
        rows = {table.key: [[str(cell) for cell in row] for row in table.rows] for table in tables}
        media: dict[str, Any] = {
            f"table/{table.key}": wandb.Table(columns=list(table.columns), data=rows[table.key]) for table in tables
        }
        for key, title in figures.items():
            media[f"figure/{key}"] = wandb.Image(str(directory / "figures" / f"{key}.png"), caption=title)
        run.log(media)
        artifact = wandb.Artifact(f"report-{re.sub('[^A-Za-z0-9_.-]+', '-', name)}", type="report")
        for file in (*directory.glob("*.*"), *directory.glob("figures/*.*")):
            artifact.add_file(str(file), str(file.relative_to(directory)))
        run.log_artifact(artifact)
    finally:
        run.finish()


def commands(ablation: Ablation, settings: ReportConfig, directory: Path) -> list[str]:
    """How to make the report again."""
    output = [] if settings.output_dir == "outputs" else [f"output_dir={settings.output_dir}"]
    name = f"ablation={ablation.name}"
    train = ["python scripts/train.py -m", name, *ablation.extra, *output, "hydra/launcher=joblib"]
    reporting = ["python scripts/report.py", name, *output]
    if ablation.extra:
        quoted = (f'"{text}"' for text in ablation.extra)
        reporting.append(f"'overrides=[{','.join(quoted)}]'")
    if settings.allow_missing:
        reporting.append("allow_missing=true")
    if settings.other_code == "allow":
        reporting.append("other_code=allow")
    return [" ".join(train), " ".join(reporting), f"python scripts/verify.py report={directory} sample=3"]
