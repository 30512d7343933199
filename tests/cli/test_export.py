"""`qohort export`: what it writes, that it acts as the run's policy does, what it refuses, and the upload."""

import base64
import importlib.util
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

import qohort
from qohort.cli.main import main
from qohort.config.errors import ConfigError
from qohort.networks.packing import PackedSpace
from qohort.runs import exporting
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import load_config, load_member
from qohort.runs.exported import space_of, space_tree
from qohort.runs.formats import FORMATS, compare
from qohort.runs.policy import PolicyNetwork

SHORT = (
    *("budget=300", "learning_starts=60", "compile=none", "logger=none", "evaluation.every=150"),
    *("evaluation.episodes=2", "evaluation.max_episode_steps=50", "trainer.progress_bar=false"),
)
SMALL = ("agent=c51", "head.atoms=7", "network.hidden=[9,5]", "network.noisy=true", "normalize_observations=true")


def train(output, *settings, seeds="[3]"):
    qohort.train(*SHORT, f"output_dir={output}", f"seed={seeds}", *settings)
    return sorted(one.parent for one in output.rglob("result.json"))


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five finished runs: noisy, with a distributional head, on normalised observations."""
    return train(tmp_path_factory.mktemp("outputs"), *SMALL, seeds="[0,1,2,3,4]")


@pytest.fixture
def run(five, tmp_path):
    """A copy of the experiment's directory, for one test: the run of seed 3."""
    return Path(shutil.copytree(five[3].parent, tmp_path / "outputs" / five[3].parent.name)) / "seed-3"


@pytest.fixture
def export(monkeypatch, capfd):
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qohort", "export", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return run


def values_of(run, observations):
    """What training computes: the action values of the stacked network, without noise."""
    directory = RunDirectory(run)
    member = load_member(directory, load_config(directory), torch.device("cpu"))
    return member.values(torch.from_numpy(observations)[None])[0].numpy()


def front_matter(card):
    _, metadata, text = card.read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_every_format_acts_as_the_policy_does(run, export):
    import onnxruntime

    code, output, errors = export(f"run={run}", "license=mit")
    assert (code, errors) == (0, "")
    made = run / "export"
    assert output.endswith(f"written: {made}\n")
    assert {file.name for file in made.iterdir()} == {"README.md", "config.json", *(f.file for f in FORMATS.values())}
    assert {file.stat().st_mode & 0o777 for file in made.iterdir()} == {(run / "result.json").stat().st_mode & 0o777}
    observations = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    expected = values_of(run, observations)
    assert len({*expected.argmax(1)}) == 2
    session = onnxruntime.InferenceSession(made / "policy.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(made / "policy.pt2").module()
    found = {
        "safetensors": qohort.load(made).values(observations),
        "torch_export": program(torch.from_numpy(observations)).detach().numpy(),
        "onnx": session.run(None, {"observation": observations})[0],
    }
    for name, values in found.items():
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        assert (values.argmax(1) == expected.argmax(1)).all(), name
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("observation", ["batch", 4])]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("action_values", ["batch", 2])]
    for rows in (1, 5):
        assert session.run(None, {"observation": observations[:rows]})[0].shape == (rows, 2)
        assert program(torch.from_numpy(observations[:rows])).shape == (rows, 2)
    here = str(Path(qohort.__file__).parents[2]).encode()
    for file in made.iterdir():  # an export is published: nothing in it tells of this machine
        assert here not in file.read_bytes(), file
        assert str(run.parents[1]).encode() not in file.read_bytes(), file
    check_card(made / "README.md", run)


