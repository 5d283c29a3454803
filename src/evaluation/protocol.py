"""The challenge's evaluation rules as data: each protocol has a year and a date.

A new year is a new entry of `PROTOCOLS`. The rules of 2025 come from
babylm/evaluation-pipeline-2025, those of 2026 from babylm-org/babylm-eval and its leaderboard.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """The rules of one year.

    Args:
        date: the day of the version of the rules that is described here.
        ties_are_wrong: Of several texts with the same score, the pipeline of 2026 draws one at
            random. We choose a wrong one, so that a score depends on the model alone. If
            False, the first of the texts is chosen, which is usually the right one.
        nan_is_least: A text that is too long to have a score counts as the least probable
            one. If False, the choice is wrong.
        compares_contexts: EWoK compares two contexts of one target. If False, it compares two
            targets.
        leaves_out_nothing: Entity tracking leaves out items with "nothing" among the options.
        reads_last_token: Fine-tuning pads on the left and reads the last token, also for
            masked models.
        shifts_positions: Fine-tuning numbers the tokens of a text from its padding.
        mean_surprisals: Age of acquisition fits the means over a word's contexts, with bounds.
            A correlation that may be chance counts as 0.
        left_out: tasks that the challenge no longer asks for.
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
