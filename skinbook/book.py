"""The book around its chapters: text twins, stored outputs, badges and links, generated pages, and the build.

These are the commands behind the Makefile. They work on a checkout of the project, not on an installed wheel.

A chapter is a pair. `chapters/NN_name.md` is its source; `chapters/NN_name.ipynb` has the same cells and the outputs
of lab/quick. A link from a chapter to another page is written in full, with the repository's address, because a
notebook is also read in Colab and Kaggle; the rendered book (`skinbook.rendered`) turns it into a link of its own.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

import typer

from skinbook.config import EDITIONS, SkinbookError
from skinbook.pages import (
    all_results,
    audits,
    bundled,
    copied,
    filled,
    held,
    picture,
    published,
    references,
    scaling,
    strongest,
    with_results,
)

HOME = Path(__file__).resolve().parent.parent
BADGES = ("<!-- badges -->", "<!-- /badges -->")
# A link to another place, in Markdown or in HTML within it; an address may hold brackets.
OUTSIDE = re.compile(r"(?:\]\(|<|href=\")(https?://(?:[^\s()<>\"]|\([^\s()]*\))+)")
# What servers answer to a program although a person would be let in.
SHY = (401, 403, 405, 406, 418, 429, 999)
# A Markdown link to a page of the book, short (`glossary.md#token`) or in full.
PAGE_LINK = re.compile(
    r"\]\((?:https://github\.com/[\w.-]+/[\w.-]+/blob/main/chapters/)?((?:index|datasets|results|limits|glossary|references|\d\d_\w+)\.(?:md|ipynb))(#[\w-]+)?\)"
)


def checkout(home: Path = HOME) -> Path:
    """The folder of the project.

    Raises
    ------
    SkinbookError
        If the package is installed from a wheel, where there is no book to build.
    """
    if not (home / "_toc.yml").is_file():
        raise SkinbookError(
            f"{home} is not a checkout of the book (no _toc.yml); clone the repository and run this there."
        )
    return home


def repository(home: Path = HOME) -> str:
    """The public address, from `[project.urls]` of pyproject.toml: the one place where it is kept."""
    with (checkout(home) / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["urls"]["Repository"].rstrip("/")


def chapters(home: Path = HOME, wanted: Sequence[str] = ()) -> list[str]:
    """Names of the chapters (`03_cnn_lstm`) in order; `wanted` narrows them, by number or by name.

    Raises
    ------
    SkinbookError
        If something wanted is no chapter.
    """
    there = sorted({p.stem for p in (home / "chapters").glob("[0-9][0-9]_*") if p.suffix in (".md", ".ipynb")})
    asked = [w for text in wanted for w in text.split()]
    for one in asked:
        if not any(one in (name, name[:2], name[3:]) for name in there):
            raise SkinbookError(f"{one!r} is not a chapter; there are {', '.join(there) or 'none'}.")
    return [name for name in there if not asked or any(one in (name, name[:2], name[3:]) for one in asked)]


# Badges and links


def badges(name: str, address: str) -> str:
    """The lines that open a chapter in Colab, in Kaggle and on GitHub: plain links, so that they work anywhere."""
    notebook = f"{address}/blob/main/chapters/{name}.ipynb"
    places = {
        "Open in Colab": notebook.replace("https://github.com/", "https://colab.research.google.com/github/", 1),
        "Open in Kaggle": f"https://kaggle.com/kernels/welcome?src={notebook}",
        "See it on GitHub": notebook,
    }
    links = " · ".join(f'<a class="badge-link" href="{link}">{text}</a>' for text, link in places.items())
    return f"{BADGES[0]}\n<p>{links}</p>\n{BADGES[1]}"


def dress(text: str, name: str, address: str) -> str:
    """A chapter's Markdown with its badges (below the title, or where the markers stand) and its links in full."""
    block = badges(name, address)
    if BADGES[0] in text:
        before, _, rest = text.partition(BADGES[0])
        text = before + block + rest.partition(BADGES[1])[2]
    else:
        text = re.sub(r"^# .+$", lambda title: f"{title.group()}\n\n{block}", text, count=1, flags=re.MULTILINE)
    return PAGE_LINK.sub(lambda m: f"]({address}/blob/main/chapters/{m[1]}{m[2] or ''})", text)


