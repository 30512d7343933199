"""Tables made from the ledger: their numbers are those of a report, their blocks are filled, mistakes are told."""

import runpy
import sys
from pathlib import Path

import pytest
import synthetic
import yaml

from qohort.config.errors import ConfigError
from qohort.report.analysis import analyse
from qohort.report.ledger import Ledger, LedgerRow, LedgerRun, ledger_text, made_of
from qohort.report.ledger_tables import Results, comparisons, fill
from qohort.report.scores import read_scores
from qohort.statistics import RESAMPLES

MADE = {"a": made_of({"cpu": "x"}, False)}


def ledger_row(arm, finals, against=None, seeds=None, env="CartPole-v1"):
    numbers = range(len(finals)) if seeds is None else seeds
    runs = [
        LedgerRun(seed, one, one + 1, one - 1, f"f{seed:063x}")
        for seed, one in zip(numbers, map(float, finals), strict=True)
    ]
    return LedgerRow(
        arm, arm.upper(), env, env, against or arm, "1234abcd", 300, "2026-01-02", "a", ("agent=dqn",), runs
    )


@pytest.fixture
def results(tmp_path):
    """A directory `results/` with a ledger of two arms, measurements, and a result without receipts."""
    rows = [ledger_row("one", [1, 2, 3, 4, 5, 6, 7, 8]), ledger_row("two", [11, 12, 13, 14, 15, 16, 17, 18], "one")]
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "study.yaml").write_text(ledger_text("study", Ledger("t", "c", MADE, rows)))
    header = "name,environment,mean,std,n,env_steps,source\n"
    (tmp_path / "published.csv").write_text(f"{header}Theirs,CartPole-v1,-4.50,1.25,3,300,a paper\n")
    entry = {"what": "w", "command": "c", "machine": "m", "date": "2026-01-02", "commit": "1234abcd"}
    speed = {
        **entry,
        "columns": ["geometry", "speed"],
        "rows": [["a long name", "1,192"], ["b", "5"]],
        "quotes": ["8 s"],
    }
    (tmp_path / "measurements.yaml").write_text(yaml.safe_dump({"speed": speed}))
    (tmp_path / "without_receipts").mkdir()
    old = yaml.safe_dump({**entry, "columns": ["arm"], "rows": [["typed"]]})
    for name in ("old", "waiting"):
        (tmp_path / "without_receipts" / f"{name}.yaml").write_text(old)
    return tmp_path


def table(results, **spec):
    (results / "tables.yaml").write_text(yaml.safe_dump({"made": spec}, sort_keys=False))
    return Results(results).table("made").splitlines()


def test_statistics_by_hand(results):
    columns = {"arm": "label", "runs": "count", "M ± S": "mean", "IQM": "iqm", "d": "difference", "v": "verdict"}
    first, second = table(results, ledger="study", columns=columns)[2:]
    # The middle half of 1 to 8 is 3, 4, 5, 6. The standard deviation of 1 to 8 is the root of 42 / 7.
    assert first.startswith("| ONE | 8 | 4.5 ± 2.4 | 4.5 [")
    assert first.endswith(" |  |  |")
    assert second.startswith("| TWO | 8 | 14.5 ± 2.4 | 14.5 [")
    assert second.endswith(" | +10.0 [+10.0, +10.0] | probably higher |")  # in pairs: every run is 10 higher


def test_comparisons_are_those_of_a_report(tmp_path):
    conf = synthetic.write_manifest(tmp_path, synthetic.manifest(["a", "b", "c"], {"cartpole": (0, 500)}, 6))
    planned = synthetic.plan(conf, tmp_path / "outputs")
    synthetic.write_runs(planned, synthetic.plausible)
    with synthetic.loader() as loader:
        ablation = synthetic.read_ablation("synthetic", (), loader, [f"hydra.searchpath=[file://{conf}]"])
    scores = read_scores(planned, ablation.manifest.show)
    (place,) = analyse(ablation, scores, RESAMPLES)
    rows = [
        ledger_row(
            arm.label, scores.column(arm.label, "cartpole", "final"), arm.against, scores.seeds(arm.label, "cartpole")
        )
        for arm in ablation.arms
    ]
    found = comparisons(Ledger("t", "c", MADE, rows), "final")
    assert {name.partition(" ")[0]: one for name, one in found.items()} == {
        one.arm.label: (one.comparison, one.verdict) for one in place.arms if one.comparison is not None
    }
    assert len(found) == 2


