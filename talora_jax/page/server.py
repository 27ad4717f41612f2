"""The page's server: files of the page, images in, answers out.

    GET   /  /page.js  /page.css              the page
    GET   /models                             what there is to choose from
    POST  /images                             an encoded image; gives its id, width and height
    GET   /images/ID                          the image
    GET   /images/ID/MODEL                    its maps
    GET   /images/ID/MODEL/TASK/picture       one in colour, a PNG
    GET   /images/ID/MODEL/TASK/values        its numbers
    POST  /images/ID/MODEL/mask               JSON: clicks or a box
    POST  /images/ID/MODEL/everything         JSON: which masks to leave out

What is wrong comes back as JSON, {"error": a sentence}. The standard library's server, for one
person's browser on the same machine: requests of other sites' pages are refused.
"""

import argparse
import http
import http.server
import ipaddress
import json
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from talora_jax.errors import UserError, one_line, printable, short
from talora_jax.page.answers import COMMON_SHAPES, Answers, NotThere

# Bytes of an image, and of a question.
MOST_BYTES, MOST_JSON = 30_000_000, 100_000
# Seconds without a byte, after which a request is given up.
_PATIENCE = 30
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_HERE = Path(__file__).parent
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "frame-ancestors 'none'",
}


class Refusal(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: http.HTTPStatus, sentence: str):
        super().__init__(sentence)
        self.status = status


class Server(http.server.ThreadingHTTPServer):
    """Serves the page.

    Attributes:
      answers: to the questions.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, answers: Answers):
        """Listens.

        Raises:
          UserError: the address cannot be had.
        """
        self.answers = answers
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen at {printable(host)}, port {port}: {one_line(error)}; "
                "--host and --port choose others"
            ) from None
        self._host = host

    def is_called(self, name: str) -> bool:
        """Whether a browser that asks for this host means this server.

        Any name can be made to lead here, so none counts but those that are known: addresses, which
        no site has, `localhost`, and the host that the server was told to be.
        """
        return name in ("localhost", self._host) or _is_address(name)

    def handle_error(self, request, client_address) -> None:
        """A browser that has gone away is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "talora_jax", ""
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._refuse_method)

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_PUT

    def _answer(self, find: Callable[[list[str]], tuple[bytes, str]]) -> None:
        status = http.HTTPStatus.OK
        try:
            self._check_who_asks()
            path = _parts(self.path).path
            body, kind = find([unquote(part) for part in path.split("/")[1:]])
        except Refusal as error:
            status, sentence = error.status, str(error)
        except NotThere as error:
            status, sentence = http.HTTPStatus.NOT_FOUND, str(error)
        except UserError as error:
            status, sentence = http.HTTPStatus.BAD_REQUEST, str(error)
        except Exception as error:
            # The browser is told, too, and the server goes on for the next request.
            traceback.print_exc()
            status = http.HTTPStatus.INTERNAL_SERVER_ERROR
            sentence = f"the server failed: {one_line(error)}; its terminal tells more"
        if status != http.HTTPStatus.OK:
            body, kind = _json({"error": sentence})
            # What was sent with it may be unread, and would be taken for the next request.
            self.close_connection = True
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the browser has gone on

    def _get(self, parts: list[str]) -> tuple[bytes, str]:
        answers = self.server.answers
        path = "/" + "/".join(parts)
        if path in _FILES:
            name, kind = _FILES[path]
            return (_HERE / name).read_bytes(), kind
        match parts:
            case ["models"]:
                return _json(answers.models())
            case ["images", key]:
                return answers.image(key), "image/png"
            case ["images", key, model]:
                return _json(answers.maps(key, _number(model)))
            case ["images", key, model, task, "picture"]:
                return answers.picture(key, _number(model), task), "image/png"
            case ["images", key, model, task, "values"]:
                return answers.values(key, _number(model), task), "application/octet-stream"
        self._refuse_path(path)

    def _post(self, parts: list[str]) -> tuple[bytes, str]:
        answers = self.server.answers
        match parts:
            case ["images"]:
                return _json(answers.receive(self._body(MOST_BYTES)))
            case ["images", key, model, "mask"]:
                return _json(answers.mask(key, _number(model), self._asked()))
            case ["images", key, model, "everything"]:
                return _json(answers.everything(key, _number(model), self._asked()))
        self._refuse_path("/" + "/".join(parts))

    def _refuse_method(self, parts: list[str]) -> NoReturn:
        del parts
        raise Refusal(http.HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command}: expected GET or POST")

    def _refuse_path(self, path: str) -> NoReturn:
        raise Refusal(
            http.HTTPStatus.NOT_FOUND, f"{self.command} {printable(path, 80)}: there is nothing"
        )

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refusal(http.HTTPStatus.LENGTH_REQUIRED, "the request does not tell its length")
        if len(length) > 12 or int(length) > most:
            # A browser hears nothing before all is sent; what is far too much is cut off.
            left = 10 * most if len(length) > 12 else min(int(length), 10 * most)
            while left > 0 and (part := self._read(min(left, 2**20))):
                left -= len(part)
            raise Refusal(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more was sent than {most / 1e6:.1f} MB, which is what is expected at most",
            )
        body = self._read(int(length))
        if len(body) < int(length):
            raise Refusal(http.HTTPStatus.BAD_REQUEST, "the request was cut short")
        return body

    def _read(self, size: int) -> bytes:
        try:
            return self.rfile.read(size)
        except OSError:  # it stalls; or it has gone away, and hears no answer
            raise Refusal(
                http.HTTPStatus.REQUEST_TIMEOUT,
                "the rest of the request did not come; send it again",
            ) from None

    def _asked(self) -> dict[str, Any]:
        try:
            # Without NaN and infinity, which are not JSON.
            asked = json.loads(self._body(MOST_JSON), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise Refusal(http.HTTPStatus.BAD_REQUEST, "the question is no JSON object")
        return asked

    def _check_who_asks(self) -> None:
        """A page of another site may send requests here: it must not, under whatever name."""
        host = self.headers.get("Host", "")
        if not self.server.is_called(_parts(f"//{host}").hostname or ""):
            raise Refusal(
                http.HTTPStatus.FORBIDDEN,
                f"the host {printable(host, 80)} is not this server: open it by its address, as "
                f"{self.server.address}",
            )
        origin = self.headers.get("Origin")
        if origin is not None and _parts(origin).netloc != host:
            raise Refusal(http.HTTPStatus.FORBIDDEN, "the request comes from another site's page")

    def log_message(self, *_) -> None:
        """Every click would be a line."""


def run(args: argparse.Namespace) -> None:
    """Loads models and serves the page until it is stopped from the keyboard.

    Args:
      args: as `talora_jax.demo` reads them.

    Raises:
      UserError: a model cannot be loaded, or the address cannot be had.
    """
    answers = Answers(args.workdir, args.base)
    with Server(args.host, args.port, answers) as server:
        print("compiling for images of 640×480 pixels …", flush=True)
        answers.warm_up(COMMON_SHAPES[0])
        print(f"{server.address}  (Ctrl-C ends)", flush=True)
        # Other shapes are compiled while the first image is looked for.
        threading.Thread(
            target=lambda: [answers.warm_up(shape) for shape in COMMON_SHAPES[1:]], daemon=True
        ).start()
        server.serve_forever()


def _json(content: Any) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise NotThere(f"there is no model {short(text, 40)}")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        raise Refusal(
            http.HTTPStatus.BAD_REQUEST, f"{printable(address, 80)} is no address"
        ) from None
