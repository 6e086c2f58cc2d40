"""A small Hugging Face Hub on loopback: the file protocol that huggingface_hub's client speaks, and
the ways it fails.
"""

import base64
import hashlib
import http.server
import json
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves `files[(repository, file)] = bytes`; `faults[(repository, file)]` names what goes
    wrong with it; with "together", the content waits for a second process to ask."""

    def __init__(self):
        self.files, self.faults, self.requests = {}, {}, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def do_POST(self):
                hub.take(self)

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def clear(self):
        self.files.clear()
        self.faults.clear()
        self.requests.clear()

    def answer(self, request, body):
        repository, asks_for_file, rest = request.path.strip("/").partition("/resolve/")
        if asks_for_file:
            self.requests.append((request.command, request.path))
        revision, _, file = rest.partition("/")
        fault = self.faults.get((repository, file))
        if fault == "together" and body:
            while sum(requested == ("HEAD", request.path) for requested in self.requests) < 2:
                time.sleep(0.05)
        if fault == "hang" and body:
            threading.Event().wait(30)
        if fault == "forbidden":
            return self._refuse(request, 401, "GatedRepo")
        if repository not in {name for name, _ in self.files}:
            # The hub does not tell a private repository from one that is not there.
            return self._refuse(request, 401, "RepoNotFound")
        if asks_for_file and revision not in ("main", "v1", COMMIT):
            return self._refuse(request, 404, "RevisionNotFound")
        content = self.files.get((repository, file))
        if content is None:
            return self._refuse(request, 404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        if fault == "altered" and body:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        if body and (wanted := request.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        request.send_response(206 if start else 200)
        request.send_header("ETag", f'"{etag}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(content) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if body:
            sent = content[start:]
            if fault == "cut":
                sent = sent[: len(sent) // 2]
                request.close_connection = True
            request.wfile.write(sent)

    def take(self, request):
        """What `upload_folder` asks for: every file goes into the commit itself."""
        content = request.rfile.read(int(request.headers["Content-Length"]))
        _, _, owner, name, action = (
            request.path.split("/", 5)[1:] if "/api/models/" in request.path else [""] * 5
        )
        answer = {"errors": [], "warnings": []}  # of the model card's front matter
        if action.startswith("preupload/"):
            files = json.loads(content)["files"]
            answer = {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in files
                ]
            }
        elif action.startswith("commit/"):
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[(f"{owner}/{name}", line["value"]["path"])] = base64.b64decode(
                        line["value"]["content"]
                    )
            answer = {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{self.url}/{owner}/{name}/commit/{COMMIT}",
            }
        body = json.dumps(answer).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _refuse(self, request, status, code):
        request.send_response(status)
        if code == "EntryNotFound":
            request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
