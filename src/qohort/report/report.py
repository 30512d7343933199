"""The report of an ablation: scores, statistics, tables and figures."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from qohort.config.annotations import Range, Sized
from qohort.config.checks import build_config, resolve
from qohort.config.composition import override
from qohort.config.errors import ConfigError
from qohort.config.messages import format_value
from qohort.config.paths import check_writable
from qohort.experiments.ablation import GROUP, Ablation, no_manifest, read_ablation
from qohort.experiments.presentation import FIGURES, Show
from qohort.report.cells import Table
from qohort.report.combined import combine
from qohort.report.external import ExternalResult, by_environment, read_external
from qohort.report.found import FoundRuns, find_runs, other_task, records, setting
from qohort.report.planning import plan_runs
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
from qohort.report.style import chosen, rc_params, styled
from qohort.runs.files import write_atomically
from qohort.runs.metrics import RETURN, check_metric

if TYPE_CHECKING:
    from qohort.report.page import Picture
    from qohort.report.panels import Chart

DEFAULTS = Show("final", RETURN, 5, FIGURES)
"""What a report shows if neither the manifest nor anything else says it."""


@dataclass(frozen=True)
class ReportConfig:
    """The configuration of a report. `conf/report.yaml` says what each key is."""

    ablation: str | None
    ablations: Sequence[str] | None
    runs: str | Annotated[Sequence[str], Sized(1)] | None
    baseline: str | None
    name: str | None
    metric: str | None
    external: str | None
    overrides: Sequence[str]
    output_dir: str
    reports_dir: str
    allow_missing: bool
    other_code: Literal["refuse", "allow"]
    resamples: Annotated[int, Range(100)]
    style: str | None
    show: Mapping[str, Any]
    wandb: bool


def report(config: DictConfig) -> Path:
    """Write the report of an ablation, or of the runs that are found; its directory.

    Raises:
        ConfigError: If the configuration or the manifest is wrong, or runs are missing; nothing was written then.
    """
    settings, published = check_report(config)
    ablation, planned, stopping = _runs_asked_for(settings)
    ablation = styled(ablation, chosen(ablation.manifest.show, settings.style, settings.show))
    if settings.external is not None and (metric := ablation.manifest.show.metric) != RETURN:
        raise ConfigError(f"external={settings.external} has returns, but the report is of {metric}: leave it out")
    external = {}
    if settings.external is not None:
        environments = [(plan.environment, plan.config.env.name) for plan in planned]
        external = by_environment(published, environments, Path(settings.external))
    scores = replace(read_scores(planned, ablation.manifest.show), sequential=stopping is not None)
    problems = _check_missing(ablation, scores, settings)
    problems += _check_code(ablation, scores, settings)
    problems += not_deterministic(scores)
    if isinstance(ablation, FoundRuns):
        notes = [*other_task(ablation, planned), *(records(planned) if ablation.manifest.baseline else ())]
        print("".join(f"{line}\n" for line in notes), end="", file=sys.stderr)
        problems += notes
    directory = Path(settings.reports_dir) / ablation.name
    write(ablation, scores, stopping, problems, directory, settings, external)
    print(f"report of {len(planned) - len(scores.problems)} runs: {directory / 'report.html'}")
    return directory


def check_report(config: DictConfig) -> tuple[ReportConfig, list[ExternalResult]]:
    """Check the configuration of a report, and return it and the external results.

    Raises:
        ConfigError: If it is wrong. Whether there are runs is not checked.
    """
    name = HydraConfig.get().runtime.choices.get(GROUP)
    if name is not None and not OmegaConf.is_config(config.get(GROUP)):
        raise no_manifest(name)
    settings: ReportConfig = build_config(ReportConfig, {**resolve(config), GROUP: name})
    _check_selection(settings)
    chosen(DEFAULTS, settings.style, settings.show)
    check_writable("reports_dir", settings.reports_dir)
    return settings, [] if settings.external is None else read_external(Path(settings.external))


def _check_selection(settings: ReportConfig) -> None:
    """Check that either an ablation or runs are given, and only keys that go with it.

    Raises:
        ConfigError: If not.
    """
    if settings.ablation is None and settings.runs is None:
        raise ConfigError(
            "ablation has no value: give it one with ablation=NAME, a file in conf/ablation, or give runs=PATTERN"
        )
    if settings.ablations is not None and settings.ablation is None:
        raise ConfigError(f"ablations={format_value(settings.ablations)} needs ablation: write ablation=[a,b]")
    if settings.ablation is not None and settings.runs is not None:
        raise ConfigError(
            f"ablation={settings.ablation} and runs={format_value(settings.runs)} are both given: give one of them"
        )
    if settings.runs is not None and settings.overrides:
        raise ConfigError(
            f"overrides={format_value(settings.overrides)} does not go with runs=...: the runs are what they are"
        )
    for key, value in (("baseline", settings.baseline), ("name", settings.name), ("metric", settings.metric)):
        decided = settings.ablation is not None and not (key == "name" and settings.ablations)
        if decided and value is not None:
            raise ConfigError(f"{key}={value} does not go with ablation=...: the manifest decides it")
    check_metric("metric", settings.metric or RETURN)
    path = Path(settings.name or "name")
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ConfigError(f"name={settings.name} is not a name of a report: give a path below reports_dir")


def _runs_asked_for(settings: ReportConfig) -> tuple[Ablation, list[PlannedRun], Stopping | None]:
    """Return what is reported, its runs, and how its arms were stopped."""
    if settings.runs is not None:
        patterns = [settings.runs] if isinstance(settings.runs, str) else settings.runs
        return *find_runs(patterns, settings.baseline, settings.name, settings.metric or RETURN), None
    loader = GlobalHydra.instance().config_loader()
    parts = []
    for name in (str(settings.ablation), *(settings.ablations or ())):
        one = read_ablation(name, settings.overrides, loader)
        parts.append((one, plan_runs(one, loader, settings.output_dir)))
    if len(parts) > 1:
        for one, runs in parts:
            if stopping_of(one, runs) is not None:
                raise ConfigError(
                    f"ablation={one.name} stopped its arms when they were decided (until=decided): report it alone, or "
                    "every seed of its manifest with 'overrides=[\"until=seeds\"]'"
                )
        return *combine(parts, settings.name), None
    ablation, planned = parts[0]
    stopping = stopping_of(ablation, planned)
    if stopping is not None:
        ablation = replace(ablation, extra=(*ablation.extra, *stopping.overrides(ablation)))
        planned = stopping.asked_for(planned)
    return ablation, planned, stopping


def _check_missing(ablation: Ablation, scores: Scores, settings: ReportConfig) -> list[str]:
    """Return a line for each kind of run that cannot be counted.

    Raises:
        ConfigError: If there are any and `allow_missing` is false, or no run is left.
    """
    problems = format_problems(scores.problems)
    if not problems:
        return []
    counted = len(scores.planned) - len(scores.problems)
    print("\n".join(f"  {line}" for line in problems), file=sys.stderr)
    found = isinstance(ablation, FoundRuns)
    words = (
        f"{len(scores.problems)} of {len(scores.planned)} runs of {ablation.selector} cannot be counted, listed above"
    )
    if not settings.allow_missing or not counted:
        where = () if settings.output_dir == "outputs" else (shlex.quote(f"output_dir={settings.output_dir}"),)
        command = f"run {' '.join(('qohort train', '-m', ablation.sweep, *ablation.extra, *where))} for what is left"
        if found:
            command = "train what is left, or give other runs"
        allowed = "" if not counted else ", or report the others with allow_missing=true"
        raise ConfigError(f"{words}: {command}{allowed}")
    print(f"{words}: every table and figure says how many there are", file=sys.stderr)
    return problems


def _check_code(ablation: Ablation, scores: Scores, settings: ReportConfig) -> list[str]:
    """What is to be said of the code that made the runs, in lines.

    Raises:
        ConfigError: If it is not one code, and `other_code` does not allow that.
    """
    mixed = mixed_code(scores)
    if mixed:
        print("\n".join(f"  {line}" for line in mixed), file=sys.stderr)
        words = f"the runs of {ablation.selector} were made with different code, listed above"
        if settings.other_code == "refuse":
            again = f"train them again with qohort train -m {ablation.sweep} overwrite=true, or "
            raise ConfigError(
                f"{words}: {'' if isinstance(ablation, FoundRuns) else again}report them all the same with "
                "other_code=allow"
            )
        print(words, file=sys.stderr)
        return [f"different code: {line}" for line in mixed]
    if other := made_with_other_code(scores):
        print(other, file=sys.stderr)
        return [other]
    return []


def write(
    ablation: Ablation,
    scores: Scores,
    stopping: Stopping | None,
    problems: Sequence[str],
    directory: Path,
    settings: ReportConfig,
    external: Mapping[str, tuple[ExternalResult, ...]],
) -> None:
    """Write everything.

    Args:
        ablation: The ablation.
        scores: Its runs.
        stopping: How its arms were stopped; None if every arm has all seeds.
        problems: What is missing, in lines.
        directory: Where to.
        settings: The report's.
        external: Published results by environment.
    """
    from qohort.report.analysis import analyse, curves, profiles, verdicts_by_score
    from qohort.report.cells import latex, markdown
    from qohort.report.charts import charts
    from qohort.report.interactive import interactive
    from qohort.report.page import page
    from qohort.report.tables import comparisons_csv, curves_csv, tables

    places = analyse(ablation, scores, settings.resamples, external)
    by_score = verdicts_by_score(ablation, scores, places, settings.resamples)
    made = [*(stopping.tables() if stopping is not None else []), *tables(ablation, places, by_score)]
    figures = ablation.manifest.show.figures
    own = {name: curves(scores, name, ablation, settings.resamples) for name in ablation.manifest.environments}
    shares = profiles(ablation, scores, settings.resamples) if "profiles" in figures else {}
    drawn = _draw(charts(ablation, places, own, shares), ablation.manifest.show)
    pictures = [picture for picture, _ in drawn]
    again = commands(ablation, settings, directory)
    runs = interactive(ablation, scores, places, own)
    files: dict[Path, str | bytes] = {
        directory / "scores.csv": scores_csv(ablation, scores),
        directory / "comparisons.csv": comparisons_csv(places),
        directory / "curves.csv": curves_csv(own, ablation.manifest.show.band),
        directory / "table.md": "\n".join(markdown(table) for table in made),
        directory / "table.tex": "\n".join(latex(table) for table in made),
        directory / "report.html": page(
            ablation, scores, places, made, pictures, again, problems, stopping, runs, settings.resamples
        ),
        **{directory / "tables" / f"{table.key}.tex": latex(table) for table in made},
        **{directory / "figures" / name: content for _, files in drawn for name, content in files.items()},
    }
    _write_files(directory, files)
    if settings.wandb:
        log_to_wandb(ablation.name, directory, made, {picture.chart.key: picture.chart.title for picture in pictures})


def _draw(made: Sequence[Chart], show: Show) -> list[tuple[Picture, dict[str, bytes]]]:
    """Draw figures: for the page, and as files by name."""
    from qohort.report.figures import Size, draw
    from qohort.report.page import Picture
    from qohort.report.palette import NARROW

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells every glyph that a PDF has
    size = Size(show.width, show.height, rc_params(show))
    narrow = Size(min(show.width, NARROW), None, size.params)
    drawn = []
    for chart in made:
        wide, small = draw(chart, ("png", "pdf"), size), draw(chart, ("png",), narrow)
        picture = Picture.of(chart, wide["png"], small["png"], show.width)
        drawn.append((picture, {f"{chart.key}.{format}": content for format, content in wide.items()}))
    return drawn


def _write_files(directory: Path, files: Mapping[Path, str | bytes]) -> None:
    """Write the files of a report, and remove figures and tables of an earlier one that this one does not have."""
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content if isinstance(content, bytes) else content.encode())
    for old in {*directory.glob("figures/*.p[nd][gf]"), *directory.glob("tables/*.tex")} - set(files):
        old.unlink()


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
        for file in (*directory.glob("*.*"), *directory.glob("figures/*.*"), *directory.glob("tables/*.*")):
            artifact.add_file(str(file), str(file.relative_to(directory)))
        run.log_artifact(artifact)
    finally:
        run.finish()


def _quoted(text: str) -> str:
    """Return a text in quotes of the shell if it needs them."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def commands(ablation: Ablation, settings: ReportConfig, directory: Path) -> list[str]:
    """How to make the report again."""
    found = isinstance(ablation, FoundRuns)
    output = [] if settings.output_dir == "outputs" or found else [f"output_dir={settings.output_dir}"]
    name = ablation.selector
    train = ["qohort train -m", ablation.sweep, *ablation.extra, *output, "hydra/launcher=joblib"]
    reporting = ["qohort report", _quoted(name), *output]
    for key in ("baseline", "name", "metric", "external", "style"):
        if (value := getattr(settings, key)) is not None:
            reporting.append(_quoted(setting(key, value)))
    for key, value in settings.show.items():
        if value is not None:
            texts = isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
            reporting.append(_quoted((setting if texts else override)(f"show.{key}", value)))
    if ablation.extra:
        quoted = (f'"{text}"' for text in ablation.extra)
        reporting.append(f"'overrides=[{','.join(quoted)}]'")
    if settings.allow_missing:
        reporting.append("allow_missing=true")
    if settings.other_code == "allow":
        reporting.append("other_code=allow")
    verifying = f"qohort verify report={directory} sample=3"
    return [*([] if found else [" ".join(train)]), " ".join(reporting), verifying]
