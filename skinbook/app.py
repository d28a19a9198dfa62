"""A page on this machine to try a model with: `skinbook app`, then drop a photograph. The page is Gradio's.

It keeps nothing. Gradio lays an upload into a temporary folder; it is removed before the answer goes out, what nobody
asked about after ten minutes, and the folder when the page ends. Pictures in an answer are part of it and no files, and
the session in which Gradio remembers an answer is dropped with it. No request is logged. The server listens on
127.0.0.1 and answers only what comes from its own page: the host and the origin of a request are checked, so that no
other page in the same browser can use it, and of Gradio's addresses only those that this page needs are open. The page
loads nothing from elsewhere, and its content security policy holds the browser to that.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import os
import shutil
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from PIL import Image

from skinbook.card import BINARY, DISCLAIMER, Model
from skinbook.config import SkinbookError
from skinbook.data import images
from skinbook.data.pixels import reduce
from skinbook.diagnoses import DIAGNOSES
from skinbook.files import reason
from skinbook.predict_files import Prediction, answers, prediction

LARGEST = 20 * 2**20  # bytes of an upload
TOO_LARGE = f"is larger than {LARGEST // 2**20} MB, the most that this page takes. Save it smaller, as a JPEG"
DRAWN = (
    "It has learned from drawn lesions only: what it says of a real one means nothing. "
    "The command skinbook lab write FOLDER writes drawn ones."
)
HOSTS = ("127.0.0.1", "localhost")
PORT = 8765
SHOWN = 384  # side in pixels of the pictures in an answer
OUTLINED = 128  # side at which the outline is looked for; a hair is then about a pixel wide, and goes
LONGEST = 120.0  # seconds that a request may take to arrive
SLACK = 2**20  # bytes that a request may be longer than its upload
AT_ONCE = 64  # connections; a browser opens up to six
FORGOTTEN = 600.0  # seconds after which an upload that nobody asked about is removed, or an answer that nobody took
SWEPT = 60.0  # seconds between two looks for such
UPLOAD, JOIN, ANSWERS = "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data"
# What the page asks for. Gradio has more (its own documentation, files, a proxy), which has no business here.
OPEN = (
    "/", "/favicon.ico", "/theme.css", "/config", "/gradio_api/startup-events", "/gradio_api/upload_progress",
    UPLOAD, JOIN, ANSWERS,
)  # fmt: skip
OPEN_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
# Gradio would take its own address from such headers.
UNHEARD = (b"x-forwarded-", b"forwarded", b"x-gradio-", b"x-real-")
GONE = "was looked at already, or waited too long, and is gone. Choose it once more."
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Look:
    """What there is to say of one upload, and to show: squares, uint8 (SHOWN, SHOWN, 3), or None.

    photograph : the part that the model saw. attention : Grad-CAM over it, for the most probable diagnosis.
    outline : the lesion as Otsu's threshold finds it. blank : whether the Grad-CAM map is zero everywhere.
    """

    prediction: Prediction
    photograph: np.ndarray | None = None
    attention: np.ndarray | None = None
    outline: np.ndarray | None = None
    blank: bool = False


def look(model: Model, data: bytes, name: str) -> Look:
    """What a model says of the bytes of an image file. name : the file's own, for the sentences. Leaves nothing behind."""
    if len(data) > LARGEST:
        return Look(Prediction(name, "failed", reason=f"{name} {TOO_LARGE}."))
    with TemporaryDirectory(prefix="skinbook-app-") as folder:
        file = Path(folder) / "upload"
        file.write_bytes(data)
        (answer,) = answers(model, [file])  # as `skinbook predict` does, so that both say the same
        if answer.probabilities is None:
            return Look(Prediction(name, "failed", reason=answer.fault.replace(str(file), name)))
        image, _ = images.decode(file, at_least=max(SHOWN, model.image))
    one = replace(prediction(model, answer), file=name)
    square = np.asarray(reduce(image, (SHOWN, SHOWN)))
    if one.status != "answered":
        return Look(one, square)
    cam = grad_cam(model, np.asarray(reduce(image, (model.image, model.image))), int(answer.probabilities.argmax()))
    return Look(
        one,
        square,
        None if cam is None else overlaid(square, cam),
        drawn(square, otsu_mask(square)),
        cam is not None and not cam.any(),
    )


