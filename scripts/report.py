"""Report an ablation's results: python scripts/report.py ablation=<name> [key=value ...]. Keys: conf/report.yaml."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("report")
def main(config: DictConfig) -> None:
    from qohort.report.report import report

    report(config)


if __name__ == "__main__":
    main()
