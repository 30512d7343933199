"""The same as `qohort sensitivity`, for a clone. Keys: conf/sensitivity.yaml."""

from qohort.cli.sensitivity import main

if __name__ == "__main__":
    main()
