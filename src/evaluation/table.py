"""Results on the screen, beside published ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Baseline:
    """Published scores of one model on the full tasks, ten passes over the data."""

    name: str
    words: str  # of its training text
    scores: Mapping[str, float]
    source: str


COLUMNS = "blimp supplement ewok entity_tracking comps glue reading".split()
GPT2_2026 = "baselines of the 2026 challenge"
BERT_CAUSAL = "baseline of the 2025 challenge, causal-focus"
BERT_MIXED = "baseline of the 2025 challenge, mixed"


def _baseline(name: str, words: str, source: str, *scores: float | None) -> Baseline:
    known = {c: s for c, s in zip(COLUMNS, scores, strict=True) if s is not None}
    return Baseline(name, words, known, source)


# GPT-BERT's entity tracking is left out: it was scored with other data and another rule.
BASELINES = (
    _baseline("GPT-2", "10M", GPT2_2026, 65.2, 57.3, 50.6, 19.1, 51.8, 63.8, 5.6),
    _baseline("GPT-BERT", "10M", BERT_CAUSAL, 71.7, 63.2, 49.5, None, 52.8, 65.4, None),
    _baseline("GPT-2", "100M", GPT2_2026, 74.7, 65.0, 54.4, 16.9, 55.9, 67.8, 6.9),
    _baseline("GPT-BERT", "100M", BERT_MIXED, 80.5, 73.0, 52.4, None, 59.7, 70.9, None),
)
SOURCES = "; ".join(f"{b.name} {b.words}: {b.source}" for b in BASELINES)

# What the challenge's 2026 overall score is the mean of.
OVERALL = (*COLUMNS, "global_piqa", "aoa")


def overall(scores: Mapping[str, float]) -> float | None:
    """The challenge's overall score of 2026 (a mean of nine), where all of them are known."""
    known = dict(scores)
    parts = [known.get(f"global_piqa_{part}") for part in ("parallel", "nonparallel")]
    if None not in parts:
        known["global_piqa"] = sum(parts) / 2
    if any(known.get(name) is None for name in OVERALL):
        return None
    return sum(known[name] for name in OVERALL) / len(OVERALL)


def table(
    entries: Mapping[str, Mapping[str, Any]],
    by_phenomenon: bool = False,
    baselines: Sequence[Baseline] = BASELINES,
) -> str:
    """Task, score, items, seconds and published scores, a line a task.

    Args:
        entries: task → its entry of `scores.json`.
        by_phenomenon: BLiMP's phenomena under it.
    """
    head = ["task", "score", "items", "time"]
    rows = [[*head, *(f"{b.name} {b.words}" for b in baselines)]]
    for task, entry in entries.items():
        name = task.removesuffix("_fast")
        published = [_text(b.scores.get(name)) for b in baselines]
        time = "" if entry["seconds"] is None else f"{entry['seconds']:.1f} s"
        rows.append(
            [task, _text(entry["score"]), f"{entry['items']:,}", time, *published]
        )
        if by_phenomenon:
            phenomena = entry["subscores"].get("linguistics_term", {})
            rows += [
                [f"  {key}", _text(value)] for key, value in sorted(phenomena.items())
            ]
    mean = overall({task: entry["score"] for task, entry in entries.items()})
    if mean is not None:
        rows.append(["overall", _text(mean)])
    published = [_published(entries)] if baselines else []
    return "\n".join([*_align(rows), rules(entries), *notes(entries), *published])


def overview(
    models: Mapping[str, Mapping[str, Mapping[str, Any]]],
    baselines: Sequence[Baseline] = BASELINES,
) -> str:
    """Scores of many models: a line a model, a column a task, published ones below.

    Args:
        models: label → task → its entry of `scores.json`.
    """
    tasks = list(dict.fromkeys(task for entries in models.values() for task in entries))
    scores = {
        label: {task: entry["score"] for task, entry in entries.items()}
        for label, entries in models.items()
    }
    for baseline in baselines:
        published = {
            task: baseline.scores.get(task.removesuffix("_fast")) for task in tasks
        }
        if any(published.values()):
            scores[f"{baseline.name} {baseline.words}"] = published
    rows = [["", *tasks]]
    rows += [
        [name, *(_text(own.get(t)) for t in tasks)] for name, own in scores.items()
    ]
    told = list(dict.fromkeys(rules(own) for own in models.values()))
    told += [f"{name}: {note}" for name, own in models.items() for note in notes(own)]
    return "\n".join([*_align(rows), *told, _published(tasks)])


def _published(tasks: Iterable[str]) -> str:
    """Whose the published scores are, and whether they are of other sets than ours."""
    fast = any(task.endswith("_fast") for task in tasks)
    of = " (of the full sets, not the fast ones)" if fast else ""
    return f"Published{of}: {SOURCES}."


def _text(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    num_columns = max(map(len, rows))
    full = [[*row, *[""] * (num_columns - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in full
    ]


def rules(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """By what protocol and in what precision: "Protocol 2026, float32."."""
    ways: dict[str, list[str]] = {}
    for task, entry in entries.items():
        way = f"protocol {entry['protocol']}, {entry['dtype']}"
        ways.setdefault(way, []).append(task)
    if len(ways) == 1:
        return f"{next(iter(ways)).capitalize()}."
    return "; ".join(f"{', '.join(tasks)}: {way}" for way, tasks in ways.items()) + "."


def notes(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a score alone does not say: ties, what was too long, what the precision changed."""
    notes = []
    for task, entry in entries.items():
        told = [_ties(entry), _too_long(entry), _zero(entry), _changed(entry)]
        notes += [f"{task}: {note}" for note in told if note]
    return notes


def _ties(entry: Mapping[str, Any]) -> str:
    if (
        not entry["ties"] or "UID" not in entry["subscores"]
    ):  # a correlation has no wrong
        return ""
    counted = "right if first" if entry["protocol"] == 2025 else "wrong"
    return f"{_number(entry['ties'], 'tie')}, counted as {counted}"


def _too_long(entry: Mapping[str, Any]) -> str:
    """Choices are wrong then; of correlations and reading times nothing is right or wrong."""
    if not (long := entry["too_long"]):
        return ""
    verb, counts = ("is", "counts") if len(long) == 1 else ("are", "count")
    result = f"{counts} as wrong" if "UID" in entry["subscores"] else f"{verb} left out"
    shown = ", ".join(long[:3]) + (", …" if len(long) > 3 else "")
    number = _number(len(long), "item")
    return f"{number} {verb} longer than the model can read and {result}: {shown}"


def _zero(entry: Mapping[str, Any]) -> str:
    """Why AoA is 0 where nothing was measured."""
    if "correlation" not in entry["subscores"] or entry["score"] != 0:
        return ""
    words = entry["subscores"]["words"]
    number = _number(words["with_both_ages"], "word")
    found = entry["subscores"]["correlation"]
    if found["r"] is None:
        return (
            f"0 stands for no score: of {words['all']} words {words['with_both_ages']} were"
            " learned within the checkpoints, too few for a correlation"
        )
    return (
        f"0 stands for no score: the correlation of {found['r']:.2f} over {number} may be"
        f" chance (p = {found['p']:.2g})"
    )


def _changed(entry: Mapping[str, Any]) -> str:
    if (changed := entry.get("choices_changed")) is None:
        return ""
    differ = "differs" if changed == 1 else "differ"
    return f"{changed:,} of {entry['items']:,} choices {differ} from those in float32"


def _number(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")
