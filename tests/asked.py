"""`skinbook app` as its page asks it: over HTTP, laid down, asked about, and waited for."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from skinbook import app


@contextmanager
def served(model, note: str = "") -> Iterator[app.Server]:
    """The page of a model on a free port; at the end it is gone, and so is its folder."""
    with app.Server(model, port=0, note=note) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join(10)
        assert not thread.is_alive()
    assert not running.folder.exists()


def ask(server, method="GET", path="/", body=b"", **headers):
    """(status, text, headers) of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text, reply.headers


def upload(server, data, name="mine.png", **headers):
    """(status, text) of laying a file down, as the page does it."""
    part = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    headers = {"Content_Type": "multipart/form-data; boundary=edge"} | headers
    return ask(server, "POST", "/gradio_api/upload", part + data + b"\r\n--edge--\r\n", **headers)[:2]


def said(server, data, name="mine.png"):
    """What the page shows of an upload: laid down, asked about and waited for, as the page does it."""
    status, text = upload(server, data, name)
    assert status == 200, text
    done = about(server, json.loads(text)[0], name)
    html, emptied = done["output"]["data"]
    assert emptied is None
    return html


def about(server, path, name):
    """What the queue tells at the end, asked about a file."""
    file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    status, text = question(server, [file])
    assert status == 200, text
    _, events, _ = ask(server, "GET", "/gradio_api/queue/data?session_hash=me")
    told = [json.loads(line[len("data: ") :]) for line in events.splitlines() if line.startswith("data: ")]
    (done,) = [event for event in told if event["msg"] == "process_completed"]
    return done


def question(server, data, path="/gradio_api/queue/join", **headers):
    """(status, text) of a question to the page."""
    body = json.dumps({"data": data, "fn_index": 0, "session_hash": "me"}).encode()
    return ask(server, "POST", path, body, Content_Type="application/json", **headers)[:2]


def files(server):
    """What lies in the page's folder; empty folders of Gradio's own do not count."""
    return [one for one in server.folder.rglob("*") if one.is_file()]
