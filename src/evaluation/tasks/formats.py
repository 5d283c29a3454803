"""The row formats of the tasks' files: functions that turn a row into a choice between texts.

The scored part of a text begins at the same character as in the official pipelines: EWoK's
targets and PIQA's solutions include the leading space, COMPS' phrases do not. This matters for
tokenizers that make a leading space a separate token.
"""

import functools

from src.evaluation.protocol import Protocol
from src.evaluation.scoring.scorer import Item
from src.evaluation.tasks.choice import Choice, Format, Row
from src.foundation import UserError


def minimal_pair(row: Row, stem: str, rules: Protocol) -> Choice:
    """Read a row of BLiMP, or of another task in BLiMP's format.

    The part of a row without a `field` is named after its file.
    """
    texts = (row["sentence_good"], row["sentence_bad"])
    items = tuple(map(Item, texts))
    if "field" not in row:
        return Choice(stem, items, texts)
    field = str(row["field"]).replace("syntax_semantics", "syntax/semantics")
    tags = {"field": field, "linguistics_term": str(row.get("linguistics_term", ""))}
    return Choice(str(row.get("UID", stem)), items, texts, tags=tags)


def ewok(row: Row, stem: str, rules: Protocol) -> Choice:
    """Read a question: in 2025 two targets in a context, in 2026 two contexts of a target."""
    contexts, targets = [row["Context1"]] * 2, [row["Target1"], row["Target2"]]
    if rules.compares_contexts:
        contexts, targets = [row["Context1"], row["Context2"]], [row["Target1"]] * 2
    texts = tuple(f"{c} {t}" for c, t in zip(contexts, targets))
    items = tuple(Item(text, len(c)) for text, c in zip(texts, contexts))
    # In 2026 both targets are the same, so the predictions are whole texts.
    answers = (
        texts if rules.compares_contexts else tuple(f" {target}" for target in targets)
    )
    tags = {
        "context_type": str(row["ContextType"]),
        "context_contrast": str(row["ContextDiff"]),
        "target_contrast": str(row["TargetDiff"]),
    }
    return Choice(row["Domain"], items, answers, tags=tags)


def entity_tracking(row: Row, stem: str, rules: Protocol) -> Choice | None:
    """Read the options for a box. In 2026, rows with "nothing" in an option are left out."""
    prefix, options = row["input_prefix"], tuple(row["options"])
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise UserError(f"options must be at least two texts, got {options!r}")
    if rules.leaves_out_nothing and any("nothing" in option for option in options):
        return None
    items = tuple(Item(prefix + option, len(prefix)) for option in options)
    return Choice(f"{stem}_{row['numops']}_ops", items, options)


def comps(row: Row, stem: str, rules: Protocol) -> Choice:
    """Read two concepts, of which the first one has the property."""
    prefixes = (row["prefix_acceptable"], row["prefix_unacceptable"])
    texts = tuple(f"{prefix} {row['property_phrase']}" for prefix in prefixes)
    items = tuple(Item(t, len(prefix) + 1) for t, prefix in zip(texts, prefixes))
    # comps_wugs_dist-before.jsonl holds the part wugs_dist_before.
    return Choice(stem.removeprefix("comps_").replace("-", "_"), items, texts)


def global_piqa(row: Row, stem: str, rules: Protocol) -> Choice:
    """Read two to four solutions. Every row is a separate part, named by its `example_id`."""
    prompt, keys = row["prompt"], [f"solution{number}" for number in range(4)]
    answers = tuple(f" {row[k]}" for k in keys if row.get(k) is not None)
    if not 0 <= row["label"] < len(answers):
        raise UserError(
            f"label must be one of the {len(answers)} solutions, got {row['label']}"
        )
    items = tuple(Item(prompt + answer, len(prompt)) for answer in answers)
    return Choice(str(row["example_id"]), items, answers, row["label"])


def wug(uid: str, row: Row, stem: str, rules: Protocol) -> Choice:
    """Read the forms of an invented word, and the share of people who prefer the first one."""
    texts = tuple(row["sentences"].split("\t"))
    if len(texts) < 2:
        raise UserError(f"sentences must hold a tab, got {texts[0]!r}")
    return Choice(uid, tuple(map(Item, texts)), texts, ratio=float(row["ratio"]))


PAIRS = Format({"sentence_good": str, "sentence_bad": str}, minimal_pair)
EWOK_FIELDS = {
    **dict.fromkeys("Context1 Context2 Target1 Target2 Domain".split(), str),
    **dict.fromkeys("ContextType ContextDiff TargetDiff".split(), object),
}
EWOK = Format(EWOK_FIELDS, ewok)
BOX_FIELDS = {"input_prefix": str, "options": list, "numops": int}
ENTITY_TRACKING = Format(BOX_FIELDS, entity_tracking, has_splits=True)
COMPS = Format(
    dict.fromkeys(("prefix_acceptable", "prefix_unacceptable", "property_phrase"), str),
    comps,
)
PIQA_FIELDS = dict(prompt=str, solution0=str, solution1=str, label=int)
GLOBAL_PIQA = Format({**PIQA_FIELDS, "example_id": object}, global_piqa, per_token=True)
WUG_FIELDS = {"sentences": str, "ratio": (int, float)}
WUG_ADJECTIVES = Format(WUG_FIELDS, functools.partial(wug, "wug_adj"), correlated=True)
WUG_PAST_TENSE = Format(WUG_FIELDS, functools.partial(wug, "wug_past"), correlated=True)
