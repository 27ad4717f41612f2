"""The page in a browser, as a person uses it."""

import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from talora_jax.page.answers import Answers
from talora_jax.page.server import Server

pytestmark = pytest.mark.slow
# Calls into the page, as `evaluate` makes them, are not strings that the page runs.
DRAWN = "canvas => canvas.getContext('2d').getImageData(0, 0, 80, 60).data.some(x => x > 0)"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'"
    )
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as play:
        camera = [f"--use-fake-{what}-for-media-stream" for what in ("device", "ui")]
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, shelf):
    answers = Answers([shelf / "adapter.safetensors", shelf / "other.safetensors"])
    with Server("127.0.0.1", 0, answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.set_default_timeout(60_000)
        # What a page gets wrong is told in its console alone.
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(server.address)
        yield page
        page.close()
        server.shutdown()


def test_an_image_in_maps_out_a_click_a_box_everything(page, shelf):
    page.set_input_files("#file", shelf / "photo.jpg")
    for task in ("semantic", "depth", "normals"):
        page.wait_for_selector(f"figure[data-task={task}] img.map")
    loaded = "images => images.every(image => image.complete && image.naturalWidth === 80)"
    page.wait_for_load_state("networkidle")
    assert page.eval_on_selector_all(".stack img", loaded)

    # Beside the words there are numbers: of the pixel under the pointer, in every tile.
    stack = page.locator(".ask")
    stack.hover()
    texts = page.locator(".value").all_text_contents()
    assert texts[1] in ("red", "green", "blue")
    assert texts[2].endswith(" m") and np.isfinite(float(texts[2].removesuffix(" m")))
    assert texts[3].count(",") == 2

    # The slider moves the edge between map and image.
    page.locator("#slider").fill("0")
    assert page.locator("#tiles").get_attribute("style") == "--shown: 0%;"

    assert not page.eval_on_selector("#mask", DRAWN)
    stack.click()
    page.wait_for_selector("#status:not(.busy)")
    assert page.locator(".dot").count() == 1 and "wrong" not in page.locator(
        "#status"
    ).get_attribute("class")
    clicked = page.eval_on_selector("#mask", "canvas => canvas.toDataURL()")
    stack.click(modifiers=["Shift"], position={"x": 5, "y": 5})
    page.wait_for_selector("#status:not(.busy)")
    assert page.locator(".dot").count() == 2
    page.click("#clear")
    assert page.locator(".dot").count() == 0 and not page.eval_on_selector("#mask", DRAWN)

    box = stack.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 90)
    # What is being dragged is seen, and stays.
    drawn = page.locator(".box").bounding_box()
    assert abs(drawn["width"] - 100) < 8 and abs(drawn["height"] - 70) < 8
    page.mouse.up()
    page.wait_for_selector("#status:not(.busy)")
    assert page.locator(".box").bounding_box() == drawn and page.locator(".dot").count() == 0
    assert page.eval_on_selector("#mask", DRAWN)
    assert page.eval_on_selector("#mask", "canvas => canvas.toDataURL()") != clicked

    page.locator("#iou").fill("0")
    page.click("#everything")
    page.wait_for_selector("#status:not(.busy)")
    assert "masks: point at one" in page.text_content("#status")

    # By the keyboard, too.
    page.click("#clear")
    stack.press("ArrowLeft")
    stack.press("Enter")
    page.wait_for_selector("#status:not(.busy)")
    assert page.eval_on_selector("#mask", DRAWN)
    assert not page.wrong


def test_what_is_told_does_not_move_the_picture(page, shelf):
    page.set_input_files("#file", shelf / "photo.jpg")
    stack = page.locator(".ask")
    before = stack.bounding_box()
    page.eval_on_selector(
        "figcaption .value", "value => value.textContent = 'a wardrobe, '.repeat(9)"
    )
    assert stack.bounding_box() == before