def check_card(card, run):
    metadata, text = front_matter(card)
    results = [json.loads((one / "result.json").read_text()) for one in sorted(run.parent.glob("seed-*"))]
    assert (metadata["license"], metadata["library_name"]) == ("mit", "qohort")
    (listed,) = metadata["model-index"][0]["results"]
    own, over_seeds = listed["metrics"]
    assert (listed["dataset"]["name"], own["value"]) == ("CartPole-v1", results[3]["final_return"])
    cut = sorted(result["final_return"] for result in results)[1:-1]  # a quarter of five, rounded down, at each end
    assert over_seeds["value"] == pytest.approx(np.mean(cut))
    assert "with seeds 0-4: IQM" in text
    assert "95% interval [" in text
    for word in (results[3]["fingerprint"], RunDirectory(run).code(), "| `network.noisy` | `true` |", "2 episodes"):
        assert word in text
    assert "normalises it with the mean" in text
    assert "noise of its noisy layers is off" in text
    assert "distribution of the return" in text
    assert "{{" not in text
    huggingface_hub = pytest.importorskip("huggingface_hub")
    parsed = huggingface_hub.ModelCard.load(card)
    assert parsed.data.eval_results[0].metric_value == own["value"]


def test_a_checkpoint_of_an_unfinished_run_is_exported_only_when_named(run, export):
    (run / "result.json").unlink()
    code, output, errors = export(f"run={run}", "format=torch_export")
    assert (code, output) == (2, "")
    assert "is not finished: finish it" in errors
    assert "checkpoint=final.ckpt exports the newest" in errors
    assert not (run / "export").exists()
    (run / "checkpoints/final.ckpt").rename(run / "checkpoints/step-000000000300.ckpt")
    named = "checkpoint=step-000000000300.ckpt"
    code, _, errors = export(f"run={run}", "format=torch_export", named, f"to={run}/../taken/here")
    assert (code, errors) == (0, "")
    metadata, text = front_matter(run.parent / "taken/here/README.md")
    assert "model-index" not in metadata
    assert "None: this is a checkpoint at 300 of 300 env_steps." in text
    code, _, errors = export(f"run={run}", "checkpoint=step-000000000200.ckpt")
    assert code == 2
    assert "is not a checkpoint of run=" in errors
    assert "it has step-000000000300.ckpt" in errors


def test_fewer_than_five_seeds_have_no_interval_and_other_code_does_not_count(run, export):
    for seed in (0, 1):
        shutil.rmtree(run.parent / f"seed-{seed}")
    manifest = run.parent / "seed-2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(RunDirectory(run).code(), "other123"))
    assert export(f"run={run}", "format=safetensors")[0] == 0
    metadata, text = front_matter(run / "export/README.md")
    assert "license" not in metadata
    assert len(metadata["model-index"][0]["results"][0]["metrics"]) == 1
    assert "interval" not in text
    assert "with seeds 3-4: " in text
    assert "Not counted: 1 more seed" in text