def test_rows_are_chosen_named_and_set_beside_published_ones(results):
    rows = [{"arm": "two", "seeds": [1, 2], "label": "second", "published": "Theirs"}, {"arm": "one", "label": "first"}]
    columns = {"arm": "code", "runs": "runs", "theirs": "published"}
    lines = table(results, ledger="study", rows=rows, columns=columns, side_by_side=2)
    assert lines[0] == "| arm | runs | theirs | arm | runs | theirs |"
    assert lines[2] == "| `second` | 12, 13 | −4.5 ± 1.25 (Theirs) | `first` | 1, 2, 3, 4, 5, 6, 7, 8 | – |"


def test_a_row_a_run(results):
    columns = {"seed": "seed", "final": "final", "best": "best", "area": "auc"}
    rows = [{"arm": "two", "seeds": [0, 7]}]
    lines = table(results, ledger="study", layout="runs", rows=rows, columns=columns)
    assert lines[2:] == ["| 0 | 11.0 | 12.0 | 10.0 |", "| 7 | 18.0 | 19.0 | 17.0 |"]


def test_a_study_of_sensitivity(results):
    """Two arms, of which pqn lacks gamma, and two learning rates."""
    study = {
        "name": "small",
        "train": None,
        "arms": {"dqn": {}, "pqn": {}},
        "environments": {"cartpole": {}},
        "grid": {
            "optimizer.lr": {"values": [1e-5, 0.1], "default": 0.1},
            "gamma": {"values": [0.9, 0.99], "default": 0.9},
        },
        "without": {"pqn": ["gamma"]},
        **{"seeds": [0, 1], "new_seeds": [5, 6], "score": "final", "max_members": 4, "resamples": 100},
        **{"output_dir": "outputs", "reports_dir": "reports"},
    }
    finals = {
        "dqn, optimizer.lr=1e-05, gamma=0.9": [0, 2],
        "dqn, optimizer.lr=1e-05, gamma=0.99": [2, 4, 30, 32],
        "dqn, optimizer.lr=0.1, gamma=0.9": [1, 1],
        "dqn, optimizer.lr=0.1, gamma=0.99": [2, 2],
        "pqn, optimizer.lr=1e-05": [5, 6],
        "pqn, optimizer.lr=0.1": [6, 8, 60, 70],
    }
    rows = [
        ledger_row(arm, values, seeds=[0, 1, 5, 6][: len(values)], env="cartpole") for arm, values in finals.items()
    ]
    file = results / "ledger" / "study.yaml"
    file.write_text(ledger_text("study", Ledger("t", "c", MADE, rows, study)))
    first, second = table(results, ledger="study", layout="study", part="settings")[2::2]
    assert first == "| dqn | all | 1e-05 | 0.99 |"
    assert second == "| pqn | all | 0.1 | – |"
    lines = table(results, ledger="study", layout="study", part="new_seeds")
    assert lines[2:] == [
        "| dqn | one for all | 30.0, 32.0 |",
        "| dqn | per environment | 30.0, 32.0 |",
        "| pqn | one for all | 60.0, 70.0 |",
        "| pqn | per environment | 60.0, 70.0 |",
    ]
    # Means 1, 3, 1, 2 of dqn and 5.5, 5.5, 7, 7 of pqn: percentiles 5 and 95 are 1 and 7.
    lines = table(results, ledger="study", layout="study", part="sensitivity")
    assert lines[2].startswith("| dqn | 0.33 | 0.33 | 0.00 | 2 of 2 (optimizer.lr, gamma)")
    assert lines[3].startswith("| pqn | 1.00 | 1.00 | 0.00 | 0 of 1")
    file.write_text(ledger_text("study", Ledger("t", "c", MADE, rows[:-1], study)))
    with pytest.raises(ConfigError, match=r"the ledger lacks seed 0 of pqn, optimizer.lr=0.1 on cartpole"):
        table(results, ledger="study", layout="study", part="settings")
    file.write_text(ledger_text("study", Ledger("t", "c", MADE, rows)))
    with pytest.raises(ConfigError, match="not of a study of sensitivity"):
        table(results, ledger="study", layout="study", part="settings")


