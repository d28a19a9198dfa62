"""What `make mutants` counts, and that it counts right."""

import json
import re
import subprocess
import sys
from pathlib import Path

import mutants
import pytest

HOME = Path(__file__).parents[1]


@pytest.mark.parametrize("name", mutants.TESTS)
def test_at_least_85_of_100_mutants_of_a_module_die(name):
    files = json.loads((HOME / "data" / "mutants.json").read_text(encoding="utf-8"))["files"]
    one = files[f"skinbook/{name}.py"]
    dead = one["killed"] + one["timed out"]
    assert one["mutants"] == dead + one["survived"] > 100
    assert one["share"] == round(dead / one["mutants"], 3) >= 0.85
    assert re.fullmatch("[0-9a-f]{12}", one["source"])


def test_what_cannot_change_what_a_module_does_is_not_mutated():
    pytest.importorskip("cosmic_ray")
    source = '''"""Says 1 + 1."""
from __future__ import annotations


class Pair:
    """Holds 2."""

    size: int | None = 2

    def add(self, a: int | None, *, b: int = 3) -> int | None:
        """Adds 4 and 5."""
        if a is None:
            return b

        return (
            a
            + b
        )
'''
    made = mutants.mutants(source)
    changed = {mutant.line: 0 for mutant in made}
    for mutant in made:
        changed[mutant.line] += 1
        assert "Says 1 + 1" in mutant.source
        assert "int | None" in mutant.source.replace("\n", " ")
        assert mutant.source.count("int | None") == 3
    # A number each way; a number, and the star, which may become a slash; no None, or not at all; eleven other operators.
    assert changed == {8: 2, 10: 3, 12: 2, 17: 11}
    assert len({mutant.name for mutant in made}) == len(made)
    where = {mutant.line: (mutant.function, mutant.lines) for mutant in made}
    add = ("Pair", "add")
    assert where[8] == ((), range(8, 9))
    assert where[10] == ((), range(10, 11))
    assert where[12] == (add, range(12, 13))
    assert where[17] == (add, range(15, 19))


def test_a_mutant_keeps_its_name_while_its_function_stays():
    pytest.importorskip("cosmic_ray")
    one, two = "def f(a):\n    return a + 1 - 1\n", "def g(a):\n    return a * 2\n"
    names = [mutant.name for mutant in mutants.mutants(one + two)]
    moved = [mutant.name for mutant in mutants.mutants('"""Says."""\n\n\n' + two.replace("2", "3") + one)]
    first = [mutant.name for mutant in mutants.mutants(one)]
    assert len(first) == len(set(first))
    assert set(first) < set(names)
    assert set(first) < set(moved)
    assert set(names) & set(moved) == set(first)


def test_what_survived_is_tried_again_with_other_tests(tmp_path):
    kept = tmp_path / "x.tsv"
    assert mutants.remembered(kept, "new") == {}
    kept.write_text("a\tkilled\told\nb\tsurvived\told\nc\tsurvived\tnew\nd\tsurvived\told\nd\ttimed out\tnew\ne\tkil")
    assert mutants.remembered(kept, "new") == {"a": "killed", "c": "survived", "d": "timed out"}


TRY = """
import sys
from pathlib import Path
import mutants

tree = Path(sys.argv[1])
sys.path[0] = str(tree)
module = tree / "toys" / "toy.py"
source = module.read_text()
seen = mutants.watched(["tests/test_toy.py"], module, tree.parent)

def load(order):
    return mutants.tests(order, tree)

def made(line, old, new, *function):
    return mutants.Mutant("", line, function, range(line, line + 1), source.replace(old, new), ("", ""))

def told(mutant, way):
    print(mutant.line, way, module.read_text() == source)

told(made(12, "A = 1", "A = 2"), mutants.outcome(made(12, "A = 1", "A = 2"), module, source, seen, load))
told(made(12, "A = 1", "A = 1 / 0"), mutants.outcome(made(12, "A = 1", "A = 1 / 0"), module, source, seen, load))
todo = [
    made(2, "x * 2", "x * 3", "double"),
    made(2, "x * 2", "x + x", "double"),
    made(5, "return 1", "return 2", "never"),
    made(9, "n = n + 1", "pass", "count"),
    made(16, "size = 3", "size = 4", "Pair", "size"),
]
print(sorted(len(tests) for tests in seen["lines"].values()), mutants.in_child(lambda: 3))
print(mutants.tests(["tests/test_toy.py"], tree, mutants.Loop(todo, module, source, seen, told)))
"""


@pytest.mark.slow
def test_a_mutant_is_killed_hangs_or_survives(tmp_path):
    """Against the tests that run its lines: a changed line that no test runs has nobody to notice it."""
    for folder in ("toys", "tests"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
    (tmp_path / "tree" / "toys" / "toy.py").write_text(
        "def double(x):\n    return x * 2\n\ndef never():\n    return 1\n\n"
        "def count(n):\n    while n < 3:\n        n = n + 1\n    return n\n\nA = 1\nclass Pair:\n    @property\n"
        "    def size(self):\n        size = 3\n        return size\n"
    )
    (tmp_path / "tree" / "tests" / "test_toy.py").write_text(
        "from toys.toy import Pair, double, count\n\n"
        "def test_double():\n    assert double(2) == 4\n\ndef test_count():\n    assert count(0) == 3\n\n"
        "def test_pair():\n    assert Pair().size == 3\n"
    )
    run = [sys.executable, "-c", TRY, str(tmp_path / "tree")]
    environment = {"PYTHONPATH": f"{tmp_path / 'tree'}:{HOME / 'tests'}", "PATH": "/usr/bin"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    said = [
        "12 survived True",
        "12 killed True",
        "[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1] 3",
        "2 killed True",
        "2 survived True",
        "5 survived True",
        "9 timed out True",
        "16 killed True",
    ]
    assert [line for line in done.stdout.splitlines() if re.match(r"[\d[]", line)] == [*said, "0"]
