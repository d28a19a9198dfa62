"""What strangers may send cannot run, climb, hold on or show through: files, archives, uploads, names, stored outputs."""

from __future__ import annotations

import ast
import base64
import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import tomllib
import zipfile
from pathlib import Path

import damaged
import models
import pytest
from asked import about, ask, said, served
from layouts import photograph
from PIL import Image

from skinbook import app, audit_given, config, predict_files
from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.data import download

# One process draws or loads what these share (with `--dist loadgroup`, as `make unit` has it).
pytestmark = pytest.mark.xdist_group("app")

# What several tests have in common: their row on the maintainers' page.
no_code = pytest.mark.holds("security", "code that runs what a file or a text holds", "none stands in the package")
wrong_hashes = pytest.mark.holds(
    "security", "weights and archives whose hash is wrong", "never opened, never given their name"
)
lying_archives = pytest.mark.holds(
    "security", "archives that climb out, link out or lie", "a sentence; nothing is left, inside or out"
)
bad_uploads = pytest.mark.holds(
    "security", "uploads that lie, trickle, crowd in or are no HTTP", "bounded, refused, and the next is answered"
)
names_that_are_code = pytest.mark.holds(
    "security", "names and texts that are code to a browser or a terminal", "shown as what they are"
)
no_secrets = pytest.mark.holds(
    "security", "secrets and paths of a machine in stored outputs", "none in notebooks, data and pages"
)

HOME = Path(__file__).resolve().parent.parent
PACKAGE = sorted((HOME / "skinbook").rglob("*.py"))

