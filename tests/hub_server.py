"""The few endpoints of the Hugging Face Hub that fetching and pushing a file need."""

import base64
import hashlib
import http.server
import json
import threading

COMMIT = "c" * 40


class Server(http.server.ThreadingHTTPServer):
    """Listens on the loopback; its repositories are a dict.

    Attributes:
      files: by "user/name/file".
      refuses: by repository, what it is answered with: a status, and the Hub's word for the error.
      asked: method and path of every request.
      cut: of files, after how many bytes the line goes dead, for one try after the other.
      ranges: what of a file was asked for, where it was not all of it.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.refuses: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.cut: dict[str, list[int]] = {}
        self.ranges: list[str] = []
        self.private: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        self._file()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(f"POST {self.path}")
        parts = self.path.split("/")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            repository = f"{wanted['organization']}/{wanted['name']}"
            if repository in self.server.refuses:
                return self._refuse(*self.server.refuses[repository])
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.server.private.append(repository)
            return self._json({"url": f"{self.server.address}/{repository}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repository = "/".join(parts[3:5])
        if parts[5] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[f"{repository}/{line['value']['path']}"] = content
        url = f"{self.server.address}/{repository}/commit/{COMMIT}"
        return self._json({"success": True, "commitUrl": url, "commitOid": COMMIT})

    def _file(self):
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/api/datasets/"):
            return self._dataset("/".join(self.path.partition("?")[0].split("/")[3:5]))
        if self.path.startswith("/api/"):
            return self._refuse(404, "RepoNotFound")
        path = self.path.removeprefix("/datasets")[1:]
        user, name, _, revision, file = path.split("/", 4)
        repository = f"{user}/{name}"
        if repository in self.server.refuses:
            return self._refuse(*self.server.refuses[repository])
        if not any(place.startswith(f"{repository}/") for place in self.server.files):
            return self._refuse(401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        content = self.server.files.get(f"{repository}/{file}")
        if content is None:
            return self._refuse(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        cuts = self.server.cut.get(f"{repository}/{file}") if self.command == "GET" else None
        end = cuts.pop(0) if cuts else None
        self.close_connection = end is not None
        part = self.headers.get("Range") if self.command == "GET" else None
        if part is None:
            return self._send(200, content, headers, end)
        self.server.ranges.append(part)
        start = int(part.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206, content[start:], headers, end and end - start)

    def _dataset(self, repository):
        if repository in self.server.refuses:
            return self._refuse(*self.server.refuses[repository])
        files = {
            place.removeprefix(f"{repository}/"): content
            for place, content in self.server.files.items()
            if place.startswith(f"{repository}/")
        }
        if not files:
            return self._refuse(401, "RepoNotFound")
        siblings = [
            {
                "rfilename": file,
                "size": len(content),
                "lfs": {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 130,
                },
            }
            for file, content in files.items()
        ]
        return self._json({"id": repository, "sha": COMMIT, "siblings": siblings})

    def _refuse(self, status, word):
        self._send(status, b"{}", {"X-Error-Code": word, "X-Error-Message": word})

    def _json(self, answer):
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers, end=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:end])

    def log_message(self, *_):
        pass
