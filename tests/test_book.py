"""The book around the chapters: twins, badges, links, generated pages, and what the build refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import typer
import yaml

from skinbook import book, pages, rendered
from skinbook.config import SkinbookError

HOME = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/SOMEBODY/skinbook"
TEXT = """---
jupytext:
  formats: ipynb,md:myst
kernelspec:
  name: python3
  display_name: Python 3
---

# 07 · A trial

Prose with a [term](glossary.md#token) and a [chapter](03_cnn_lstm.ipynb).

```{code-cell} ipython3
:tags: [setup]

a = 1
```

```{code-cell} ipython3
a + 1
```
"""


@pytest.fixture
def home(tmp_path):
    """A little book: one chapter, a glossary, and the files that the build needs."""
    (tmp_path / "chapters").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n', encoding="utf-8")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: chapters/index\n", encoding="utf-8")
    (tmp_path / "chapters" / "07_trial.md").write_text(TEXT, encoding="utf-8")
    return tmp_path


def cells(home: Path) -> list:
    return nbformat.read(home / "chapters" / "07_trial.ipynb", as_version=4).cells


# The book itself


def test_generated_files_are_current():
    stale = [path.name for path, text in book.generated().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], f"run make generate: {', '.join(stale)}"


@pytest.mark.parametrize("name", book.chapters())
def test_badges_open_their_own_chapter(name):
    first = nbformat.read(HOME / "chapters" / f"{name}.ipynb", as_version=4).cells[0].source
    links = re.findall(r'<a class="badge-link" href="([^"]+)">', first)
    assert len(links) == 3
    assert all(link.endswith(f"/blob/main/chapters/{name}.ipynb") for link in links)


def anchors(page: Path) -> set[str]:
    return {pages.slug(title) for title in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


def test_links_between_pages_lead_somewhere():
    pages = HOME / "chapters"
    for page in pages.glob("*.md"):
        for target, anchor in book.PAGE_LINK.findall(page.read_text(encoding="utf-8")):
            assert (pages / target).is_file(), f"{page.name} links to {target}"
            assert not anchor or anchor[1:] in anchors(pages / target), f"{page.name} links to {target}{anchor}"


def test_anchors_of_glossary_and_references_are_unique():
    for name in ("glossary.md", "references.md"):
        titles = re.findall(r"^#+ (.+)$", (HOME / "chapters" / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert len({pages.slug(title) for title in titles}) == len(titles), name


def test_the_contents_list_every_chapter():
    contents = (HOME / "_toc.yml").read_text(encoding="utf-8")
    assert [name for name in book.chapters() if f"chapters/{name}\n" not in contents] == []


def test_the_configuration_points_to_the_repository():
    config = yaml.safe_load((HOME / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == book.repository()
    assert (HOME / "chapters" / "_assets" / config["sphinx"]["config"]["mathjax_path"]).is_file()


# Badges and links


def test_dressing_adds_badges_below_the_title_and_writes_links_in_full():
    dressed = book.dress(TEXT, "07_trial", ADDRESS)
    after_title = dressed.split("# 07 · A trial\n\n")[1]
    assert after_title.startswith(book.BADGES[0])
    colab = "https://colab.research.google.com/github/SOMEBODY/skinbook/blob/main/chapters/07_trial.ipynb"
    kaggle = f"https://kaggle.com/kernels/welcome?src={ADDRESS}/blob/main/chapters/07_trial.ipynb"
    assert f'href="{colab}"' in dressed
    assert f'href="{kaggle}"' in dressed
    assert f"[term]({ADDRESS}/blob/main/chapters/glossary.md#token)" in dressed
    assert f"[chapter]({ADDRESS}/blob/main/chapters/03_cnn_lstm.ipynb)" in dressed


def test_dressing_again_changes_nothing_and_mends_what_is_stale():
    dressed = book.dress(TEXT, "07_trial", ADDRESS)
    assert book.dress(dressed, "07_trial", ADDRESS) == dressed
    assert book.dress(dressed.replace("07_trial", "03_other"), "07_trial", ADDRESS) == dressed
    assert book.dress(dressed, "07_trial", "https://github.com/else/where").count("SOMEBODY") == 0


def test_the_rendered_book_links_within_itself():
    connected = {}
    rendered.setup(SimpleNamespace(connect=lambda event, function, priority=500: connected.update({event: function})))
    source = [f"[term]({book.repository()}/blob/main/chapters/glossary.md#token) [other](https://example.org)"]
    connected["source-read"](None, "chapters/07_trial", source)
    assert source == ["[term](glossary.md#token) [other](https://example.org)"]
    button = {"url": "https://github.com/o/r/edit/main/chapters/07_trial.ipynb"}
    context = {"header_buttons": [{"type": "link"}, {"buttons": [{"url": "https://github.com/o/r"}, button]}]}
    connected["html-page-context"](None, "chapters/07_trial", "page.html", context, None)
    assert button["url"].endswith("/edit/main/chapters/07_trial.md")


def test_moving_the_repository(home):
    book.pair("07_trial", home=home)
    other = home / "notes.md"
    other.write_text(f"{ADDRESS} {ADDRESS}-else https://github.com/else/skinbook", encoding="utf-8")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=home, check=True)
    changed = {p.name for p in book.move_repository("https://github.com/new/place.git", home)}
    assert changed == {"pyproject.toml", "07_trial.md", "07_trial.ipynb", "notes.md"}
    assert book.repository(home) == "https://github.com/new/place"
    assert "colab.research.google.com/github/new/place/blob" in (home / "chapters" / "07_trial.md").read_text(
        encoding="utf-8"
    )
    assert (
        other.read_text(encoding="utf-8")
        == f"https://github.com/new/place {ADDRESS}-else https://github.com/else/skinbook"
    )
    for wrong in ("", "github.com/a/b", "https://example.org/a/b", "https://github.com/a"):
        with pytest.raises(SkinbookError, match="not the address of a GitHub repository"):
            book.move_repository(wrong, home)


def test_a_page_has_a_card_for_those_who_share_it():
    from docutils import nodes

    page = nodes.document("", "")
    page += (section := nodes.section())
    section += nodes.title("", "Where the <lesion> ends")
    section += nodes.admonition("", nodes.paragraph("", "No device."))
    section += nodes.paragraph("", "Last verified", classes=["verified"])
    section += nodes.paragraph("", 'Which pixels are "lesion"?' + " Some more words." * 20)
    address = rendered.published_at("https://github.com/SOMEBODY/the-book")
    assert address == "https://SOMEBODY.github.io/the-book/"
    card = rendered.card(page, address, "chapters/08")
    assert '<meta property="og:title" content="Where the &lt;lesion&gt; ends" />' in card
    assert '<meta name="description" content="Which pixels are &quot;lesion&quot;? Some' in card
    assert f'property="og:url" content="{address}chapters/08.html"' in card
    assert f'property="og:image" content="{address}_static/diagnoses.jpg"' in card
    assert (HOME / "chapters" / "_assets" / Path(rendered.FRONT[0]).name).is_file()
    section += nodes.image(uri="../_images/a.svg", alt="drawn")
    section += nodes.image(uri="../_images/b.png", alt="A disc over a lesion.")
    card = rendered.card(page, address, "chapters/08")
    assert f'property="og:image" content="{address}_images/b.png"' in card
    assert 'property="og:image:alt" content="A disc over a lesion."' in card


def test_a_chapter_says_when_it_was_verified_from_the_ledger(home, monkeypatch):
    from docutils import nodes

    from skinbook import ledger, runs

    about = {
        "date": "2026-01-31",
        "code": "as recorded",
        "hardware": {"cpu": "Abacus", "cores": 1},
        "versions": {"python": "3.11.7", "torch": "2.6.0"},
        "minutes": {"0": 2.0, "1": 4.4},
    }
    held = {("ham10000", "quick"): about}
    monkeypatch.setattr(ledger, "read", lambda kind, e, s, name: {"provenance": held[e, s]} if (e, s) in held else {})
    code = ["as recorded"]
    monkeypatch.setattr(runs, "code_of", lambda notebook, edition, scale: code[0])
    (home / "chapters" / "07_trial.ipynb").touch()
    line = "HAM10000 at quick scale, 2026-01-31; 1 core of Abacus; 3 min a seed; Python 3.11.7, torch 2.6.0"
    assert rendered.verified("07_trial", home) == [line]
    code[0] = "changed"
    held["ham10000", "full"] = {
        **about,
        "hardware": {"cpu": "Abacus", "cores": 8, "accelerator": "Tesla T4"},
        "minutes": {"0": 0.4},
    }
    full = "HAM10000 at full scale, 2026-01-31; Tesla T4; under a minute; Python 3.11.7, torch 2.6.0"
    assert rendered.verified("07_trial", home) == [f"{text}; its code has changed since" for text in (line, full)]

    def shown(name):
        section = nodes.section("", nodes.title("", "T"), nodes.raw("", "badges"), nodes.paragraph("", "Prose."))
        page = nodes.document("", "")
        page += section
        rendered._insert_verified(page, name)
        return [child.astext() for child in section]

    _, _, said, prose = shown("07_trial")
    assert said.startswith("Last verified on HAM10000 at quick scale")
    assert said.endswith("All results")
    assert prose == "Prose."
    assert len(shown("glossary")) == 3
    held.clear()
    assert len(shown("07_trial")) == 3


# Links to other places


def test_links_to_other_places_are_listed_and_the_books_own_are_not(home):
    (home / "README.md").write_text(
        f"[a](https://doi.org/10.1/S(21)2-1) <https://b.example/x> {ADDRESS}-else [o]({ADDRESS}/x)", encoding="utf-8"
    )
    (home / "chapters" / "more.md").write_text(
        '<a href="https://b.example/x">b</a> [c](03_x.ipynb) `https://code.example`', encoding="utf-8"
    )
    book.pair("07_trial", home=home)
    found = {"https://b.example/x": ["README.md", "chapters/more.md"], "https://doi.org/10.1/S(21)2-1": ["README.md"]}
    assert book.links(home) == found


def test_a_link_is_tried(monkeypatch, capsys):
    answers = {"/there": 200, "/shy": 403, "/gone": 404, "/ill": 503}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answers[self.path])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = f"http://127.0.0.1:{server.server_port}"
    assert [book.tried(there + path) for path in answers] == ["", "", "answers 404", "answers 503"]
    found = {there + "/there": ["a.md"], there + "/gone": ["a.md", "b.md"]}
    monkeypatch.setattr(book, "links", lambda home: found)
    with pytest.raises(typer.Exit) as left:
        book.links_command(try_them=True)
    assert left.value.exit_code == 1
    said = capsys.readouterr().out
    assert said == f"{there}/gone answers 404: a.md, b.md\n2 links to other places, 1 of them lead nowhere.\n"
    server.shutdown()
    server.server_close()
    assert "cannot be reached" in book.tried(there + "/there", seconds=1)
    book.links_command(try_them=False)
    assert capsys.readouterr().out == "\n".join(found) + "\n"


# What may go into git


@pytest.mark.parametrize(
    ("count", "output", "text", "fault"),
    [
        (2, "4", "a + 1", None),
        (3, "4", "a + 1", "not executed in order"),
        (None, "4", "a + 1", "never executed"),
        (2, "4", "a + 2", "differ in the source of cell 3"),
        (2, "/home/somebody/a.png", "a + 1", "path of a machine"),
        (2, None, "a + 1", "stderr stored"),
    ],
)
def test_what_may_not_go_into_git(home, monkeypatch, capsys, count, output, text, fault):
    monkeypatch.setattr(book, "generated", lambda home: {})
    book.pair("07_trial", home=home)
    notebook = nbformat.read(home / "chapters" / "07_trial.ipynb", as_version=4)
    _, first, second = notebook.cells
    first.execution_count, second.execution_count = 1, count
    name = "stdout" if output else "stderr"
    second.outputs = [nbformat.v4.new_output("stream", name=name, text=output or "A warning")]
    nbformat.write(notebook, home / "chapters" / "07_trial.ipynb")
    twin = home / "chapters" / "07_trial.md"
    twin.write_text(twin.read_text(encoding="utf-8").replace("a + 1", text), encoding="utf-8")
    found = book.check(home)
    if fault is None:
        assert found == []
        (home / "README.md").write_text("stale", encoding="utf-8")
        monkeypatch.setattr(book, "generated", lambda home: {home / "README.md": "new"})
        assert book.check(home) == ["README.md is not as it is generated now: run `make generate`."]
        return
    assert len(found) == 1
    assert found[0].startswith("07_trial.ipynb: ")
    assert fault in found[0]
    monkeypatch.setattr(book, "check", lambda home: found)
    with pytest.raises(typer.Exit) as left:
        book.check_command()
    assert left.value.exit_code == 1
    assert fault in capsys.readouterr().out


@pytest.mark.parametrize(("source", "shows"), [("round(a)", True), ("a = 3", False), ("print(a)", False)])
def test_a_cell_that_should_only_show_and_does_more_is_named(home, monkeypatch, source, shows):
    monkeypatch.setattr(book, "generated", lambda home: {})
    twin = home / "chapters" / "07_trial.md"
    twin.write_text(twin.read_text(encoding="utf-8").replace("a + 1", f":tags: [view]\n\n{source}"), encoding="utf-8")
    book.pair("07_trial", home=home)
    notebook = nbformat.read(home / "chapters" / "07_trial.ipynb", as_version=4)
    for count, one in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        one.execution_count = count
    nbformat.write(notebook, home / "chapters" / "07_trial.ipynb")
    named = [fault for fault in book.check(home) if "does more than show" in fault]
    assert [source in fault for fault in named] == ([] if shows else [True])


# Pairs and outputs


def test_the_text_is_the_source_and_outputs_stay_with_unchanged_code(home):
    book.pair("07_trial", home=home)
    notebook = home / "chapters" / "07_trial.ipynb"
    first = notebook.read_bytes()
    book.pair("07_trial", home=home)
    assert notebook.read_bytes() == first

    filled = nbformat.read(notebook, as_version=4)
    for count, cell in enumerate((c for c in filled.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", text=f"{count}\n")]
    nbformat.write(filled, notebook)
    text = home / "chapters" / "07_trial.md"
    text.write_text(
        text.read_text(encoding="utf-8").replace("a + 1", "a + 2").replace("Prose with", "Other prose with"),
        encoding="utf-8",
    )
    book.pair("07_trial", home=home)
    prose, kept, changed = cells(home)
    assert "Other prose with" in prose.source
    assert kept.outputs[0].text == "1\n"
    assert kept.metadata.tags == ["setup"]
    assert changed.source == "a + 2"
    assert changed.outputs == []
    assert len({cell.id for cell in cells(home)}) == 3


def test_the_other_way_round(home):
    book.pair("07_trial", home=home)
    notebook = home / "chapters" / "07_trial.ipynb"
    edited = nbformat.read(notebook, as_version=4)
    edited.cells[2].source = "a + 3"
    nbformat.write(edited, notebook)
    book.pair("07_trial", source="notebook", home=home)
    assert "a + 3" in (home / "chapters" / "07_trial.md").read_text(encoding="utf-8")
    book.pair("07_trial", home=home)
    assert cells(home)[2].source == "a + 3"


@pytest.mark.parametrize(("tag", "outputs"), [("hide-cell", True), ("hide-input", False)])
def test_what_the_page_hides_is_hidden_in_jupyter_colab_and_kaggle_and_the_text_twin_has_the_tag_alone(
    home, tag, outputs
):
    text = home / "chapters" / "07_trial.md"
    before = text.read_text(encoding="utf-8")
    text.write_text(before.replace("a + 1", f":tags: [{tag}]\n\na + 1"), encoding="utf-8")
    book.pair("07_trial", home=home)
    _, plain, hidden = cells(home)
    assert hidden.metadata.tags == [tag]
    assert hidden.metadata.jupyter.source_hidden
    assert hidden.metadata.jupyter.get("outputs_hidden", False) == outputs
    assert hidden.metadata.cellView == "form"
    assert hidden.metadata["_kg_hide-input"]
    assert hidden.metadata.get("_kg_hide-output", False) == outputs
    assert set(plain.metadata) <= {"tags"}
    book.pair("07_trial", source="notebook", home=home)
    assert f"```{{code-cell}}\n:tags: [{tag}]\n\na + 1\n```" in text.read_text(encoding="utf-8")
    text.write_text(before, encoding="utf-8")
    book.pair("07_trial", home=home)
    assert "jupyter" not in cells(home)[2].metadata


def test_refreshing_runs_on_lab_and_quick_whatever_is_set(home, monkeypatch):
    monkeypatch.setenv("SKINBOOK_EDITION", "ham10000")
    monkeypatch.setenv("SKINBOOK_SEED", "7")
    text = home / "chapters" / "07_trial.md"
    text.write_text(
        text.read_text(encoding="utf-8").replace(
            "a + 1", "import os\n{k: v for k, v in os.environ.items() if 'SKINBOOK_' in k}"
        ),
        encoding="utf-8",
    )
    book.refresh("07_trial", home)
    out = cells(home)[2]
    assert out.execution_count == 2
    shown = out.outputs[0].data["text/plain"]
    assert "'SKINBOOK_EDITION': 'lab'" in shown
    assert "'SKINBOOK_SCALE': 'quick'" in shown
    assert "SEED" not in shown
    assert "execution" not in out.metadata


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_nothing_is_written(home):
    text = home / "chapters" / "07_trial.md"
    text.write_text(text.read_text(encoding="utf-8").replace("a + 1", "a + missing"), encoding="utf-8")
    book.pair("07_trial", home=home)
    before = (home / "chapters" / "07_trial.ipynb").read_bytes()
    with pytest.raises(SkinbookError, match=r"07_trial\.ipynb: code cell 2 failed(.|\n)*missing"):
        book.refresh("07_trial", home)
    assert (home / "chapters" / "07_trial.ipynb").read_bytes() == before


def test_an_edition_is_executed_in_a_copy(home, monkeypatch):
    from skinbook import chapter

    shutil.copy(HOME / "_config.yml", home)
    book.pair("07_trial", home=home)
    before = (home / "chapters" / "07_trial.ipynb").read_bytes()
    ran = []
    monkeypatch.setattr(book, "execute", lambda notebook, environment: ran.append((notebook, environment)))
    monkeypatch.setattr(chapter, "recipe", lambda name, edition, scale: {"needs": ("lesion_id",)})
    copy = book.on_edition("ham10000", home)
    assert copy == home / "_build" / "ham10000"
    assert [(n, e["SKINBOOK_EDITION"]) for n, e in ran] == [(copy / "chapters" / "07_trial.ipynb", "ham10000")]
    assert (copy / "_toc.yml").is_file()
    ran.clear()
    copy = book.on_edition("dermamnist", home)
    assert ran == []
    page = nbformat.read(copy / "chapters" / "07_trial.ipynb", as_version=4)
    assert page.cells[0].source.startswith("# 07 · A trial\n\nChapter 07_trial needs lesion_id")
    assert (home / "chapters" / "07_trial.ipynb").read_bytes() == before
    with pytest.raises(SkinbookError, match="'ham1000' is not an edition"):
        book.on_edition("ham1000", home)


def test_chapters_by_number_and_name(home):
    (home / "chapters" / "08_more.ipynb").write_text("{}", encoding="utf-8")
    assert book.chapters(home) == ["07_trial", "08_more"]
    assert book.chapters(home, ["08 07_trial"]) == ["07_trial", "08_more"]
    assert book.chapters(home, ["more"]) == ["08_more"]
    with pytest.raises(SkinbookError, match="'09' is not a chapter; there are 07_trial, 08_more"):
        book.chapters(home, ["09"])


def test_without_a_checkout_there_is_no_book(tmp_path):
    with pytest.raises(SkinbookError, match="not a checkout of the book"):
        book.repository(tmp_path)


# What the build refuses

PAGE = (
    '<html><body><h1 id="top">x</h1><img src="a.png" alt="a curve"><script src="_static/a.js"></script>{}</body></html>'
)


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ('<a href="other.html#here">fine</a><a href="https://example.org/x">fine</a><a href="#top">fine</a>', None),
        ('<a href="gone.html">x</a>', "links to gone.html, which does not exist"),
        ('<a href="other.html#gone">x</a>', "no such anchor"),
        ('<a href="#gone">x</a>', "no such anchor"),
        ('<script src="https://cdn.example.org/a.js"></script>', "asks another host for https://cdn"),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "asks another host for //fonts"),
        ('<img src="https://img.example.org/badge.svg" alt="badge">', "asks another host for https://img"),
        ('<img src="b.png">', "no alt text (b.png)"),
    ],
)
def test_faults_of_pages(tmp_path, part, fault):
    (tmp_path / "page.html").write_text(PAGE.format(part), encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="here">x</p>', encoding="utf-8")
    faults = book.check_pages(tmp_path)
    assert faults == [] if fault is None else len(faults) == 1 and fault in faults[0]


def test_a_style_sheet_that_asks_another_host(tmp_path):
    (tmp_path / "a.css").write_text(
        "@font-face { src: url('https://fonts.example.org/a.woff2') } b { background: url(c.png) }", encoding="utf-8"
    )
    assert book.check_pages(tmp_path) == ["a.css: asks another host for https://fonts.example.org/a.woff2"]


@pytest.mark.slow
def test_a_warning_stops_the_build(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: chapters/index\n", encoding="utf-8")
    (tmp_path / "_config.yml").write_text("title: t\nonly_build_toc_files: true\n", encoding="utf-8")
    (tmp_path / "chapters" / "index.md").write_text("# One\n\n[nowhere](#gone)\n", encoding="utf-8")
    with pytest.raises(SkinbookError, match="warnings, and they count as errors"):
        book.build(tmp_path)


def test_a_reference(tmp_path):
    bibliography = tmp_path / "r.bib"
    bibliography.write_text(
        "@article{a, author = {Ann B. Müller and Bo van Dyke}, title = {On {HAM}}, journal = {Skin}, volume = {5},"
        " pages = {1--9}, year = {2020}, doi = {10.1/x}, keywords = {Data}, annote = {Why.}}",
        encoding="utf-8",
    )
    page = pages.references(bibliography)
    assert (
        "## Data\n\n### Müller and van Dyke, 2020\n\nAnn B. Müller and Bo van Dyke. *On HAM*. Skin 5, 1–9, 2020."
        in page
    )
    assert "[doi:10.1/x](https://doi.org/10.1/x)\n\nWhy." in page
    assert pages.slug("Müller and van Dyke, 2020") == "müller-and-van-dyke-2020"


HELD = {
    "03_cnn_lstm": {
        "provenance": {"date": "2026-01-31"},
        "reports": {"balanced accuracy": {"value": 0.7123, "low": 0.68, "high": 0.75, "seeds": {"0": {}, "1": {}}}},
        "claims": {
            "a | b": {"verdict": "holds", "value": 0.05, "low": 0.01, "high": 0.09, "above": 0.0, "seeds": {"0": {}}}
        },
    }
}
FRONT = """before
<!-- results
03_cnn_lstm: balanced accuracy
03_cnn_lstm: a | b
01_eda: not run yet
-->
stale
<!-- /results -->
after"""


def held(kind, edition, scale, chapter):
    return HELD.get(chapter, {}) if (kind, edition, scale) == ("results", "ham10000", "quick") else {}


def test_the_front_page_shows_the_named_results_of_the_ledger(monkeypatch):
    from skinbook import ledger

    monkeypatch.setattr(ledger, "read", held)
    page = pages.with_results(FRONT)
    link = "[03](chapters/03_cnn_lstm.ipynb)"
    assert f"| {link} | balanced accuracy | 0.71 | 0.68 to 0.75 | 2 |\n" in page
    assert f"| {link} | a \\| b | holds 0.05 | 0.01 to 0.09 | 1 |\n" in page
    assert page.startswith("before\n<!-- results\n03_cnn_lstm: balanced")
    assert page.endswith("<!-- /results -->\nafter")
    assert "stale" not in page
    assert pages.with_results(page) == page
    assert pages.with_results(FRONT * 2) == page * 2
    with pytest.raises(SkinbookError, match="'balanced acc' of 03_cnn_lstm, which the ledger does not hold"):
        pages.with_results(FRONT.replace("balanced accuracy", "balanced acc"))


def test_a_front_page_with_a_number_typed_by_hand_is_stale():
    page = (HOME / "README.md").read_text(encoding="utf-8")
    typed = page.replace("<!-- /results -->", "Our model reaches 99 %.\n<!-- /results -->")
    assert pages.with_results(typed) == page


@pytest.mark.parametrize(
    ("value", "low", "cell"),
    [(3800583.0, None, "3,800,583"), (1.0, None, "1.00"), (2.0, 1.5, "2.00"), (12, None, "12")],
)
def test_a_count_is_shown_as_one_whoever_recorded_it(value, low, cell):
    assert pages._result_cells({"value": value, "low": low, "high": low, "seeds": {"0": {}}})[0] == cell


def test_the_page_of_results_shows_the_whole_ledger(monkeypatch):
    from skinbook import ledger

    monkeypatch.setattr(ledger, "read", held)
    monkeypatch.setattr(
        ledger, "held", lambda kind, edition, scale: list(HELD) if held(kind, edition, scale, next(iter(HELD))) else []
    )
    monkeypatch.setattr(ledger, "provenance_line", lambda *given: "where it comes from")
    page = pages.all_results()
    assert page.startswith("## 03 A CNN with an LSTM behind it: ham10000, quick\n\nwhere it comes from\n\n| Claim |")
    assert "| balanced accuracy | 0.71 | 0.68 to 0.75 | 2 |" in page
    assert re.search(r"\| a \\\| b \| <svg [^|]+</svg> \| holds 0.05 \| 0.01 to 0.09 \| 1 \|", page)
    assert 'aria-label="0.05, between 0.01 and 0.09"' in page
    assert 'x1="88.4" y1="8" x2="156.0"' in page, (
        "the axis ends where the widest interval does, and zero is in its middle"
    )


def test_an_interval_without_width_is_not_shown():
    found = {"value": 0.67, "low": 0.67, "high": 0.67, "seeds": {"0": {}}}
    assert pages._result_cells(found) == ["0.67", "", "1"]
    assert pages._result_cells(found | {"high": 0.68}) == ["0.67", "0.67 to 0.68", "1"]
    assert pages._result_cells(found | {"value": 0.7}) == ["0.70", "0.67 to 0.67", "1"]


def test_the_page_of_the_strongest_says_who_competed():
    models = {
        "own": {"weights": "lab"},
        "pretrained": {"weights": "pretrained"},
        "large": {"weights": "pretrained", "device": "cuda"},
    }
    about = {"hardware": {"cores": 2}, "model": "own"}
    alone = pages._chosen("strongest_own", about, models)
    assert alone == "**own**, the only one that could take part: nothing was to be chosen."
    of_all = pages._chosen("strongest_single", about, models)
    assert of_all == "Chosen on validation, from own and pretrained: **own**. Left out, for want of a GPU: large."
    with_gpu = pages._chosen("strongest_single", about | {"hardware": {"cores": 2, "accelerator": "A GPU"}}, models)
    assert with_gpu == "Chosen on validation, from own and pretrained and large: **own**."


def test_an_interval_that_does_not_fit_the_axis_is_not_drawn():
    claims = {
        name: {"verdict": "holds", "value": value, "low": low, "high": high, "above": above, "seeds": {"0": {}}}
        for name, value, low, high, above in (
            ("years", 14.0, 13.0, 15.0, 0.0),
            ("share", 0.1, -0.1, 0.3, 0.0),
            ("none", 0.1, None, None, 0.0),
            ("more", 0.9, 0.7, 1.1, 0.6),
        )
    }
    years, share, none, more = pages._claims(claims).splitlines()[2:]
    assert "| more (above 0.60) | <svg" in more
    assert 'cx="125.6"' in more  # 0.3 to the right of the mark, on an axis that reaches 0.5
    assert "| years |  | holds 14.00" in years
    assert "<svg" in share
    assert "| none |  | holds 0.10 |  |" in none


def test_published_numbers_name_their_protocol_and_source():
    text = pages.published(HOME / "data" / "published.toml")
    assert len(text.splitlines()) > 8
    for line in text.splitlines():
        assert all(cell.strip() for cell in line.strip("|").split(" | ")), line
    assert text in (HOME / "chapters" / "results.md").read_text(encoding="utf-8")


def test_the_picture_on_the_front_page_is_what_the_lab_draws(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    def apart(one, other):
        """The mean difference of grey levels in each of the eight photographs, and of the words about them."""
        assert one.shape == other.shape
        rows, columns = one.shape[0] // 2, one.shape[1] // 4
        places = np.abs(one - other)[: 2 * rows, : 4 * columns].reshape(2, rows, 4, columns, 3)
        return places.mean(axis=(1, 3, 4)).ravel()

    kept = np.asarray(Image.open(HOME / "chapters" / "_assets" / "diagnoses.jpg"), dtype=float)
    drawn = np.asarray(Image.open(pages.picture(tmp_path / "d.jpg")), dtype=float)
    # Older versions of matplotlib set the words a little differently (3.6 with its version 3.8).
    assert (apart(drawn, kept) < 5).all(), "`skinbook book picture` draws it anew"
    key, skin = pages.PORTRAITS["vasc"]  # of another lesion of any diagnosis, this one's differs least
    monkeypatch.setitem(pages.PORTRAITS, "vasc", (key + 1, skin))
    other = np.asarray(Image.open(pages.picture(tmp_path / "o.jpg")), dtype=float)
    assert [name for name, far in zip(pages.PORTRAITS, apart(other, kept) >= 5, strict=True) if far] == ["vasc"]


def test_the_model_card_says_what_the_bundle_scores_as_it_answers():
    card = json.loads((HOME / "data" / "ham10000_bundle" / "bundle.json").read_text(encoding="utf-8"))
    text = pages.bundled(HOME / "data" / "ham10000_bundle")
    assert text.startswith(card["about"])
    for name, (value, low, high) in card["metrics"].items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        shown = [float(number) for number in re.findall(r"-?\d+\.\d+", row)]
        assert shown == pytest.approx([value, low, high], abs=0.006)
    assert text in (HOME / "chapters" / "model_card.md").read_text(encoding="utf-8")
