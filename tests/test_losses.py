"""Losses: what they compute, and that a chapter shows the same code as the package runs."""

import ast
import inspect
import textwrap
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from skinbook import losses
from skinbook.config import SkinbookError

CHAPTERS = Path(__file__).parent.parent / "chapters"


def tree(source):
    """The syntax tree of one class or function, as text, without its docstrings."""
    found = ast.parse(textwrap.dedent(source)).body[0]
    for node in ast.walk(found):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(found)


def shown(chapter, name):
    """The source of a class as a chapter's cells show it."""
    for cell in jupytext.read(CHAPTERS / chapter).cells:
        if cell.cell_type == "code" and f"class {name}(" in cell.source:
            return next(ast.unparse(n) for n in ast.parse(cell.source).body if getattr(n, "name", None) == name)
    raise AssertionError(f"{chapter} shows no {name}")


def test_the_chapter_shows_the_loss_that_the_package_runs():
    assert tree(shown("02_imbalance.md", "LogitAdjusted")) == tree(inspect.getsource(losses.LogitAdjusted))


def test_a_difference_between_chapter_and_package_is_seen():
    changed = inspect.getsource(losses.LogitAdjusted).replace("logits + self", "logits - self")
    assert tree(shown("02_imbalance.md", "LogitAdjusted")) != tree(changed)


def test_the_log_prior_is_the_logarithm_of_the_shares():
    found = losses.log_prior(np.array([0, 0, 0, 1]), 2)
    assert np.allclose(np.exp(found.numpy()), [0.75, 0.25])
    with pytest.raises(SkinbookError, match="Class 1 has no photographs"):
        losses.log_prior(np.array([0, 0, 2]), 3)


def test_adjusting_with_equal_shares_or_no_strength_changes_nothing():
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = cross_entropy(logits, labels)
    assert torch.allclose(losses.LogitAdjusted(torch.full((3,), 1 / 3).log())(logits, labels), plain)
    assert torch.allclose(losses.LogitAdjusted(torch.tensor([0.9, 0.05, 0.05]).log(), 0.0)(logits, labels), plain)


def test_the_adjusted_loss_is_smallest_at_the_scores_of_balanced_classes():
    # One photograph says nothing, and nine in ten of its kind are of class 0: the adjusted scores should be equal.
    labels = torch.tensor([0] * 9 + [1])
    adjusted = losses.LogitAdjusted(losses.log_prior(labels.numpy(), 2))
    scores = torch.zeros(2, requires_grad=True)
    adjusted(scores.expand(10, 2), labels).backward()
    assert torch.allclose(scores.grad, torch.zeros(2), atol=1e-6)
    cross_entropy(scores.expand(10, 2), labels).backward()
    assert not torch.allclose(scores.grad, torch.zeros(2), atol=1e-6)
