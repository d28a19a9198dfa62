"""Does a test notice when a line is made wrong? `make mutants`; `FILES="splits ledger"` narrows.

cosmic-ray makes the mutants: one operator, number, condition, decorator or exception of a module changed at a time. They
are tried in a copy of the checkout (`_build/mutants/tree`), each in a child of one process that has imported all that the
tests need: the child gives the changed code to the function and runs those tests alone that run the changed line, the
quickest first, up to the first that fails. (What runs when a module is loaded is changed before it is. Tests that are
marked as slow are left out.) What came out is kept in `_build/mutants`, so that a run which was interrupted goes on where
it stopped, and counted in `data/mutants.json`. A mutant that is dead stays dead while the function it was made of stays
as it is; one that survived is tried again when the tests change. To begin anew, remove `_build/mutants`.

Not mutated: texts, docstrings and names (no operator of cosmic-ray does, or it asks for names), annotations, which
nothing evaluates, and what is no Python once it is changed. Mutants that do the same as the module are counted with those
that survived.
"""

from __future__ import annotations

import ast
import compileall
import contextlib
import gc
import hashlib
import importlib
import json
import math
import os
import py_compile
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock, Timeout

HOME = Path(__file__).resolve().parents[1]
WORK = HOME / "_build" / "mutants"
TREE = WORK / "tree"
TESTS = {
    "splits": ("test_splits",),
    "evaluation": ("test_evaluation", "test_evaluation_edges"),
    "ledger": ("test_ledger",),
    "audit": ("test_audit",),
    "audit_given": ("test_audit_given",),
    "nbval_plugin": ("test_nbval_plugin",),
}
LEAST = 0.85  # share of the mutants that must die
SLOWER, SPARE = 5.0, 1.0  # a test of a mutant may compute so many times as long as before, and so many seconds more
START = 5.0  # seconds that all its tests may compute besides
WAIT = 10.0  # and take so many times as long as that by the clock, on a machine that has other work
MEMORY = 8 * 2**30  # bytes that a mutant may ask for beyond what the libraries take


class Mutant(NamedTuple):
    """A module made wrong in one place."""

    name: str  # by which its outcome is kept: what was changed, in what function, as that was
    line: int
    function: tuple[str, ...]  # class and function, or neither for what runs when the module is loaded
    lines: range  # of the statement
    source: str
    change: tuple[str, ...]  # the line as it was, and as it is


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module that differs from it, and from the others, in more than its looks."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    found: list[Mutant] = []
    lines, times = source.splitlines(keepends=True), Counter[str]()
    operators = {name: get_operator(name)() for name in sorted(operator_names()) if not get_operator(name).arguments()}
    for statement in ast.parse(source).body:  # one after another: a small text is parsed soon
        start, end = first_line(statement) - 1, statement.end_lineno or 0
        text = "".join(lines[start:end])
        nodes, ignored, before = list(ast_nodes(get_ast(text))), annotations(text), parsed(text)
        seen = {ast.dump(before)}
        for operator, made in operators.items():
            places = [place for node in nodes for place, _ in made.mutation_positions(node)]
            for occurrence, place in enumerate(places):
                if any(a <= place < b for a, b in ignored):
                    continue
                changed = mutate_code(text, made, occurrence)
                try:
                    meaning = ast.dump(parsed(changed))
                except SyntaxError:
                    continue
                if meaning in seen:
                    continue
                seen.add(meaning)
                function, own, code = owner(before, place[0])
                name = hashlib.blake2b(f"{operator}\n{code}".encode(), digest_size=8).hexdigest()
                times[name] += 1
                found.append(
                    Mutant(
                        name=f"{name} {times[name]}",
                        line=place[0] + start,
                        function=function,
                        lines=range(own.start + start, own.stop + start),
                        source="".join(lines[:start]) + changed + "".join(lines[end:]),
                        change=tuple(each.splitlines()[place[0] - 1].strip() for each in (text, changed)),
                    )
                )
    return found


def parsed(source: str) -> ast.Module:
    """The code of a module without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.copy_location(ast.Pass(), body[0])
    return tree


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end, as (line, column)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for about in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if about is not None:
                found.append(((about.lineno, about.col_offset), (about.end_lineno, about.end_col_offset)))
    return found


def first_line(node: ast.stmt) -> int:
    """Where a statement begins, with its decorators."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])


def owner(tree: ast.Module, line: int) -> tuple[tuple[str, ...], range, str]:
    """What a line belongs to: class and function by name, the lines of the statement, and the code of the function.

    Outside functions, where it runs when the module is loaded, no names, and the code of the statement.
    """

    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]  # outer ones first
    around = [node for node in statements if first_line(node) <= line <= (node.end_lineno or 0)]
    functions = [number for number, node in enumerate(around[:-1]) if isinstance(node, ast.FunctionDef)]
    depth = functions[0] if functions else len(around) - 1
    names = tuple(getattr(node, "name", "") for node in around[: depth + 1])
    inner = around[-1]
    within = [first_line(node) for node in ast.walk(inner) if isinstance(node, ast.stmt) and node is not inner]
    head = range(inner.lineno, min([(inner.end_lineno or 0) + 1, *within]))  # all of a statement that holds no other
    lines = head if line in head else range(line, line + 1)
    return names if functions else (), lines, "\n".join([*names, ast.dump(around[depth])])


