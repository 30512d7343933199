"""Numbers of results in README and docs come from `results/`: the ledger, measurements, or what has no receipts."""

import re
from pathlib import Path

import pytest

from qohort.report.ledger import read_ledger
from qohort.report.ledger_tables import BLOCK, Results, fill

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
RESULTS = Results(ROOT / "results")

EXCEPTIONS = {
    "backends",
    "cartpole_before",
    "components_before",
    "revisiting_rainbow",
}
"""Results of runs whose fingerprints were not kept, and that are not to be trained again for now."""

NOT_RESULTS = {
    "ablations.md": ["key", "verdict", "key of `show`"],
    "index.md": ["page", "switch"],
    "getting_started.md": ["extra"],
    "ladder.md": ["rung"],
    "rainbow.md": ["component"],
    "architecture.md": ["word", "folder of the repository", "no.", "question"],
    "configuration.md": ["key", "exit code"],
    "exactness.md": ["what is checked"],
    "images.md": ["`env`", "what", "`network`", "detail", "`experiment`"],
    "ledger.md": ["key", "result"],
    "metrics.md": ["column", "key"],
    "sensitivity.md": ["column"],
    "sweeps.md": ["key", "what stops a command"],
    "tensor_environments.md": ["environment"],
    "README.md": ["component"],
}
"""Tables with digits that are no results: keys and defaults, papers and years, files. By page, the first heading."""

OF_RESULTS = ("README.md", "results.md", "tensor_environments.md")
"""Pages on which a number with a decimal point counts as a result."""

NOT_MEASURED = [
    *(
        "95% interval",
        "95% intervals",
        "a 95% interval",
        "95%, a bootstrap",
        "cover less than 95%",
        "at 5%",
        "below 5%",
    ),
    *("80% of the time", "a true 5%", "about 5% or less", "±2% is chance"),
    *("fails in 10% of its runs", "in 35% of cases"),  # by arithmetic: 0.9 to the power of 10
    *("largest 5% of weights", "or 1 KB", "of 1 KB"),
]
"""Numbers with a unit that define something and were not measured."""

UNIT = r"(?:s|ms|µs|seconds|min|minutes|hours?|[GMk]B|KB|%|×(?! \d)|points|env_steps/s)"
NUMBER = re.compile(rf"(?<![\w.,/])\d[\d,]*(?:\.\d+)?(?:(?: to | and |, |-)\d[\d,]*(?:\.\d+)?)* ?{UNIT}(?![\w])")
DECIMAL = re.compile(r"(?<![\w.,=])\d[\d,]*\.\d+(?![\w.])")
VERSIONS = re.compile(r"(?:version|torch|PyTorch|Python|numpy) \d[\d.]*")
FROM = re.compile(r"<!-- from: ([\w ]+) -->")