def move_repository(url: str, home: Path = HOME) -> list[Path]:
    """Write a new public address wherever the old one stands; returns the files that changed.

    Raises
    ------
    SkinbookError
        If it is not the address of a GitHub repository.
    """
    url = url.strip().removesuffix(".git").rstrip("/")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise SkinbookError(
            f"{url!r} is not the address of a GitHub repository; expected https://github.com/OWNER/NAME."
        )
    old, new = (urlsplit(a).path for a in (repository(home), url))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=home, capture_output=True, text=True, check=True).stdout
    changed = []
    for path in (
        home / name for name in listed.split("\0") if name.endswith((".md", ".ipynb", ".toml", ".cff", ".yml"))
    ):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        # The same path stands behind github.com and behind Colab's address.
        if (moved := re.sub(rf"(?<=github\.com|com/github){re.escape(old)}(?![\w-])", new, text)) != text:
            path.write_text(moved, encoding="utf-8")
            changed.append(path)
    return changed


# Pairs and outputs

# What the rendered book hides until it is clicked at, in the words of Jupyter, Colab and Kaggle.
_CODE = {"cellView": "form", "_kg_hide-input": True}
FOLDED: dict[str, dict[str, Any]] = {
    "hide-input": {**_CODE, "jupyter": {"source_hidden": True}},
    "hide-cell": {**_CODE, "_kg_hide-output": True, "jupyter": {"source_hidden": True, "outputs_hidden": True}},
}


def pair(name: str, source: str = "text", home: Path = HOME) -> None:
    """Bring a chapter's notebook in line with its text twin, or (`source="notebook"`) the other way round.

    Outputs stay with the cells whose code is unchanged. The text is dressed first: badges, links in full.
    """
    import jupytext
    import nbformat

    text, notebook = (home / "chapters" / f"{name}{suffix}" for suffix in (".md", ".ipynb"))
    if source == "notebook" or not text.is_file():
        cells = nbformat.read(notebook, as_version=4)
        cells.metadata["jupytext"] = {"formats": "ipynb,md:myst"}
        for cell in cells.cells:
            _unfolded(cell)
        written = jupytext.writes(cells, fmt="md:myst")
    else:
        written = text.read_text(encoding="utf-8")
    _write(text, dress(written, name, repository(home)))
    cells = jupytext.read(text)
    if notebook.is_file():
        _keep_outputs(cells, nbformat.read(notebook, as_version=4))
    _write(notebook, _notebook_text(cells))


def _keep_outputs(cells, before) -> None:
    """Give code cells the outputs that the same code had before (jupytext would also give them to changed code)."""
    had: dict[str, list] = {}
    for cell in before.cells:
        if cell.cell_type == "code":
            had.setdefault(cell.source, []).append(cell)
    for cell in cells.cells:
        if cell.cell_type == "code" and had.get(cell.source):
            same = had[cell.source].pop(0)
            cell.outputs, cell.execution_count = same.outputs, same.execution_count


