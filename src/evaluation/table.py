"""Tables of results for the screen, with published results beside them.

The entries of a model are those of its `scores.json`: task -> entry.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from src.evaluation.protocol import PROTOCOLS
from src.evaluation.results import Entry
from src.foundation import counted

# Published scores on the full tasks, after ten passes over 10M or 100M words.
BASELINES = ("GPT-2 10M", "GPT-BERT 10M", "GPT-2 100M", "GPT-BERT 100M")
SOURCES = (
    "GPT-2 10M: baselines of the 2026 challenge;"
    " GPT-BERT 10M: baseline of the 2025 challenge, causal-focus;"
    " GPT-2 100M: baselines of the 2026 challenge;"
    " GPT-BERT 100M: baseline of the 2025 challenge, mixed"
)
PUBLISHED = {
    "blimp": (65.2, 71.7, 74.7, 80.5),
    "supplement": (57.3, 63.2, 65.0, 73.0),
    "ewok": (50.6, 49.5, 54.4, 52.4),
    # GPT-BERT's score is left out: it was measured on other data and by another rule.
    "entity_tracking": (19.1, None, 16.9, None),
    "comps": (51.8, 52.8, 55.9, 59.7),
    "glue": (63.8, 65.4, 67.8, 70.9),
    "reading": (5.6, None, 6.9, None),
}
# The parts of the challenge's overall score of 2026.
OVERALL = (*PUBLISHED, "global_piqa", "aoa")


def overall(scores: Mapping[str, float | None]) -> float | None:
    """Return the challenge's overall score of 2026, a mean of nine; None if one is missing."""
    known = dict(scores)
    parts = [known.get(f"global_piqa_{part}") for part in ("parallel", "nonparallel")]
    if None not in parts:
        known["global_piqa"] = sum(parts) / 2
    values = [known.get(task) for task in OVERALL]
    return None if None in values else sum(values) / len(values)


def report(models: Mapping[str, Mapping[str, Entry]], by_phenomenon: bool) -> str:
    """Return a table of one model, or a row for each of several models.

    Args:
        models: label -> entries of the model.
        by_phenomenon: adds a table of each model, with BLiMP's phenomena.
    """
    tables = [overview(models)] if len(models) > 1 else []
    if len(models) == 1 or by_phenomenon:
        for label, entries in models.items():
            tables.append(f"{label}\n{table(entries, by_phenomenon)}")
    return "\n\n".join(tables)


def table(entries: Mapping[str, Entry], by_phenomenon: bool = False) -> str:
    """Return a table of one model: a row per task with score, items, time and baselines.

    Args:
        by_phenomenon: adds a row for each of BLiMP's phenomena.
    """
    families, sizes = zip(*(name.split() for name in BASELINES))
    rows = [["", "", "", "", *families], ["task", "score", "items", "time", *sizes]]
    for task, entry in entries.items():
        time = "" if entry["seconds"] is None else f"{entry['seconds']:.1f} s"
        row = [task, _text(entry["score"]), f"{entry['items']:,}", time]
        rows.append(row + [_text(score) for score in _published(task)])
        phenomena = entry["subscores"].get("linguistics_term", {})
        if by_phenomenon:
            rows += [[f"  {n}", _text(score)] for n, score in sorted(phenomena.items())]
    mean = overall({task: entry["score"] for task, entry in entries.items()})
    if mean is not None:
        rows.append(["overall", _text(mean)])
    notes = [f"{task}: {note}" for task, e in entries.items() for note in _notes(e)]
    return "\n".join([*align(rows, 2), _rules(entries), *notes, *_sources(entries)])


def overview(models: Mapping[str, Mapping[str, Entry]]) -> str:
    """Return a table of several models: a row per model and baseline, a column per task.

    Args:
        models: label -> entries of the model.
    """
    tasks = list(dict.fromkeys(task for entries in models.values() for task in entries))
    rows = [["", *tasks]]
    for label, entries in models.items():
        scores = [entries[task]["score"] if task in entries else None for task in tasks]
        rows.append([label, *map(_text, scores)])
    for name, *scores in zip(BASELINES, *map(_published, tasks)):
        if any(scores):
            rows.append([name, *map(_text, scores)])
    lines = list(dict.fromkeys(map(_rules, models.values())))
    for label, entries in models.items():
        for task, entry in entries.items():
            lines += [f"{label}: {task}: {note}" for note in _notes(entry)]
    return "\n".join([*align(rows), *lines, *_sources(tasks)])


def _published(task: str) -> Sequence[float | None]:
    """Return the score of each baseline."""
    return PUBLISHED.get(task.removesuffix("_fast"), [None] * len(BASELINES))


def _sources(tasks: Iterable[str]) -> Iterator[str]:
    """Yield the sources of the published scores, if there are any for these tasks."""
    if any(any(_published(task)) for task in tasks):
        yield f"Published scores are those of the full sets. {SOURCES}."


def _text(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def align(rows: Sequence[Sequence[str]], headings: int = 1) -> Iterator[str]:
    """Yield a line per row. The first column is aligned left, the others are aligned right.

    Args:
        headings: number of rows above the values. From the third column on, columns without
            a value are left out.
    """
    columns = list(zip_longest(*rows, fillvalue=""))
    columns = [*columns[:2], *(c for c in columns[2:] if any(c[headings:]))]
    first, *widths = (max(map(len, column)) for column in columns)
    for name, *cells in zip(*columns):
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths)]
        if line := "  ".join([name.ljust(first), *numbers]).rstrip():
            yield line


def _rules(entries: Mapping[str, Entry]) -> str:
    """Return the protocol and precision of the entries, such as "Protocol 2026, float32."."""
    tasks_of = defaultdict(list)
    for task, entry in entries.items():
        tasks_of[f"protocol {entry['protocol']}, {entry['dtype']}"].append(task)
    if len(tasks_of) == 1:
        return f"{next(iter(tasks_of)).capitalize()}."
    return "; ".join(f"{', '.join(t)}: {rules}" for rules, t in tasks_of.items()) + "."


def _notes(entry: Entry) -> Iterator[str]:
    """Yield notes on ties, long texts, undefined scores and the effect of bfloat16."""
    has_choices = "UID" in entry["subscores"]  # a correlation has no right and wrong
    if entry["ties"] and has_choices:
        rules = PROTOCOLS[entry["protocol"]]
        rule = "wrong" if rules.ties_are_wrong else "right if first"
        yield f"{counted(entry['ties'], 'tie')}, counted as {rule}"
    if ids := entry["too_long"]:
        is_least = has_choices and PROTOCOLS[entry["protocol"]].nan_is_least
        result = "counted as wrong" if has_choices else "left out"
        result = "counted as the least probable" if is_least else result
        shown = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
        items = counted(len(ids), "item")
        yield f"{items} longer than the model's context, {result}: {shown}"
    correlation = entry["subscores"].get("correlation")  # age of acquisition
    if correlation and entry["score"] == 0:
        words = entry["subscores"]["words"]
        number = int(words["with_both_ages"])  # scores.json stores it as a float
        reason = f"{number:,} of {words['all']:,.0f} words with both ages are too few"
        if (r := correlation["r"]) is not None:
            found = f"the correlation of {r:.2f} over {counted(number, 'word')}"
            reason = f"{found} may be chance (p = {correlation['p']:.2g})"
        yield f"0 means no score: {reason}"
    if (changed := entry.get("choices_changed")) is not None:
        yield f"{changed:,} of {entry['items']:,} choices differ from those in float32"
