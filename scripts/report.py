"""Tables and figures of an ablation: python scripts/report.py ablation=<name>. See conf/report.yaml for the keys."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("report")
def main(config: DictConfig) -> None:
    from qohort.report.report import report

    report(config)


if __name__ == "__main__":
    main()
