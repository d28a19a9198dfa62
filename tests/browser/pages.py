"""The rendered book in a real browser: `make test-browser`, after `make book`.

The file's name keeps it out of `make test`, which needs no browser.
"""

import functools
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe

from skinbook.book import chapters, repository
from skinbook.rendered import published_at, verified

HOME = Path(__file__).resolve().parents[2]
BUILT = Path(os.environ.get("BOOK") or HOME / "_build" / "html")
DARK = "document.documentElement.dataset.theme = document.documentElement.dataset.mode = 'dark'"


def contents():
    """Every page of the table of contents, as its path in the built book."""
    toc = yaml.safe_load((HOME / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


@pytest.fixture(scope="session")
def address():
    """The built book, served on a free port of this machine."""
    if not (BUILT / "index.html").is_file():
        pytest.fail(f"There is no book in {BUILT}. Run `make book` first.")

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(BUILT)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def page(browser, address):
    """A window that reaches nothing but the book, and remembers what went wrong in it: `page.faults`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.faults = []
    opened.on("console", lambda m: opened.faults.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))

    def only_the_book(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        opened.faults.append(f"asks another host: {route.request.url}")
        return route.abort()

    context.route("**/*", only_the_book)
    yield opened
    context.close()


def serious(opened):
    """axe-core's violations of level serious or critical, each with the first element that has it."""
    found = Axe().run(opened).response["violations"]
    return [
        f"{v['id']} ({v['impact']}, {len(v['nodes'])}): {v['nodes'][0]['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def test_these_checks_can_fail(page, address):
    page.goto(f"{address}/search.html")
    page.set_content("<img src='http://elsewhere.invalid/a.png'><script>undefined_function()</script><input>")
    assert any("asks another host: http://elsewhere.invalid/a.png" in fault for fault in page.faults)
    assert any("undefined_function" in fault for fault in page.faults)
    assert any(fault.startswith("image-alt (critical") for fault in serious(page))


@pytest.mark.parametrize("name", contents())
def test_a_page_opens_without_a_fault(name, page, address):
    answer = page.goto(f"{address}/{name}.html", wait_until="networkidle")
    assert answer.ok
    assert page.faults == []
    assert page.locator("article h1").count() == 1
    assert page.get_by_text("not a medical device").first.count() == 1


@pytest.mark.parametrize("name", contents())
def test_every_picture_is_described(name, page, address):
    page.goto(f"{address}/{name}.html")
    for picture in page.locator("article img").all():
        alt = picture.get_attribute("alt") or ""
        assert len(alt) > 20, picture.get_attribute("src")
        assert not alt.startswith("../_images")


def test_a_heading_is_smaller_than_the_one_it_stands_under(page, address):
    """On the audit's page the parts of a report had larger headings than the report."""
    page.goto(f"{address}/chapters/audit.html", wait_until="networkidle")
    sizes = {n: page.locator(f"article h{n}").first.evaluate("e => getComputedStyle(e).fontSize") for n in range(1, 5)}
    points = [float(size.removesuffix("px")) for size in sizes.values()]
    assert points == sorted(set(points), reverse=True), sizes
    assert points[-1] > float(page.locator("article p").first.evaluate("e => parseFloat(getComputedStyle(e).fontSize)"))


@pytest.mark.parametrize("name", contents())
def test_a_phone_scrolls_in_one_direction_only(name, page, address):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{address}/{name}.html")
    wide = page.evaluate("[document.scrollingElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]


@pytest.mark.parametrize("name", contents())
def test_nothing_serious_stands_in_a_reader_s_way(name, page, address):
    page.goto(f"{address}/{name}.html")
    assert serious(page) == []
    page.add_style_tag(content="* { transition: none !important }")
    page.evaluate(DARK)
    assert serious(page) == [], "in the dark"


@pytest.mark.parametrize("name", contents())
def test_a_page_can_be_shared(name, page, address):
    page.goto(f"{address}/{name}.html")
    told = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('meta[property^=\"og:\"]')].map(m => [m.getAttribute('property'), m.content]))"
    )
    ours = published_at(repository())
    assert told["og:title"] == page.locator("article h1").evaluate("h => h.firstChild.textContent")
    assert told["og:url"] == f"{ours}{name}.html"
    assert 40 < len(told["og:description"]) <= 200
    assert told["og:image"].startswith(ours)
    assert (BUILT / told["og:image"].removeprefix(ours)).is_file()
    assert len(told["og:image:alt"]) > 20
    assert page.locator("meta[name=description]").get_attribute("content") == told["og:description"]
    icon = page.locator("link[rel~=icon]").evaluate("link => link.href")
    assert page.request.get(icon).ok


@pytest.mark.parametrize("name", chapters())
def test_a_chapter_has_its_buttons_and_says_when_it_was_verified(name, page, address):
    page.goto(f"{address}/chapters/{name}.html")
    links = page.evaluate("[...document.querySelectorAll('.article-header-buttons a')].map(a => a.href)")
    there = f"{repository()}/blob/main/chapters/{name}.ipynb"
    assert there.replace("https://github.com", "https://colab.research.google.com/github") in links
    assert f"{repository()}/edit/main/chapters/{name}.md" in links
    assert any(link.startswith(f"{repository()}/issues/new") for link in links)
    said = [line.inner_text() for line in page.locator("article p.verified").all()]
    assert len(said) == bool(verified(name))
    for line in verified(name):
        assert line in said[0]
    assert page.locator("article p.verified a").evaluate_all("all => all.map(a => a.pathname)") == (
        ["/chapters/results.html"] * len(said)
    )


def test_maths_is_typeset(page, address):
    shown = 0
    for name in contents():
        page.goto(f"{address}/{name}.html")
        if page.locator("article .math").count():
            page.wait_for_selector("article mjx-container", state="attached")
            assert page.locator("article mjx-merror").count() == 0, name
            shown += page.locator("article mjx-container").count()
    assert shown > 10
    assert page.faults == []


def test_the_search_finds_melanoma(page, address):
    page.goto(f"{address}/search.html?q=melanoma")
    page.wait_for_selector("#search-results ul.search li a")
    assert page.locator("#search-results ul.search li").count() >= 5


def test_the_keyboard_reaches_the_text(page, address):
    page.goto(f"{address}/{contents()[1]}.html")
    page.keyboard.press("Tab")
    assert "skip" in page.evaluate("document.activeElement.textContent").lower()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main-content"


def test_links_within_the_book_lead_to_a_place_that_exists(page, address):
    ids, wanted = {}, set()
    for name in contents():
        page.goto(f"{address}/{name}.html")
        ids[f"/{name}.html"] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links = page.evaluate("[...document.querySelectorAll('article a[href]')].map(a => a.href)")
        wanted |= {(name, link.removeprefix(address)) for link in links if link.startswith(address)}
    lost = [
        (name, link)
        for name, link in wanted
        for path, _, anchor in [link.partition("#")]
        if path.endswith(".html") and (path not in ids or (anchor and anchor not in ids[path]))
    ]
    assert [pair for pair in lost if not pair[1].startswith("/search")] == []
    assert len(wanted) > 100


def test_a_chapter_prints(page, address, tmp_path):
    page.goto(f"{address}/{contents()[3]}.html", wait_until="networkidle")
    page.evaluate(DARK)
    page.set_viewport_size({"width": 700, "height": 990})  # A4 within its margins
    page.emulate_media(media="print")
    folded = "document.querySelectorAll('article details:not([open])').length"
    before = page.evaluate(folded)
    assert before > 5
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(folded) == 0, "nobody can unfold paper"
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    cut = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80))"
    assert page.locator("article pre, article table, article div.math").evaluate_all(cut) == []
    unseen = "all => all.filter(e => !e.checkVisibility({opacityProperty: true})).length"
    assert page.locator("article details pre").evaluate_all(unseen) == 0
    assert not page.locator(".bd-sidebar-primary").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) == before
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    paper = page.pdf(path=tmp_path / "chapter.pdf", format="A4")
    assert paper.startswith(b"%PDF")
    assert paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") > 5
