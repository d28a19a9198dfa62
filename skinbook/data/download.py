"""Downloading, only when asked: resumed after a break, checked by length and hash, unpacked safely.

A file arrives as `<name>.part` and gets its name when it is whole and its hash is right. The MD5s of HAM10000's
archives are those that Harvard Dataverse publishes, DermaMNIST's those of Zenodo. A hash that nobody publishes is
recorded at the first download, in `hashes.json` beside the file, and checked from then on.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from skinbook.config import SkinbookError
from skinbook.data.images import SUFFIXES
from skinbook.files import replaced
from skinbook.progress import bar
from skinbook.reading import strict_json

BLOCK = 1 << 20
LARGEST = 40_000_000_000  # bytes; the largest archive here, ISIC 2019's images, has 9.1 GB
MOST_FILES = 200_000  # of an archive; the same one holds 25,331
ATTEMPTS = 5  # per mirror, each going on where the last broke off
TIMEOUT = 30.0  # seconds without a byte
HASHES = "hashes.json"


@dataclass(frozen=True)
class Remote:
    """A file on the web: its name here, the mirrors to try in order, and its MD5 where somebody publishes one."""

    name: str
    urls: tuple[str, ...]
    md5: str | None = None
    image: bool = False  # photographs or masks, as against a table


DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile/"
ISIC = ("https://isic-archive.s3.amazonaws.com/challenges/", "https://isic-challenge-data.s3.amazonaws.com/")
ZENODO = (
    "https://zenodo.org/records/10519652/files/{}?download=1",
    "https://zenodo.org/api/records/10519652/files/{}/content",
)
DERMAMNIST_MD5 = {
    "dermamnist.npz": "0744692d530f8e62ec473284d019b0c7",
    "dermamnist_64.npz": "b70a2f5635c6199aeaa28c31d7202e1f",
    "dermamnist_128.npz": "2defd784463fa5243564e855ed717de1",
    "dermamnist_224.npz": "8974907d8e169bef5f5b96bc506ae45d",
}
# For each edition, ways to get it; a way is tried when the one before it cannot be reached.
WAYS: dict[str, tuple[tuple[Remote, ...], ...]] = {
    "ham10000": (
        (
            Remote("HAM10000_metadata", (f"{DATAVERSE}4338392?format=original",)),
            Remote("HAM10000_images_part_1.zip", (f"{DATAVERSE}3172585",), "4639bfa73ab251610530a97c898e6e46", True),
            Remote("HAM10000_images_part_2.zip", (f"{DATAVERSE}3172584",), "da43d6cc50f6613013be07e8986b384b", True),
            Remote(
                "HAM10000_segmentations_lesion_tschandl.zip",
                (f"{DATAVERSE}3838943",),
                "6e8d252e09cfdb0189199f15985a5b84",
                True,
            ),
        ),
        (
            Remote("HAM10000_metadata", (f"{DATAVERSE}4338392?format=original",)),
            Remote(
                "ISIC2018_Task3_Training_Input.zip",
                tuple(f"{u}2018/ISIC2018_Task3_Training_Input.zip" for u in ISIC),
                image=True,
            ),
        ),
    ),
    "bcn20000": (
        (
            Remote(
                "ISIC_2019_Training_GroundTruth.csv", tuple(f"{u}2019/ISIC_2019_Training_GroundTruth.csv" for u in ISIC)
            ),
            Remote("ISIC_2019_Training_Metadata.csv", tuple(f"{u}2019/ISIC_2019_Training_Metadata.csv" for u in ISIC)),
            Remote(
                "ISIC_2019_Training_Input.zip", tuple(f"{u}2019/ISIC_2019_Training_Input.zip" for u in ISIC), image=True
            ),
        ),
    ),
    "dermamnist": tuple(
        (Remote(name, tuple(url.format(name) for url in ZENODO), md5, True),)
        for name, md5 in DERMAMNIST_MD5.items()
        if name == "dermamnist_64.npz"
    ),
}
KAGGLE = {"ham10000": "kmader/skin-cancer-mnist-ham10000", "bcn20000": "pasutchien/bcn20000"}


class Unreachable(SkinbookError):
    """No mirror of a file answered; another way may."""


def get(edition: str, cache: Path, *, size: int = 64, tables_only: bool = False, kaggle: bool = False) -> Path:
    """Download an edition into the folder `<cache>/<edition>`, where `skinbook.data.catalog` finds it.

    Parameters
    ----------
    size : of DermaMNIST's images: 28, 64, 128 or 224 px.
    tables_only : leave the photographs and masks out.
    kaggle : let Kaggle's own client do it (its account, its copy).

    Raises
    ------
    SkinbookError
        If the edition cannot be downloaded, or no mirror gives the right bytes, or the disk is full.
    """
    folder = Path(cache) / edition
    if kaggle:
        return _from_kaggle(edition, folder)
    if edition not in WAYS:
        raise SkinbookError(f"There is nothing to download for {edition!r}; choose from {', '.join(WAYS)}.")
    ways = WAYS[edition]
    if edition == "dermamnist":
        name = "dermamnist.npz" if size == 28 else f"dermamnist_{size}.npz"
        if name not in DERMAMNIST_MD5:
            raise SkinbookError(f"DermaMNIST has no images of {size} px; choose 28, 64, 128 or 224.")
        ways = ((Remote(name, tuple(url.format(name) for url in ZENODO), DERMAMNIST_MD5[name], True),),)
    for number, way in enumerate(ways, 1):
        try:
            for remote in way:
                if not (tables_only and remote.image):
                    fetch_and_unpack(remote, folder)
            return folder
        except Unreachable:
            if number == len(ways):
                raise
    raise AssertionError("every edition has a way")


def fetch_and_unpack(remote: Remote, folder: Path) -> Path:
    """The file, downloaded if it is not there; a ZIP is unpacked into a folder of its own name and removed.

    Raises
    ------
    Unreachable, SkinbookError
        As `fetch` does, also for a file that lay there already: it is checked before it is used.
    """
    target = folder / remote.name
    if target.suffix != ".zip":
        fetch(remote, folder)
        if not remote.md5:
            _record(target)
        return target
    unpacked = target.with_suffix("")
    if unpacked.is_dir() and not target.exists():
        return unpacked
    with _alone(unpacked):
        if not unpacked.is_dir() or target.exists():  # both, where a kill came between
            fetch(remote, folder)
            if not unpacked.is_dir():
                unpack(target, unpacked)
            if not remote.md5:
                _record(target)
            target.unlink()
    return unpacked


def fetch(remote: Remote, folder: Path) -> Path:
    """Download one file into a folder and check it; what an interrupted download left is gone on with.

    A file that lies there already is checked as if it had just arrived: it may be a reader's own, or damaged.

    Raises
    ------
    Unreachable
        If no mirror gave the whole file; what has arrived stays for the next attempt.
    SkinbookError
        If the bytes are not those of the published or recorded hash (those that were downloaded are removed), or the disk
        is full.
    """
    target = folder / remote.name
    with _alone(target):
        if target.exists():
            _remove(_part(target))  # what a kill just after the rename leaves
            if reason := _check(remote, target, target):
                raise SkinbookError(
                    f"{target} is not the file expected ({reason}). Remove it, and run the same command again."
                )
        else:
            try:
                _fetch(remote, target)
            except OSError:  # of this machine; those of the network are dealt with further down
                _remove(_part(target))
                raise
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """A block in which no other process makes the same file or folder; what this machine refuses is one sentence."""
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SkinbookError(
                f"No space left in {target.parent} for {target.name}. "
                "Free some, or set SKINBOOK_CACHE to a folder on a larger disk."
            ) from None
        raise SkinbookError(
            f"{target} cannot be written ({error.strerror}). Set SKINBOOK_CACHE to a folder that you may write to."
        ) from None


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _remove(part: Path) -> None:
    for leftover in (part, _state(part)):
        leftover.unlink(missing_ok=True)


def _state(part: Path) -> Path:
    """Which version of the file the partial bytes belong to."""
    return part.with_name(part.name + ".json")


def _fetch(remote: Remote, target: Path) -> None:
    part = _part(target)
    failures: list[str] = []
    wrong = False
    for url in remote.urls:
        reason = _try(url, part, remote)
        if reason is None:
            reason = _check(remote, target, part)
            if reason is None:
                os.replace(part, target)
                _state(part).unlink(missing_ok=True)
                return
            _remove(part)
            wrong = True
        failures.append(f"{url}: {reason}")
    if wrong:
        raise SkinbookError(
            f"{remote.name} is not the file expected ({'; '.join(failures)}). It was removed; try again later."
        )
    raise Unreachable(
        f"{remote.name} could not be downloaded whole ({'; '.join(failures)}). "
        "Check the connection and run the same command again; it goes on where it stopped."
    )


def _try(url: str, part: Path, remote: Remote) -> str | None:
    """Ask one mirror until the partial file is whole; else the reason why it is not."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            _go_on(url, part, remote)
            return None
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # there is nothing behind what we have: begin again
                _remove(part)
            elif error.code < 500:  # asking again will not help
                break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
    return reason