# The source of the package ---------------------------------------------------------------------------------------------

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "codeop", "runpy"}
MODULES |= {"telnetlib", "ftplib", "xmlrpc", "multiprocessing.managers"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system"), ("os", "popen")}
METHODS |= {("torch", "save"), ("pd", "read_pickle"), ("pandas", "read_pickle"), ("tempfile", "mktemp")}
METHODS |= {("joblib", "load"), ("np", "fromregex"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}
TARS = {"extractall", "extract"}


def dangers(source: str) -> list[str]:
    """What in a source could run what a file or a user's text holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if {alias.name, alias.name.split(".")[0]} & MODULES]
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module, node.module.split(".")[0], *(f"{node.module}.{one.name}" for one in node.names)}
            found += sorted(names & (MODULES | {".".join(pair) for pair in METHODS}))
        if not isinstance(node, ast.Call):
            continue
        name, of = getattr(node.func, "id", None), getattr(node.func, "value", None)
        method = getattr(node.func, "attr", None)
        if name in CALLS or (getattr(of, "id", None), method) in METHODS or method in TARS:
            found.append(ast.unparse(node.func))
        told = {word.arg: word.value for word in node.keywords}
        for word in ("shell", "allow_pickle", "trust_remote_code"):
            if word in told and not (isinstance(told[word], ast.Constant) and told[word].value is False):
                found.append(f"{word}=")
        loads = (getattr(of, "id", None), method) in {("np", "load"), ("numpy", "load")}
        if loads and "allow_pickle" not in told:
            found.append("np.load without allow_pickle=False")
    return found


@no_code
def test_the_package_runs_nothing_that_a_file_holds(record_property):
    found = {path.name: dangers(path.read_text(encoding="utf-8")) for path in PACKAGE}
    assert {name: what for name, what in found.items() if what} == {}
    record_property("measured", f"{len(PACKAGE)} modules read")


@no_code
@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "from os import system",
        "import shelve",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "torch.load(file)",
        "torch.load(file, weights_only=True)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=flag)",
        "yaml.load(text)",
        "os.system(text)",
        "os.popen(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "archive.extractall(folder)",
        "pd.read_pickle(file)",
        "from joblib import load",
        "Model.load(name, trust_remote_code=True)",
    ],
)
def test_each_of_them_would_be_seen(line):
    assert dangers(f"def f():\n    {line}\n")
    assert not dangers("np.load(file, allow_pickle=False)\nsubprocess.run(['a'], shell=False)\nbundle.load(x)\n")


@no_code
def test_ruffs_security_rules_are_on_for_the_package():
    lint = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert {rule for rule in lint["ignore"] if rule.startswith("S")} <= {"S603", "S607"}
    let_off = {name: [r for r in rules if r.startswith("S")] for name, rules in lint["per-file-ignores"].items()}
    of_package = {name: rules for name, rules in let_off.items() if name.startswith("skinbook") and rules}
    assert of_package == {"skinbook/data/download.py": ["S310"], "skinbook/book.py": ["S310"]}
    silenced = [
        (path.name, line.strip())
        for path in PACKAGE
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"noqa: ?S\d{3}|nosec|ruff: noqa|noqa\s*$", line) and "noqa: SIM" not in line
    ]
    assert silenced == []


# Files ----------------------------------------------------------------------------------------------------------------


@wrong_hashes
def test_weights_are_not_opened_before_their_hash_is_right(tmp_path, monkeypatch):
    import safetensors.torch

    for file in config.book_data("lab_bundle").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    opened = []
    real = safetensors.torch.load
    monkeypatch.setattr(safetensors.torch, "load", lambda data: opened.append(len(data)) or real(data))
    Bundle.load(tmp_path)
    assert len(opened) == 1
    (weights,) = tmp_path.glob("weights-*")
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(SkinbookError, match=r"is not the file that bundle\.json was written with"):
        Bundle.load(tmp_path)
    assert len(opened) == 1


@wrong_hashes
def test_a_download_has_no_name_before_its_hash_is_right(tmp_path, monkeypatch):
    seen = []
    real = download._check

    def check(remote, target, part):
        seen.append((target.exists(), part.exists()))
        return real(remote, target, part)

    def arrived(url, part, remote):
        part.write_bytes(b"PK other bytes")

    monkeypatch.setattr(download, "_check", check)
    monkeypatch.setattr(download, "_go_on", arrived)
    unpacked = []
    monkeypatch.setattr(download, "unpack", lambda *arguments: unpacked.append(arguments))
    remote = download.Remote("images.zip", ("https://example.org/images.zip",), "0" * 32)
    with pytest.raises(SkinbookError, match=r"images\.zip is not the file expected .*It was removed"):
        download.fetch_and_unpack(remote, tmp_path)
    assert seen == [(False, True)]
    assert unpacked == []
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


CLIMBING = [
    "../out.jpg", "a/../../out.jpg", "/out.jpg", "//out.jpg", "C:/out.jpg", "C:out.jpg", "..\\out.jpg", "a\\..\\..\\out.jpg",
    "./../out.jpg", "a/./../../out.jpg", "...//../out.jpg", "\\\\server\\out.jpg",
]  # fmt: skip


@lying_archives
@pytest.mark.parametrize("name", CLIMBING)
def test_nothing_lands_outside_its_folder(tmp_path, name):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(inside / "z.zip", "w") as archive:
        archive.writestr("good.jpg", b"1")
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        archive.writestr(entry, b"2")
    with pytest.raises(SkinbookError, match=r"z\.zip holds .* outside its folder\. Remove the archive\."):
        download.unpack(inside / "z.zip", inside / "z")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [inside / "z.zip"]


@lying_archives
@pytest.mark.parametrize(
    "name", [".", "./x.jpg", "a//x.jpg", "x.jpg/", "a/x.jpg/y.jpg", "x" * 300 + ".jpg", "x.jpg\0.sh"]
)
def test_odd_names_stay_inside(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "z.zip", "w") as archive:
        for one in ("a/x.jpg", name):
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = one
            archive.writestr(entry, b"2")
    try:
        download.unpack(inside / "z.zip", inside / "z")
    except SkinbookError as error:
        said = str(error)
    else:
        said = "z.zip"
        assert {p.suffix for p in (inside / "z").rglob("*") if p.is_file()} == {".jpg"}
    assert "z.zip" in said
    assert {p.relative_to(inside).parts[0] for p in tmp_path.rglob("*") if p.is_file()} <= {"z", "z.zip"}


@lying_archives
def test_a_card_names_no_file_but_one_beside_it(tmp_path):
    from skinbook import card

    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"1")
    for name in ("../secret", str(tmp_path / "secret"), "", ".", "..", "x/../../secret", "a\0b", "bundle.json/x"):
        with pytest.raises(SkinbookError, match=r"outside its folder|cannot be read"):
            card.sealed_file(folder, name, "0" * 64, folder / "bundle.json")


# The page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return predict_files.open_model("lab")


@pytest.fixture(scope="module")
def server(model):
    with served(model) as running:
        yield running


def sent(server, data: bytes, more: bool = False) -> bytes:
    """What the server answers to bytes, until it closes. more : it is not told that nothing else will come."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(data)
        if not more:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:  # it closed with bytes of ours unread
            pass
        return answer


def request(body: bytes, length: object = None, name: str = "x.png", host: str = "127.0.0.1", port: int = 0) -> bytes:
    part = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    whole = part + body + b"\r\n--edge--\r\n"
    told = len(whole) if length is None else length
    return (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: {told}\r\n"
        "Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
    ).encode() + whole


@bad_uploads
def test_bytes_that_are_no_request(server, capfd, record_property):
    """Damaged copies of a request, and bytes that are none: an answer or the end, and no trace in the terminal."""
    picture = damaged.saved(photograph("x", 16, 12), "PNG")
    whole = request(picture, port=server.server_port)
    assert sent(server, whole, more=True).startswith(b"HTTP/1.1 200")
    odd = [
        b"",
        b"\0" * 1000,
        b"\x16\x03\x01\x02\0\x01",
        b"GET",
        b"GET /\r\n\r\n",
        b"A" * 70_000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT / HTTP/1.1\r\n\r\n",
        b"POST /gradio_api/upload HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"<script> / HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"POST /gradio_api/upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ]
    odd.append(request(b"words", 5, port=server.server_port))
    some = [*odd, *damaged.mutants("request", whole, 30)]
    for data in some:
        answer = sent(server, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), data
        assert b"<script> " not in answer
        assert b"Traceback" not in answer
    assert sent(server, whole, more=True).startswith(b"HTTP/1.1 200")
    assert capfd.readouterr() == ("", "")
    record_property("measured", f"{len(some)} broken requests")


@bad_uploads
@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("-1", 400),
        ("1e3", 400),
        ("0x10", 400),
        ("", 400),
        ("1 2", 400),
        ("9" * 30, 400),
        ("9" * 15, 413),
        (str(app.LARGEST + app.SLACK + 1), 413),
    ],
)
def test_wrong_lengths(server, length, status):
    assert sent(server, request(b"words", length, port=server.server_port)).startswith(b"HTTP/1.1 %d " % status)


@bad_uploads
@pytest.mark.parametrize("begun", ["POST /gradio_api/upload HT", "request", ""])
def test_whoever_is_slow_is_not_waited_for(model, monkeypatch, begun):
    """The connection ends, though its other side neither sends nor closes."""
    monkeypatch.setattr(app, "LONGEST", 0.05)
    with served(model) as running:
        half = request(b"half", 1000, port=running.server_port) if begun == "request" else begun.encode()
        answer = sent(running, half, more=True)
        assert b" 200 " not in answer.partition(b"\r\n")[0]


@bad_uploads
def test_only_so_many_are_answered_at_once(model, monkeypatch):
    monkeypatch.setattr(app, "AT_ONCE", 2)
    with served(model) as running:
        page = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % running.server_port
        waiting = [socket.create_connection(("127.0.0.1", running.server_port), timeout=60) for _ in range(2)]
        for one in waiting:
            one.sendall(b"POST /gradio_api")
        assert sent(running, page, more=True).startswith(b"HTTP/1.1 503")
        for one in waiting:
            one.shutdown(socket.SHUT_WR)
            while one.recv(65536):
                pass
            one.close()
        assert sent(running, page, more=True).startswith(b"HTTP/1.1 200")


@bad_uploads
@pytest.mark.parametrize("bomb", [name for name in damaged.BOMBS if "nearly" not in name and "strip" not in name])
def test_an_upload_that_is_a_bomb(server, bomb):
    text = said(server, damaged.BOMBS[bomb](), "x.png")
    assert re.search(r'<p class="fault">x\.png (claims more than|is cut off or damaged).*\.</p>', text)


@bad_uploads
def test_no_path_leads_to_a_file(server):
    closed = ("/../../etc/passwd", "/app.css", "/%2e%2e/bundle.json", "//etc/passwd", "/.git/config", "/look", "/?x")
    within = ("/assets/../../../app.py", "/static/%2e%2e/%2e%2e/routes.py", "/assets//etc/passwd")
    for path in (*closed, *within):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.putrequest("GET", path, skip_accept_encoding=True)
        connection.endheaders()
        reply = connection.getresponse()
        text = reply.read().decode()
        assert (reply.status == 200) == (path == "/?x"), path
        assert "root:" not in text
        assert "import " not in text or path == "/?x"
        if path in closed[:-1]:
            assert "nothing at this address" in text
        connection.close()


NAMES = [
    "<script>alert(1)</script>.png", "\"><img src=x onerror=alert(1)>", "' onmouseover='x", "&amp;<b>", "\u202egnp.exe",
    "\x1b[2J\x07bell.png", "a\r\nSet-Cookie: x=1", "../../../etc/passwd", "x" * 10_000, "%3Cscript%3E",
]  # fmt: skip


@names_that_are_code
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("body", ["words", "picture"])
def test_a_page_shows_names_and_never_runs_them(server, tmp_path, name, body):
    data = b"words" if body == "words" else damaged.saved(photograph("x", 16, 12), "PNG")
    answer = sent(server, request(data, name=name.replace('"', "%22"), port=server.server_port), more=True)
    head, _, laid = answer.partition(b"\r\n\r\n")
    assert b"Set-Cookie" not in head
    texts = []
    if head.startswith(b"HTTP/1.1 200"):
        (path,) = json.loads(laid)
        assert Path(path).resolve().parent.parent == server.folder
        texts.append(about(server, path, name)["output"]["data"][0])
    else:
        assert head.startswith(b"HTTP/1.1 4"), head  # a name that is none
    # However Gradio cleans a name, what the page makes of it is clean by itself.
    with contextlib.suppress(OSError, ValueError):
        file = tmp_path / "laid" / name.replace("/", "-")[:200]
        file.parent.mkdir()
        file.write_bytes(data)
        texts.append(app.answer(server.model, str(file), tmp_path))
    assert texts or b"this one cannot be: rename the file" in laid  # where names of files are not in UTF-8
    for text in texts:
        plain = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
        assert not re.search(r"<(script|img src=x|b>)|onmouseover='|onerror=alert\(1\)>", plain.replace("&gt;", " "))
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", plain)
        assert len(plain) < 20_000


@names_that_are_code
def test_what_a_model_says_of_itself_is_escaped(model):
    import dataclasses

    evil = dataclasses.replace(model, about='<script>alert("x")</script>${value}{{value}}')
    text = app.words_of(evil, "<b>note</b>")
    assert "<script>alert" not in text
    assert "<b>note" not in text
    with served(evil, "<b>note</b>") as running:
        page = ask(running)[1]
    assert "<script>alert" not in page
    assert "<b>note" not in page


@names_that_are_code
def test_a_terminal_is_shown_no_control_characters(tmp_path, monkeypatch, capsys):
    name = tmp_path / "\x1b]0;title\x07\x1b[2J\nx.png: answered.png"
    name.write_text("words")
    assert models.call(monkeypatch, "predict", name, "-b", "lab") == 1
    said = capsys.readouterr()
    assert "\\x1b]0;title\\x07\\x1b[2J\\x0ax.png" in said.out
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said.out + said.err)
    assert said.out.count("\n") == 3
    for arguments in (["predict", "x", "-b", name], ["audit", name], ["data", "status", "--root", name]):
        assert models.call(monkeypatch, *arguments) == 2
        said = capsys.readouterr()
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", said.out + said.err)
        assert "title" in said.err
        assert said.err.count("\n") == 1


