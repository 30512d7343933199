"""Make the tables of README and docs from results/: python scripts/tables.py [--check]."""

import sys
from pathlib import Path

from qohort.config.errors import ConfigError
from qohort.report.ledger_tables import Results, fill

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Fill in all blocks `<!-- table: NAME -->`; with --check only say which are not as results/ has them."""
    checking = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not checking:
        sys.exit(f"tables.py: {sys.argv[1]} is not an option: the only one is --check")
    try:
        results = Results(ROOT / "results")
        old = {page: page.read_text() for page in PAGES}
        new = {page: fill(text, results) for page, text in old.items()}
    except ConfigError as error:
        print(f"tables.py: {error}", file=sys.stderr)
        sys.exit(2)
    changed = [page for page in PAGES if old[page] != new[page]]
    for page in changed:
        print(f"{page.relative_to(ROOT)}: {'not as results/ has it' if checking else 'made anew'}")
        if not checking:
            page.write_text(new[page])
    sys.exit(1 if checking and changed else 0)


if __name__ == "__main__":
    main()