def _go_on(url: str, part: Path, remote: Remote) -> None:
    """One request: append to the partial file if the server has the same version of it, else begin again."""
    state = _read_state(part)
    have = part.stat().st_size if state else 0
    if state.get("whole"):
        return
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise SkinbookError(f"{url} is not an https address.")
    request = urllib.request.Request(url, headers={"User-Agent": "skinbook", "Accept-Encoding": "identity"})
    # Without a mark of its version, the rest of a file may be asked for only if a hash will tell a mixture.
    if have and state.get("url") == url and (state.get("version") or remote.md5):
        request.add_header("Range", f"bytes={have}-")
        if state.get("version"):
            request.add_header("If-Range", state["version"])
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
        if answer.status == 206 and not (span and int(span[1]) == have):
            _remove(part)
            raise ConnectionError("sent another part of the file than was asked for")
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if total is not None and total > LARGEST:
            raise SkinbookError(f"{url} announces {total / 1e9:.0f} GB, more than any file here has. Try again later.")
        if total is not None and shutil.disk_usage(part.parent).free < total - have + BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        etag = answer.headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
        if not have:
            _remove(part)  # with its state, which must not be taken for that of the bytes to come
        with open(part, "ab" if have else "wb") as file:
            _write_state(part, {"url": url, "version": version})
            with bar(total or 0, remote.name, unit="byte") as shown:
                shown.update(have)
                while block := answer.read(BLOCK):
                    have += len(block)
                    if have > LARGEST:
                        raise SkinbookError(f"{url} sends more than any file here has. Try again later.")
                    file.write(block)
                    shown.update(len(block))
            file.flush()
            os.fsync(file.fileno())
        if total is not None and have != total:
            raise ConnectionError(f"broke off after {have} of {total} bytes")
        _write_state(part, {"url": url, "version": version, "whole": True})


