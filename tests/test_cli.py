"""The command line: what it shows, what it hands on, and how it refuses."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from skinbook import cli, runs
from skinbook.config import SkinbookError


def call(monkeypatch, *arguments):
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["skinbook", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_help_tells_a_story_and_is_there_at_once():
    code = (
        "import sys; sys.argv = ['skinbook', '--help']; from skinbook import cli\n"
        "try: cli.main()\nfinally: print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "measures its own claims" in done.stdout
    for command in ("run", "spread", "ledger", "lab", "bundle"):
        assert f"  {command} " in done.stdout
    commands = done.stdout[done.stdout.index("Commands:") :]
    story = ["data", "run", "train", "evaluate", "predict", "audit", "bench", "book"]
    places = [commands.index(f"  {command} ") for command in story]
    assert places == sorted(places)
    assert all(f"skinbook {command}" in done.stdout for command in story)
    assert done.stdout.endswith("False False\n")


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        name = os.fsencode(tmp_path / part) + b"/l\xe4sion.jpg"
        try:
            with open(name, "wb") as file:
                Image.new("RGB", (8, 8)).save(file, "JPEG")
        except OSError:
            pytest.skip("the names of files are text here")
    code = (
        "import sys\nfrom skinbook.cli import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-c", code, "audit", str(tmp_path)]
    done = subprocess.run(command, env=strict, capture_output=True, check=False)
    assert done.returncode == 1, "the split leaks"
    assert done.stderr == b"False\n", "nothing is wrong with the name, and to look at photographs takes no torch"
    assert "in test and train: l\\udce4sion" in done.stdout.decode("utf-8")


def test_run_and_spread_hand_on_what_they_are_given(monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "run", lambda *given, **more: seen.append(given))
    monkeypatch.setattr(runs, "spread", lambda *given, **more: seen.append(given))
    monkeypatch.setenv("SKINBOOK_EDITION", "bcn20000")
    monkeypatch.delenv("SKINBOOK_SCALE", raising=False)
    assert call(monkeypatch, "run", "01", "03", "--edition", "ham10000", "--seeds", "3", "--record", "--resume") == 0
    assert call(monkeypatch, "run") == 0
    assert call(monkeypatch, "spread", "03", "--threads", "1,2,4", "--no-resume") == 0
    assert seen == [
        (["01", "03"], "ham10000", "quick", 3, True, True),
        ((), "bcn20000", "quick", 1, False, False),
        (["03"], "bcn20000", "quick", 5, [1, 2, 4], ["native", "avx2"], False),
    ]


def test_what_a_reader_can_put_right_is_one_sentence(monkeypatch, capsys):
    def refuse(*given, **more):
        raise SkinbookError("This is wrong: do that.")

    monkeypatch.setattr(runs, "run", refuse)
    assert call(monkeypatch, "run", "03") == 2
    assert capsys.readouterr().err == "skinbook: This is wrong: do that.\n"
    assert call(monkeypatch, "spread", "--threads", "1,two") == 2
    assert "--threads is '1,two'" in capsys.readouterr().err


def test_the_status_of_the_ledger_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(runs, "status", lambda: [])
    assert call(monkeypatch, "ledger", "status") == 0
    monkeypatch.setattr(runs, "status", lambda: ["03_x is out of date."])
    assert call(monkeypatch, "ledger", "status") == 1
    assert capsys.readouterr().out.endswith("03_x is out of date.\n")
    monkeypatch.setattr(runs, "refresh_ledger", lambda names, tell: [])
    assert call(monkeypatch, "ledger", "refresh") == 0


def test_the_lab_is_calibrated(monkeypatch, capsys):
    from skinbook import lab_calibration

    found = {
        "measurements": {
            "balanced accuracy": {"mean": 0.8, "sd": 0.01, "aim": [0.7, 0.9]},
            "size": {"mean": 1, "sd": 0},
        }
    }
    monkeypatch.setattr(lab_calibration, "calibrate", lambda seeds: found)
    assert call(monkeypatch, "lab", "calibrate", "--seeds", "2") == 0
    assert capsys.readouterr().out == "balanced accuracy: 0.800 ± 0.010  aim 0.7 to 0.9\nsize: 1.000 ± 0.000\n"


def test_nothing_is_trained_that_could_not_be_recorded(monkeypatch, capsys):
    from skinbook import runs, strongest
    from skinbook.config import SkinbookError

    def installed():
        raise SkinbookError("installed from a wheel")

    monkeypatch.setattr(runs, "recordable", installed)
    monkeypatch.setattr(strongest, "run", None)
    assert call(monkeypatch, "strongest", "--edition", "ham10000", "--record") == 2
    assert "installed from a wheel" in capsys.readouterr().err


def test_outlines_are_for_editions_with_masks(monkeypatch):
    from skinbook import strongest, strongest_masks

    asked = []
    monkeypatch.setattr(strongest, "run", lambda edition, *_, **__: asked.append(("models", edition)))
    monkeypatch.setattr(strongest_masks, "run", lambda edition, *_, **__: asked.append(("outlines", edition)))
    for edition in ("ham10000", "bcn20000"):
        call(monkeypatch, "strongest", "--edition", edition)
    assert asked == [("models", "ham10000"), ("outlines", "ham10000"), ("models", "bcn20000")]


def test_what_an_outline_cannot_be_trained_in_is_told_before_the_models_are(monkeypatch, capsys):
    from skinbook import strongest

    monkeypatch.setattr(strongest, "run", lambda *_, **__: pytest.fail("the models were trained"))
    monkeypatch.setenv("SKINBOOK_PRECISION", "fp16")
    assert call(monkeypatch, "strongest", "--edition", "ham10000") == 2
    assert "not trained in fp16" in capsys.readouterr().err


def test_everything_at_full_scale_is_one_command(monkeypatch):
    from skinbook import chapter, copied, strongest, strongest_masks

    asked = []

    def noted(name):
        return lambda *given, **options: asked.append((name, *given))

    for module in (strongest, strongest_masks, copied, runs):
        monkeypatch.setattr(module, "run", noted(module.__name__))
    monkeypatch.setattr(runs, "recordable", lambda: None)
    assert (
        call(monkeypatch, "run", "--edition", "ham10000", "--scale", "full", "--seeds", "2", "--record", "--resume")
        == 0
    )
    assert [name for name, *_ in asked] == [
        f"skinbook.{name}" for name in ("strongest", "strongest_masks", "copied", "runs")
    ]
    sizes = ["full"] if chapter.device() != "cpu" else ["small", "scratch"]
    assert asked[2] == ("skinbook.copied", "ham10000", sizes, 2, True, 1, ())
    asked.clear()
    call(monkeypatch, "copied", "copied_binary", "--edition", "ham10000", "--size", "small", "--jobs", "2")
    assert asked == [("skinbook.copied", "ham10000", ["small"], 3, False, 2, ["copied_binary"])]
    asked.clear()
    call(monkeypatch, "run", "--edition", "ham10000", "--scale", "quick")
    assert [name for name, *_ in asked] == ["skinbook.runs"]


def test_a_strongest_model_needs_seeds_and_jobs(monkeypatch, capsys):
    for options in (("--seeds", "0"), ("--jobs", "0")):
        assert call(monkeypatch, "strongest", "--edition", "lab", *options) == 2
        assert "expected at least one of each" in capsys.readouterr().err
