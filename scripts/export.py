"""The same as `qohort export`, for a clone: python scripts/export.py [key=value ...]. Keys: conf/export.yaml."""

from qohort.cli.export import main

if __name__ == "__main__":
    main()
