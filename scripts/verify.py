"""Verify a report by training some runs again: python scripts/verify.py report=<directory>. Keys: conf/verify.yaml."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("verify")
def main(config: DictConfig) -> None:
    from qohort.report.verification import verify

    verify(config)


if __name__ == "__main__":
    main()