def blocks(page: Path) -> list[str]:
    """The paragraphs, lists, tables and comments of a page, without code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def is_table(block: str) -> bool:
    return block.startswith("|")


def has_digits(table: str) -> bool:
    return any(re.search(r"\d", without_code(row)) for row in table.splitlines()[2:])


def measured_numbers(text: str, decimals: bool = True) -> list[str]:
    """The numbers of a paragraph that were measured: with a unit, or with a decimal point."""
    for one in NOT_MEASURED:
        text = text.replace(one, "")
    text = VERSIONS.sub("", without_code(" ".join(text.split())))
    found = NUMBER.findall(text)
    return [*found, *(DECIMAL.findall(NUMBER.sub("", text)) if decimals else [])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_as_results_has_them(page):
    """If this fails: python scripts/tables.py."""
    assert fill(page.read_text(), RESULTS) == page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_with_digits_is_made_from_results_or_is_no_result(page):
    """A table of new results needs a ledger or a measurement, and a block; see docs/ledger.md."""
    text = page.read_text()
    made = {found[3].strip() for found in BLOCK.finditer(text)}
    for line in ("<!-- table: ", "<!-- end -->"):
        assert len(re.findall(f"^{line}", text, re.MULTILINE)) == len(made)
    for table in filter(is_table, blocks(page)):
        first = table.partition("|")[2].partition("|")[0].strip()
        if has_digits(table) and table not in made:
            assert first in NOT_RESULTS.get(page.name, []), (
                f"a typed table, {table.splitlines()[0]}: make it from results/, or list {first!r} in NOT_RESULTS"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_measured_number_in_a_sentence_is_quoted_from_results(page):
    """`<!-- from: NAME -->` above a paragraph says which table or measurement its numbers are quoted from."""
    before = ""
    for block in blocks(page):
        sources = FROM.fullmatch(before)
        before = block
        if is_table(block) or block.startswith("<!--"):
            continue
        known = quotable(sources[1].split()) if sources else ""
        missing = [one for one in measured_numbers(block, page.name in OF_RESULTS) if f" {one} " not in known]
        assert not missing, f"{missing} in: {block[:100]}"


def quotable(names: list[str]) -> str:
    """Everything that stands in the tables and quotes of these names."""
    texts = []
    for name in names:
        typed = RESULTS.typed(name)
        assert typed is not None or name in RESULTS.tables, f"from: {name} is not in results/"
        texts += [] if typed is None else [str(one) for one in typed.quotes]
        if name in RESULTS.tables or (typed is not None and typed.columns):
            texts.append(RESULTS.table(name))
    return f" {' '.join(re.sub(r'[|()]', ' ', ' '.join(text.split())) for text in texts)} "


def test_the_rules_find_what_they_should():
    assert measured_numbers("It took 29 to 62 s for Qohort, `12 s`, and 9.2× in 5 rounds.") == ["29 to 62 s", "9.2×"]
    assert measured_numbers("images of 84 × 84") == []
    assert measured_numbers("the last column was 0.40, 0.73 and 0.57") == ["0.40", "0.73", "0.57"]
    assert measured_numbers("a 95% interval with torch 2.13 and version 0.1, 10 seeds") == []
    assert has_digits("| a | b |\n|---|---|\n| x | 3 |")
    assert not has_digits("| a | b |\n|---|---|\n| x | `3` |")


def test_what_has_no_receipts_is_listed_and_has_no_ledger():
    """If a table has a ledger now: git rm results/without_receipts/NAME.yaml."""
    replaced = [name for name in RESULTS.without_receipts if RESULTS.has_ledger(name)]
    assert not replaced
    waiting = {name for name in RESULTS.tables if name in RESULTS.without_receipts}
    assert set(RESULTS.without_receipts) == EXCEPTIONS | waiting


def test_every_measurement_says_where_it_comes_from_and_is_used():
    text = "\n".join(page.read_text() for page in PAGES)
    used = {spec.measured for spec in RESULTS.tables.values()}
    for name, one in {**RESULTS.measured, **RESULTS.without_receipts}.items():
        assert all((one.what, one.command, one.machine, one.date, one.commit)), name
        shown = f"<!-- table: {name} -->" in text or re.search(rf"<!-- from: [\w ]*\b{name}\b[\w ]* -->", text)
        assert shown or name in used, f"{name} stands on no page"


LEDGERS = sorted((ROOT / "results" / "ledger").rglob("*.yaml"))


@pytest.mark.parametrize("file", LEDGERS, ids=lambda file: file.stem)
def test_a_ledger_is_whole(file):
    ledger = read_ledger(file.parent, file.stem)
    assert ledger.rows
    fingerprints = [run.fingerprint for row in ledger.rows for run in row.runs]
    assert len({*fingerprints}) == len(fingerprints)
    assert all(re.fullmatch(r"[0-9a-f]{64}", one) for one in fingerprints)
    for made in ledger.made.values():
        assert re.fullmatch(r"[0-9a-f]{40}", made["commit"])
        assert made["code"]
        assert made["cpu"]
    assert not [one for row in ledger.rows for one in row.overrides if "=/" in one], "a path of this machine"