# One run of tests


def in_child(do: Callable[[], int], compute: float = math.inf) -> int | None:
    """What a child of this process exits with; None where it computed for longer than so many seconds, or hung."""
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setsid()
            if compute < math.inf:
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(compute), math.ceil(compute) + 1))
                size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            code = do()
        finally:
            os._exit(code)
    end, code = time.monotonic() + WAIT * compute, None
    while code is None and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.0 if done else 0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with what it has started
    if code is None:
        os.waitpid(child, 0)
    return None if code in (-signal.SIGXCPU, -signal.SIGKILL) else code


def silenced(tree: Path) -> None:
    """Everything that this process prints goes into a file."""
    out = os.open(tree.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)


def tests(names: Sequence[str], tree: Path, *plugins: Any) -> int:
    """Run tests in this process up to the first that fails; pytest's exit code."""
    os.chdir(tree)
    # Without rewriting of assertions: it takes longer than most tests do.
    options = [
        "-x",
        "-q",
        "-s",
        "-m",
        "not slow",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(tree.parent / "tmp"),
    ]
    code = int(pytest.main([*options, *names], plugins=list(plugins)))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class Watch:
    """Notes how long each test computes, and tells coverage whose lines it sees."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds = coverage, {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        os.environ["MUTANTS_TEST"] = nodeid  # for processes that the test starts
        self.coverage.switch_context(nodeid)
        self.seconds[nodeid] = -time.process_time()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.seconds[nodeid] += time.process_time()


def watched(files: Sequence[str], module: Path, into: Path) -> dict[str, Any]:
    """Run all tests of an unchanged module: seconds of each, lines of the module that it runs, and what was imported."""
    from coverage import Coverage

    rules, data = into / "rules.ini", into / "coverage"
    for old in into.glob("coverage*"):
        old.unlink()
    rules.write_text(
        f"[run]\ninclude = {module}\nparallel = true\ndata_file = {data}\ncontext = ${{MUTANTS_TEST-}}\n",
        encoding="utf-8",
    )

    def run() -> int:
        silenced(module.parents[1])
        os.environ["COVERAGE_PROCESS_START"] = str(rules)
        coverage = Coverage(config_file=str(rules))
        watch = Watch(coverage)
        coverage.start()
        code = tests(files, module.parents[1], watch)
        coverage.stop()
        coverage.save()
        (into / "watched.json").write_text(json.dumps([watch.seconds, sorted(sys.modules)]), encoding="utf-8")
        return code

    if in_child(run):
        raise SystemExit(f"The tests fail as it is: see {into / 'output.txt'}.")
    coverage = Coverage(config_file=str(rules))
    coverage.combine()
    lines = coverage.get_data().contexts_by_lineno(str(module))
    seconds, modules = json.loads((into / "watched.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "modules": modules, "lines": {line: sorted({*of} - {""}) for line, of in lines.items()}}


# A module


def copied(home: Path, tree: Path) -> None:
    """A copy of what the tests need; compiled so that a changed module is known by its content, not by its date."""
    if tree.exists():
        shutil.rmtree(tree)
    tree.mkdir(parents=True)
    for name in ("skinbook", "tests", "data", "chapters"):
        shutil.copytree(home / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copy(home / "pyproject.toml", tree)
    compileall.compile_dir(tree, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)


def hashed(*files: Path) -> str:
    """Twelve digits that change with the content of any of these files."""
    return hashlib.blake2b(b"\0".join(file.read_bytes() for file in files), digest_size=6).hexdigest()


def remembered(kept: Path, tests: str) -> dict[str, str]:
    """What came of each mutant that need not be tried again, by its name; `tests` is the digest of the tests now."""
    known: dict[str, str] = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else ():
        if line.count("\t") != 2:
            continue  # torn when the run was killed
        mutant, way, by = line.split("\t")
        known.pop(mutant, None)
        if way != "survived" or by == tests:
            known[mutant] = way
    return known


def examined(name: str) -> dict[str, Any]:
    """Try every mutant of a module that has not been tried yet; what came out of all."""
    module, kept = TREE / "skinbook" / f"{name}.py", WORK / f"{name}.tsv"
    source, files = module.read_text(encoding="utf-8"), [f"tests/{file}.py" for file in TESTS[name]]
    now = hashed(*(TREE / file for file in files))
    known = remembered(kept, now)
    tried = mutants(source)
    todo = [mutant for mutant in tried if mutant.name not in known]

    def told(mutant: Mutant, way: str) -> None:
        known[mutant.name] = way
        with kept.open("a", encoding="utf-8") as file:
            file.write(f"{mutant.name}\t{way}\t{now}\n")
        where = f": line {mutant.line}, {' → '.join(mutant.change)}"
        print(f"{name} {len(known)} of {len(tried)} {way}{'' if way == 'killed' else where}", flush=True)

    if todo:
        seen = watched(files, module, WORK)
        for library in seen["modules"]:
            if library.split(".")[0] not in ("skinbook", "tests", "conftest", "__main__", *TESTS[name]):
                with contextlib.suppress(Exception):  # this saves time, and nothing else
                    importlib.import_module(library)
        for mutant in todo:
            if not mutant.function:
                told(mutant, outcome(mutant, module, source, seen, lambda order: tests(order, TREE)))
        if tests(files, TREE, Loop([mutant for mutant in todo if mutant.function], module, source, seen, told)):
            raise SystemExit(f"The mutants of {name} could not be tried.")
    left = [mutant for mutant in tried if known[mutant.name] == "survived"]
    (WORK / f"{name}.survived.txt").write_text(
        "".join(f"{mutant.line}: {mutant.change[0]}\n    {mutant.change[1]}\n" for mutant in left), encoding="utf-8"
    )
    counts = {way: sum(known[mutant.name] == way for mutant in tried) for way in ("killed", "timed out", "survived")}
    return {
        "source": hashed(module),
        "date": time.strftime("%Y-%m-%d"),
        "mutants": len(tried),
        **counts,
        "share": round(1 - len(left) / len(tried), 3),
    }


class Loop:
    """Takes the place of pytest's loop over the tests that it has collected: tries each mutant in a child, in which the
    function that the tests have imported is given the mutant's code."""

    def __init__(self, todo: Sequence[Mutant], module: Path, source: str, seen: dict[str, Any], told: Callable) -> None:
        self.todo, self.module, self.source, self.seen, self.told = todo, module, source, seen, told

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        module = importlib.import_module(f"{self.module.parent.name}.{self.module.stem}")
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, all that it shares with this process
        for mutant in self.todo:
            function, code = function_of(module, mutant.function), compile(mutant.source, str(self.module), "exec")
            for name in mutant.function:
                code = next(c for c in code.co_consts if getattr(c, "co_name", None) == name)

            def run(order: Sequence[str], function: Any = function, code: Any = code) -> int:
                function.__code__ = code
                for name in order:
                    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
                    now = math.ceil(time.process_time() + SLOWER * self.seen["seconds"][name] + SPARE)
                    resource.setrlimit(resource.RLIMIT_CPU, (min(now, most), most))
                    items[name].config.hook.pytest_runtest_protocol(item=items[name], nextitem=None)
                    if session.testsfailed:
                        return 1
                return 0

            self.told(mutant, outcome(mutant, self.module, self.source, self.seen, run))
        return True


