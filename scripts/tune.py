"""Tune hyperparameters: python scripts/tune.py study=<name> [key=value ...]. Keys: conf/tune.yaml."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("tune")
def main(config: DictConfig) -> None:
    from qohort.experiments.tuning import tune

    tune(config)


if __name__ == "__main__":
    main()