@names_that_are_code
def test_a_workflow_that_is_printed_runs_one_command_whatever_a_file_is_called():
    import shlex

    import yaml

    names = ["split.csv; rm -rf ~", "$(touch x)", "a b.csv", "it's: #1.csv", '"x"', "-rf", "new\nline.csv"]
    steps = yaml.safe_load(audit_given.snippet(names, "m `id`.csv", "img & co"))["jobs"]["audit"]["steps"]
    told = shlex.split(steps[-1]["run"])
    assert told == ["skinbook", "audit", *names, "--table", "m `id`.csv", "--images", "img & co"]


# What is stored -------------------------------------------------------------------------------------------------------

SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:ghp|gho|ghs|github_pat|glpat|hf|xox[bap])[_-][A-Za-z0-9_-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{35}\b|\bsk-[A-Za-z0-9_-]{20,}|://[^/\s:@\"']{1,40}:[^/\s:@\"']{3,}@"
    r"|(?i:api[_-]?key|secret|passw(?:or)?d|token)[\"']?\s*[:=]\s*[\"'][A-Za-z0-9+/_-]{16,}[\"']"
)
PLACES = re.compile(
    r"(?<![\w.~</-])/(?:home|Users)/(?!runner\b|jovyan\b|NAME\b|you\b)[\w.~-]+|(?<![\w.~</-])/(?:root|work|workspace)/[\w.~-]+"
    r"|\b[A-Za-z]:\\+Users\\+\w"
)


