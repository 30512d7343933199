"""Train a cohort: python scripts/train.py [key=value ...]. See conf/train.yaml for the keys."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("train")
def main(config: DictConfig) -> None:
    from qohort.runs.training import train

    train(config)


if __name__ == "__main__":
    main()