def test_on_a_phone(page, browser, shelf):
    phone = browser.new_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    phone.goto(page.url)
    phone.set_input_files("#file", shelf / "photo.jpg")
    depth = phone.locator("figure[data-task=depth]")
    depth.locator("img.map").wait_for()
    # Nothing is wider than the screen, and a finger on a map scrolls.
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    touch = "stacks => stacks.map(stack => getComputedStyle(stack).touchAction)"
    assert phone.eval_on_selector_all(".stack", touch) == ["none", "auto", "auto", "auto"]
    depth.locator(".stack").tap()
    assert depth.locator(".value").text_content().endswith(" m")

    # A tap is on the thing, a long press off it.
    phone.locator(".ask").tap()
    phone.wait_for_selector("#status:not(.busy)")
    box = phone.locator(".ask").bounding_box()
    finger = phone.context.new_cdp_session(phone)
    at = {"x": box["x"] + 40, "y": box["y"] + 40}
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
    phone.wait_for_timeout(700)
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    phone.wait_for_selector("#status:not(.busy)")
    colours = "dots => dots.map(dot => dot.style.background)"
    assert phone.eval_on_selector_all(".dot", colours) == ["rgb(25, 169, 116)", "rgb(231, 4, 15)"]
    phone.close()


def test_another_model_sees_something_else(page, shelf):
    page.set_input_files("#file", shelf / "photo.jpg")
    depth = page.locator("figure[data-task=depth] img.map")
    depth.wait_for()
    assert "/0/depth/" in depth.get_attribute("src")
    page.select_option("#model", "1")
    page.wait_for_selector("figure[data-task=depth] img.map[src*='/1/depth/']")
    assert not page.wrong


def test_what_is_shown_is_not_asked_while_another_model_looks(page, shelf):
    page.set_input_files("#file", shelf / "photo.jpg")
    page.wait_for_selector("figure[data-task=depth] img.map[src*='/0/depth/']")
    held = []
    page.route("**/images/*/1", lambda route: held.append(route))
    page.select_option("#model", "1")
    page.wait_for_selector("#status.busy")
    assert page.eval_on_selector("#main", "main => main.inert")
    # A file that is refused meanwhile changes nothing of it.
    page.set_input_files(
        "#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"a text of mine"}
    )
    page.wait_for_selector("#status.wrong")
    held[0].continue_()
    page.wait_for_selector("figure[data-task=depth] img.map[src*='/1/depth/']")
    assert not page.eval_on_selector("#main", "main => main.inert") and not page.wrong


def test_of_an_image_without_maps_nothing_older_is_shown(page, shelf, tmp_path):
    page.set_input_files("#file", shelf / "photo.jpg")
    page.wait_for_selector("figure[data-task=depth] img.map")
    Image.new("RGB", (80, 2)).save(tmp_path / "stripe.png")
    page.set_input_files("#file", tmp_path / "stripe.png")
    page.wait_for_selector("#status.wrong")
    assert "an image of 80×2 pixels" in page.text_content("#status")
    assert page.locator("#main").is_hidden() and not page.wrong


def test_a_file_that_is_no_image_is_refused(page):
    page.set_input_files(
        "#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"a text of mine"}
    )
    page.wait_for_selector("#status.wrong")
    assert "is not an image" in page.text_content("#status")
    assert page.locator("#main").is_hidden() and not page.wrong


def test_a_server_that_has_gone_is_told(page, shelf):
    page.route("**/images", lambda route: route.abort())
    page.set_input_files("#file", shelf / "photo.jpg")
    page.wait_for_selector("#status.wrong")
    assert "does not answer" in page.text_content("#status") and not page.wrong


def test_what_the_camera_sees(page):
    page.click("#camera")
    page.wait_for_selector("#take:enabled")
    page.click("#take")
    page.wait_for_selector("figure[data-task=depth] img.map")
    assert page.locator("#live").is_hidden() and page.locator("#camera").is_enabled()
    # And it is off.
    assert page.eval_on_selector("#video", "video => video.srcObject === null")
    assert not page.wrong


def test_where_there_is_no_camera(page):
    page.add_init_script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.reload()
    page.click("#camera")
    page.wait_for_selector("#status.wrong")
    assert "only to pages of its own machine" in page.text_content("#status") and not page.wrong
