"""The same as `qohort report`, for a clone: python scripts/report.py [key=value ...]. Keys: conf/report.yaml."""

from qohort.cli.report import main

if __name__ == "__main__":
    main()
