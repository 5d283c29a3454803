"""The formats of the tasks' files: functions that turn a row into a choice between texts.

The scored part of a text begins where it begins in the official pipelines: a leading space
belongs to EWoK's targets and PIQA's solutions, but not to COMPS' phrases. This matters to
tokenizers that cut it off.
"""

from collections.abc import Callable

from src.evaluation.scoring.scorer import Item
from src.evaluation.tasks.choice import Choice, Format, Row
from src.evaluation.tasks.task import Protocol
from src.foundation import UserError


def minimal_pair(row: Row, stem: str, protocol: Protocol) -> Choice:
    """Read a row of BLiMP, or of another task in its format.

    A row without a `field` belongs to the part that its file is.
    """
    texts = (row["sentence_good"], row["sentence_bad"])
    items = tuple(map(Item, texts))
    if "field" not in row:
        return Choice(stem, items, texts)
    field = str(row["field"]).replace("syntax_semantics", "syntax/semantics")
    tags = {"field": field, "linguistics_term": str(row.get("linguistics_term", ""))}
    return Choice(str(row.get("UID", stem)), items, texts, tags=tags)


def ewok(row: Row, stem: str, protocol: Protocol) -> Choice:
    """Read a question: which target fits the context (2025), or the reverse (2026)."""
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
    """Read the options for a box. 2026 leaves out rows with "nothing" in an option."""
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
    """Read a question: for which concept is the property more probable."""
    prefixes = (row["prefix_acceptable"], row["prefix_unacceptable"])
    texts = tuple(f"{prefix} {row['property_phrase']}" for prefix in prefixes)
    items = tuple(Item(t, len(prefix) + 1) for t, prefix in zip(texts, prefixes))
    return Choice(COMPS_PARTS.get(stem, stem), items, texts)


def global_piqa(row: Row, stem: str, protocol: Protocol) -> Choice:
    """Read two or four solutions. Every row is a part of its own, named `example_id`."""
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
    """Return a reader of invented words in several forms, for which people were asked."""

    def read(row: Row, stem: str, protocol: Protocol) -> Choice:
        texts = tuple(row["sentences"].split("\t"))
        if len(texts) < 2:
            raise UserError(f"sentences must hold a tab, got {texts[0]!r}")
        return Choice(uid, tuple(map(Item, texts)), texts, ratio=float(row["ratio"]))

    return read


def entity_split(uid: str) -> str:
    """Return the split of a part, without its number of operations (0 to 5)."""
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
    {"input_prefix": str, "options": list, "numops": int},
    entity_tracking,
    split_of=entity_split,
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
    per_token=True,
)
WUG_FIELDS = {"sentences": str, "ratio": (int, float)}
WUG_ADJECTIVES = Format(WUG_FIELDS, wug("wug_adj"), correlated=True)
WUG_PAST_TENSE = Format(WUG_FIELDS, wug("wug_past"), correlated=True)
