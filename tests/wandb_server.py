"""A stand-in for the server of Weights & Biases: answers the calls that upload runs and save a workspace."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class WandbServer:
    """Keeps ``runs`` by id, ``files`` by run or artifact and name, ``artifacts``, and ``views``, all as they arrive.

    Each run has its ``config``, ``summary`` and ``history``, and the fields of W&B's call ``upsertBucket``.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, int] = {}  # the size of each
        self.artifacts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                answers = {"graphql": server.answer, "file_stream": server.stream}
                answer = answers.get(self.path.split("/")[-1])
                body = json.dumps(answer(self.path, json.loads(content)) if answer else {}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self) -> None:
                server.files[self.path] = len(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables with which W&B uses this server, and no login of this machine."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": 40 * "0", "HOME": str(home)}

    def stream(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Keep the lines of a run's history and summary."""
        run = self.runs[path.split("/")[-2]]
        files = sent.get("files") or {}
        if lines := files.get("wandb-history.jsonl"):
            run["history"][lines["offset"] :] = map(json.loads, lines["content"])
        if lines := files.get("wandb-summary.json"):
            run["summary"] = json.loads(lines["content"][-1])
        run["complete"] = sent.get("complete", False)
        return {"limits": {}}

    def answer(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Answer a query or a mutation of GraphQL, by its name."""
        name = re.match(r"\s*(?:query|mutation)\s+(\w+)", sent["query"])[1]
        given = sent.get("variables") or {}
        answer = getattr(self, f"_{name}", None)
        return {"data": answer(given) if answer else {}}

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        user = {"id": "1", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
        return {"viewer": {**user, "admin": False, "teams": {"edges": []}}}

    def _ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}  # there is no artifact of that name yet

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        return {"model": {**_PROJECT, "bucket": run and self._bucket(run)}}

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        is_new = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], {"history": [], "summary": {}, "config": {}})
        run.update({key: value for key, value in given.items() if value is not None and key != "config"})
        run["config"].update(json.loads(given["config"] or "{}"))
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": is_new}}

    @staticmethod
    def _bucket(run: dict[str, Any]) -> dict[str, Any]:
        history = json.dumps([json.dumps(row) for row in run["history"][-1:]])
        return {
            "id": run["name"], "name": run["name"], "displayName": run["displayName"], "project": _PROJECT,
            "historyLineCount": len(run["history"]), "historyTail": history,
            "summaryMetrics": json.dumps(run["summary"]),
            "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "config": json.dumps(run["config"]),
            "tags": run["tags"], "wandbConfig": "{}",
        }  # fmt: skip

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.artifacts.append(given["input"])
        artifact = {"id": str(len(self.artifacts)), "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": self._manifest(given["artifactID"])}

    def _UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": self._manifest(given["artifactManifestID"])}

    def _manifest(self, id: str) -> dict[str, Any]:
        file = {"id": id, "uploadUrl": f"{self.url}/artifacts/{id}/manifest.json", "uploadHeaders": []}
        return {"artifactManifest": {"id": id, "file": file}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for file in given["input"]["artifactFiles"]:
            id, name = file["artifactID"], file["name"]
            url = f"{self.url}/artifacts/{id}/{name}"
            nodes.append({"storagePath": name, "uploadUrl": url, "uploadHeaders": [], "artifact": {"id": id}})
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def _UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        self.views.append({**given, "spec": json.loads(given["spec"])})
        return {"upsertView": {"view": {"id": "1", "name": given["name"]}, "inserted": True}}


_PROJECT = {"id": "1", "name": "dfx", "entity": {"id": "1", "name": "someone"}}
