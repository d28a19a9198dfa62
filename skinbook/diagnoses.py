"""The taxonomy: which diagnoses there are, what they are called, and which of them are malignant.

HAM10000's `akiec` (actinic keratosis and Bowen's disease, an in-situ carcinoma) and BCN20000's `ak` (actinic keratosis
alone, beside an `scc` of its own) are different diagnoses and stay different codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from skinbook.config import SkinbookError


@dataclass(frozen=True)
class Diagnosis:
    """One diagnosis: its code in tables, its name in prose, and a word on what it is."""

    code: str
    name: str
    note: str


DIAGNOSES = {
    d.code: d
    for d in (
        Diagnosis("nv", "nevus", "a mole; benign"),
        Diagnosis("mel", "melanoma", "the most dangerous common skin cancer"),
        Diagnosis("bkl", "benign keratosis", "seborrhoeic keratosis, solar lentigo, lichen-planus-like keratosis"),
        Diagnosis("bcc", "basal cell carcinoma", "the most frequent skin cancer; rarely spreads"),
        Diagnosis("akiec", "actinic keratosis or Bowen's disease", "pre-cancer or cancer that has not grown deep"),
        Diagnosis("ak", "actinic keratosis", "sun damage that may become a carcinoma"),
        Diagnosis("scc", "squamous cell carcinoma", "a skin cancer that can spread"),
        Diagnosis("vasc", "vascular lesion", "angioma, angiokeratoma, haemorrhage; benign"),
        Diagnosis("df", "dermatofibroma", "a small firm scar-like nodule; benign"),
    )
}

# The order of classes is part of every result: logits, confusion matrices and bundles follow it.
CLASSES = {
    "lab": ("nv", "mel", "bkl", "bcc", "ak", "scc", "vasc", "df"),
    "ham10000": ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df"),
    "bcn20000": ("nv", "mel", "bkl", "bcc", "ak", "scc", "vasc", "df"),
    "dermamnist": ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df"),
}

# Three definitions are in use, and they are not the same question. On HAM10000 they make 11.1, 16.2 and 19.5 % of the
# images malignant. `ak` counts with `akiec`: the widely copied benign/malignant notebooks put it there.
MALIGNANT = {
    "mel": frozenset({"mel"}),
    "mel+bcc": frozenset({"mel", "bcc", "scc"}),
    "mel+bcc+akiec": frozenset({"mel", "bcc", "scc", "akiec", "ak"}),
}
DEFAULT_DEFINITION = "mel+bcc+akiec"


def malignant(dx: str, definition: str = DEFAULT_DEFINITION) -> bool:
    """Whether a diagnosis counts as malignant under a definition (a key of `MALIGNANT`).

    Raises
    ------
    SkinbookError
        If the diagnosis or the definition is unknown.
    """
    if definition not in MALIGNANT:
        raise SkinbookError(f"{definition!r} is not a definition of malignant; choose from {', '.join(MALIGNANT)}.")
    if dx not in DIAGNOSES:
        raise SkinbookError(f"{dx!r} is not a diagnosis that skinbook knows; it knows {', '.join(DIAGNOSES)}.")
    return dx in MALIGNANT[definition]
