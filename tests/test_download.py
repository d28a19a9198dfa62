"""Downloads against a server on the loopback that breaks off, lies about length, and serves wrong bytes."""

import errno
import hashlib
import http.server
import io
import json
import threading
import zipfile

import pytest
from layouts import dermamnist

from skinbook.config import SkinbookError
from skinbook.data import download
from skinbook.data.download import Remote, Unreachable, fetch, fetch_and_unpack, unpack

BODY = bytes(range(256)) * 20_000  # 5 MB
MD5 = hashlib.md5(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `faults[path]` is a list of what to do at the first, second, ... request, then it is honest."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is part of these tests


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name, asked = self.path[1:], self.headers.get("Range")
        self.server.asked.append((name, asked))
        body = self.server.files.get(name)
        if body is None:
            return self.send_error(404)
        fault = (self.server.faults.get(name) or [""]).pop(0)
        if fault == "busy":
            return self.send_error(503)
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        if asked and fault != "no ranges" and self.headers.get("If-Range") in (None, etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if fault == "wrong place":
            start = max(0, start - 1000)
        if start >= len(body) and start:
            return self.send_error(416)
        part = body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        claimed = len(part) + {"claims more": 1000, "claims less": -1000}.get(fault, 0)
        if fault != "no length":
            self.send_header("Content-Length", str(claimed))
        if fault != "no version":
            self.send_header("ETag", etag)
        self.end_headers()
        if fault == "break off":
            part = part[: len(part) // 3]
        if fault == "wrong bytes":
            part = bytes(len(part))
        self.wfile.write(part)
        self.close_connection = True


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def left(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def remote(server, *names, md5=MD5, name="file.bin"):
    return Remote(name, tuple(server.url(n) for n in names), md5)


def test_an_honest_server(server, tmp_path):
    server.files["a"] = BODY
    assert fetch(remote(server, "a"), tmp_path / "new").read_bytes() == BODY
    assert left(tmp_path / "new") == ["file.bin"]
    fetch(remote(server, "a"), tmp_path / "new")
    assert len(server.asked) == 1


@pytest.mark.holds(
    "faults while working",
    "a connection that breaks off during a download",
    "the rest is asked for; the file is the same, byte for byte",
)
@pytest.mark.parametrize("md5", [MD5, None])
def test_a_break_is_resumed_where_it_was(server, tmp_path, md5):
    server.files["a"] = BODY
    server.faults["a"] = ["break off", "busy", "break off"]
    assert fetch(remote(server, "a", md5=md5), tmp_path).read_bytes() == BODY
    third, rest = len(BODY) // 3, len(BODY) - len(BODY) // 3
    ranges = [None, f"bytes={third}-", f"bytes={third}-", f"bytes={third + rest // 3}-"]
    assert server.asked == [("a", r) for r in ranges]
    assert left(tmp_path) == ["file.bin"]


def test_a_download_is_gone_on_with_by_the_next_run(server, tmp_path):
    server.files["a"] = BODY
    server.faults["a"] = ["break off"] + ["busy"] * 10
    with pytest.raises(
        Unreachable, match=r"file.bin could not be downloaded whole .*HTTP 503.*run the same command again"
    ):
        fetch(remote(server, "a"), tmp_path)
    assert "file.bin" not in left(tmp_path)
    server.faults["a"], server.asked = [], []
    assert fetch(remote(server, "a"), tmp_path).read_bytes() == BODY
    assert server.asked == [("a", f"bytes={len(BODY) // 3}-")]


def test_a_file_that_changed_meanwhile_is_begun_again(server, tmp_path):
    server.files["a"] = BODY[::-1]
    server.faults["a"] = ["break off"] + ["busy"] * 10
    with pytest.raises(Unreachable):
        fetch(remote(server, "a"), tmp_path)
    server.files["a"], server.faults["a"] = BODY, []
    assert fetch(remote(server, "a"), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("fault", ["no ranges", "wrong place", "no version", "no length"])
def test_servers_that_cannot_resume(server, tmp_path, fault):
    server.files["a"] = BODY
    server.faults["a"] = ["break off", fault]
    assert fetch(remote(server, "a"), tmp_path).read_bytes() == BODY


def test_a_partial_file_that_is_already_whole(server, tmp_path):
    server.files["a"] = BODY
    (tmp_path / "file.bin.part").write_bytes(BODY)
    (tmp_path / "file.bin.part.json").write_text(
        json.dumps({"url": server.url("a"), "version": f'"{MD5}"'}), encoding="utf-8"
    )
    assert fetch(remote(server, "a"), tmp_path).read_bytes() == BODY


def test_a_partial_file_of_unknown_origin_is_not_used(server, tmp_path):
    server.files["a"] = BODY
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    for state in ("", "[]", "{"):
        (tmp_path / "file.bin.part.json").write_text(state, encoding="utf-8")
        assert fetch(remote(server, "a"), tmp_path).read_bytes() == BODY
        (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")


def test_a_server_that_claims_more_than_it_has(server, tmp_path):
    server.files["a"] = BODY
    server.faults["a"] = ["claims more"] * 10
    # What is missing is asked for, the answer is that there is no more, and it begins again: never an endless loop.
    with pytest.raises(Unreachable, match=r"could not be downloaded whole"):
        fetch(remote(server, "a"), tmp_path)
    assert len(server.asked) <= download.ATTEMPTS


def test_a_server_that_claims_less_than_it_has(server, tmp_path):
    server.files["a"] = BODY
    server.faults["a"] = ["claims less"] * 10
    with pytest.raises(
        SkinbookError, match=r"file.bin is not the file expected .*MD5 .*, not the published .*It was removed"
    ):
        fetch(remote(server, "a"), tmp_path)
    assert left(tmp_path) == []


def test_a_server_that_claims_a_petabyte(server, tmp_path, monkeypatch):
    server.files["a"] = BODY
    monkeypatch.setattr(download, "LARGEST", 1_000_000)
    with pytest.raises(SkinbookError, match=r"announces 0 GB, more than any file here has"):
        fetch(remote(server, "a"), tmp_path)
    server.faults["a"] = ["no length"]
    with pytest.raises(SkinbookError, match=r"sends more than any file here has"):
        fetch(remote(server, "a"), tmp_path)


def test_wrong_bytes_are_removed_and_the_next_mirror_is_asked(server, tmp_path):
    server.files |= {"a": BODY, "b": BODY}
    server.faults["a"] = ["wrong bytes"] * 10
    assert fetch(remote(server, "a", "b"), tmp_path).read_bytes() == BODY
    with pytest.raises(SkinbookError, match=r"is not the file expected"):
        fetch(remote(server, "a", name="other"), tmp_path)
    assert left(tmp_path) == ["file.bin"]


def test_a_mirror_that_is_gone(server, tmp_path):
    server.files["b"] = BODY
    assert fetch(remote(server, "a", "b"), tmp_path).read_bytes() == BODY
    assert server.asked == [("a", None), ("b", None)]
    nobody = Remote("x", ("http://127.0.0.1:9/x",), MD5)
    with pytest.raises(Unreachable, match=r"x could not be downloaded whole \(http://127.0.0.1:9/x: .*refused"):
        fetch(nobody, tmp_path)


def test_only_https_is_asked(tmp_path):
    for url in ("http://example.org/x", "file:///etc/hostname", "ftp://example.org/x"):
        with pytest.raises(SkinbookError, match="is not an https address"):
            fetch(Remote("x", (url,)), tmp_path)


TABLE = b"image,age\nISIC_1,50\n"


def test_a_hash_that_nobody_publishes_is_recorded_and_checked(server, tmp_path):
    server.files["t"] = TABLE
    table = Remote("t.csv", (server.url("t"),))
    path = fetch_and_unpack(table, tmp_path)
    assert json.loads((tmp_path / "hashes.json").read_text(encoding="utf-8")) == {
        "t.csv": hashlib.sha256(TABLE).hexdigest()
    }
    path.unlink()
    server.files["t"] = TABLE + b"ISIC_2,60\n"
    with pytest.raises(SkinbookError, match=r"t.csv is not the file expected .*SHA-256 .* as the first time"):
        fetch_and_unpack(table, tmp_path)
    assert left(tmp_path) == ["hashes.json"]


def test_a_page_about_an_error_is_not_recorded(server, tmp_path):
    pages = [
        b"<html>terms</html>",
        b"",
        b"\n<!DOCTYPE html>",
        b"\xef\xbb\xbf<html>",
        b' {"status": "ERROR"}',
        b"[]",
        b" \n",
    ]
    for name, body in (*(("t.csv", page) for page in pages), ("t.zip", b"no zip"), ("t.zip", b"\nPK")):
        server.files["t"] = body
        with pytest.raises(SkinbookError, match=r"is not the file expected .*something else, such as a page"):
            fetch_and_unpack(Remote(name, (server.url("t"),)), tmp_path)
        assert left(tmp_path) == []


def zipped(**entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_a_zip_is_unpacked_and_removed(server, tmp_path):
    server.files["z"] = zipped(
        **{"a/x.jpg": b"1", "y.PNG": b"2", "t.csv": b"3", "run.sh": b"4", "__MACOSX/x.jpg": b"5"}
    )
    folder = fetch_and_unpack(Remote("part_1.zip", (server.url("z"),)), tmp_path)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == ["a/x.jpg", "t.csv", "y.PNG"]
    assert left(tmp_path) == ["hashes.json", "part_1"]
    fetch_and_unpack(Remote("part_1.zip", (server.url("z"),)), tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("md5", ["0" * 32, None])
def test_an_archive_that_lay_there_already_is_checked_and_stays(server, tmp_path, md5, unpacked):
    foreign = zipped(**{"x.jpg": b"theirs"})
    (tmp_path / "part_1.zip").write_bytes(foreign)
    (tmp_path / "hashes.json").write_text(json.dumps({"part_1.zip": "0" * 64}), encoding="utf-8")
    if unpacked:
        (tmp_path / "part_1").mkdir()
    before = left(tmp_path)
    sentence = r"part_1.zip is not the file expected \(.* Remove it, and run the same command again\."
    with pytest.raises(SkinbookError, match=sentence):
        fetch_and_unpack(Remote("part_1.zip", (server.url("z"),), md5), tmp_path)
    assert (tmp_path / "part_1.zip").read_bytes() == foreign
    assert left(tmp_path) == before
    assert server.asked == []


def test_an_archive_that_lay_there_already_is_used_where_it_is_right(server, tmp_path):
    whole = zipped(**{"x.jpg": b"1"})
    (tmp_path / "part_1.zip").write_bytes(whole)
    remote = Remote("part_1.zip", (server.url("z"),), hashlib.md5(whole).hexdigest())
    assert [path.name for path in fetch_and_unpack(remote, tmp_path).iterdir()] == ["x.jpg"]
    assert (left(tmp_path), server.asked) == (["part_1"], [])


def test_other_files_that_lay_there_already_are_checked_and_stay(server, tmp_path):
    (tmp_path / "dermamnist_64.npz").write_bytes(b"nonsense")
    with pytest.raises(SkinbookError, match=r"dermamnist_64.npz is not the file expected \(MD5 .*Remove it"):
        fetch_and_unpack(remote(server, "a", name="dermamnist_64.npz"), tmp_path)
    (tmp_path / "t.csv").write_bytes(b"<html>")
    with pytest.raises(SkinbookError, match=r"t.csv is not the file expected \(no such file but something else"):
        fetch_and_unpack(remote(server, "a", name="t.csv", md5=None), tmp_path)
    assert (left(tmp_path), server.asked) == (["dermamnist_64.npz", "t.csv"], [])


@pytest.mark.parametrize("name", ["../out.jpg", "/out.jpg", "a/../../out.jpg", "a\\..\\out.jpg", "C:out.jpg"])
def test_entries_that_climb_out(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("x.jpg", b"1")
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        archive.writestr(entry, b"2")
    with pytest.raises(SkinbookError, match="would land outside its folder"):
        unpack(tmp_path / "z.zip", tmp_path / "z")
    assert left(tmp_path) == ["z.zip"]


def test_entries_that_are_links(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        entry = zipfile.ZipInfo("x.jpg")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(SkinbookError, match="which is a link"):
        unpack(tmp_path / "z.zip", tmp_path / "z")


def lying(content, claimed):
    """A ZIP whose one entry claims another size than it has, in both of its headers."""
    whole = bytearray(zipped(**{"x.jpg": content}))
    true, false = len(content).to_bytes(4, "little"), claimed.to_bytes(4, "little")
    at = whole.index(b"PK\x03\x04") + 22
    assert whole[at : at + 4] == true
    whole[at : at + 4] = false
    at = whole.index(b"PK\x01\x02") + 24
    assert whole[at : at + 4] == true
    whole[at : at + 4] = false
    return bytes(whole)


@pytest.mark.parametrize(
    "content",
    [
        lying(bytes(5_000_000), 10),
        lying(b"abc" * 1000, 4_000_000),
        b"PK nonsense",
        zipped(**{"x.jpg": b"1" * 999})[:-40],
        b"",
    ],
    ids=["larger than it says", "smaller than it says", "no archive", "cut off", "empty"],  # the bytes hold the time
)
def test_damaged_and_lying_archives(tmp_path, content):
    (tmp_path / "z.zip").write_bytes(content)
    with pytest.raises(SkinbookError, match=r"z.zip is a damaged ZIP .*Remove it, and run the same command again"):
        unpack(tmp_path / "z.zip", tmp_path / "z")
    assert left(tmp_path) == ["z.zip"]


def test_an_archive_that_would_fill_the_disk(tmp_path, monkeypatch):
    (tmp_path / "z.zip").write_bytes(zipped(**{"x.jpg": bytes(1000)}))
    monkeypatch.setattr(download, "LARGEST", 999)
    with pytest.raises(SkinbookError, match="It is not the file expected; remove it"):
        unpack(tmp_path / "z.zip", tmp_path / "z")
    monkeypatch.undo()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 999}))
    with pytest.raises(SkinbookError, match=r"No space left to unpack .*z.zip"):
        unpack(tmp_path / "z.zip", tmp_path / "z")


@pytest.mark.holds(
    "faults while working",
    "a disk that is full",
    "one sentence; what was there is whole, and with room the work ends as if nothing had been",
)
def test_a_full_disk_leaves_nothing(server, tmp_path, monkeypatch):
    server.files["a"] = BODY
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(SkinbookError, match=r"No space left in .* for file.bin. Free some, or set SKINBOOK_CACHE"):
        fetch(remote(server, "a"), tmp_path)
    assert left(tmp_path) == []
    monkeypatch.undo()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(SkinbookError, match=r"No space left in"):
        fetch(remote(server, "a"), tmp_path)
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SkinbookError, match=r"cannot be written .*Set SKINBOOK_CACHE"):
        fetch(remote(server, "a"), tmp_path / "file")


def test_get_falls_back_to_the_other_way(server, tmp_path, monkeypatch):
    server.files |= {"table": TABLE, "images": zipped(**{"x.jpg": b"1"})}
    table = Remote("t.csv", (server.url("table"),))
    ways = (
        (table, Remote("a.zip", (server.url("gone"),), image=True)),
        (table, Remote("b.zip", (server.url("images"),), image=True)),
    )
    monkeypatch.setitem(download.WAYS, "ham10000", ways)
    folder = download.get("ham10000", tmp_path, tables_only=True)
    assert left(folder) == ["hashes.json", "t.csv"]
    assert left(download.get("ham10000", tmp_path)) == ["b", "hashes.json", "t.csv"]
    monkeypatch.setitem(download.WAYS, "ham10000", ways[:1])
    with pytest.raises(Unreachable, match=r"a.zip could not be downloaded whole"):
        download.get("ham10000", tmp_path)


def test_get_dermamnist_is_found_afterwards(server, tmp_path, monkeypatch):
    from skinbook.data import dermamnist as reader

    body = (dermamnist(tmp_path / "made") / "dermamnist.npz").read_bytes()
    server.files["dermamnist.npz"] = body
    monkeypatch.setattr(download, "ZENODO", (server.url("{}"),))
    monkeypatch.setitem(download.DERMAMNIST_MD5, "dermamnist.npz", hashlib.md5(body).hexdigest())
    folder = download.get("dermamnist", tmp_path / "cache", size=28)
    assert len(reader.load(folder).table) == 28
    with pytest.raises(SkinbookError, match="DermaMNIST has no images of 32 px; choose 28, 64, 128 or 224"):
        download.get("dermamnist", tmp_path, size=32)


def test_what_cannot_be_downloaded(tmp_path, monkeypatch):
    with pytest.raises(SkinbookError, match=r"nothing to download for 'lab'; choose from ham10000"):
        download.get("lab", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SkinbookError, match=r"Kaggle's client is not installed"):
        download.get("bcn20000", tmp_path, kaggle=True)
    with pytest.raises(SkinbookError, match=r"Kaggle has no copy of 'dermamnist'"):
        download.get("dermamnist", tmp_path, kaggle=True)


@pytest.mark.parametrize("status", [0, 1])
def test_kaggles_own_client(tmp_path, monkeypatch, status):
    client = tmp_path / "kaggle"
    client.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/said"\nexit {status}\n', encoding="utf-8")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    if status:
        with pytest.raises(SkinbookError, match="Kaggle's client could not download pasutchien/bcn20000"):
            download.get("bcn20000", tmp_path / "cache", kaggle=True)
    else:
        download.get("bcn20000", tmp_path / "cache", kaggle=True)
    said = (tmp_path / "said").read_text(encoding="utf-8").strip()
    assert said == f"datasets download -d pasutchien/bcn20000 -p {tmp_path / 'cache' / 'bcn20000'} --unzip"


def test_every_known_address_is_https_and_every_archive_of_photographs_has_a_hash_or_a_second_mirror():
    remotes = [remote for ways in download.WAYS.values() for way in ways for remote in way]
    assert all(url.startswith("https://") for remote in remotes for url in remote.urls)
    assert all(remote.md5 or len(remote.urls) == 2 for remote in remotes if remote.image)
