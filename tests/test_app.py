"""`skinbook app`: what its page says of an upload, what it refuses, whom it answers, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Namespace

import asked
import models
import numpy as np
import pytest
from asked import about, ask, question, said, served, upload
from PIL import Image

from skinbook import app, predict_files
from skinbook.config import SkinbookError
from skinbook.data import images

# One process draws or loads what these share (with `--dist loadgroup`, as `make unit` has it).
pytestmark = pytest.mark.xdist_group("app")

DISCLAIMER = "This is a teaching tool, not a medical device."


@pytest.fixture(scope="module")
def model():
    return predict_files.open_model("lab")


@pytest.fixture(scope="module")
def lesion(tmp_path_factory):
    """A drawn lesion, as a file."""
    folder = tmp_path_factory.mktemp("lesion")
    models.lesions(folder, ("mel",), each=1)
    return next(folder.glob("*.png"))


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The folder for temporary files, empty; the test ends red when something is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def server(model):
    with served(model, "A note <here>.") as running:
        yield running


def as_bytes(image, kind="PNG", **options):
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def test_a_lesion_gets_what_predict_says_of_it(model, lesion, empty):
    found = app.look(model, lesion.read_bytes(), "mine.png")
    (answer,) = predict_files.answers(model, [lesion])
    assert found.prediction.status == "answered"
    assert list(found.prediction.probabilities.values()) == answer.probabilities.tolist()
    for picture in (found.photograph, found.attention, found.outline):
        assert picture.shape == (app.SHOWN, app.SHOWN, 3)
        assert picture.dtype == np.uint8
    assert not found.blank
    text = app.shown(model, found)
    assert f"operating point of {model.threshold:.2f}" in text
    assert f"{found.prediction.malignant:.2f}" in text
    assert text.count("<tr>") == 1 + len(model.classes)
    assert text.count("data:image/png;base64,") == 3
    assert re.findall(r'alt="([^"]*)"', text) == [
        "What the model was shown",
        "Where the network looked",
        "An outline without learning",
    ]


def test_the_outline_is_the_dark_spot():
    y, x = np.mgrid[0:384, 0:384]
    spot = np.hypot(y - 150, x - 220) < 80
    photograph = np.where(spot[..., None], (90, 50, 40), (220, 180, 160)).astype(np.uint8)
    photograph[:, 20:23] = 30  # a hair
    mask = app.otsu_mask(photograph)
    assert (mask & spot).sum() / (mask | spot).sum() > 0.95
    edge = (app.drawn(photograph, mask) != photograph).any(axis=-1)
    assert edge[150, 297:304].any()
    assert not edge[150, 220]


def test_the_map_lies_where_it_is_high():
    cam = np.zeros((8, 8), dtype=np.float32)
    cam[6, 1] = 1
    over = app.overlaid(np.zeros((384, 384, 3), dtype=np.uint8), cam).sum(axis=-1)
    row, column = np.unravel_index(over.argmax(), over.shape)
    assert (row // 48, column // 48) == (6, 1)


def test_a_photograph_is_turned_upright(model, lesion, empty):
    upright = Image.open(lesion)
    mark = Image.Exif()
    mark[0x0112] = 6  # to be turned by a quarter
    turned = as_bytes(upright.transpose(Image.Transpose.ROTATE_90), exif=mark)
    ours, plain = app.look(model, turned, "a"), app.look(model, as_bytes(upright), "a")
    np.testing.assert_array_equal(ours.photograph, plain.photograph)
    assert ours.prediction.probabilities == plain.prediction.probabilities


def test_what_is_not_dermoscopy_is_refused(model, empty):
    shown = []
    for _, picture in models.ordinary(each=1):
        found = app.look(model, as_bytes(picture), "holiday.png")
        if found.prediction.status == "refused":
            assert found.attention is found.outline is None
            shown.append(app.shown(model, found))
    assert len(shown) >= 6
    for text in shown:
        assert "does not look like the dermoscopic photographs" in text
        assert "<table>" not in text
        assert "probability" not in text


def test_a_wrong_file_gets_a_sentence(model, lesion, empty, monkeypatch):
    jpeg = as_bytes(Image.open(lesion), "JPEG")

    def said(data):
        found = app.look(model, data, "x.jpg")
        assert found.prediction.status == "failed"
        assert found.photograph is None
        text = app.shown(model, found)
        assert str(empty) not in text
        assert re.fullmatch(r'<p class="fault">x\.jpg .+\.</p>', text)
        return text

    assert "is not an image in one of the formats" in said(b"These are words.")
    assert "is empty" in said(b"")
    assert "is cut off or damaged" in said(jpeg[: len(jpeg) // 2])
    monkeypatch.setattr(images, "LARGEST", 128 * 128 - 1)
    assert "million pixels" in said(jpeg)
    monkeypatch.setattr(app, "LARGEST", len(jpeg) - 1)
    assert "is larger than 20 MB" in said(jpeg)


def test_names_are_escaped(model, lesion, empty):
    for data in (lesion.read_bytes(), as_bytes(Image.new("RGB", (64, 64), "green")), b"words"):
        text = app.shown(model, app.look(model, data, "<img src=x onerror=alert(1)>.png"))
        assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
        assert "<img src=x" not in text


def test_an_onnx_file_has_no_map(model, lesion, empty):
    class Other:
        """A model that is no bundle."""

        def __getattr__(self, name):
            return getattr(model, name)

    found = app.look(Other(), lesion.read_bytes(), "mine.png")
    assert found.attention is None
    assert "no Grad-CAM" in app.shown(model, found)


def test_a_blank_map_and_models_without_a_point_or_a_limit_say_so(model, lesion, empty):
    found = app.look(model, lesion.read_bytes(), "mine.png")
    assert "the map is blank" in app.shown(model, replace(found, blank=True))
    bare = replace(model, threshold=None, novelty=None)
    text = app.shown(bare, app.look(bare, lesion.read_bytes(), "mine.png"))
    assert "no operating point was chosen" in text
    assert "cannot tell what is not dermoscopy" in text


def test_the_page_says_what_it_is_and_loads_nothing(server):
    status, text, headers = ask(server)
    assert status == 200
    assert DISCLAIMER in text
    assert "A note \\u0026lt;here\\u0026gt;." in text, "escaped, and once more as JSON in a script"
    assert not re.search(r"""(src|href|action)=["']?(https?:)?//""", text)
    assert "fonts.googleapis" not in text
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*", policy)
    assert headers["Cache-Control"] == "no-store"
    assert headers["Server"] is None


