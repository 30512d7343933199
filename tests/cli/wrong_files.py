"""Wrong files: damaged runs and reports, manifests, studies, published results, configurations and own projects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import yaml
from mutations import BROKEN
from wrong import DIRECTORY, LINK, MANIFEST, PUBLISHED, SHORT, STUDY, Wrong, swap


def half(content: bytes) -> bytes:
    """The first half of a file."""
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """A file with some bytes in its middle changed."""
    at = len(content) // 2
    return content[:at] + bytes(255 - byte for byte in content[at : at + 64]) + content[at + 64 :]


def _without(key: str) -> object:
    def change(content: bytes) -> bytes:
        tree = yaml.safe_load(content)
        del tree[key]
        return json.dumps(tree).encode()

    change.__name__ = f"without {key}"
    return change


def _with(key: str, value: object) -> object:
    def change(content: bytes) -> bytes:
        return json.dumps({**yaml.safe_load(content), key: value}).encode()

    change.__name__ = f"with {key}={value}"
    return change


ANY = (None, b"", half, b"\xff\xfe\x00", b"[]", b"3", b"null", b"{", DIRECTORY, LINK)
"""What may become of any file."""
DAMAGES: Mapping[str, tuple[object, ...]] = {
    "config.yaml": (
        *ANY,
        *(_with("gamma", "abc"), _with("budgets", 3), _without("network"), _with("seed", 7), _with("env", 3)),
        _with("network", {"_target_": "gone.networks.Net"}),
        _with("head", {"_target_": "qohort.agent.heads.Gone"}),
    ),
    "result.json": (*ANY, _without("final_return"), _with("final_return", "abc"), _without("fingerprint")),
    "manifest.json": (*ANY, _with("code", 3)),
    "metrics.jsonl": (*ANY, b"{}\n", b'{"env_steps": "a"}\n'),
    "checkpoints/final.ckpt": (*ANY, flipped),
    "checkpoints": (None, b"a file"),
}
"""What becomes of the files of a run."""
READERS = {
    "evaluate": ("evaluate", "run={run}", "episodes=1"),
    "export": ("export", "run={run}", "to=exported", "format=safetensors"),
    "diff": ("diff", "{run}", "{other}"),
    "report": ("report", "runs=outputs", "resamples=100", "reports_dir=written"),
    "ablation": ("report", "ablation=own", "resamples=100", "reports_dir=written"),
    "verify": ("verify", "report=reports/own", "sample=4"),
    "train": ("train", "-m", "ablation=own"),
}
"""Commands that read runs."""


LISTING = ("report", "ablation")
"""Those that list the runs which cannot be counted before they refuse."""
READ = {
    "evaluate": ("config.yaml", "checkpoints/final.ckpt", "checkpoints"),
    "export": ("result.json", "checkpoints/final.ckpt"),
    "diff": ("config.yaml", "result.json"),
    "report": ("config.yaml",),
    "ablation": ("result.json", "metrics.jsonl"),
    "verify": ("config.yaml", "manifest.json"),
    "train": ("result.json", "checkpoints"),
}
"""The files that each of them is tried with."""


def damaged_runs() -> Iterator[Wrong]:
    """A damaged file of a run that a command reads. Some commands do without it."""
    for reader, files in READ.items():
        for file in files:
            for damage in DAMAGES[file]:
                damaged = {f"{{run}}/{file}": damage}
                yield Wrong(
                    f"damaged run, {reader}",
                    READERS[reader],
                    ("seed",),
                    damaged,
                    may_be_right=True,
                    lists=reader in LISTING,
                    looks=reader == "train",
                )


def unfinished_runs() -> Iterator[Wrong]:
    """Runs that are not finished, failed ones and half-made directories."""
    gone = {"{run}/result.json": None}
    for reader in ("export", "ablation", "verify"):
        yield Wrong("unfinished run", READERS[reader], (), gone, lists=reader in LISTING)
    none = {**gone, "{run}/checkpoints": None}
    for reader in ("evaluate", "export"):
        yield Wrong("unfinished run", READERS[reader], ("{run}", "checkpoint"), none)
    for text in ("", "{", "[]", '{"reason": 3}'):
        files = {**gone, "{run}/failed.json": text}
        for reader in ("ablation", "train", "report"):
            looks = reader == "train"
            if looks and "reason" in text:  # a run that has failed, which a sweep reports at its end
                continue
            yield Wrong("failed run", READERS[reader], ("seed",), files, True, looks, lists=reader in LISTING)
    for place in ("{run}", "{experiment}"):
        for what in (None, b"a file", DIRECTORY, LINK):
            for reader in ("evaluate", "export", "diff", "verify", "train", "ablation"):
                yield Wrong(
                    "half-made run",
                    READERS[reader],
                    (),
                    {place: what},
                    may_be_right=reader == "train",
                    looks=reader == "train",
                    lists=reader in LISTING,
                )


REPORTS: tuple[tuple[object, ...], ...] = (
    (None, "scores.csv"),
    (b"", "counts no run"),
    (b"\xff\xfe\x00", "scores.csv"),
    (b"a,b\n1,2\n", "counts no run"),
    (b"status\nfinished\n", "scores.csv"),
    (DIRECTORY, "scores.csv"),
    (half, "scores.csv"),
    (swap(("seed-0", "seed-9")), "seed-9"),
    (swap((",0,", ",zero,")), "scores.csv"),
    (swap(("dqn-", "dqx-")), "dqx-"),
    (swap(("finished", "missing")), "counts no run"),
    (swap(("config_hash", "hash")), "config_hash"),
    (swap(("fingerprint", "print")), "fingerprint"),
    (swap(("directory", "place")), "directory"),
)


def damaged_reports() -> Iterator[Wrong]:
    """A damaged `scores.csv`."""
    for damage, *told in REPORTS:
        files = {"reports/own/scores.csv": damage}
        yield Wrong("damaged report", READERS["verify"], tuple(map(str, told)), files, may_be_right=damage is half)


CHECKED_LATE = ("same experiment", "budget", "does not declare")
"""What arms differ in is checked after their environments."""
# What is replaced in the manifest, by what, and words that the message must have.
MANIFESTS = [
    ("# @package ablation\n", "# @package ablatoin\n", "ablation=own", "# @package ablation"),
    ("title: Own\n", "", "title has no value"),
    ("title: Own\n", "title: 3\n", "title=3"),
    ("title: Own\n", "title: [a]\n", "title=[a]"),
    ("title: Own\n", "titel: Own\n", "titel", "did you mean title"),
    ("baseline: dqn\n", "", "baseline has no value"),
    ("baseline: dqn\n", "baseline: dqnn\n", "baseline=dqnn", "did you mean dqn"),
    ("baseline: dqn\n", "baseline: [dqn]\n", "baseline=[dqn]"),
    ("seeds: range(0,2)\n", "", "seeds has no value"),
    ("seeds: range(0,2)\n", "seeds: range(2,0)\n", "range(2,0)"),
    ("seeds: range(0,2)\n", "seeds: range(0,a)\n", "range(0,a)"),
    ("seeds: range(0,2)\n", "seeds: range(0\n", "range(0"),
    ("seeds: range(0,2)\n", "seeds: 5\n", "seeds=5"),
    ("seeds: range(0,2)\n", "seeds: []\n", "seed"),
    ("seeds: range(0,2)\n", "seeds: [0, 0]\n", "twice"),
    ("seeds: range(0,2)\n", "seeds: [a]\n", "seeds=[a]"),
    ("seeds: range(0,2)\n", "seeds: [-1]\n", "-1"),
    ("seeds: range(0,2)\n", "seeds: abc\n", "abc"),
    ("seeds: range(0,2)\n", "seeds: ''\n", "seeds"),
    ("seeds: range(0,2)\n", "seeds: {a: 1}\n", "seeds"),
    ("budget: 40\n", "", "budget has no value"),
    ("budget: 40\n", "budget: 0\n", "budget=0"),
    ("budget: 40\n", "budget: 4\n", "budget=4"),
    ("budget: 40\n", "budget: lots\n", "budget=lots"),
    ("  cartpole: {low: 0, high: 500}\n", "", "environments"),
    ("  cartpole: {low: 0, high: 500}\n", "  cartpol: {low: 0, high: 500}\n", "env=cartpol", "did you mean cartpole"),
    ("{low: 0, high: 500}", "{low: 500, high: 0}", "low=500", "must be less than"),
    ("{low: 0, high: 500}", "{low: 0}", "high has no value"),
    ("{low: 0, high: 500}", "{low: a, high: 500}", "low=a"),
    ("{low: 0, high: 500}", "{low: 0, hihg: 500}", "hihg"),
    ("{low: 0, high: 500}", "[0, 500]", "cartpole=[0,500]"),
    ("{low: 0, high: 500}", "{low: 0, high: .nan}", "high"),
    ("  - batch_size=4\n", "  - batch_size\n", "batch_size", "key=value"),
    ("  - batch_size=4\n", "  - batch_sice=4\n", "batch_sice", "did you mean batch_size"),
    ("  - batch_size=4\n", "  - batch_size=-4\n", "batch_size=-4"),
    ("  - batch_size=4\n", "  - batch_size=4,8\n", "batch_size=4,8 is a sweep"),
    ("  - batch_size=4\n", "  - batch_size: 4\n", "settings[0]"),
    ("  - batch_size=4\n", "  - seed=3\n", "seed=3 may not be set here"),
    ("  - batch_size=4\n", "  - env=acrobot\n", "env=acrobot may not be set here"),
    ("  - batch_size=4\n", "  batch_size: 4\n", "own"),
    ("settings:\n", "setings:\n", "setings", "did you mean settings"),
    ("  dqn:\n", "  dqm:\n", "baseline=dqn", "did you mean dqm"),
    ("    overrides: [agent=dqn]\n", "    overides: [agent=dqn]\n", "overides", "overrides"),
    ("    overrides: [agent=dqn]\n", "    overrides: agent=dqn\n", "overrides=agent=dqn"),
    ("    overrides: [agent=dqn]\n", "    overrides: [agent=dqnn]\n", "agent=dqnn", "did you mean dqn"),
    ("    overrides: [bootstrap=double]\n", "    overrides: [bootstrap=greedy]\n", "same experiment"),
    ("    overrides: [bootstrap=double]\n", "    overrides: [budget=80]\n", "budget"),
    ("    overrides: [bootstrap=double]\n", "    overrides: [agent=rainbow]\n", "does not declare", "differs"),
    ("    overrides: [bootstrap=double]\n", "    overrides: [bootstrap=dubble]\n", "dubble", "did you mean double"),
    ("    overrides: [bootstrap=double]\n", "    title: 3\n    overrides: [bootstrap=double]\n", "title=3"),
    ("    overrides: [bootstrap=double]\n", "    overrides: ['bootstrap=[']\n", "bootstrap=["),
    ("  double:\n", "  'dou ble':\n", "dou ble"),
    ("  double:\n", "  ../double:\n", "../double"),
    ("  double:\n", "  3:\n", "3"),
    ("arms:\n", "arm:\n", "arm"),
    ("arms:\n", "add_one:\n  dqx:\n    a: [gamma=0.5]\narms:\n", "add_one.dqx", "dqn"),
    ("arms:\n", "add_one:\n  dqn:\n    a: gamma=0.5\narms:\n", "add_one.dqn.a"),
    ("arms:\n", "leave_one_out: [dqn]\narms:\n", "leave_one_out"),
    ("arms:\n", "show: {score: best}\narms:\n", "show.score=best", "auc, final, last"),
    ("arms:\n", "show: {scores: final}\narms:\n", "scores", "did you mean"),
    ("arms:\n", "show: {figures: [curve]}\narms:\n", "curve", "did you mean curves"),
    ("arms:\n", "show: 3\narms:\n", "show=3"),
    ("arms:\n", "until: decide\narms:\n", "until=decide", "decided"),
    ("arms:\n", "sequential: {alpha: 2}\narms:\n", "alpha=2"),
    ("arms:\n", "arms: [\n", "own"),
    ("arms:\n", "\tarms:\n", "own"),
    (MANIFEST, "", "ablation=own"),
    (MANIFEST, "3\n", "own"),
    (MANIFEST, "# @package ablation\n[]\n", "own"),
    (MANIFEST, "# @package ablation\na: b: c\n", "own"),
]


def manifests() -> Iterator[Wrong]:
    """Wrong manifests of an ablation, for training and for the report."""
    for old, new, *told in MANIFESTS:
        files = {"conf/ablation/own.yaml": new if old == MANIFEST else swap((old, new))}
        looks = any(words in CHECKED_LATE for words in told)
        yield Wrong("manifest", READERS["train"], tuple(told), files, looks=looks)
        yield Wrong("manifest, report", READERS["ablation"], tuple(told), files)


STUDIES = [
    ("# @package _global_\n", "", "study", "# @package _global_"),
    ("name: found\n", "", "name has no value"),
    ("name: found\n", "name: [found]\n", "name=[found]"),
    ("train:\n", "trian:\n", "trian", "did you mean train"),
    ("  batch_size: 4\n", "  batch_sice: 4\n", "batch_sice", "did you mean batch_size"),
    ("  batch_size: 4\n", "  batch_size: four\n", "batch_size=four"),
    ("  batch_size: 4\n", "  env: cartpol\n", "env=cartpol"),
    ("  gamma: {choices: [0.98, 0.99]}\n", "  gamma: {choices: [0.98, 2]}\n", "gamma=2"),
    ("  gamma: {choices: [0.98, 0.99]}\n", "  gama: {choices: [0.98, 0.99]}\n", "gama", "did you mean gamma"),
    ("  gamma: {choices: [0.98, 0.99]}\n", "  gamma: [0.98, 0.99]\n", "space.gamma=[0.98,0.99]", "choices"),
    ("  gamma: {choices: [0.98, 0.99]}\n", "  gamma: {chioces: [0.98, 0.99]}\n", "chioces"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1e-2, high: 1e-4, log: true}", "optimizer.lr"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 0, high: 1e-2, log: true}", "optimizer.lr"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1e-4, high: 1e-2, log: yes please}", "log"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: .nan, high: 1e-2}", "optimizer.lr"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1e-4, high: .inf}", "optimizer.lr"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: -1, high: 1}", "optimizer.lr=-1"),
    ("trials: 2\n", "trials: two\n", "trials=two"),
    ("rungs: [40]\n", "rungs: 40\n", "rungs=40"),
    ("tuning_seeds: [1000]\n", "tuning_seeds: [0]\n", "share 0"),
    ("space:\n", "space: [\n", "own"),
    (STUDY, "", "# @package _global_"),
    (STUDY, "# @package _global_\n- a\n", "own"),
]


def studies() -> Iterator[Wrong]:
    """Wrong studies."""
    for old, new, *told in STUDIES:
        files = {"conf/study/own.yaml": new if old == STUDY else swap((old, new))}
        yield Wrong("study", ("tune", "study=own"), tuple(told), files)
    for content in (b"", b"not a database" * 100, DIRECTORY):
        files = {"outputs/tuning/found/study.db": content}
        yield Wrong("study's database", ("tune", "study=own"), ("study.db",), files, may_be_right=content == b"")


HEADER, ROW, _ = PUBLISHED.split("\n")
RESULTS = [
    ("", "no rows"),
    (HEADER, "no rows"),
    (ROW, "published.csv"),
    (swap(("mean", "maen")), "row 1", "maen", "did you mean mean"),
    (swap(("488.7", "")), "row 1", "mean"),
    (swap(("488.7", "high")), "mean=high"),
    (swap(("488.7", "nan")), "mean=nan"),
    (swap(("488.7", "inf")), "mean=inf"),
    (swap(("16.1", "-1")), "std=-1"),
    (swap(("16.1", "")), "spread"),
    (swap((",3,", ",0,")), "n=0"),
    (swap((",3,", ",2.5,")), "n=2.5"),
    (swap(("500000", "500k")), "env_steps=500k"),
    (swap(("a page", "a page, and more")), "row 1", "quote"),
    (swap(("Paper", "")), "name"),
    (PUBLISHED + ROW + "\n", "row 2", "twice"),
    (swap(("CartPole-v1", "CartPole-v9")), "no row of an environment"),
    (swap((",std,", ",low,")), "low"),
    (swap((",std,", ",std,std,")), "published.csv"),
    (swap((",", ";")), "published.csv"),
    (swap((",", "\t")), "published.csv"),
    ("\ufeff" + PUBLISHED.replace("488.7", "x"), "mean=x"),
    (b"\xff\xfe" + PUBLISHED.encode("utf-16-le"), "published.csv"),
    (b"PK\x03\x04\x00\x00", "published.csv"),
    (DIRECTORY, "published.csv"),
    (None, "published.csv"),
]
LISTS = ["", "3", "[]", "[3]", "{a: 1}", "- name: a\n", "- {name: a, mean: [1]}\n", "a: [", "- null\n", "\x00"]


def results() -> Iterator[Wrong]:
    """Wrong files of published results."""
    line = (*READERS["ablation"], "external=published.csv")
    for content, *told in RESULTS:
        yield Wrong("published results", line, tuple(map(str, told)), {"published.csv": content})
    for text in LISTS:
        yield Wrong("published results", (*line[:-1], "external=p.yaml"), ("p.yaml",), {"p.yaml": text})


def configurations() -> Iterator[Wrong]:
    """Broken files in a directory of one's own, and in the project's `conf/` in place of Qohort's."""
    for content in BROKEN:
        files = {"mine/experiment/new.yaml": content}
        line = ("train", *SHORT, "--config-dir=mine", "experiment=new")
        yield Wrong("--config-dir", line, (), files, may_be_right=True)
    for number, content in enumerate(BROKEN):
        path = ("network/mlp", "agent/dqn", "env/cartpole", "trainer/cpu", "train")[number % 5]
        yield Wrong("shadowing", ("train", *SHORT), (), {f"conf/{path}.yaml": content}, may_be_right=True)
    for command in ("evaluate", "report", "export", "verify", "tune"):
        line = {**READERS, "tune": ("tune", "study=own"), "report": READERS["ablation"]}[command]
        for content in (b"", b"a: [", b"a: 1\n", b"[]"):
            yield Wrong("shadowing", line, (), {f"conf/{command}.yaml": content}, may_be_right=True)


def files() -> Iterator[Wrong]:
    """All of them."""
    yield from damaged_runs()
    yield from unfinished_runs()
    yield from damaged_reports()
    yield from manifests()
    yield from studies()
    yield from results()
    yield from configurations()