# Pictures -------------------------------------------------------------------------------------------------------------


def grad_cam(model: Model, pixels: np.ndarray, target: int) -> np.ndarray | None:
    """The Grad-CAM map of one photograph, uint8 (side, side, 3), as float32 (side, side) in 0..1; None for ONNX."""
    from skinbook.bundle import Bundle

    if not isinstance(model, Bundle):
        return None
    from skinbook import explain
    from skinbook.batches import Batches

    backbone = model.network.backbone
    mean, std = tuple(backbone.mean), tuple(backbone.std)
    batches = Batches(pixels[None], np.zeros(1), np.arange(1), size=model.image, mean=mean, std=std)
    return explain.maps(model.network, batches, np.array([target]))[0]


def overlaid(photograph: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """A map, float (side, side) in 0..1, in colours over a photograph, half and half, as chapter 07 shows it."""
    from matplotlib import colormaps

    size = photograph.shape[1::-1]
    large = Image.fromarray(np.asarray(cam, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR)
    colours = colormaps["magma"](np.clip(np.asarray(large), 0, 1))[..., :3]
    return (0.5 * photograph + 127.5 * colours).round().astype(np.uint8)


def otsu_mask(photograph: np.ndarray) -> np.ndarray:
    """The lesion as bool, as large as the photograph: chapter 08's outline that looks but has not learned.

    Otsu's threshold on darkness in blue light, which pigment swallows most; what is thin goes, holes are filled, the
    largest piece stays.
    """
    from scipy import ndimage

    height, width = photograph.shape[:2]
    dark = 255 - np.asarray(Image.fromarray(photograph[..., 2]).resize((OUTLINED, OUTLINED), Image.Resampling.BOX))
    counts = np.bincount(dark.ravel(), minlength=256).astype(float)
    sums, low = (counts * np.arange(256)).cumsum(), counts.cumsum()
    high = low[-1] - low
    apart = sums / np.maximum(low, 1) - (sums[-1] - sums) / np.maximum(high, 1)
    mask = ndimage.binary_fill_holes(ndimage.binary_opening(dark > np.argmax(low * high * apart**2)))
    pieces, count = ndimage.label(mask)
    if count > 1:
        mask = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    large = Image.fromarray(255 * mask.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large) > 127


def drawn(photograph: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A photograph with the edge of a mask on it, orange between white lines, so that it shows on any skin."""
    from scipy import ndimage

    found = photograph.copy()
    for colour, width in (((255, 255, 255), 2), ((213, 94, 0), 1)):
        edge = ndimage.binary_dilation(mask, iterations=width) & ~ndimage.binary_erosion(
            mask, iterations=width, border_value=1
        )
        found[edge] = colour
    return found


# Words ----------------------------------------------------------------------------------------------------------------


def shown(model: Model, found: Look) -> str:
    """An answer as a piece of HTML. Whatever comes from outside is escaped."""
    one = found.prediction
    if one.status == "failed":
        return f'<p class="fault">{escape(one.reason)}</p>'
    if one.status == "refused":
        share = (
            ""
            if not model.refused
            else f" At this limit it also refuses {model.refused:.0%} of its own validation photographs."
        )
        return (
            f"<h2>{escape(one.file)}</h2>"
            f'<p class="refusal"><strong>Refused.</strong> {escape(one.reason)}{share}</p>'
            f'<div class="pictures">{_picture(found.photograph, "What the model was shown", "Your picture, cut to a square.")}</div>'
        )
    ranked = sorted(zip(model.classes, model.malignant, strict=True), key=lambda pair: -one.probabilities[pair[0]])
    rows = [_row(_name(dx), one.probabilities[dx], "malignant" if ill else "") for dx, ill in ranked]
    parts = [
        f"<h2>{escape(one.file)}</h2>",
        f'<p class="verdict">{_verdict(model, one)}</p>',
        "<h3>Malignant or not</h3>",
        f"<table>{_row('malignant, all together', one.malignant or 0.0, 'malignant', model.threshold)}</table>",
    ]
    if model.threshold is not None:
        parts.append('<p class="note">The line across the bar is the operating point, chosen on validation.</p>')
    if model.classes != BINARY:
        parts += [
            "<h3>Each diagnosis</h3>",
            f"<table>{''.join(rows)}</table>",
            '<p class="note">Calibrated probabilities: on photographs like those of training, of the answers given '
            "with 0.8 about eight in ten should be right. <em>Malignant</em> marks what counts as such.</p>",
        ]
    if model.limit is None:
        parts.append("<p>This bundle cannot tell what is not dermoscopy: whatever it is shown gets a diagnosis.</p>")
    parts.append(f'<div class="pictures">{_pictures(one, found)}</div>')
    return "\n".join(parts)


def _verdict(model: Model, one: Prediction) -> str:
    said = f"The most probable diagnosis is <strong>{_name(one.diagnosis or '')}</strong>. "
    if model.classes == BINARY:
        said = ""
    said += f"Malignant probability <strong>{one.malignant:.2f}</strong>"
    if model.threshold is None:
        return said + "; no operating point was chosen for this bundle."
    beyond = "at or above" if one.called_malignant else "below"
    called = BINARY[bool(one.called_malignant)]
    return said + f", {beyond} the operating point of {model.threshold:.2f}: called <strong>{called}</strong>."


def _pictures(one: Prediction, found: Look) -> str:
    pieces = [_picture(found.photograph, "What the model was shown", "Your photograph, cut to a square.")]
    where = f"Grad-CAM for {_name(one.diagnosis or '')}: bright where the network found most for it."
    if found.blank:
        where = f"Grad-CAM for {_name(one.diagnosis or '')}: nothing spoke for it, so the map is blank."
    pieces.append(
        _picture(found.attention, "Where the network looked", f"{where} Chapter 07 tests how far to believe it.")
    )
    pieces.append(
        _picture(
            found.outline,
            "An outline without learning",
            "Otsu’s threshold on darkness, not a trained network. Chapter 08 counts how often it fails.",
        )
    )
    missing = "" if found.attention is not None else '<p class="note">An ONNX file has no gradients: no Grad-CAM.</p>'
    return "".join(pieces) + missing


def _picture(pixels: np.ndarray | None, title: str, caption: str) -> str:
    if pixels is None:
        return ""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG", compress_level=3)
    data = base64.b64encode(held.getvalue()).decode()
    return (
        f'<figure><img width="{pixels.shape[1]}" height="{pixels.shape[0]}" alt="{escape(title)}" '
        f'src="data:image/png;base64,{data}"><figcaption><strong>{title}</strong> {caption}</figcaption></figure>'
    )


def _row(name: str, p: float, kind: str, threshold: float | None = None) -> str:
    tick = "" if threshold is None else f'<rect class="tick" x="{100 * threshold:.1f}" width="0.8" height="4"/>'
    mark = ' <small class="mark">malignant</small>' if kind and threshold is None else ""
    return (
        f'<tr><th scope="row">{name}{mark}</th><td class="bar"><svg viewBox="0 0 100 4" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect class="ground" width="100" height="4"/>'
        f'<rect class="{kind or "benign"}" width="{100 * p:.1f}" height="4"/>{tick}</svg></td>'
        f'<td class="number">{p:.2f}</td></tr>'
    )


def _name(dx: str) -> str:
    return escape(DIAGNOSES[dx].name if dx in DIAGNOSES else dx)


def words_of(model: Model, note: str) -> str:
    """What the page says of its model, escaped. note : a sentence about the bundle."""
    point = "" if model.threshold is None else f" Operating point: {model.threshold:.2f}."
    return escape(f"{model.about}{point} {note}".strip())


# The page -------------------------------------------------------------------------------------------------------------


def answer(model: Model, upload: str, folder: Path) -> str:
    """The answer to an upload, a file that Gradio laid into `folder`, as HTML. The file is gone before this returns."""
    file = Path(upload)
    name = "".join(c for c in file.name if c.isprintable()).strip()[-120:] or "The file"
    if file.resolve().parent.parent != folder.resolve():  # what follows removes the file
        return _fault(f"{name} was not uploaded here.")
    try:
        return shown(model, look(model, file.read_bytes(), name))
    except FileNotFoundError:
        return _fault(f"{name} {GONE}")
    except OSError as error:
        place = f"{gettempdir()} cannot be written ({reason(error)})"
        return _fault(f"{name} cannot be looked at, since {place}. Free some space there.")
    except SkinbookError as error:
        return _fault(str(error))
    except Exception:
        traceback.print_exc()
        return _fault("Something went wrong in here; the terminal that runs skinbook app says what.")
    finally:
        with contextlib.suppress(OSError):  # two files of one content share a folder
            file.unlink(missing_ok=True)
            file.parent.rmdir()


def _fault(sentence: str) -> str:
    return f'<p class="fault">{escape(sentence)}</p>'


def blocks(model: Model, note: str, folder: Path, turn: threading.Lock) -> Any:
    """The page as Gradio's Blocks: a place to drop a photograph, and below it what the model says.

    folder : where Gradio lays uploads. turn : taken while there is an answer to be found.
    """
    gr = _gradio()
    with gr.Blocks(title="skinbook: ask a model", analytics_enabled=False, fill_width=False) as page:
        gr.HTML(
            f'<p class="device" role="note"><strong>{escape(DISCLAIMER)}</strong></p>', elem_id="device", padding=False
        )
        gr.HTML(f'<h1>Ask a model about a photograph</h1><p class="model">{words_of(model, note)}</p>')
        drop = gr.File(label="A photograph", file_count="single", type="filepath", height=150)
        gr.HTML(
            f'<p class="note">Dermoscopy only, up to {LARGEST // 2**20} MB. It stays on this machine, and nothing of it is kept.</p>'
        )
        said = gr.HTML('<div id="answer" aria-live="polite"></div>')

        def ask(upload: dict[str, Any]) -> tuple[str, None]:
            with turn:
                return f'<div id="answer" aria-live="polite">{answer(model, upload["path"], folder)}</div>', None

        # One at a time: memory holds one photograph, and Grad-CAM hooks into the network. With `preprocess`, Gradio would
        # lay an empty file beside the upload.
        options = {"concurrency_limit": 1, "api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        drop.upload(ask, drop, [said, drop], **options)
    page.queue(max_size=16)
    return page


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read as it is imported
    try:
        import gradio
    except ImportError:
        raise SkinbookError(
            "skinbook app is a page of Gradio, which is not installed: pip install --upgrade gradio."
        ) from None
    return gradio


class Guard:
    """An ASGI application in front of Gradio's: what is not from this page, or too large or too slow, does not reach it."""

    def __init__(self, inner: Any, page: Any, port: int, folder: Path) -> None:
        self.inner, self.page, self.port, self.folder = inner, page, port, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.inner(scope, receive, send)
        if scope["type"] != "http":  # no part of the page is a web socket
            return await send({"type": "websocket.close"})
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        refused = functools.partial(_say, send, path == JOIN)
        host, origin = headers.get("host", ""), headers.get("origin")
        ours = [f"{name}:{self.port}" for name in HOSTS] + [name for name in HOSTS if self.port == 80]
        if host not in ours or origin not in (None, f"http://{host}"):
            return await refused(403, "This page answers its own machine only.")
        if not path.isprintable() or not (path in OPEN or path.startswith(OPEN_BELOW)):
            return await refused(404, "There is nothing at this address.")
        if method not in (("POST",) if path in (UPLOAD, JOIN) else ("GET", "HEAD")):
            return await refused(405, "This address is not asked like that.")
        told = headers.get("content-length", "0")
        if not (told.isascii() and told.isdecimal()) or "transfer-encoding" in headers:
            return await refused(411, "The length of the upload was not told.")
        if len(told) > 15 or int(told) > (LARGEST if path == UPLOAD else 0) + SLACK:
            return await refused(413, f"The upload {TOO_LARGE}.")
        with contextlib.suppress(OSError):  # a system may clean its temporary folders
            self.folder.mkdir(mode=0o700, exist_ok=True)
        scope["headers"] = [(key, value) for key, value in scope["headers"] if not key.lower().startswith(UNHEARD)]
        left = LONGEST

        async def in_time() -> Any:
            nonlocal left
            if method != "POST":
                return await receive()
            started = time.monotonic()
            try:
                return await asyncio.wait_for(receive(), left)
            except TimeoutError:
                return {"type": "http.disconnect"}
            finally:
                left -= time.monotonic() - started

        if path == JOIN:
            question, why = self.question(await _body(in_time))
            if why:
                return await refused(400, why)
            kept = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
            scope["headers"] = [*kept, (b"content-length", str(len(question)).encode())]
            in_time = _again(question, in_time)
        failed, fault = False, None

        async def with_policy(message: Any) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                failed = path == UPLOAD and message["status"] >= 500
                message["headers"] = [*message["headers"], *_headers()]
            if not failed:
                await send(message)

        try:
            await self.inner(scope, in_time, with_policy)
        except Exception as error:
            fault = error  # Starlette raises again what it has answered
        finally:
            if path == ANSWERS:  # the answer went out, or nobody is there to take it
                for session in parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", []):
                    self.forget(session)
        if failed and isinstance(fault, UnicodeError):
            written = sys.getfilesystemencoding()
            return await refused(
                400, f"Names of files are written in {written} here, and this one cannot be: rename the file."
            )
        if failed:
            await refused(507, f"The upload could not be laid into {self.folder.parent}: free some space there.")
        if fault is not None:
            raise fault

    def question(self, told: bytes) -> tuple[bytes, str]:
        """A question to the page, made anew of nothing but the session and the one file, if that was laid into the folder;
        or empty, and why.

        Gradio, mounted in another application, copies whatever file and fetches whatever address a question names.
        """
        try:
            asked = json.loads(told)
            (file,), session = asked["data"], asked["session_hash"]
            laid = Path(file["path"])
            ours = str(laid.resolve()) == file["path"] and laid.parent.parent == self.folder
            if not (ours and session.isascii() and session.isalnum()):
                return b"", "That file was not uploaded here."
            if not laid.is_file():
                return b"", f"{laid.name} {GONE}"
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            return b"", "That file was not uploaded here."
        one = {"path": file["path"], "meta": {"_type": "gradio.FileData"}}
        return json.dumps({"data": [one], "fn_index": 0, "session_hash": session}).encode(), ""

    def forget(self, session: str) -> None:
        """Drop what Gradio remembers of a session: the answer, pictures and all."""
        self.page.state_holder.session_data.pop(session, None)
        self.page.state_holder.time_last_used.pop(session, None)

    def sweep(self) -> None:
        """Remove what was uploaded a while ago and never asked about, and answers that nobody took."""
        with contextlib.suppress(OSError):
            for one in self.folder.iterdir():
                with contextlib.suppress(OSError):  # it is gone already
                    if time.time() - one.stat().st_mtime > FORGOTTEN:
                        shutil.rmtree(one) if one.is_dir() else one.unlink()
        for session, used in list(self.page.state_holder.time_last_used.items()):
            if time.time() - used.timestamp() > FORGOTTEN:
                self.forget(session)
                for waiting in (
                    self.page._queue.pending_messages_per_session,
                    self.page._queue.pending_event_ids_session,
                ):
                    waiting.pop(session, None)
        for names in self.page.temp_file_sets:  # of files that are gone
            names.clear()


async def _body(receive: Any) -> bytes:
    """The body of a request; empty where it did not arrive whole."""
    whole = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        whole += message.get("body", b"")
        if not message.get("more_body", False):
            return whole


def _again(whole: bytes, receive: Any) -> Any:
    """What hands on a body that was read already, and then whatever else arrives."""
    messages = [{"type": "http.request", "body": whole, "more_body": False}]

    async def handed_on() -> Any:
        return messages.pop() if messages else await receive()

    return handed_on


def _headers() -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", POLICY.encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]


async def _say(send: Any, as_json: bool, status: int, sentence: str) -> None:
    """Answer with a sentence, in the form that Gradio's page shows a reader."""
    kind, body = ("application/json", json.dumps({"detail": sentence})) if as_json else ("text/plain", sentence)
    head = [(b"content-type", f"{kind}; charset=utf-8".encode()), *_headers()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body.encode()})


class Server:
    """The page of one model, on this machine only. `serve_forever` returns after `shutdown`, or Ctrl+C."""

    def __init__(self, model: Model, host: str = HOSTS[0], port: int = PORT, note: str = "") -> None:
        if host not in HOSTS:
            raise SkinbookError(
                f"The page is for this machine only, and {host!r} is another address. Leave --host out, or say 127.0.0.1."
            )
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind((HOSTS[0], port))
            self.socket.listen()
        except (OSError, OverflowError) as error:
            self.socket.close()
            why = getattr(error, "strerror", None) or "there is no such port"
            raise SkinbookError(
                f"Port {port} cannot be used ({why}). Choose another with --port; 0 finds a free one."
            ) from None
        self.server_address = self.socket.getsockname()
        self.server_port = self.server_address[1]
        self.model = model
        self.temporary = TemporaryDirectory(prefix="skinbook-app-")
        self.folder = Path(self.temporary.name).resolve()
        self.before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)  # read as Gradio is imported, and as each part is made
        try:
            gr = _gradio()
        except SkinbookError:
            self.__exit__()
            raise
        import fastapi
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol

        class Impatient(H11Protocol):
            """Ends a connection on which no request arrives whole; Guard looks to the bodies."""

            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                self.loop.call_later(LONGEST, self.end_if_idle)

            def end_if_idle(self) -> None:
                if self.cycle is None or self.cycle.response_complete:
                    self.transport.close()
                elif not self.transport.is_closing():
                    self.loop.call_later(LONGEST, self.end_if_idle)

        self.turn = threading.Lock()
        page = blocks(model, note, self.folder, self.turn)
        inner = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            page,
            "/",
            server_name=HOSTS[0],
            server_port=self.server_port,
            footer_links=[],
            run_history=False,
            max_file_size=LARGEST,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            show_error=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css_paths=Path(__file__).with_name("app.css"),
        )
        self.guard = Guard(inner, page, self.server_port, self.folder)
        self.ended = threading.Event()
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.guard,
                http=Impatient,
                ws="none",
                proxy_headers=False,
                limit_concurrency=AT_ONCE,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    @property
    def address(self) -> str:
        return f"http://{HOSTS[0]}:{self.server_port}"

    def serve_forever(self) -> None:
        threading.Thread(target=self._sweep, daemon=True).start()
        try:
            self.server.run(sockets=[self.socket])
        finally:
            self.ended.set()
            self.turn.acquire(timeout=LONGEST)  # what is being looked at now comes to its end

    def _sweep(self) -> None:
        while not self.ended.wait(SWEPT):
            self.guard.sweep()

    def shutdown(self) -> None:
        self.server.should_exit = True

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.temporary.cleanup()
        os.environ.pop("GRADIO_TEMP_DIR", None)
        if self.before is not None:
            os.environ["GRADIO_TEMP_DIR"] = self.before
