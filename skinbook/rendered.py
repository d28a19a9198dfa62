"""The rendered book: what is done to its pages while they are built. A Sphinx extension, named in _config.yml.

Links to the book's own pages become links inside the rendered book, checked by Sphinx; a chapter says when and where it
was last verified; each page has a card for those who share it; and a chapter's "suggest edit" leads to its text twin,
since nobody wants to edit a notebook's JSON. Thebe's scripts, which the theme brings although no page uses them, are left
out: they declare one name twice, and the console shows an error.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from skinbook import ledger
from skinbook.book import HOME, repository
from skinbook.config import EDITIONS, SCALES

# The picture of pages that have no figure, and its description.
FRONT = ("_static/diagnoses.jpg", "Eight generated lesions, one of each diagnosis in the lab.")


def setup(app) -> dict[str, bool]:
    """Connect what is done to pages with the moments at which Sphinx lets it be done."""
    own = f"]({repository()}/blob/main/chapters/"

    def know_the_address(app, config) -> None:
        config.html_baseurl = config.html_baseurl or published_at(repository())

    def make_local(app, page: str, source: list[str]) -> None:
        source[0] = source[0].replace(own, "](")

    def say_when_verified(app, doctree) -> None:
        _insert_verified(doctree, app.env.docname.rpartition("/")[2])

    def edit_the_text(app, page: str, template: str, context: dict, doctree) -> None:
        for group in context.get("header_buttons", ()):
            for button in group.get("buttons", ()):
                if f"/edit/main/{page}.ipynb" in button.get("url", ""):
                    button["url"] = button["url"].replace(".ipynb", ".md")

    def with_a_card(app, page: str, template: str, context: dict, doctree) -> None:
        if doctree is not None:
            context["metatags"] = context.get("metatags", "") + card(doctree, app.config.html_baseurl, page)

    def without_thebe(app, page: str, template: str, context: dict, doctree) -> None:
        scripts = context.get("script_files", ())
        context["script_files"] = [
            script
            for script in scripts
            if "thebe" not in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}".lower()
        ]

    app.connect("config-inited", know_the_address)
    app.connect("source-read", make_local)
    app.connect("doctree-read", say_when_verified)
    app.connect("html-page-context", with_a_card)
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("html-page-context", edit_the_text, priority=900)  # after the theme made its buttons
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def published_at(address: str) -> str:
    """Where GitHub publishes the pages of a repository, with a slash at the end."""
    owner, name = urlsplit(address).path.strip("/").split("/")
    return f"https://{owner}.github.io/{name}/"


def card(doctree, address: str, page: str) -> str:
    """The `<meta>` elements by which others show a link to a page: title, first sentences, and a picture.

    The picture is the page's first figure, or else the front page's. (See the Open Graph protocol, ogp.me.)
    """
    from docutils import nodes

    here = f"{address}{page}.html"
    title = next((found.astext() for found in doctree.findall(nodes.title)), page)
    prose = [
        p.astext() for p in doctree.findall(nodes.paragraph) if isinstance(p.parent, nodes.section) and not p["classes"]
    ]
    about = textwrap.shorten(prose[0] if prose else title, 200, placeholder=" …")
    figures = [f for f in doctree.findall(nodes.image) if f["uri"].endswith((".png", ".jpg", ".jpeg")) and f.get("alt")]
    shown = (urljoin(here, figures[0]["uri"]), figures[0]["alt"]) if figures else (f"{address}{FRONT[0]}", FRONT[1])
    told = {
        "og:site_name": "skinbook",
        "og:type": "website" if page.endswith("index") else "article",
        "og:title": title,
        "og:description": about,
        "og:url": here,
        "og:image": shown[0],
        "og:image:alt": textwrap.shorten(shown[1], 400, placeholder=" …"),
    }
    named = {"description": about, "twitter:card": "summary_large_image"}
    return "".join(
        f'<meta {key}="{name}" content="{html.escape(text)}" />\n'
        for key, pairs in (("property", told), ("name", named))
        for name, text in pairs.items()
    )


def verified(name: str, home: Path = HOME) -> list[str]:
    """When, where and how long a chapter was last run on real lesions, a line for each edition and scale of the ledger."""
    from skinbook.runs import code_of

    lines = []
    for edition, scale in ((e, s) for e in EDITIONS for s in SCALES):
        if not (about := ledger.read("results", edition, scale, name).get("provenance")):
            continue
        versions, minutes = ledger.versions(about), list(about["minutes"].values())
        notebook = home / "chapters" / f"{name}.ipynb"
        changed = notebook.is_file() and code_of(notebook, edition, scale) != about["code"]
        collection = {"lab": "the lab", "dermamnist": "DermaMNIST"}.get(edition, edition.upper())
        parts = [
            f"{collection} at {scale} scale, {about['date']}",
            " and ".join(dict.fromkeys(map(_hardware, ledger.machines(about)))),
            f"{sum(minutes) / len(minutes):.0f} min a seed" if sum(minutes) >= len(minutes) else "under a minute",
            ", ".join(f"{n} {versions[n.lower()]}" for n in ("Python", "torch", "timm") if n.lower() in versions),
            *(["its code has changed since"] if changed else []),
        ]
        lines.append("; ".join(parts))
    return lines


def _hardware(about: Mapping[str, Any]) -> str:
    """An accelerator, or the processor, in words."""
    cores = f"{about['cores']} core{'s' if about['cores'] != 1 else ''} of {about['cpu']}"
    return about.get("accelerator", cores)


def _insert_verified(doctree, name: str) -> None:
    """Put the line on when a chapter was last verified before the first paragraph of its page."""
    from docutils import nodes

    first = next((p for p in doctree.findall(nodes.paragraph) if isinstance(p.parent, nodes.section)), None)
    if first is None or not re.match(r"\d\d_", name) or not (lines := verified(name)):
        return
    line = nodes.paragraph("", f"Last verified on {'. On '.join(lines)}. ", classes=["verified"])
    line += nodes.reference("", "All results", refuri="results.html", internal=True)
    first.parent.insert(first.parent.index(first), line)
