"""`python -m qohort`."""

from qohort.cli.main import main

main()