def function_of(module: Any, names: Sequence[str]) -> Any:
    """A function of a module, or of a class in it: what a property or a cache calls, too."""
    found = module
    for name in names:
        found = vars(found)[name]
    found = getattr(found, "fget", found)
    return getattr(found, "__wrapped__", found)


def outcome(
    mutant: Mutant, module: Path, source: str, seen: dict[str, Any], run: Callable[[Sequence[str]], int]
) -> str:
    """Whether a mutant is "killed", "timed out" or "survived"; `run` runs tests in the child, and exits with 0 if none
    failed. The file is changed too, for processes that the tests start."""
    seconds, lines = seen["seconds"], seen["lines"]
    chosen = {test for line in mutant.lines for test in lines.get(line, ())} if mutant.function else set(seconds)
    order = sorted(chosen & set(seconds), key=seconds.__getitem__)
    if not order:
        return "survived"

    def silently() -> int:
        silenced(module.parents[1])
        return run(order)

    module.write_text(mutant.source, encoding="utf-8")
    try:
        code = in_child(silently, sum(SLOWER * seconds[test] + SPARE for test in order) + START)
    finally:
        module.write_text(source, encoding="utf-8")
    return "timed out" if code is None else "killed" if code else "survived"


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(TESTS):
        raise SystemExit(f"{min(unknown)} is none of {', '.join(TESTS)}.")
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"):
        os.environ[variable] = "1"
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = sys.path[0] = str(TREE)  # instead of the folder of this file
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(WORK / "lock", timeout=0):
            copied(HOME, TREE)
            for name in names or TESTS:
                # A process for each: what one has imported would be in the way of the next.
                if in_child(lambda name=name: noted(name, HOME / "data" / "mutants.json")):
                    raise SystemExit(1)
    except Timeout:
        raise SystemExit(f"Another `make mutants` is at work in {WORK}: wait for it.") from None


def noted(name: str, file: Path) -> int:
    """Try the mutants of a module, and count them in this file."""
    found = examined(name)
    print(", ".join(f"{found[way]} {way}" for way in ("mutants", "killed", "timed out", "survived")), found["share"])
    files = json.loads(file.read_text(encoding="utf-8"))["files"] if file.is_file() else {}
    files[f"skinbook/{name}.py"] = found
    ordered = {path: files[path] for one in TESTS if (path := f"skinbook/{one}.py") in files}
    file.write_text(json.dumps({"files": ordered}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