def test_uploads_through_the_server_leave_nothing(server, lesion, empty, capfd):
    text = said(server, lesion.read_bytes())
    assert "operating point" in text
    assert "<h2>mine.png</h2>" in text
    assert "mine.jpg is not an image" in said(server, b"words", "mine.jpg")
    assert asked.files(server) == []
    assert capfd.readouterr() == ("", "")


def test_a_huge_upload_is_refused(server, empty, monkeypatch):
    status, text = upload(server, b"x" * (app.LARGEST + 1))
    assert status == 413
    assert "maximum allowed size" in text
    # With nothing behind it: what is not read when the connection is closed can take the answer along.
    assert ask(server, "POST", "/gradio_api/upload", Content_Length="²")[0] in (400, 411)
    assert asked.files(server) == []
    assert upload(server, b"x", Content_Length="9" * 15)[0] == 413
    assert ask(server, "POST", "/gradio_api/queue/join", Content_Length=str(app.SLACK + 1))[0] == 413


def test_only_uploads_are_looked_at(server, lesion, tmp_path, monkeypatch):
    """Whoever asks about another file of this machine, or an address, hears nothing of it, and it stays."""
    from gradio import processing_utils

    mine = tmp_path / "a" / "mine.png"
    mine.parent.mkdir()
    mine.write_bytes(lesion.read_bytes())
    text = app.answer(server.model, str(mine), server.folder)
    assert text == '<p class="fault">mine.png was not uploaded here.</p>'
    fetched = []
    for name in ("async_ssrf_protected_get", "async_ssrf_protected_download", "save_file_to_cache"):
        monkeypatch.setattr(processing_utils, name, lambda *given, **_: fetched.append(given))
    laid = json.loads(upload(server, lesion.read_bytes())[1])[0]
    out, kind = "/..".join([""] * 30), {"_type": "gradio.FileData"}
    paths = [
        str(mine),
        "/etc/hostname",
        "http://127.0.0.1:1/x.png",
        laid + "/../../../" + str(mine),
        "",
        "\0",
    ]
    paths += [f"http://elsewhere.invalid/y{mark}{out}{laid}" for mark in ("", "#", "?x=")] + [5, None]
    some = [[{"path": path, "meta": kind}] for path in paths]
    some += [[], [{"path": laid}] * 2, {}, None, [[{"path": laid}]], [laid]]
    for data in some:
        assert question(server, data) == (400, '{"detail": "That file was not uploaded here."}'), data
    deep = b'{"data": ' + b"[" * 100_000
    assert ask(server, "POST", "/gradio_api/queue/join", deep)[0] == 400
    # What is beside the one file is not handed on, and other ways to the same place are closed.
    nested = {"path": laid, "x": {"path": "/etc/hostname", "meta": kind}, "url": "http://elsewhere.invalid/"}
    assert question(server, [nested])[0] == 200
    _, events, _ = ask(server, "GET", "/gradio_api/queue/data?session_hash=me")
    assert "operating point" in events
    laid = json.loads(upload(server, lesion.read_bytes())[1])[0]
    for path in (
        "/gradio_api/queue/join%0A",
        "/gradio_api/queue/join/",
        "/gradio_api/queue/join/x",
        "//gradio_api/queue/join",
    ):
        for address in (str(mine), "http://elsewhere.invalid/x"):
            told = question(
                server, [{"path": address, "meta": kind}], path, X_Forwarded_Host=f"127.0.0.1:{server.server_port}"
            )
            assert told[0] == 404, path
    assert fetched == []
    assert mine.exists()
    assert asked.files(server) == [Path(laid)]
    Path(laid).unlink()


