"""What every chapter owes its reader, checked on the text twins; each rule is seen to fail once."""

import re
from pathlib import Path

import jupytext
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

CHAPTERS = sorted((Path(__file__).parent.parent / "chapters").glob("[0-9][0-9]_*.md"))
LONGEST_CELL = 40  # lines of code; most cells have fewer than half of that
# A number as a result has: a decimal fraction or a percentage. Years, sizes of layers and list numbers are not results.
RESULT = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d*\.)|\d+\s?(?:%|per cent)")
MYST = re.compile(r"^(?:`{3,}|:{3,})\{\w|\{[\w-]+\}`", re.MULTILINE)
SECTIONS = (
    "What it means in a clinic",
    "On HAM10000",
    "Going further",
    "Exercises",
    "What you have learned",
    "References",
)


def tags(cell):
    return cell.metadata.get("tags", ())


def faults(cells):
    found = []
    prose = [c for c in cells if c.cell_type == "markdown"]
    code = [c for c in cells if c.cell_type == "code"]
    for cell in prose:
        text = re.sub(r"```.*?```|`[^`]*`|\(https?://[^)]*\)|\$\$?.*?\$\$?", "", cell.source, flags=re.DOTALL)
        if "stated" not in tags(cell) and (hit := RESULT.search(text)):
            found.append(f"a result typed by hand: {hit[0]!r} in {text[max(0, hit.start() - 40) : hit.end()]!r}")
        if hit := MYST.search(cell.source):
            found.append(f"MyST that Colab shows as text: {hit[0]!r}")
    for cell in code:
        begins = cell.source.strip().split("\n")[0]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if "plt.show()" in cell.source and len(alt) < 40:
            found.append(f"a figure without a description: {begins!r}")
        if len(cell.source.splitlines()) > LONGEST_CELL:
            found.append(f"a cell of more than {LONGEST_CELL} lines: {begins!r}")
        if re.search(r"(?:edition|scale)\s*[!=]=", cell.source):
            found.append(f"a cell that asks which edition or scale it is: {begins!r}")
    text = "\n".join(c.source for c in prose)
    found += [f"no section {name!r}" for name in SECTIONS if f"## {name}" not in text]
    if "teaching tool" not in text:
        found.append("no word that this is no medical device")
    if not code or "setup" not in tags(code[0]):
        found.append("the first cell of code is not the setup cell")
    if sum("say(" in c.source for c in code) > 5:
        found.append("more than five sentences that carry numbers")
    return found


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_keeps_the_rules(chapter):
    assert faults(jupytext.read(chapter).cells) == []


def sound():
    text = "This is a teaching tool.\n\n" + "\n\n".join(f"## {name}\n\nIn 1997, 512 numbers." for name in SECTIONS)
    return [new_markdown_cell(text), new_code_cell("setup()", metadata={"tags": ["setup"]})]


def test_a_sound_chapter_has_no_faults():
    figure = new_code_cell(
        "plt.show()", metadata={"mystnb": {"image": {"alt": "Bars of each diagnosis, nevi longest by far."}}}
    )
    stated = new_markdown_cell("97.22 % accuracy, said its author", metadata={"tags": ["stated"]})
    assert faults([*sound(), figure, stated]) == []


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (new_markdown_cell("It is right in 97 % of the cases."), "typed by hand: '97 %'"),
        (new_markdown_cell("The area is 0.83 here."), "typed by hand: '0.83'"),
        (new_markdown_cell("See {term}`token`."), "MyST"),
        (new_markdown_cell("```{note}\nhello\n```"), "MyST"),
        (new_code_cell("plt.show()"), "without a description"),
        (new_code_cell("x = 1\n" * 41), "more than 40 lines"),
        (new_code_cell("if book.edition == 'lab':\n    pass"), "asks which edition"),
        (new_code_cell("say(f'a')\n"), None),
    ],
)
def test_each_rule_is_seen_to_fail(cell, fault):
    found = faults([*sound(), cell])
    assert (found == []) if fault is None else (len(found) == 1 and fault in found[0])


def test_a_missing_part_is_named():
    assert faults(sound()[:1]) == ["the first cell of code is not the setup cell"]
    assert "no section 'Exercises'" in faults([new_markdown_cell("nothing"), sound()[1]])
    assert "more than five sentences that carry numbers" in faults(sound() + [new_code_cell("say('a')")] * 6)


@pytest.mark.parametrize("twin", CHAPTERS, ids=lambda path: path.stem)
def test_the_cells_were_executed_in_order(twin):
    cells = jupytext.read(twin.with_suffix(".ipynb")).cells
    counts = [cell.execution_count for cell in cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
