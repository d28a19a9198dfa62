"""`skinbook app` in a real browser: `make test-browser`. The file's name keeps it out of `make test`."""

import base64
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models
from asked import files, served
from pages import serious

from skinbook import app, predict_files

DISCLAIMER = "This is a teaching tool, not a medical device."
# What Gradio's own page says of the connection that it has in place of the browser's EventSource.
GRADIOS = "Method not implemented."
DROP = """([name, type, data]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type}));
    document.querySelector("button[aria-dropeffect]").dispatchEvent(
        new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true})
    );
}"""
CHOOSE = "input[type=file]"


@pytest.fixture(scope="module")
def server():
    """The page of the book's own model, served on a free port of this machine."""
    with served(predict_files.open_model("lab"), app.DRAWN) as running:
        yield running


@pytest.fixture(scope="module")
def lesion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lesion")
    models.lesions(folder, ("mel",), each=1)
    return next(folder.glob("*.png"))


@pytest.fixture
def page(browser, server, tmp_path, monkeypatch):
    """The page, open; it reaches its own address only, and leaves no file. `page.faults`: what went wrong in it."""
    kept = tmp_path / "temporary"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.faults = []

    def heard(message):
        if message.type in ("error", "warning") and message.text != GRADIOS:
            opened.faults.append(message.text)

    opened.on("console", heard)
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))

    def only_itself(route):
        if route.request.url.startswith((server.address, "data:")):
            return route.continue_()
        opened.faults.append(f"asks another host: {route.request.url}")
        return route.abort()

    context.route("**/*", only_itself)
    opened.goto(server.address)
    opened.wait_for_selector(CHOOSE, state="attached")
    opened.wait_for_load_state("networkidle")  # until then a key may find a page that does not listen yet
    yield opened
    assert opened.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"
    assert opened.faults == []
    assert opened.get_by_text(DISCLAIMER).is_visible()
    context.close()
    assert list(kept.iterdir()) == []
    assert files(server) == []


def upload(page, file):
    page.evaluate("document.getElementById('answer').replaceChildren()")
    page.set_input_files(CHOOSE, file)
    page.wait_for_selector("#answer :is(h2, .fault)")
    page.wait_for_selector("button[aria-dropeffect]")  # the place to drop is free again
    return page.locator("#answer").inner_text()


def test_a_lesion_gets_probabilities_and_pictures(page, lesion):
    text = upload(page, lesion)
    assert lesion.name in text
    assert "operating point of" in text
    assert page.locator("#answer tr").count() == 9
    widths = page.locator("#answer img").evaluate_all(
        "all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert widths == [app.SHOWN] * 3
    assert page.evaluate("scrollTo(0, 5000), scrollY") > 100
    top = page.get_by_text(DISCLAIMER).bounding_box()
    assert 0 <= top["y"] < 100, "the line scrolls away"


def test_the_answer_is_for_everyone(page, server, lesion):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(server.address)
        page.wait_for_selector(CHOOSE, state="attached")
        assert serious(page) == [], scheme
        upload(page, lesion)
        assert serious(page) == [], scheme
    page.set_viewport_size({"width": 360, "height": 740})
    wide = page.evaluate("[document.scrollingElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]


def test_the_keyboard_reaches_the_choice_of_a_file(page):
    page.keyboard.press("Tab")
    assert "upload" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    # The click that opens the browser's own dialog, which is left closed.
    noted = "event => { event.preventDefault(); document.body.dataset.asked = 'yes'; }"
    page.evaluate(f"document.querySelector('{CHOOSE}').addEventListener('click', {noted})")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-asked=yes]")


def test_a_lesion_can_be_dropped(page, lesion):
    page.evaluate(DROP, ["dropped.png", "image/png", base64.b64encode(lesion.read_bytes()).decode()])
    page.wait_for_selector("#answer h2")
    assert page.locator("#answer h2").inner_text() == "dropped.png"


def test_what_is_not_dermoscopy_is_refused(page, tmp_path):
    Image.new("RGB", (300, 200), (40, 90, 220)).save(tmp_path / "sky.png")
    text = upload(page, tmp_path / "sky.png")
    assert "does not look like the dermoscopic photographs" in text
    assert page.locator("#answer table").count() == 0


def test_wrong_files_get_a_sentence_and_the_next_one_an_answer(page, lesion, tmp_path):
    words, cut, odd = tmp_path / "words.jpg", tmp_path / "cut.jpg", tmp_path / "<img src=x onerror=alert(1)>.png"
    words.write_text("These are words.")
    Image.open(lesion).save(cut, "JPEG")
    cut.write_bytes(cut.read_bytes()[:2000])
    odd.write_text("<script>alert(1)</script>")
    assert upload(page, words).startswith("words.jpg is not an image in one of the formats")
    assert upload(page, cut).startswith("cut.jpg is cut off or damaged")
    assert "onerror=alert(1)" in upload(page, odd)
    assert page.locator("#answer img").count() == 0
    assert "operating point" in upload(page, lesion)


def test_a_huge_file_is_not_even_sent(page, tmp_path):
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(app.LARGEST + 1)
    page.set_input_files(CHOOSE, huge)
    said = page.get_by_text("maximum allowed size of 20")
    said.wait_for()
    assert "huge.jpg" in said.inner_text()
    assert sent == []
    # What Gradio writes to the console about it.
    assert all("404" in fault or fault.startswith("Response") for fault in page.faults)
    page.faults.clear()


def test_these_checks_can_fail(page):
    with page.expect_console_message(lambda m: "elsewhere.invalid" in m.text):
        page.evaluate("new Image().src = 'http://elsewhere.invalid/a.png'")  # stopped by the policy of the page itself
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:,>')")
    assert any("elsewhere.invalid" in fault and "Content Security Policy" in fault for fault in page.faults)
    assert any(fault.startswith("image-alt (critical") for fault in serious(page))
    page.faults.clear()
