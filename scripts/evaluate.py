"""The same as `qohort evaluate`, for a clone: python scripts/evaluate.py [key=value ...]. Keys: conf/evaluate.yaml."""

from qohort.cli.evaluate import main

if __name__ == "__main__":
    main()
