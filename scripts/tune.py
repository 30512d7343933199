"""The same as `qohort tune`, for a clone: python scripts/tune.py [key=value ...]. Keys: conf/tune.yaml."""

from qohort.cli.tune import main

if __name__ == "__main__":
    main()
