"""The few endpoints of Google Cloud Storage that gcsfs, its own client and TensorStore need.

`environment` leads all three to it.
"""

import base64
import datetime
import hashlib
import http.server
import itertools
import json
import re
import secrets
import threading
import urllib.parse
from typing import NamedTuple

BUCKET = "bucket"


class Object(NamedTuple):
    content: bytes
    generation: int
    written: str


class Server(http.server.ThreadingHTTPServer):
    """Listens on the loopback; what is in its one bucket is a dict.

    Attributes:
      objects: by name.
      refuses: with which status it answers, as one to whom the bucket is not open, who would
        "look" for an object, "read" or "write" one.
      silences: how many requests it leaves without an answer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Object] = {}
        self.refuses: dict[str, int] = {}
        self.silences = 0
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.generations = itertools.count(1)
        self.lock = threading.RLock()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "NO_PROXY": "127.0.0.1",
            # It would ask for the kind of the bucket by gRPC.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Who was killed has hung up."""

    def put(self, name: str, content: bytes) -> Object:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        made = Object(bytes(content), next(self.generations), now.replace("+00:00", "Z"))
        self.objects[name] = made
        return made

    def told(self, name: str) -> dict:
        found = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(len(found.content)),
            "generation": str(found.generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(found.content).digest()).decode(),
            "timeCreated": found.written,
            "updated": found.written,
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece
    disable_nagle_algorithm = True

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self):
        self._body = self._read()
        if self.server.silences > 0:
            self.server.silences -= 1
            self.rfile.read(1)  # until the other one has hung up
            self.close_connection = True
            return
        path, _, query = self.path.partition("?")
        self._asked = dict(urllib.parse.parse_qsl(query))
        # What is quoted in a name is no part of the address.
        parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
        if parts[0] in ("upload", "download"):
            parts = parts[1:]
        bucket, rest = parts[3] if len(parts) > 3 else None, parts[4:]
        with self.server.lock:
            if bucket != BUCKET:
                self._refuse(404)
            elif status := self.server.refuses.get(self._kind()):
                self._refuse(status)
            elif not rest:
                self._json({"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
            elif path.startswith("/upload/"):
                self._upload()
            elif len(rest) == 1:
                self._list()
            else:
                self._object(rest[1], rest[2:])

    def _kind(self) -> str:
        if self.command != "GET":
            return "write"
        return "read" if self._asked.get("alt") == "media" else "look"

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _object(self, name: str, how: list[str]) -> None:
        found = self.server.objects.get(name)
        if found is None:
            return self._refuse(404)
        if not self._condition_holds(name):
            return self._refuse(304 if "ifGenerationNotMatch" in self._asked else 412)
        if self.command == "DELETE":
            del self.server.objects[name]
            return self._send(204, b"", {})
        if self.command == "POST":  # rewriteTo/b/BUCKET/o/NAME or moveTo/o/NAME
            self.server.put(how[-1], found.content)
            told = self.server.told(how[-1])
            if how[0] == "moveTo":
                del self.server.objects[name]
                return self._json(told)
            return self._json({"done": True, "resource": told})
        if self._asked.get("alt") != "media":
            return self._json(self.server.told(name))
        headers = {"x-goog-generation": str(found.generation)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, found.content, headers)
        start, size = int(asked[1]), len(found.content)
        end = min(int(asked[2]) + 1, size) if asked[2] else size
        if start >= size:
            return self._refuse(416)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return self._send(206, found.content[start:end], headers)

    def _list(self) -> None:
        prefix, delimiter = self._asked.get("prefix", ""), self._asked.get("delimiter")
        first, last = self._asked.get("startOffset", ""), self._asked.get("endOffset")
        items, prefixes = [], []
        for name in sorted(self.server.objects):
            if name < first or (last and name >= last) or not name.startswith(prefix):
                continue
            below, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                prefixes.append(f"{prefix}{below}{delimiter}")
            else:
                items.append(self.server.told(name))
        items = items[: int(self._asked.get("maxResults", 1000))]
        prefixes = list(dict.fromkeys(prefixes))
        self._json({"kind": "storage#objects", "items": items, "prefixes": prefixes})

    def _upload(self) -> None:
        kind, name, content = self._asked.get("uploadType"), self._asked.get("name"), self._body
        if upload := self._asked.get("upload_id"):
            name, whole = self.server.uploads[upload]
            whole += content
            if self.headers["Content-Range"].endswith("/*"):
                return self._send(308, b"", {"Range": f"bytes=0-{len(whole) - 1}"})
            content = whole
        elif kind == "resumable":
            upload = secrets.token_hex(8)
            name = name or json.loads(content)["name"]
            self.server.uploads[upload] = name, bytearray()
            place = f"{self.server.address}/upload/storage/v1/b/{BUCKET}/o?upload_id={upload}"
            return self._send(200, b"", {"Location": place})
        elif kind == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1]
            _, told, content, _ = content.split(f"--{boundary}".encode())
            name = json.loads(told.split(b"\n\n", 1)[1])["name"]
            content = content.split(b"\n\n", 1)[1].removesuffix(b"\n")
        if not self._condition_holds(name):
            return self._refuse(412)
        self.server.put(name, content)
        return self._json(self.server.told(name))

    def _condition_holds(self, name: str) -> bool:
        found = self.server.objects.get(name)
        generation = found.generation if found else 0
        wanted, other = (self._asked.get(k) for k in ("ifGenerationMatch", "ifGenerationNotMatch"))
        return wanted in (None, str(generation)) and other != str(generation)

    def _refuse(self, status: int) -> None:
        words = {403: "Forbidden", 404: "Not found"}.get(status, "no")
        answer = {"error": {"code": status, "message": words, "errors": []}}
        self._send(status, b"" if status == 304 else json.dumps(answer).encode(), {})

    def _json(self, answer: dict) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_):
        pass
