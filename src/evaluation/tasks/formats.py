"""How a row of each task's files becomes a choice between texts.

A format is a function (row, file name without ending, protocol) → choice, or None for a row
that the protocol leaves out, with the fields that the row must have. What is scored of a
text begins where the official pipelines begin: a leading space belongs to EWoK's targets
and PIQA's solutions and not to COMPS' phrases, which matters to tokenizers that cut it off.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from src.evaluation.scoring.texts import Item
from src.evaluation.tasks.choice import Choice, Protocol
from src.evaluation.tasks.rows import Fields
from src.foundation import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    fields: Fields
    read: Callable[[Row, str, Protocol], Choice | None]


def minimal_pair(row: Row, stem: str, protocol: Protocol) -> Choice:
    """BLiMP and everything in its format. Rows without a `field` belong to their file."""
    texts = (row["sentence_good"], row["sentence_bad"])
    items = tuple(map(Item, texts))
    if "field" not in row:
        return Choice(stem, items, texts)
    field = str(row["field"]).replace("syntax_semantics", "syntax/semantics")
    tags = {"field": field, "linguistics_term": str(row.get("linguistics_term", ""))}
    return Choice(str(row.get("UID", stem)), items, texts, tags=tags)


def ewok(row: Row, stem: str, protocol: Protocol) -> Choice:
    """Which target fits the context (2025); which context fits the target (2026)."""
    contexts, targets = [row["Context1"]] * 2, [row["Target1"], row["Target2"]]
    if protocol == 2026:
        contexts, targets = [row["Context1"], row["Context2"]], [row["Target1"]] * 2
    texts = tuple(f"{c} {t}" for c, t in zip(contexts, targets))
    items = tuple(Item(text, len(c)) for text, c in zip(texts, contexts))
    # The targets are the same in 2026: its predictions are whole texts.
    answers = texts if protocol == 2026 else tuple(f" {target}" for target in targets)
    tags = {
        "context_type": str(row["ContextType"]),
        "context_contrast": str(row["ContextDiff"]),
        "target_contrast": str(row["TargetDiff"]),
    }
    return Choice(row["Domain"], items, answers, tags=tags)


def entity_tracking(row: Row, stem: str, protocol: Protocol) -> Choice | None:
    """2026 leaves out rows with an option that has "nothing" in it."""
    prefix, options = row["input_prefix"], tuple(row["options"])
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise UserError(f"options must be at least two texts, got {options!r}")
    if protocol == 2026 and any("nothing" in option for option in options):
        return None
    items = tuple(Item(prefix + option, len(prefix)) for option in options)
    return Choice(f"{stem}_{row['numops']}_ops", items, options)


COMPS_PARTS = {
    "comps_base": "base",
    "comps_wugs": "wugs",
    "comps_wugs_dist-before": "wugs_dist_before",
    "comps_wugs_dist-in-between": "wugs_dist_in_between",
}


def comps(row: Row, stem: str, protocol: Protocol) -> Choice:
    """Of which concept the property is the more probable."""
    prefixes = (row["prefix_acceptable"], row["prefix_unacceptable"])
    texts = tuple(f"{prefix} {row['property_phrase']}" for prefix in prefixes)
    items = tuple(Item(t, len(prefix) + 1) for t, prefix in zip(texts, prefixes))
    return Choice(COMPS_PARTS.get(stem, stem), items, texts)


def global_piqa(row: Row, stem: str, protocol: Protocol) -> Choice:
    """Two or four solutions; every row is its own part, called by its `example_id`."""
    answers = []
    while f"solution{len(answers)}" in row:
        answers.append(f" {row[f'solution{len(answers)}']}")
    if not 0 <= row["label"] < len(answers):
        raise UserError(
            f"label must be one of the {len(answers)} solutions, got {row['label']}"
        )
    prompt = row["prompt"]
    items = tuple(Item(prompt + answer, len(prompt)) for answer in answers)
    return Choice(str(row["example_id"]), items, tuple(answers), row["label"])


def wug(uid: str) -> Callable[[Row, str, Protocol], Choice]:
    """Forms of a word that does not exist, the share of people who prefer the first."""

    def read(row: Row, stem: str, protocol: Protocol) -> Choice:
        texts = tuple(row["sentences"].split("\t"))
        if len(texts) < 2:
            raise UserError(f"sentences must hold a tab, got {texts[0]!r}")
        return Choice(uid, tuple(map(Item, texts)), texts, ratio=float(row["ratio"]))

    return read


def entity_split(uid: str) -> str:
    """The mean over 0 to 5 operations inside a split comes before the mean over splits."""
    return uid.rsplit("_", 2)[0]


PAIRS = Format({"sentence_good": str, "sentence_bad": str}, minimal_pair)
EWOK_FIELDS = "Context1 Context2 Target1 Target2 Domain".split()
EWOK = Format(
    {
        **dict.fromkeys(EWOK_FIELDS, str),
        **dict.fromkeys(("ContextType", "ContextDiff", "TargetDiff"), object),
    },
    ewok,
)
ENTITY_TRACKING = Format(
    {"input_prefix": str, "options": list, "numops": int}, entity_tracking
)
COMPS = Format(
    dict.fromkeys(("prefix_acceptable", "prefix_unacceptable", "property_phrase"), str),
    comps,
)
GLOBAL_PIQA = Format(
    {
        "prompt": str,
        "solution0": str,
        "solution1": str,
        "label": int,
        "example_id": object,
    },
    global_piqa,
)
WUG_FIELDS = {"sentences": str, "ratio": (int, float)}