def _read_state(part: Path) -> dict:
    try:
        state = strict_json(_state(part).read_bytes())
        return state if part.exists() and isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def _write_state(part: Path, state: dict) -> None:
    unfinished = _state(part).with_suffix(".tmp")
    unfinished.write_text(json.dumps(state))
    os.replace(unfinished, _state(part))


def file_hash(path: Path, algorithm: str) -> str:
    """Hash of a file's bytes ("md5" or "sha256"), hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def recorded(folder: Path) -> dict[str, str]:
    """The SHA-256 recorded at first download of each file in a folder whose hash nobody publishes."""
    try:
        return {str(k): str(v) for k, v in strict_json((folder / HASHES).read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError):
        raise SkinbookError(f"{folder / HASHES} cannot be read. Remove it; hashes are recorded anew.") from None


def _check(remote: Remote, target: Path, part: Path) -> str | None:
    """What is wrong with the bytes, or None."""
    if remote.md5:
        found = file_hash(part, "md5")
        return None if found == remote.md5 else f"MD5 {found}, not the published {remote.md5}"
    with open(part, "rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    # Servers that are unwell answer with a page about it. Its hash must not become the recorded one.
    if (target.suffix == ".zip" and not start.startswith(b"PK")) or text[:1] in (b"", b"<", b"{", b"["):
        return "no such file but something else, such as a page about an error"
    expected = recorded(target.parent).get(remote.name)
    found = file_hash(part, "sha256")
    if expected in (None, found):
        return None
    return f"SHA-256 {found}, not {expected} as the first time (if that one was wrong, remove {target.parent / HASHES})"


def _record(file: Path) -> None:
    """Write the SHA-256 of a file that has proved sound, if it has none yet."""
    if file.name in recorded(file.parent):
        return
    with _alone(file.parent / HASHES):
        hashes = recorded(file.parent) | {file.name: file_hash(file, "sha256")}
        with replaced(file.parent / HASHES) as partial:
            partial.write_text(json.dumps(hashes, indent=1))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack images and tables of a ZIP into a folder that then appears as a whole.

    Raises
    ------
    SkinbookError
        If the archive is damaged, an entry would land outside the folder, is a link, or is not what it claims, or the
        disk is full. Nothing is left of the folder.
    """
    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            if len(opened.infolist()) % 65536 != _count(archive):
                raise zipfile.BadZipFile("its list of files is damaged")
            entries = []
            for entry in opened.infolist():
                if _wanted(entry, archive):
                    entries.append(entry)
                else:  # its name in the list may be damaged: opening it compares that with the name beside its bytes
                    opened.open(entry).close()
            total = sum(e.file_size for e in entries)
            if total > LARGEST or len(entries) > MOST_FILES:
                raise SkinbookError(
                    f"{archive} claims {len(entries):,} files of {total / 1e9:.0f} GB. It is not the file expected; remove it."
                )
            if shutil.disk_usage(archive.parent).free < total:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            unfinished.mkdir(parents=True)
            with bar(len(entries), f"unpacking {archive.name}", unit="file") as shown:
                for entry in entries:
                    path = unfinished / entry.filename
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # zipfile reads no more than the size an entry claims, and checks its CRC at the end.
                    with opened.open(entry) as source, open(path, "xb") as file:
                        shutil.copyfileobj(source, file, BLOCK)
                    if path.stat().st_size != entry.file_size:
                        raise zipfile.BadZipFile(f"{entry.filename} is shorter than it claims")
                    shown.update()
        os.replace(unfinished, folder)
    except SkinbookError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SkinbookError(
                f"No space left to unpack {archive}. Free some, and run the same command again."
            ) from None
        raise SkinbookError(
            f"{archive} cannot be unpacked into {folder} ({error.strerror}). Check its permissions."
        ) from None
    except Exception as error:  # a damaged archive can raise nearly anything
        shutil.rmtree(unfinished, ignore_errors=True)
        raise SkinbookError(
            f"{archive} is a damaged ZIP ({error}). Remove it, and run the same command again."
        ) from None
    return folder


