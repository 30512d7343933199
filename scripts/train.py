"""Train a cohort, or a sweep with -m: python scripts/train.py [key=value ...]. Keys: conf/train.yaml."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("train")
def main(config: DictConfig) -> None:
    from qohort.runs.training import train

    train(config)


if __name__ == "__main__":
    main()