def test_a_header_does_not_move_the_page(server):
    assert "elsewhere.invalid" not in ask(server, X_Forwarded_Host="elsewhere.invalid")[1]


def test_nobody_remembers_an_answer(server, lesion):
    assert "operating point" in said(server, lesion.read_bytes())
    end = time.monotonic() + 20  # the session goes after the last byte of the answer
    while server.guard.page.state_holder.session_data and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert server.guard.page.state_holder.session_data == {}


def test_two_files_of_one_content_are_both_answered(server, lesion):
    first, second = (json.loads(upload(server, lesion.read_bytes(), name)[1])[0] for name in ("a.png", "b.png"))
    for path in (first, second):
        assert "operating point" in about(server, path, "x")["output"]["data"][0]
    text = app.answer(server.model, first, server.folder)
    assert text == f'<p class="fault">a.png {app.GONE}</p>'
    gone = question(server, [{"path": first}])
    assert gone == (400, json.dumps({"detail": f"a.png {app.GONE}"}))
    assert asked.files(server) == []


def test_a_folder_that_was_cleaned_away_is_made_anew(server, lesion):
    shutil.rmtree(server.folder)
    assert ask(server)[0] == 200
    assert "operating point" in said(server, lesion.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("at_work", [False, True], ids=["idle", "at work"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_however_it_is_ended_nothing_stays(name, at_work, lesion, tmp_path):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"this system has no {name}")
    # Under nohup a process ignores SIGHUP, and so would what it starts.
    start = f"import signal; signal.signal({int(number)}, signal.default_int_handler if {int(number)} == signal.SIGINT else signal.SIG_DFL)"
    start += "; from skinbook.cli import main; main()"
    command = [sys.executable, "-c", start, "app", "-b", "lab", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        port = int(re.search(r":(\d+) ", running.stdout.readline())[1])
        assert upload(Namespace(server_port=port), lesion.read_bytes())[0] == 200
        (folder,) = tmp_path.glob("skinbook-app-*")
        laid = [one for one in folder.rglob("*") if one.is_file()]
        assert len(laid) == 1
        if at_work:
            assert question(Namespace(server_port=port), [{"path": str(laid[0])}])[0] == 200
        running.send_signal(number)
        try:
            _, told = running.communicate(timeout=60)
        finally:
            running.kill()
    assert list(tmp_path.glob("skinbook-app-*")) == []
    assert "Traceback" not in told


def test_what_nobody_asks_about_is_removed_and_what_nobody_takes(server, lesion, monkeypatch):
    status, text = upload(server, lesion.read_bytes())
    assert status == 200
    laid = Path(json.loads(text)[0])
    server.guard.sweep()
    assert laid.is_file(), "it is asked about in a moment"
    other = json.loads(upload(server, lesion.read_bytes() + b"more")[1])[0]
    assert question(server, [{"path": other}])[0] == 200
    page, end = server.guard.page, time.monotonic() + 60
    while not any(messages.qsize() > 2 for messages in page._queue.pending_messages_per_session.values()):
        assert time.monotonic() < end, "no answer came"
        threading.Event().wait(0.01)
    assert page.state_holder.session_data
    monkeypatch.setattr(app, "FORGOTTEN", 0.0)
    server.guard.sweep()
    assert not laid.exists()
    assert page.state_holder.session_data == {}
    assert not page._queue.pending_messages_per_session
    assert not any(page.temp_file_sets)


def test_the_sweep_comes_by_itself(model, monkeypatch):
    swept = threading.Event()
    monkeypatch.setattr(app, "SWEPT", 0.01)
    monkeypatch.setattr(app.Guard, "sweep", lambda guard: swept.set())
    with served(model):
        assert swept.wait(60)


def test_a_full_disk_gets_a_sentence(server, lesion, monkeypatch):
    from gradio import route_utils

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(route_utils, "NamedTemporaryFile", full)
    status, text = upload(server, lesion.read_bytes())
    assert (status, text) == (507, f"The upload could not be laid into {server.folder.parent}: free some space there.")


def test_a_name_that_the_system_cannot_write_gets_a_sentence(server, lesion, monkeypatch):
    from gradio import route_utils

    def unwritable(*_, **__):
        raise UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range")

    with monkeypatch.context() as once:
        once.setattr(route_utils, "NamedTemporaryFile", unwritable)
        status, text = upload(server, lesion.read_bytes(), "é.png")
    assert status == 400
    assert re.fullmatch(r"Names of files are written in [\w-]+ here, and this one cannot be: rename the file\.", text)
    assert "operating point" in said(server, lesion.read_bytes(), "e.png")
    assert asked.files(server) == []


def test_an_address_is_asked_in_one_way_only(server):
    for method, path in (
        ("PUT", app.JOIN),
        ("GET", app.JOIN),
        ("GET", app.UPLOAD),
        ("POST", "/"),
        ("DELETE", app.ANSWERS),
    ):
        assert ask(server, method, path, Content_Length="3", body=b"abc")[0] == 405, (method, path)


def test_an_upload_that_takes_too_long_ends(server, monkeypatch):
    monkeypatch.setattr(app, "LONGEST", 0.2)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as slow:
        slow.sendall(
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Length: 1000\r\n"
            "Content-Type: multipart/form-data; boundary=edge\r\n\r\n--edge".encode()
        )
        said_of_it = slow.recv(1000)
    assert not said_of_it.startswith(b"HTTP/1.1 200")


def test_a_fault_of_ours_is_a_sentence_and_the_next_upload_is_answered(server, lesion, monkeypatch, capfd):
    with monkeypatch.context() as once:
        once.setattr(app, "grad_cam", lambda *_: 1 / 0)
        assert "Something went wrong" in said(server, lesion.read_bytes())

    def unfit(*_):
        raise SkinbookError("This bundle does not fit.")

    with monkeypatch.context() as once:
        once.setattr(app, "grad_cam", unfit)
        assert '<p class="fault">This bundle does not fit.</p>' in said(server, lesion.read_bytes())

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as once:
        once.setattr(app, "look", full)
        assert "Free some space there." in said(server, lesion.read_bytes())
    assert "operating point" in said(server, lesion.read_bytes())
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize(
    "headers",
    [{"Host": "attacker.invalid"}, {"Origin": "http://attacker.invalid"}, {"Origin": "null"}],
    ids=["another name for this machine", "another page", "a sandboxed page"],
)
def test_other_pages_are_not_answered(server, lesion, headers):
    for method, path in (("GET", "/"), ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")):
        status, text, _ = ask(server, method, path, lesion.read_bytes() if method == "POST" else b"", **headers)
        assert status == 403
        assert "its own machine only" in text


def test_of_gradio_only_what_the_page_needs_is_open(server):
    for path in (
        "/docs",
        "/monitoring",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/call/ask",
        "/gradio_api/run/ask",
        "/gradio_api/runs",
        "/elsewhere",
    ):
        assert ask(server, path=path)[0] == 404, path
    for path in ("/static/../../../../etc/passwd", "/assets/..%2f..%2f..%2fetc/passwd"):
        status, text, _ = ask(server, path=path)
        assert status >= 400, path
        assert "root:" not in text


def test_no_web_socket_is_opened(server):
    told = []

    async def send(message):
        told.append(message)

    asyncio.run(server.server.config.app({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert told == [{"type": "websocket.close"}]
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as asked:
        asked.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert not asked.recv(1000).startswith(b"HTTP/1.1 101")


def test_it_listens_on_this_machine_only(server, model):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200
    for host in ("0.0.0.0", "", "::", "192.168.1.2", "example.org"):
        with pytest.raises(SkinbookError, match="for this machine only"):
            app.Server(model, host, 0)
    for port, why in ((server.server_port, "in use"), (70000, "no such port")):
        with pytest.raises(SkinbookError, match=f"{why}.*--port"):
            app.Server(model, port=port)


def test_without_gradio_it_says_how_to_get_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SkinbookError, match=r"pip install --upgrade gradio"):
        app.Server(model, port=0)


def test_the_command(monkeypatch, capsys):
    def interrupted(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(app.Server, "serve_forever", interrupted)
    assert models.call(monkeypatch, "app", "--port", "0") == 0
    assert re.search(r"Open http://127\.0\.0\.1:\d+ in a browser", capsys.readouterr().out)
    assert models.call(monkeypatch, "app", "--host", "0.0.0.0") == 2
    assert "for this machine only" in capsys.readouterr().err