def _count(archive: Path) -> int:
    """How many entries a ZIP says that it has, modulo 65,536; zipfile does not compare it with those it finds."""
    with open(archive, "rb") as file:
        file.seek(max(0, archive.stat().st_size - 65_557))  # its last record, behind which a comment may stand
        end = file.read()
    at = end.rfind(b"PK\x05\x06")
    count = int.from_bytes(end[at + 10 : at + 12], "little")
    if count == 65_535 and (large := end.rfind(b"PK\x06\x06")) >= 0:  # a ZIP64 keeps the number in a record before
        count = int.from_bytes(end[large + 32 : large + 40], "little") % 65_536
    return count


def _wanted(entry: zipfile.ZipInfo, archive: Path) -> bool:
    """Whether to unpack an entry: an image or a table. SkinbookError for one that no honest archive of data has."""
    parts = entry.filename.split("/")
    if entry.filename.startswith("/") or ".." in parts or "\\" in entry.filename or ":" in entry.filename:
        raise SkinbookError(
            f"{archive} holds {entry.filename!r}, which would land outside its folder. Remove the archive."
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise SkinbookError(f"{archive} holds {entry.filename!r}, which is a link. Remove the archive.")
    if entry.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
        return False
    return entry.filename.lower().endswith((*SUFFIXES, ".csv", ".txt"))


def _from_kaggle(edition: str, folder: Path) -> Path:
    client = shutil.which("kaggle")
    if edition not in KAGGLE:
        raise SkinbookError(f"Kaggle has no copy of {edition!r} that skinbook reads; choose from {', '.join(KAGGLE)}.")
    if client is None:
        raise SkinbookError(
            "Kaggle's client is not installed. Install it (pip install kaggle) and sign in, or leave --kaggle out."
        )
    command: Sequence[str] = (client, "datasets", "download", "-d", KAGGLE[edition], "-p", str(folder), "--unzip")
    if subprocess.run(command, check=False).returncode:
        raise SkinbookError(f"Kaggle's client could not download {KAGGLE[edition]}; see what it said above.")
    return folder
