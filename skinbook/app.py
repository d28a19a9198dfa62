"""A page on this machine to try a model with: `skinbook app`, then drop a photograph.

It keeps nothing. An upload lies in a temporary folder while it is decoded, and the folder is removed before the answer
goes out; no request is logged. The server listens on 127.0.0.1, and answers only what comes from its own page: the host
and the origin of a request are checked, so that no other page in the same browser can use it. The page loads nothing
from elsewhere, and its content security policy holds the browser to that.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import secrets
import socket
import sys
import threading
from dataclasses import dataclass, replace
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from skinbook.card import BINARY, DISCLAIMER, Model
from skinbook.config import SkinbookError
from skinbook.data import images
from skinbook.data.pixels import reduce
from skinbook.diagnoses import DIAGNOSES
from skinbook.files import reason
from skinbook.predict_files import Prediction, answers, prediction

LARGEST = 20_000_000  # bytes of an upload
TOO_LARGE = f"is larger than {LARGEST // 1_000_000} MB, the most that this page takes. Save it smaller, as a JPEG"
DRAWN = (
    "It has learned from drawn lesions only: what it says of a real one means nothing. "
    "The command skinbook lab write FOLDER writes drawn ones."
)
HOSTS = ("127.0.0.1", "localhost")
PORT = 8765
SHOWN = 384  # side in pixels of the pictures in an answer
OUTLINED = 128  # side at which the outline is looked for; a hair is then about a pixel wide, and goes
PATIENCE = 30.0  # seconds without a byte after which a connection ends
LONGEST = 120.0  # seconds that a request may take to arrive
AT_ONCE = 16  # connections; each may hold an upload


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
    # A drawing, not a styled element: the page's policy forbids styles that come with an answer.
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


def page(model: Model, note: str, nonce: str) -> str:
    """The page, empty. note : a sentence about the bundle. nonce : what its style and script are known by."""
    point = "" if model.threshold is None else f" Operating point: {model.threshold:.2f}."
    text = Path(__file__).with_name("app.html").read_text(encoding="utf-8")
    slots = {
        "disclaimer": escape(DISCLAIMER),
        "model": escape(f"{model.about}{point} {note}".strip()),
        "largest": str(LARGEST),
        "too large": escape(TOO_LARGE),
        "nonce": nonce,
    }
    return re.sub(r"\{\{(.+?)\}\}", lambda slot: slots[slot[1]], text)


# The server -----------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """The page of one model, on this machine only."""

    daemon_threads = True

    def __init__(self, model: Model, host: str = HOSTS[0], port: int = PORT, note: str = "") -> None:
        if host not in HOSTS:
            raise SkinbookError(
                f"The page is for this machine only, and {host!r} is another address. Leave --host out, or say 127.0.0.1."
            )
        self.model, self.note, self.turn = model, note, threading.Lock()
        self.places = threading.BoundedSemaphore(AT_ONCE)
        try:
            super().__init__((HOSTS[0], port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "there is no such port"
            raise SkinbookError(
                f"Port {port} cannot be used ({reason}). Choose another with --port; 0 finds a free one."
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOSTS[0]}:{self.server_port}"

    def look(self, data: bytes, name: str) -> str:
        """The answer to an upload. One at a time: memory holds one photograph, and Grad-CAM hooks into the network."""
        try:
            with self.turn:
                found = look(self.model, data, name)
        except OSError as error:
            raise SkinbookError(
                f"{name} cannot be looked at, since {gettempdir()} cannot be written ({reason(error)}). Free some space there."
            ) from None
        return shown(self.model, found)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, as long as there are few; of more, the connection ends at once."""
        if not self.places.acquire(blocking=False):
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who closes the window is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = PATIENCE
    server_version, sys_version = "skinbook", ""

    def setup(self) -> None:
        super().setup()
        # No byte of a trickle comes too late by itself.
        self.late = threading.Timer(LONGEST, self._read_no_more)
        self.late.daemon = True
        self.late.start()

    def _read_no_more(self) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self.connection.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        self.late.cancel()
        super().finish()

    def do_GET(self) -> None:
        if not self._from_here():
            return
        if self.path.split("?")[0] != "/":
            return self._say(404, "There is nothing at this address.")
        nonce = secrets.token_urlsafe(16)
        self._send(200, page(self.server.model, self.server.note, nonce), nonce)

    def do_POST(self) -> None:
        if not self._from_here():
            return
        if self.path != "/look":
            return self._say(404, "There is nothing at this address.")
        told = self.headers.get("Content-Length", "")
        if not told.isdecimal():
            return self._say(411, "The length of the upload was not told.")
        length = int(told) if len(told) < 16 else sys.maxsize
        name = _file_name(self.headers.get("X-File-Name", ""))
        if length > LARGEST:
            self._pass_over(min(length, 10 * LARGEST))
            return self._say(413, f"{name} {TOO_LARGE}.")
        data = self.rfile.read(length)
        self.late.cancel()
        if len(data) < length:
            return  # whoever sent it went away, or was too slow
        try:
            self._send(200, self.server.look(data, name))
        except SkinbookError as error:
            self._say(500, str(error))
        except Exception:
            self._say(500, "Something went wrong in here; the terminal that runs `skinbook app` says what.")
            raise

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _from_here(self) -> bool:
        """Whether a request is for this address and, where it names its page, from this page; else it is refused."""
        ours = [f"{host}:{self.server.server_port}" for host in HOSTS]
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host in ours and origin in (None, f"http://{host}"):
            return True
        self._say(403, "This page answers its own machine only.")
        return False

    def _pass_over(self, length: int) -> None:
        """Read and drop, since a browser that is still sending does not hear an answer."""
        while length > 0 and (piece := self.rfile.read(min(length, 1 << 20))):
            length -= len(piece)

    def _say(self, status: int, sentence: str) -> None:
        self._send(status, f'<p class="fault">{escape(sentence)}</p>')

    def _send(self, status: int, text: str, nonce: str = "") -> None:
        body = text.encode()
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        self.send_response(status)
        for key, value in {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": (
                f"default-src 'none'; img-src data:; style-src {own}; script-src {own}; connect-src 'self'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _file_name(told: str) -> str:
    """The name of an upload, from a header in which all but plain letters are percent-encoded; short, on one line."""
    name = "".join(c for c in unquote(told) if c.isprintable()).strip()
    return name[-120:] or "The file"
