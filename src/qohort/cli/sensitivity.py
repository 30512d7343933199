"""Study how performance depends on hyperparameters: qohort sensitivity [key=value ...]. Keys: conf/sensitivity.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("sensitivity")
def main(config: DictConfig) -> None:
    """Train a study, and write its tables and figures."""
    from qohort.experiments.sensitivity import read_study
    from qohort.experiments.sensitivity_runs import train_study

    study = read_study(config)
    found = train_study(study)
    from qohort.report.sensitivity import print_tables, write_sensitivity

    directory, tables = write_sensitivity(study, found)
    print_tables(tables)
    print(f"written: {directory} (table.md, table.tex, scores.csv, figures)")
