"""Train some runs of a report again: python scripts/verify.py report=<directory>. See conf/verify.yaml for the keys."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("verify")
def main(config: DictConfig) -> None:
    from qohort.report.verification import verify

    verify(config)


if __name__ == "__main__":
    main()
