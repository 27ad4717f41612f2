"""Downloads, from a server on this machine that knows byte ranges."""

import hashlib
import http.server
import threading

import pytest

from weights_convert import download as download_lib

CONTENT = bytes(range(256)) * 40_000
NAME = f"sam_vit_b_{hashlib.sha256(CONTENT).hexdigest()[:6]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    ranges = True
    requests: list = []
    content = CONTENT

    def do_GET(self):
        asked = self.headers.get("Range")
        type(self).requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(self.content[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    class Own(Handler):
        requests = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(download_lib, "URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setitem(download_lib.FILES, "vit_b", NAME)
    yield Own
    server.shutdown()
    server.server_close()


def test_fetches_once_with_a_progress_bar(server, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        status, printed, _ = run("--download", "vit_b")
        assert status == 0 and NAME in printed
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.requests == [None]
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert download_lib.download("vit_b", tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-"]


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert download_lib.download("vit_b", tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges = False
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert download_lib.download("vit_b", tmp_path).read_bytes() == CONTENT


def test_a_connection_that_breaks_off_can_be_resumed(server, run, tmp_path):
    server.content = CONTENT[:5000]
    status, _, error = run("--download", "vit_b", tmp_path / "base.safetensors")
    assert status == 2 and "run this again to go on" in error
    assert (tmp_path / f"{NAME}.part").stat().st_size == 5000
    server.content = CONTENT
    assert download_lib.download("vit_b", tmp_path).read_bytes() == CONTENT


def test_a_damaged_file_is_refused_and_removed(server, run, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(bytes(1000))
    status, _, error = run("--download", "vit_b", tmp_path / "base.safetensors")
    assert status == 2 and "damaged" in error
    assert not list(tmp_path.iterdir())


def test_no_network_names_the_url_and_the_place(run, tmp_path, monkeypatch):
    monkeypatch.setattr(download_lib, "URL", "http://127.0.0.1:9/segment_anything/")
    status, _, error = run("--download", "vit_h", tmp_path / "base.safetensors")
    assert status == 2 and error.count("\n") == 1
    assert "http://127.0.0.1:9/segment_anything/sam_vit_h_4b8939.pth" in error
    assert f"put it at {tmp_path / 'sam_vit_h_4b8939.pth'}" in error
    assert not list(tmp_path.iterdir())
