"""The page's server, asked as a browser asks, and as nobody should."""

import base64
import http.client
import io
import json
import socket
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image

import talora_jax
from talora_jax.errors import UserError
from talora_jax.page import answers as asked
from talora_jax.page.answers import Answers
from talora_jax.page.server import MOST_BYTES, Server


@pytest.fixture(scope="module")
def answers(shelf):
    return Answers([shelf / "adapter.safetensors", shelf / "run"])


@pytest.fixture(scope="module")
def server(answers):
    with Server("127.0.0.1", 0, answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def ask(server):
    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.headers["Content-Type"] == "application/json":
            content = json.loads(content)
        return response.status, content

    return ask


@pytest.fixture(scope="module")
def photo(shelf):
    return (shelf / "photo.jpg").read_bytes()


@pytest.fixture(scope="module")
def image(ask, photo):
    status, image = ask("POST", "/images", photo)
    assert status == 200 and (image["width"], image["height"]) == (80, 60)
    return image["id"]


@pytest.mark.parametrize("name", ["/", "/page.js", "/page.css"])
def test_the_page_is_served_and_asks_nothing_of_other_hosts(ask, name):
    status, content = ask("GET", name)
    assert status == 200
    assert b"http://" not in content and b"https://" not in content


def test_what_there_is_to_choose_from(ask):
    assert ask("GET", "/models") == (
        200,
        [
            {
                "name": "adapter.safetensors",
                "tasks": ["semantic", "depth", "normals"],
                "promptable": True,
                "names": True,
            },
            # It began with random numbers, which answer no prompts.
            {
                "name": "run",
                "tasks": ["semantic", "depth", "normals"],
                "promptable": False,
                "names": True,
            },
        ],
    )


def test_maps_are_what_the_model_predicts(ask, image, shelf, photo):
    status, maps = ask("GET", f"/images/{image}/0")
    assert status == 200
    model = talora_jax.load(shelf / "adapter.safetensors")
    prediction = model.predict(Image.open(io.BytesIO(photo)))
    for told, task in zip(maps, model.tasks, strict=True):
        assert told["name"] == task.name
        _, content = ask("GET", f"/images/{image}/0/{task.name}/values")
        values = np.frombuffer(content, np.dtype(told["dtype"]).newbyteorder("<"))
        np.testing.assert_array_equal(
            values.reshape(prediction[task.name].shape), prediction[task.name]
        )
        _, picture = ask("GET", f"/images/{image}/0/{task.name}/picture")
        pixels = np.asarray(Image.open(io.BytesIO(picture)))
        np.testing.assert_array_equal(pixels, task.show(prediction[task.name]))
    by_name = {told["name"]: told for told in maps}
    assert by_name["semantic"]["classes"] == ["red", "green", "blue"]
    legend = model.tasks[0].legend(prediction["semantic"])
    swatches = by_name["semantic"]["legend"]["swatches"]
    assert [entry for entry, _ in swatches] == list(legend.entries)
    assert sum(legend.shares) == pytest.approx(1)
    assert by_name["depth"]["legend"]["unit"] == "m" and by_name["normals"]["channels"] == 3


def mask_of(told):
    return np.frombuffer(base64.b64decode(told["numbers"]), "<u2").reshape(60, 80)


def test_clicks_and_boxes_are_what_the_predictor_answers(ask, image, shelf, photo):
    predictor = talora_jax.SamPredictor(talora_jax.load_sam(shelf / "sam_nano.safetensors"))
    predictor.set_image(Image.open(io.BytesIO(photo)))
    for question, prompts, multimask in (
        ({"points": [[40, 30]], "labels": [1]}, {"points": [[[40, 30]]], "labels": [[1]]}, True),
        ({"box": [10, 10, 50, 40]}, {"boxes": [[10, 10, 50, 40]]}, False),
        (
            {"points": [[40, 30], [5, 5]], "labels": [1, 0], "box": None},
            {"points": [[[40, 30], [5, 5]]], "labels": [[1, 0]]},
            False,
        ),
    ):
        status, told = ask("POST", f"/images/{image}/0/mask", json.dumps(question))
        assert status == 200
        found = predictor.predict(**prompts, multimask=multimask)
        best = found.iou[0].argmax()
        np.testing.assert_array_equal(mask_of(told), found.masks()[0, best])
        assert told["iou"] == pytest.approx(float(found.iou[0, best]), abs=1e-5)
        assert told["area"] == found.masks()[0, best].sum()


def test_everything_has_a_number_a_colour_and_a_name(ask, image, monkeypatch):
    monkeypatch.setattr(asked, "_POINTS_PER_SIDE", 4)
    monkeypatch.setattr(asked, "_STABILITY", 0.0)
    status, told = ask("POST", f"/images/{image}/0/everything", json.dumps({"expected_iou": 0}))
    assert status == 200
    numbers = mask_of(told)
    assert 0 < numbers.max() <= len(told["masks"]) == len(told["colours"])
    assert all(mask["name"] in ("red", "green", "blue") for mask in told["masks"])
    assert all(mask["depth"] is not None for mask in told["masks"])


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "is not an image"),
        (b"hello, I am a text", "is not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an image"),
        (b"%PDF-1.7", "is not an image"),
    ],
)
def test_what_is_no_image_is_refused(ask, body, words):
    status, told = ask("POST", "/images", body)
    assert status == 400 and words in told["error"]