def stored() -> dict[str, str]:
    """The texts that are made by running something and kept in git: outputs of notebooks, data, generated pages."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True, check=False).stdout
    files = [name for name in listed.split("\0") if name and (HOME / name).is_file()]
    if not files:
        pytest.skip("not a git checkout: the tracked files are not known")
    found = {}
    for name in files:
        path = HOME / name
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            found[name] = json.dumps([_shown(cell.get("outputs", [])) for cell in cells], ensure_ascii=False)
        elif name.startswith(("data/", "chapters/")) and path.suffix in (".json", ".md", ".toml", ".svg", ".html"):
            found[name] = path.read_text(encoding="utf-8")
    return found


def _shown(outputs: list) -> list:
    """Outputs without the pixels of their pictures."""
    return [
        {**output, "data": {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/png")}}
        for output in outputs
    ]


@no_secrets
def test_no_secret_and_no_path_is_stored(record_property):
    found = stored()
    assert len(found) > 20
    told = {name: m[0] for name, text in found.items() if (m := SECRETS.search(text) or PLACES.search(text))}
    assert told == {}
    record_property("measured", f"{len(found)} files")


@no_secrets
def test_pictures_in_outputs_tell_nothing_of_their_maker():
    """A picture may carry a place, a camera or a path in its header."""
    looked = 0
    for path in sorted((HOME / "chapters").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                if data := output.get("data", {}).get("image/png"):
                    with Image.open(io.BytesIO(base64.b64decode("".join(data)))) as image:
                        assert not image.getexif()
                        texts = [str(value) for value in image.info.values() if isinstance(value, str)]
                    looked += 1
                    assert not [text for text in texts if SECRETS.search(text) or PLACES.search(text)], path.name
    assert looked > 5


@no_secrets
@pytest.mark.parametrize(
    "text",
    [
        "/home/someone/data", "saved in /root/x", "/Users/me/x.csv", "C:\\\\Users\\\\me", "/work/main/x", "ghp_" + "a" * 36,
        "hf_" + "b" * 34, "AKIA" + "C" * 16, "https://me:hunter22@host/x", "-----BEGIN RSA PRIVATE KEY-----",
        '"api_key": "' + "d" * 20 + '"',
    ],
)  # fmt: skip
def test_each_of_them_would_be_found(text):
    assert SECRETS.search(text) or PLACES.search(text)
    for fine in ("https://example.org/home/page", "tokens = 49", "data/results", "a/work/flow", "12:30@noon", "hf_hub"):
        assert not SECRETS.search(fine)
        assert not PLACES.search(fine)