def test_measurements_are_repeated_with_other_names(results):
    lines = table(results, measured="speed", columns={"what": "geometry", "steps/s": "speed"}, labels=["a", "b"])
    assert lines == ["| what | steps/s |", "|---|---|", "| a | 1,192 |", "| b | 5 |"]


def test_a_table_is_typed_until_its_ledger_is_there(results):
    spec = {"ledger": "later", "columns": {"arm": "label"}}
    (results / "tables.yaml").write_text(yaml.safe_dump({"waiting": spec}))
    assert Results(results).table("waiting").endswith("| typed |")
    assert not Results(results).has_ledger("waiting")
    copy(results / "ledger" / "study.yaml", results / "ledger" / "later.yaml")
    assert Results(results).table("waiting").endswith("| TWO |")
    assert Results(results).table("old").endswith("| typed |")


def copy(source, target):
    target.write_bytes(source.read_bytes())


def test_blocks_are_filled_and_nothing_else_is_changed(results):
    blocks = (
        "<!-- table: speed -->\nold\n<!-- end -->",
        "Text `<!-- table: x -->`",
        "<!-- table: old -->",
        "<!-- end -->",
    )
    page = "\n\n".join(("# Page", *blocks)) + "\n"
    filled = fill(page, Results(results))
    assert filled == (
        "# Page\n\n<!-- table: speed -->\n\n| geometry | speed |\n|---|---|\n| a long name | 1,192 |\n| b | 5 |\n\n"
        "<!-- end -->\n\nText `<!-- table: x -->`\n\n<!-- table: old -->\n\n| arm |\n|---|\n| typed |\n\n<!-- end -->\n"
    )
    assert fill(filled, Results(results)) == filled


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"ledger": "stdy", "columns": {"a": "label"}},
            "table made: name=stdy is not in the ledger: did you mean study?",
        ),
        (
            {"ledger": "study", "columns": {"a": "labl"}},
            "columns: labl is not something that a column shows: did you mean",
        ),
        (
            {"ledger": "study", "columns": {"a": "label"}, "rows": [{"arm": "on"}]},
            "arm=on is not in the ledger: did you",
        ),
        ({"ledger": "study", "columns": {}, "rows": [{"arm": "one", "seeds": [9]}]}, "does not have all seeds [9]"),
        (
            {"ledger": "study", "columns": {}, "rows": [{"arm": "one", "published": "X"}]},
            "published=X on CartPole-v1 is",
        ),
        ({"ledger": "study", "colums": {}}, "did you mean columns?"),
        ({"ledger": "study", "layout": "runs", "columns": {"a": "iqm"}}, "iqm is not something that a column shows"),
        ({"measured": "speed", "columns": {"a": "sped"}}, "sped is not a heading there: did you mean speed?"),
        ({"measured": "sped"}, "measured=sped is not there: did you mean speed?"),
    ],
)
def test_mistakes_are_told(results, spec, message):
    with pytest.raises(ConfigError) as raised:
        table(results, **spec)
    assert message in str(raised.value)
    with pytest.raises(ConfigError, match="table sped is not in"):
        fill("<!-- table: sped -->\n\n<!-- end -->", Results(Path("nowhere")))


def test_the_script_says_which_pages_are_old(monkeypatch, capsys):
    script = Path(__file__).parents[2] / "scripts" / "tables.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert (ended.value.code, capsys.readouterr().out) == (0, "")
