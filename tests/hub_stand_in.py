"""A local stand-in for the HTTP interface of the Hugging Face Hub, as fixtures."""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import close_session

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def repository_of(path: str) -> str:
    """The repository in an address of the interface: user/name of a model, spaces/user/name of a Space."""
    kind, name = re.match(r"/api/(models|spaces)/(\w+/[\w.-]+)/", path).groups()
    return name if kind == "models" else f"{kind}/{name}"


class StandIn(BaseHTTPRequestHandler):
    """As much of the Hub as uploading and loading a model repository needs; files live in `server.repositories`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"POST {self.path}")
        if self.headers.get("Authorization") != "Bearer good":
            return self.answer({"error": "Invalid credentials"}, 401)
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            request = json.loads(body)
            kind = "spaces/" if request.get("type") == "space" else ""
            name = f"{kind}{request.get('organization') or 'someone'}/{request['name']}"
            self.server.private[name] = request.get("private") or request.get("visibility") == "private"
            if name in self.server.repositories:
                return self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.repositories[name] = {}
            return self.answer({"url": f"{self.server.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repository = repository_of(path)
        if "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        for line in map(json.loads, body.splitlines()):  # a commit
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[repository][line["value"]["path"]] = content
            elif line["key"] == "deletedFile":
                del self.server.repositories[repository][line["value"]["path"]]
        commit = {"commitUrl": f"{self.server.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
        return self.answer({**commit, "success": True, "pullRequestUrl": None})

    def do_GET(self):
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/((?:spaces/)?\w+/[\w.-]+)/resolve/\w+/(.+)", path):
            content = self.server.repositories.get(found[1], {}).get(found[2])
            return self.answer({"error": "none"}, 404) if content is None else self.answer(content)
        if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/tree/\w+", path):
            files = self.server.repositories[found[1]].items()
            tree = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in files]
            return self.answer(json.dumps(tree).encode())
        if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)(/revision/\w+)?", path):
            files = self.server.repositories.get(found[1])
            if files is None:
                return self.answer({"error": "none"}, 404)
            return self.answer(
                {"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            )
        return self.answer({"error": f"{path} is unknown here"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content, status=200):
        kind = "application/octet-stream"
        if not isinstance(content, bytes):
            content, kind = json.dumps(content).encode(), "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.private, server.requests = {}, {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def online(hub, monkeypatch):
    """The stand-in is the Hub for this process, and somebody is logged in."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "good")
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    close_session()
    yield hub
    close_session()
