"""A small stand-in of W&B's server: runs, their history and files, and one sweep's agent, kept in memory."""

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "lab"
KEY = "0" * 40


@dataclass
class StoredRun:
    """What the server has of a run."""

    project: str
    name: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    sessions: int = 0

    def history(self) -> list[dict[str, Any]]:
        """The logged rows in their order, without W&B's own columns."""
        lines = self.lines["wandb-history.jsonl"]
        rows = [json.loads(lines[n]) for n in sorted(lines)]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]

    def config(self) -> dict[str, Any]:
        """The run's configuration, without W&B's own entry."""
        tree = json.loads(self.values.get("config") or "{}")
        return {key: entry["value"] for key, entry in tree.items() if key != "_wandb"}

    def tail(self, name: str) -> str:
        """The last line of a file, as the server returns it."""
        lines = self.lines[name]
        return json.dumps([lines[max(lines)]] if lines else [])


class WandbServer:
    """The state behind the requests.

    Attributes:
        runs: The runs by id.
        jobs: The parameters of each run that an agent will be asked to start.
        sweep: The configuration that `wandb sweep` sent.
    """

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.jobs: list[dict[str, Any]] = []
        self.sweep = ""
        self.unknown: list[str] = []
        self.url = ""
        self._given = 0
        self._lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """The variables with which W&B uses this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_ENTITY": ENTITY}

    def answer(self, query: str, name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data that a GraphQL query asks for."""
        with self._lock:
            method = getattr(self, f"_{name}", None)
            if method is not None:
                data: dict[str, Any] = method(variables)
                return data
            for word, how in (("upsertSweep", self._upsert_sweep), ("upsertBucket", self._UpsertBucket)):
                if word in query:
                    return how(variables)
            if "viewer" in query:
                return self._Viewer(variables)
            self.unknown.append(f"{name}: {query}")
            return {}

    def stream(self, run: str, body: Mapping[str, Any]) -> None:
        """Take lines of a run's files, and its exit code."""
        with self._lock:
            stored = self.runs[run]
            for name, part in body.get("files", {}).items():
                stored.lines[name].update(dict(enumerate(part["content"], part["offset"])))
            if body.get("complete"):
                stored.exit_code = body.get("exitcode")

    # One method for each operation, by the operation's name.

    def _Viewer(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        viewer = {"id": "user", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "flags": "{}", "admin": False}
        more = {"email": "", "deletedAt": None, "teams": {"edges": []}, "apiKeys": {"edges": []}}
        return {"viewer": {**viewer, **more}}

    def _RunResumeStatus(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        model = {"id": "project", "name": variables["project"], "entity": {"id": "entity", "name": ENTITY}}
        if run is None or not run.sessions:
            return {"model": {**model, "bucket": None}}
        lines = run.lines["wandb-summary.json"]
        bucket = {
            "id": run.name,
            "name": run.name,
            "displayName": run.values.get("displayName"),
            "summaryMetrics": lines[max(lines)] if lines else "{}",
            "config": run.values.get("config") or "{}",
            "tags": run.values.get("tags") or [],
            "notes": None,
            "logLineCount": len(run.lines["output.log"]),
            "historyLineCount": len(run.lines["wandb-history.jsonl"]),
            "eventsLineCount": len(run.lines["wandb-events.jsonl"]),
            "historyTail": run.tail("wandb-history.jsonl"),
            "eventsTail": run.tail("wandb-events.jsonl"),
            "wandbConfig": json.dumps({"t": {"1": [1]}}),  # without it W&B takes the run for one that has not started
        }
        return {"model": {**model, "bucket": bucket}}

    def _UpsertBucket(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name, project = variables.get("name") or variables.get("id"), variables.get("project") or "uncategorized"
        new = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(project, name))
        run.values |= {key: value for key, value in variables.items() if value is not None}
        run.sessions += 1
        where = {"id": "project", "name": run.project, "entity": {"id": "entity", "name": ENTITY}}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.values.get("displayName"),
            "description": None,
            "config": run.values.get("config"),
            "sweepName": run.values.get("sweep"),
            "project": where,
            "historyLineCount": len(run.lines["wandb-history.jsonl"]),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _CreateRunFiles(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _upsert_sweep(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        self.sweep = variables["config"]
        where = {"name": variables.get("projectName") or "qohort", "entity": {"name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": "sweep1", "project": where}, "configValidationWarnings": []}}

    def _Sweep(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        runs = {"runs": {"edges": [], "pageInfo": {"hasNextPage": False, "endCursor": None}}, "runCount": 0}
        return {
            "project": {"sweep": {"id": "sweep1", "name": "sweep1", "config": self.sweep, "state": "RUNNING", **runs}}
        }

    _SweepWithRuns = _Sweep

    def _CreateAgent(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent1"}}}

    def _Heartbeat(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        if json.loads(variables["runState"]):  # one run at a time
            return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": "[]"}}
        if not self.jobs:
            return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps([{"type": "exit"}])}}
        self._given += 1
        arguments = {key: {"value": value} for key, value in self.jobs.pop(0).items()}
        command = {"type": "run", "run_id": f"agentrun{self._given}", "args": arguments, "program": ""}
        return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps([command])}}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def _reply(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client went away
                super().handle()

        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            parts = self.path.strip("/").split("/", 2)
            if parts[0] == "graphql":
                asked = json.loads(body)
                query, variables = asked["query"], asked.get("variables") or {}
                name = asked.get("operationName") or query.split("(")[0].split("{")[0].split()[-1]
                self._reply({"data": server.answer(query, name, variables)})
                return
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
            elif parts[0] == "upload" and self.command == "PUT":
                server.runs[parts[1]].files[parts[2]] = body
            self._reply({})

        do_GET = do_POST = do_PUT = _take

    return Handler


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve on a free port of this machine."""
    server = WandbServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
