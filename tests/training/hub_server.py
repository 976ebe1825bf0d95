"""The part of the hub's HTTP interface that a push uses, on loopback: repositories in memory, and faults on request."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubServer:
    """Takes pushes of those who have the token.

    Attributes:
        files: content of the files of each repository, by its name and theirs.
        private: whether each repository was made private.
        requests: method and path of each request.
        status: what each request is answered with, in place of its answer; None: the answer.
    """

    def __init__(self, token: str) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.status: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                hub.requests.append(f"POST {self.path}")
                if self.headers.get("authorization") != f"Bearer {token}":
                    return self.answer(401, {"error": "Invalid credentials"})
                if hub.status is not None:
                    return self.answer(hub.status, {"error": "out of order"})
                return self.answer(200, hub.post(self.path, body))

            def do_GET(self) -> None:
                hub.requests.append(f"GET {self.path}")
                self.answer(200, {"sha": "0" * 40, "id": "/".join(self.path.split("/")[3:5]), "siblings": []})

            def answer(self, status: int, value: dict[str, Any]) -> None:
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            values = json.loads(body)
            name = "/".join(filter(None, (values.get("organization"), values["name"])))
            name = name if "/" in name else f"somebody/{name}"
            self.files.setdefault(name, {})
            self.private.setdefault(name, values.get("private") or values.get("visibility") == "private")
            return {"url": f"{self.url}/{name}", "name": name}
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in files
                ]
            }
        if "/commit/" in path:
            for line in body.splitlines():
                value = json.loads(line)
                if value["key"] == "file":
                    self.files[repository][value["value"]["path"]] = base64.b64decode(value["value"]["content"])
            oid = hashlib.sha1(body).hexdigest()
            return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repository}/commit/{oid}"}
        return {"errors": [], "warnings": []}  # of the model card, which is looked at first

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
