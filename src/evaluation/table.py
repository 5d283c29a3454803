"""Results on the screen, beside published ones.

The entries of a model are those of its `scores.json`: task → entry.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]

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
    # GPT-BERT's is left out: it was scored with other data and another rule.
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


def table(entries: Mapping[str, Entry], by_phenomenon: bool = False) -> str:
    """Return a table of one model: a row per task with score, items, seconds and baselines.

    Args:
        by_phenomenon: adds a row for each of BLiMP's phenomena.
    """
    rows = [["task", "score", "items", "time", *BASELINES]]
    for task, entry in entries.items():
        time = "" if entry["seconds"] is None else f"{entry['seconds']:.1f} s"
        row = [task, _text(entry["score"]), f"{entry['items']:,}", time]
        rows.append(row + [_text(score) for score in _published(task)])
        if by_phenomenon:
            phenomena = entry["subscores"].get("linguistics_term", {})
            rows += [
                [f"  {name}", _text(phenomena[name])] for name in sorted(phenomena)
            ]
    mean = overall({task: entry["score"] for task, entry in entries.items()})
    if mean is not None:
        rows.append(["overall", _text(mean)])
    return "\n".join(
        [*_align(rows), _rules(entries), *_notes(entries), _sources(entries)]
    )


def overview(models: Mapping[str, Mapping[str, Entry]]) -> str:
    """Return a table of several models: a row per model and baseline, a column per task.

    Args:
        models: label → entries of the model.
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
        lines += [f"{label}: {note}" for note in _notes(entries)]
    return "\n".join([*_align(rows), *lines, _sources(tasks)])


def _published(task: str) -> Sequence[float | None]:
    """Return the score of each baseline."""
    return PUBLISHED.get(task.removesuffix("_fast"), [None] * len(BASELINES))


def _sources(tasks: Iterable[str]) -> str:
    """Return the sources of published scores, and whether ours are of smaller sets."""
    fast = any(task.endswith("_fast") for task in tasks)
    sets = " (of the full sets, not the fast ones)" if fast else ""
    return f"Published{sets}: {SOURCES}."


def _text(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line per row, the first column aligned to the left, the others to the right."""
    num_columns = max(map(len, rows))
    full = [[*row, *[""] * (num_columns - len(row))] for row in rows]
    first, *widths = (max(map(len, column)) for column in zip(*full))
    for name, *cells in full:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths)]
        yield "  ".join([name.ljust(first), *numbers]).rstrip()


def _rules(entries: Mapping[str, Entry]) -> str:
    """Return protocol and precision of the entries, such as "Protocol 2026, float32."."""
    tasks_of: dict[str, list[str]] = {}
    for task, entry in entries.items():
        rules = f"protocol {entry['protocol']}, {entry['dtype']}"
        tasks_of.setdefault(rules, []).append(task)
    if len(tasks_of) == 1:
        return f"{next(iter(tasks_of)).capitalize()}."
    parts = [f"{', '.join(tasks)}: {rules}" for rules, tasks in tasks_of.items()]
    return "; ".join(parts) + "."


def _notes(entries: Mapping[str, Entry]) -> Iterator[str]:
    """Yield ties, texts beyond the context, undefined scores and effects of the precision."""
    for task, entry in entries.items():
        for note in (_ties, _too_long, _no_correlation, _choices_changed):
            if text := note(entry):
                yield f"{task}: {text}"


def _ties(entry: Entry) -> str:
    if not entry["ties"] or "UID" not in entry["subscores"]:
        return ""  # a correlation has no right and wrong
    counted = "right if first" if entry["protocol"] == 2025 else "wrong"
    return f"{_count(entry['ties'], 'tie')}, counted as {counted}"


def _too_long(entry: Entry) -> str:
    """Return the number of items beyond the context: wrong choices, otherwise left out."""
    ids = entry["too_long"]
    if not ids:
        return ""
    verb, counts = ("is", "counts") if len(ids) == 1 else ("are", "count")
    result = f"{counts} as wrong" if "UID" in entry["subscores"] else f"{verb} left out"
    shown = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
    items = _count(len(ids), "item")
    return f"{items} {verb} longer than the model can read and {result}: {shown}"


def _no_correlation(entry: Entry) -> str:
    """Return why the score of AoA is 0 if nothing was measured."""
    correlation = entry["subscores"].get("correlation")
    if correlation is None or entry["score"] != 0:
        return ""
    words = entry["subscores"]["words"]
    number, r = int(words["with_both_ages"]), correlation["r"]
    if r is None:
        reason = (
            f"of {int(words['all'])} words {number} were learned within the checkpoints,"
            " too few for a correlation"
        )
    else:
        reason = (
            f"the correlation of {r:.2f} over {_count(number, 'word')} may be chance"
            f" (p = {correlation['p']:.2g})"
        )
    return f"0 stands for no score: {reason}"


def _choices_changed(entry: Entry) -> str:
    number = entry.get("choices_changed")
    if number is None:
        return ""
    differ = "differs" if number == 1 else "differ"
    return f"{number:,} of {entry['items']:,} choices {differ} from those in float32"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")