def test_an_image_cut_short_is_refused(ask, photo):
    status, told = ask("POST", "/images", photo[: len(photo) // 2])
    assert status == 400 and "cut short" in told["error"]


def test_sizes_are_bounded(ask, monkeypatch):
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "png")
    status, told = ask("POST", "/images", file.getvalue())
    assert status == 400 and "9000×9000 pixels; expected at most 50 megapixels" in told["error"]
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    status, told = ask("POST", "/images", file.getvalue())
    assert status == 400 and "400000000 pixels" in told["error"]
    status, told = ask("POST", "/images", bytes(MOST_BYTES + 1))
    assert status == 413 and "more was sent than 30.0 MB" in told["error"]
    monkeypatch.setattr(asked, "LONGEST_SIDE", 40)
    file = io.BytesIO()
    Image.new("RGB", (80, 20)).save(file, "png")
    status, told = ask("POST", "/images", file.getvalue())
    assert (told["width"], told["height"]) == (40, 10)


@pytest.mark.parametrize(
    "question, words",
    [
        ("{", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ("{}", "expected points or a box"),
        ('{"points": [[NaN, 1]], "labels": [1]}', "no JSON object"),
        ('{"points": [[1e999, 1]], "labels": [1]}', "points"),
        ('{"points": [[1, 2]]}', "labels"),
        ('{"points": "here", "labels": [1]}', "expected points or a box"),
        ('{"points": [["a", 2]], "labels": [1]}', "points"),
        ('{"box": [5, 5, 1, 1]}', "ends before it begins"),
        ('{"box": [5, 5, 1]}', "boxes"),
        ('{"points": [[1, 1]], "labels": [7]}', "labels"),
        (json.dumps({"points": [[1, 1]] * 65, "labels": [1] * 65}), "at most 64"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(ask, image, question, words):
    status, told = ask("POST", f"/images/{image}/0/mask", question)
    assert status == 400 and words in told["error"] and len(told["error"]) < 600


def test_an_expected_iou_that_is_none_is_refused(ask, image):
    for value in ('"much"', "2", "null"):
        question = f'{{"expected_iou": {value}}}'
        status, told = ask("POST", f"/images/{image}/0/everything", question)
        assert status == 400 and "pred_iou_thresh" in told["error"]


def test_a_base_that_answers_no_prompts_says_so(ask, image):
    question = '{"points": [[1, 1]], "labels": [1]}'
    for what in ("mask", "everything"):
        status, told = ask("POST", f"/images/{image}/1/{what}", question)
        assert status == 400 and "random numbers" in told["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/images/nobody/0",
        "/images/{}/2",
        "/images/{}/-1",
        "/images/{}/0/edges/picture",
        "/images/{}/0/depth",
        "/../../etc/passwd",
        "/%2e%2e/page.py",
        "/server.py",
        "/nothing",
    ],
)
def test_what_is_not_there(ask, image, path):
    status, told = ask("GET", path.format(image))
    assert status == 404 and told["error"]


def test_other_ways_to_ask_are_refused(ask):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        status, told = ask(method, "/images", b"x")
        assert status == 405 and told["error"] == f"{method}: expected GET or POST"
    assert ask("POST", "/models", b"{}")[0] == 404
    assert ask("POST", "/images", None, Transfer_Encoding="chunked")[0] in (400, 411)


def test_pages_of_other_sites_are_refused(ask, photo):
    assert ask("GET", "/models", Host="evil.example")[0] == 403
    assert ask("POST", "/images", photo, Origin="http://evil.example")[0] == 403
    assert ask("GET", "/models", Host="localhost:8000")[0] == 200
    assert ask("GET", "/models", Host="192.168.0.7:8000")[0] == 200


@pytest.mark.parametrize("header", ["Host", "Origin"])
def test_an_address_that_is_none_is_refused(ask, header):
    status, told = ask("GET", "/models", **{header: "http://["})
    assert status in (400, 403) and told["error"]


def test_formats_whose_readers_start_programs_are_not_read(ask):
    status, told = ask("POST", "/images", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert status == 400 and "is not an image" in told["error"]


def test_adapters_of_one_base_share_it(shelf):
    one, other = Answers([shelf / "adapter.safetensors", shelf / "other.safetensors"])._models
    assert one._base is other._base


def test_what_fails_unforeseen_is_told_and_the_server_goes_on(ask, answers, monkeypatch, capfd):
    def fail():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answers, "models", fail)
    status, told = ask("GET", "/models")
    assert status == 500 and "the server failed: out of memory" in told["error"]
    assert "RuntimeError" in capfd.readouterr().err
    monkeypatch.undo()
    assert ask("GET", "/models")[0] == 200


def test_a_browser_that_goes_away_or_stalls_is_no_error(server, monkeypatch, capfd):
    begun = b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"
    shutdown, ended = server.shutdown_request, threading.Event()
    monkeypatch.setattr(server, "shutdown_request", lambda x: (shutdown(x), ended.set()))
    with socket.create_connection(server.server_address) as gone:
        gone.sendall(begun)
        time.sleep(0.1)  # by then the rest is waited for
        # Closed, it is reset.
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ended.wait(10)
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.1)
    with socket.create_connection(server.server_address) as stalled:
        stalled.sendall(begun)
        head, _, told = stalled.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and "did not come" in json.loads(told)["error"]
    assert capfd.readouterr().err == ""


def test_the_oldest_image_is_let_go(ask, photo, answers, monkeypatch):
    monkeypatch.setattr(asked, "HELD", 2)
    ids = [ask("POST", "/images", photo)[1]["id"] for _ in range(3)]
    status, told = ask("GET", f"/images/{ids[0]}")
    assert status == 404 and "send it again" in told["error"]
    assert ask("GET", f"/images/{ids[2]}")[0] == 200


def test_an_address_that_cannot_be_had(server, answers):
    port = server.server_address[1]
    with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1, port {port}: .*--port"):
        Server("127.0.0.1", port, answers)
    with pytest.raises(UserError, match="cannot listen at no.such.host"):
        Server("no.such.host.invalid", 0, answers)
