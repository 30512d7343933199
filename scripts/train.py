"""The same as `qohort train`, for a clone: python scripts/train.py [key=value ...]. Keys: conf/train.yaml."""

from qohort.cli.train import main

if __name__ == "__main__":
    main()
