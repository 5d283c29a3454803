"""The challenge's rules of evaluation, as data: each protocol has a name and a date.

A new year is one more entry of `PROTOCOLS`. The rules are those of babylm/evaluation-pipeline-2025,
and of babylm-org/babylm-eval with its leaderboard as of July 2026.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """The rules of one year.

    Args:
        date: the day on which they were as described here.
        ties_are_wrong: Of texts with the same score, the pipeline of 2026 draws one at random.
            Here a wrong one is chosen, so that a score depends on the model alone. Otherwise
            the first of the texts is chosen, which is usually the right one.
        nan_is_least: A text without a score, since it is too long, counts as the least probable
            one. Otherwise the choice is wrong.
        compares_contexts: EWoK compares two contexts of one target, not two targets.
        leaves_out_nothing: Entity tracking has no items with "nothing" among the options.
        reads_last_token: Fine-tuning reads the last token, after padding on the left, also of
            masked models.
        shifts_positions: Fine-tuning numbers tokens from the padding.
        mean_surprisals: Age of acquisition fits the means over a word's contexts, with bounds,
            and a correlation that may be chance counts as 0.
        left_out: tasks that are no longer asked for.
    """

    date: str
    ties_are_wrong: bool
    nan_is_least: bool
    compares_contexts: bool
    leaves_out_nothing: bool
    reads_last_token: bool
    shifts_positions: bool
    mean_surprisals: bool
    left_out: tuple[str, ...] = ()


PROTOCOLS = {
    2025: Protocol("2025-08-15", *[False] * 7),
    2026: Protocol("2026-07-09", *[True] * 7, left_out=("wug_adj", "wug_past")),
}
STANDARD = 2026