def _notebook_text(cells) -> str:
    """The notebook as JSON: the same for the same cells and outputs, whoever wrote it and on whatever Python."""
    import nbformat

    cells.nbformat, cells.nbformat_minor = 4, 5
    cells.metadata = {
        "jupytext": {"formats": "ipynb,md:myst"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    seen: dict[str, int] = {}
    for cell in cells.cells:
        digest = hashlib.blake2b(f"{cell.cell_type}\n{cell.source}".encode(), digest_size=4).hexdigest()
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = f"{digest}-{seen[digest]}"
        _unfolded(cell)
        for tag in cell.metadata.get("tags", ()):
            cell.metadata.update(FOLDED.get(tag, {}))
    return nbformat.writes(nbformat.from_dict(cells)) + "\n"


def _unfolded(cell) -> None:
    """Take the words of `FOLDED` off a cell: its tags say them all, and the text twin has no others."""
    for key in {key for words in FOLDED.values() for key in words}:
        cell.metadata.pop(key, None)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, and leave it alone when nothing changes."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def execute(notebook: Path, environment: dict[str, str]) -> None:
    """Run every cell of a notebook, in its own folder and in a fresh kernel, and store the outputs in it.

    Raises
    ------
    SkinbookError
        Naming the notebook and the first cell that failed; the file is then left as it was.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    cells = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        cells,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    try:
        client.execute(env=environment)
    except (CellExecutionError, DeadKernelError) as error:
        done = [c.execution_count for c in cells.cells if c.cell_type == "code" and c.execution_count]
        raise SkinbookError(f"{notebook}: code cell {len(done)} failed.\n{error}") from None
    _write(notebook, _notebook_text(cells))


def refresh(name: str, home: Path = HOME) -> None:
    """Execute a chapter in place, from its text twin, on lab/quick with every other setting at its default."""
    pair(name, home=home)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SKINBOOK_") or k == "SKINBOOK_CACHE"}
    execute(
        home / "chapters" / f"{name}.ipynb",
        {**kept, "SKINBOOK_EDITION": "lab", "SKINBOOK_SCALE": "quick", "HF_HUB_OFFLINE": "1"},
    )


def on_edition(edition: str, home: Path = HOME) -> Path:
    """A copy of the book under `_build/<edition>`, every chapter of it executed on that edition; returns the folder.

    The notebooks in git are not touched. A chapter that needs what the edition lacks is left out, by name.
    """
    if edition not in EDITIONS:
        raise SkinbookError(f"{edition!r} is not an edition; choose from {', '.join(EDITIONS)}.")
    from skinbook import chapter

    copy = home / "_build" / edition
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home / "chapters", copy / "chapters", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "*.part"))
    shutil.copy(home / "_config.yml", copy)
    shutil.copy(home / "_toc.yml", copy)
    for name in chapters(home):
        notebook = copy / "chapters" / f"{name}.ipynb"
        if absent := chapter.lacking(chapter.recipe(name, edition, "quick")["needs"], edition):
            sentence = chapter.left_out(name, edition, absent)
            typer.echo(sentence)
            _stand_in(notebook, sentence)
            continue
        started = time.monotonic()
        typer.echo(f"{name} on {edition} ...", nl=False)
        execute(notebook, {**os.environ, "SKINBOOK_EDITION": edition})
        typer.echo(f" {time.monotonic() - started:.0f} s")
    return copy


def _stand_in(notebook: Path, sentence: str) -> None:
    """Put a page with one sentence in a chapter's place, so that links to it still lead somewhere."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4)
    title = re.search(r"^# .+$", cells.cells[0].source, flags=re.MULTILINE)
    text = f"{title.group() if title else f'# {notebook.stem}'}\n\n{sentence}"
    cells.cells = [nbformat.v4.new_markdown_cell(text)]
    _write(notebook, _notebook_text(cells))


# The build and a look at what it made


def build(book: Path) -> Path:
    """Build the pages from the outputs that the notebooks hold; returns the first page.

    Raises
    ------
    SkinbookError
        If Sphinx warns of anything, or a page links to nowhere or asks another host for a part of itself.
    """
    # All pages each time: Sphinx keeps silent about the warnings of pages that it doesn't build again.
    command = ["build", str(book), "--all", "-W", "-n", "--keep-going", "-q"]
    if subprocess.run([str(Path(sys.executable).with_name("jupyter-book")), *command], check=False).returncode:
        raise SkinbookError("The book has warnings, and they count as errors: mend what is listed above.")
    pages = book / "_build" / "html"
    if faults := check_pages(pages):
        raise SkinbookError("\n".join(["The pages have faults:", *faults]))
    return pages / "index.html"


class _Page(HTMLParser):
    """What a page is made of: its anchors, its links, and the files that a browser fetches to show it."""

    FETCHED = ("script", "img", "iframe", "source", "video", "audio", "embed")

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.nameless: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors.update(given[key] for key in ("id", "name") if key in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in self.FETCHED and "src" in given:
            self.fetched.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "modulepreload", "icon", "preconnect"):
            self.fetched.append(given.get("href", ""))
        if tag == "img" and not given.get("alt", "").strip():
            self.nameless.append(given.get("src", "")[:60])


def check_pages(folder: Path) -> list[str]:
    """Faults of rendered pages: links and anchors that lead nowhere, pictures without a description, foreign hosts."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    faults = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        faults += [f"{where}: a picture has no alt text ({src})" for src in page.nameless]
        faults += [f"{where}: asks another host for {src}" for src in page.fetched if _foreign(src)]
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc or not (target.path or target.fragment):
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            if not file.exists():
                faults.append(f"{where}: links to {link}, which does not exist")
            elif target.fragment and file in pages and unquote(target.fragment) not in pages[file].anchors:
                faults.append(f"{where}: links to {link}, but that page has no such anchor")
    for sheet in sorted(folder.rglob("*.css")):
        addresses = re.findall(
            r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", sheet.read_text(encoding="utf-8")
        )
        faults += [f"{sheet.relative_to(folder)}: asks another host for {address}" for address in addresses]
    return faults


def _foreign(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https")


# Links to other places


def links(home: Path = HOME) -> dict[str, list[str]]:
    """Links from the pages, and from the files around them, to other places, each with the files that have it.

    Those to the book's own repository are left out: they hold where the book lies, and other tests cover them.
    """
    own = f"{urlsplit(repository(home)).path}"
    found: dict[str, list[str]] = {}
    for page in sorted([*home.glob("*.md"), *(home / "chapters").glob("*.md")]):
        for link in dict.fromkeys(OUTSIDE.findall(page.read_text(encoding="utf-8"))):
            if not re.search(rf"github(?:\.com)?{re.escape(own)}(?![\w-])", link):
                found.setdefault(link, []).append(page.relative_to(home).as_posix())
    return dict(sorted(found.items()))


def tried(link: str, seconds: float = 30) -> str:
    """Why a link leads nowhere, or "" where it leads somewhere."""
    request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0 (compatible; skinbook link check)"})
    why = ""
    for _ in range(2):  # a server may have a bad moment
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                return ""
        except HTTPError as error:
            if error.code in SHY:
                return ""
            why = f"answers {error.code}"
        except (OSError, http.client.HTTPException) as error:
            why = f"cannot be reached ({getattr(error, 'reason', error)})"
    return why


# What may go into git


def check(home: Path = HOME) -> list[str]:
    """What keeps the book from being committed, in sentences: the checks of `make test` that execute nothing.

    A notebook is in line with its text twin; its outputs are lab/quick's, executed in order, without stderr and without
    a path of a machine; what is generated is current.
    """
    import nbformat

    from skinbook import ledger
    from skinbook.nbval_plugin import Stored, Twin

    found = []
    for name in chapters(home):
        notebook = home / "chapters" / f"{name}.ipynb"
        if not notebook.is_file():
            found.append(f"chapters/{name}.md has no notebook: run `make refresh CHAPTERS={name[:2]}`.")
            continue
        cells = nbformat.read(notebook, as_version=4)
        held: Any = SimpleNamespace(parent=SimpleNamespace(path=notebook, nb=cells))
        twin = Twin.faults(held) if notebook.with_suffix(".md").is_file() else []
        found += [f"{notebook.name}: {fault}" for fault in [*twin, *Stored.faults(held)]]
        for cell in cells.cells:
            others = [other for other in cells.cells if other is not cell]
            if "view" in cell.metadata.get("tags", ()) and ledger.code_hash(others) != ledger.code_hash(cells.cells):
                found.append(
                    f"{notebook.name}: A cell tagged `view` does more than show, or gives a name that another cell uses: "
                    f"{cell.source.strip().splitlines()[0]}"
                )
        counts = [cell.execution_count for cell in cells.cells if cell.cell_type == "code"]
        if None not in counts and counts != list(range(1, len(counts) + 1)):
            found.append(f"{notebook.name}: Cells were not executed in order: run `make refresh CHAPTERS={name[:2]}`.")
    stale = [path for path, text in generated(home).items() if not path.is_file() or path.read_text("utf-8") != text]
    return found + [f"{path.relative_to(home)} is not as it is generated now: run `make generate`." for path in stale]


# Generated pages


def generated(home: Path = HOME) -> dict[Path, str]:
    """What every generated file should hold now: references, results, and the chapters' badges and links."""
    pages, readme, results = home / "chapters", home / "README.md", home / "chapters" / "results.md"
    shown, audited = [pages / "index.md", pages / "model_card.md"], pages / "audit.md"
    own = home / "data" / "ham10000_bundle"
    machines, tried, best, five = (pages / f"{name}.md" for name in ("scaling", "held", "strongest", "copied"))
    wanted = {
        pages / "references.md": references(pages / "references.bib"),
        readme: with_results(readme.read_text(encoding="utf-8")),
        **{page: filled(with_results(page.read_text(encoding="utf-8"), ""), bundled(own), "bundle") for page in shown},
        results: filled(
            filled(results.read_text(encoding="utf-8"), all_results()),
            published(home / "data" / "published.toml"),
            "published",
        ),
        audited: filled(audited.read_text(encoding="utf-8"), audits(), "audits"),
        tried: filled(
            tried.read_text(encoding="utf-8"), held(home / "data" / "held.json", home / "data" / "steady.json"), "held"
        ),
        best: filled(best.read_text(encoding="utf-8"), strongest(), "strongest"),
        five: filled(five.read_text(encoding="utf-8"), copied(), "copied"),
        machines: scaling(machines.read_text(encoding="utf-8"), home / "data" / "bench"),
    }
    for name in chapters(home):
        if (twin := pages / f"{name}.md").is_file():
            wanted[twin] = dress(twin.read_text(encoding="utf-8"), name, repository(home))
    return wanted


def generate(home: Path = HOME) -> list[Path]:
    """Write every generated file; returns those that changed. Afterwards the notebooks follow their twins."""
    wanted = generated(home)
    changed = [p for p, text in wanted.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path, text in wanted.items():
        _write(path, text)
    for name in chapters(home):
        pair(name, home=home)
    return changed


# Commands

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Build and tend the book (in a checkout).")
Names = Annotated[list[str] | None, typer.Argument(help="Chapters by number or name; all when left out.")]


def _tell(paths: Iterable[Path], home: Path = HOME) -> None:
    for path in paths:
        typer.echo(f"changed {path.relative_to(home)}")


@app.command("build")
def build_command(
    edition: Annotated[str, typer.Option(help="Execute every chapter on this edition first, in a copy.")] = "",
) -> None:
    """Build the pages, from the stored outputs or executed on an edition."""
    book = on_edition(edition) if edition else checkout()
    typer.echo(f"The book is built. Open {build(book)}")


@app.command("pair")
def pair_command(names: Names = None, source: Annotated[str, typer.Option(help="text or notebook")] = "text") -> None:
    """Bring notebooks in line with their text twins."""
    if source not in ("text", "notebook"):
        raise SkinbookError(f"The source is {source!r}; expected text or notebook.")
    for name in chapters(checkout(), names or ()):
        pair(name, source)


@app.command("refresh")
def refresh_command(names: Names = None) -> None:
    """Execute chapters in place on lab/quick."""
    for name in chapters(checkout(), names or ()):
        typer.echo(f"{name} ...", nl=False)
        started = time.monotonic()
        refresh(name)
        typer.echo(f" {time.monotonic() - started:.0f} s")


@app.command("generate")
def generate_command() -> None:
    """Rewrite what is generated."""
    _tell(generate(checkout()))


@app.command("check")
def check_command() -> None:
    """Check what may go into git: twins, stored outputs, generated pages. Nothing is executed; 1 if there are faults."""
    if faults := check(checkout()):
        typer.echo("\n".join(faults))
        raise typer.Exit(1)


@app.command("links")
def links_command(
    try_them: Annotated[bool, typer.Option("--check", help="Try each, and leave with 1 if one leads nowhere.")] = False,
) -> None:
    """List links to other places."""
    found = links(checkout())
    if not try_them:
        typer.echo("\n".join(found))
        return
    with ThreadPoolExecutor(8) as several:
        whys = dict(zip(found, several.map(tried, found), strict=True))
    broken = [f"{link} {why}: {', '.join(found[link])}" for link, why in whys.items() if why]
    typer.echo("\n".join([*broken, f"{len(found)} links to other places, {len(broken)} of them lead nowhere."]))
    if broken:
        raise typer.Exit(1)


@app.command("picture")
def picture_command() -> None:
    """Draw the front page's picture anew."""
    home = checkout()
    _tell([picture(home / "chapters" / "_assets" / "diagnoses.jpg")], home)


@app.command("repository")
def repository_command(url: str) -> None:
    """Set the public address everywhere."""
    _tell(move_repository(url, checkout()))
