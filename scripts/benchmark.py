"""Measure speed: python scripts/benchmark.py [key=value ...]. See conf/benchmark.yaml for the keys."""

from omegaconf import DictConfig

from qohort.cli import entry_point


@entry_point("benchmark")
def main(config: DictConfig) -> None:
    from qohort.benchmark import benchmark

    benchmark(config)


if __name__ == "__main__":
    main()