def test_an_export_is_replaced_and_other_directories_are_not(run, export, tmp_path):
    target = tmp_path / "policy"
    assert export(f"run={run}", "format=torch_export", f"to={target}")[0] == 0
    assert export(f"run={run}", "format=safetensors", f"to={target}")[0] == 0
    assert {file.name for file in target.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == {"outputs", "policy"}
    (target / "notes.txt").write_text("mine")
    for place, reason in ((target, "has notes.txt, which is not of an export"), (run, "has checkpoints, which is not")):
        before = sorted(place.rglob("*"))
        code, output, errors = export(f"run={run}", "format=safetensors", f"to={place}")
        assert (code, output) == (2, "")
        assert reason in errors
        assert sorted(place.rglob("*")) == before


def test_a_file_that_does_not_compute_the_same_is_not_written(run, export, monkeypatch):
    def wrong(path):
        network = FORMATS["torch_export"].read(path)
        return lambda observations: network(observations) + np.array([0.0, 0.1], np.float32)

    other = {**FORMATS, "torch_export": exporting.FORMATS["torch_export"].__class__(
        "", "policy.pt2", (), FORMATS["torch_export"].write, wrong
    )}  # fmt: skip
    monkeypatch.setattr(exporting, "FORMATS", other)
    before = sorted(run.rglob("*"))
    code, output, errors = export(f"run={run}", "format=torch_export")
    assert (code, output) == (2, "")
    assert "format=torch_export computes other action values than the policy, by up to 0.1" in errors
    assert sorted(run.rglob("*")) == before


def test_a_comparison_by_hand():
    observations = np.zeros((200, 4), np.float32)
    ours = np.tile(np.array([10.0, 20.0], np.float32), (200, 1))
    ours[7] = 15.0, 15.001

    def serve(values):
        """A network that returns these values, batch after batch."""
        rest = [values]

        def network(batch):
            first, rest[0] = rest[0][: len(batch)], rest[0][len(batch) :]
            return first

        return network

    def compared(theirs):
        return compare(SimpleNamespace(values=serve(ours)), serve(theirs), observations, "served")

    assert compared(ours) == (200, 200, 0.0)
    tied = ours.copy()
    tied[7] = ours[7, ::-1]
    assert compared(tied) == (200, 199, pytest.approx(0.001, rel=1e-3))
    for wrong, message in (
        (ours + np.float32(0.003), "other action values than the policy, by up to 0.003, and at most 0.002 is"),
        (np.full_like(ours, np.nan), "not finite"),
        (ours[:, :1], r"of shape \(200, 1\), not \(200, 2\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            compared(wrong)


WRONG = {
    "no run": ((), "run has no value"),
    "no directory": (("run=/no/such/run",), "run=/no/such/run is not a directory"),
    "not a run": (("run={run}/checkpoints",), "is not a run directory, it has no config.yaml"),
    "format": (("run={run}", "format=tflite"), "format=tflite is not one of the choices"),
    "a file": (("run={run}", "to={run}/config.yaml"), "is not a directory"),
    "beyond a file": (("run={run}", "to={run}/config.yaml/x"), "is not a directory"),
    "unwritable": (
        ("run={run}", "to=/proc/export"),
        "to=/proc/export cannot be written: no directory can be made in /proc",
    ),
    "empty": (("run={run}", "to=''"), "to='' is empty"),
    "checkpoint": (("run={run}", "checkpoint=best.ckpt"), "checkpoint=best.ckpt is not a checkpoint"),
    "path": (("run={run}", "checkpoint=../config.yaml"), "is not a checkpoint"),
    "video": (("run={run}", "video=mp4"), "video=mp4"),
    "unknown key": (("run={run}", "fromat=onnx"), "did you mean format"),
    "repository": (("run={run}", "format=safetensors", "to=hub:a/b/c"), "to=hub:a/b/c is not the name of a repository"),
    "no repository": (("run={run}", "format=safetensors", "to=hub:"), "to=hub: is not the name of a repository"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_and_writes_nothing(name, run, export):
    arguments, message = WRONG[name]
    before = sorted(run.parent.rglob("*"))
    code, output, errors = export(*(argument.format(run=run) for argument in arguments))
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("qohort: ")
    assert message.format(run=run) in errors
    assert sorted(run.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (("format=onnx",), "onnxruntime"),
        (("format=safetensors",), "safetensors"),
        (("to=hub:me/it",), "huggingface_hub"),
    ],
)
def test_an_absent_package_is_named_with_its_command(arguments, package, run, export, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    code, output, errors = export(f"run={run}", *arguments)
    assert (code, output) == (2, "")
    assert errors == f"qohort: {arguments[0]} needs the package {package}: pip install 'qohort[export]'\n"


def test_a_network_that_torch_cannot_trace_is_told_in_one_line(run, export, monkeypatch):
    def forward(self, observation):
        return self.network(observation)[..., 0] if observation.sum().item() > 0 else observation[:, :2]

    monkeypatch.setattr(PolicyNetwork, "forward", forward)
    code, output, errors = export(f"run={run}", "format=torch_export")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "torch.export cannot trace MLP" in errors
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"space": PackedSpace(spaces.Discrete(3), 2)}, "has observations of several parts or action masks, which"),
        (
            {"actions": spaces.MultiDiscrete([2, 3])},
            "has actions of several numbers, MultiDiscrete([2 3]), which cannot",
        ),
    ],
    ids=["mask", "branches"],
)
def test_parts_masks_and_branches_are_refused(other, message, run, export, monkeypatch):
    read = exporting.read_member
    monkeypatch.setattr(exporting, "read_member", lambda *arguments: read(*arguments)._replace(**other))
    code, output, errors = export(f"run={run}", "format=safetensors")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert message in errors
    assert not (run / "export").exists()


def test_an_export_that_cannot_be_loaded_is_told_in_one_line(run, export):
    assert export(f"run={run}", "format=safetensors")[0] == 0
    made = run / "export"
    content = (made / "config.json").read_text()
    (made / "config.json").write_text(content.replace('"format": 1', '"format": 99'))
    with pytest.raises(ConfigError, match="has format 99, but this version reads 1"):
        qohort.load(made)
    (made / "config.json").write_text(content.replace('"n": 2', '"n": 3'))
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*size mismatch"):
        qohort.load(made)
    (made / "config.json").write_text(content)
    (made / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        qohort.load(made)
    (made / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no model.safetensors: export it with format=safetensors"):
        qohort.load(made)


def test_a_video_is_recorded_or_taken_from_the_run(run, export, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    assert export(f"run={run}", "format=safetensors", "video=true", f"to={tmp_path}/new")[0] == 0
    assert (tmp_path / "new/replay.gif").stat().st_size > 1000
    assert "![An episode](replay.gif)" in (tmp_path / "new/README.md").read_text()
    assert not (run / "videos").exists()
    (run / "videos").mkdir()
    for env_steps in (150, 300):
        (run / f"videos/env_steps-{env_steps:012d}-seed-0.mp4").write_bytes(b"video %d" % env_steps)
    assert export(f"run={run}", "format=safetensors", f"to={tmp_path}/taken")[0] == 0
    assert (tmp_path / "taken/replay.mp4").read_bytes() == b"video 300"
    assert '<video controls src="replay.mp4">' in (tmp_path / "taken/README.md").read_text()


SPACES = {
    "bounded": spaces.Box(np.array([[-4.8, -np.inf], [0.1, 2]], np.float32), np.float32(np.inf)),
    "images": spaces.Box(0, 255, (4, 84, 84), np.uint8),
    "integers": spaces.Box(-(2**63), 2**63 - 1, (3,), np.int64),
    "bits": spaces.Box(np.zeros((2, 2), bool), np.ones((2, 2), bool), dtype=np.bool_),
    "number": spaces.Box(-1, 1, (), np.float64),
    "discrete": spaces.Discrete(16, start=3),
    "binary": spaces.MultiBinary([2, 3]),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_survives_json(name):
    space = SPACES[name]
    assert space_of(json.loads(json.dumps(space_tree(space), allow_nan=False))) == space
    with pytest.raises(ConfigError, match="observations of Text cannot be exported"):
        space_tree(spaces.Text(3))


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the Hub: repositories in memory, uploads by `regular` commits."""

    def log_message(self, *_):
        """Say nothing."""

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        files = self.server.files
        if self.path.startswith("/api/whoami"):
            known = self.headers.get("Authorization") == "Bearer hf_known"
            self.answer({"name": "me", "type": "user"} if known else {"error": "Invalid"}, 200 if known else 401)
        elif "/tree/" in self.path:
            self.answer([{"type": "file", "path": path, "size": len(body), "oid": "0"} for path, body in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self.answer({"id": "me/it", "sha": "0" * 40, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.path, body))
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"http://127.0.0.1:{self.server.server_port}/me/it", "name": "me/it", "id": "1"})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": files})
        elif "/commit/" in self.path and self.server.working:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.server.files[line["value"]["path"]]
            url = f"http://127.0.0.1:{self.server.server_port}/me/it/commit/{'0' * 40}"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})
        elif "/validate-yaml" in self.path:
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": "no space left"}, 400)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that stands for the Hub; `files` are those of the repository `me/it`."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.requests, server.working = {}, [], True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_upload_replaces_the_files_of_an_earlier_one(run, export, hub):
    hub.files = {"policy.onnx": b"older", "replay.gif": b"older", "notes.txt": b"the user's own"}
    code, output, errors = export(f"run={run}", "format=safetensors", "to=hub:me/it", "private=true")
    assert (code, errors) == (0, "")
    assert output.endswith(f"uploaded: http://127.0.0.1:{hub.server_port}/me/it\n")
    assert {*hub.files} == {"notes.txt", "README.md", "config.json", "model.safetensors"}
    assert b'qohort.load(snapshot_download("me/it"))' in hub.files["README.md"]
    created = next(json.loads(body) for path, body in hub.requests if path.endswith("/repos/create"))
    assert created["name"] == "it"
    assert created.get("private") is True or created.get("visibility") == "private"
    assert not (run / "export").exists()
    downloaded = run.parent / "downloaded"
    downloaded.mkdir()
    for name, content in hub.files.items():
        (downloaded / name).write_bytes(content)
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert (qohort.load(downloaded).act(observations) == values_of(run, observations).argmax(1)).all()


def test_an_upload_that_fails_is_told_in_one_line(run, export, hub, monkeypatch):
    hub.working = False
    code, _, errors = export(f"run={run}", "format=safetensors", "to=hub:me/it")
    assert (code, errors.count("\n")) == (1, 1)
    assert "to=hub:me/it: the upload failed" in errors
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    hub.requests.clear()
    code, output, errors = export(f"run={run}", "format=safetensors", "to=hub:me/it")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "log in with `hf auth login`, or set HF_TOKEN" in errors
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("env.backend=gymnasium",),
        ("env=frozenlake", "network=table"),
        ("env=frozenlake", "agent=munchausen", "network.hidden=[9]"),
        ("agent=iqn", "network.noisy=true", "network.hidden=[33,7]", "network.dueling=true"),
        ("agent=stream_q",),
        ("env=minatar/breakout", "agent=rainbow"),
        ("env=minatar/freeway", "network.pool=4", "network.layer_norm=true", "network.spectral_norm=true"),
        ("env=minatar/asterix", "agent=qr_dqn", "env.frame_stack=2", "network=mlp", "env.frame_padding=zero"),
        ("env=atari", "replay.capacity=300", "evaluation.max_episode_steps=20"),
    ],
    ids=lambda settings: " ".join(settings[:2]),
)
def test_policies_of_all_kinds_are_exported(settings, tmp_path, export):
    import onnxruntime

    if "env=atari" in settings:
        pytest.importorskip("ale_py")
    (run,) = train(tmp_path, *settings)
    code, _, errors = export(f"run={run}")
    assert code == 0, errors
    policy = qohort.load(run)
    observations = exporting.observations_of(policy, 1000)
    expected = np.concatenate([values_of(run, observations[i : i + 100]) for i in range(0, 1000, 100)])
    made = qohort.load(run / "export")
    assert (made.observation_space, made.action_space) == (policy.observation_space, policy.action_space)
    session = onnxruntime.InferenceSession(run / "export/policy.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(run / "export/policy.pt2").module()
    for i in range(0, 1000, 100):
        batch, wanted = observations[i : i + 100], expected[i : i + 100]
        for values in (
            made.values(batch),
            session.run(None, {"observation": batch})[0],
            program(torch.from_numpy(batch)).detach().numpy(),
        ):
            np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-4)
            assert (values.argmax(1) == wanted.argmax(1)).all()
