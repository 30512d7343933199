"""Evaluate a trained member: python scripts/evaluate.py run=<directory> [key=value ...]. Keys: conf/evaluate.yaml."""

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> None:
    from qohort.runs.evaluating import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
