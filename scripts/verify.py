"""The same as `qohort verify`, for a clone: python scripts/verify.py [key=value ...]. Keys: conf/verify.yaml."""

from qohort.cli.verify import main

if __name__ == "__main__":
    main()
