"""The surprisal of each word of a text, as psycholinguists compare it with reading times.

The surprisal of a word is the sum over its tokens of -log2 p(token | all text before it), as
in the reading task (`src/evaluation/tasks/reading.py`). Masked models are asked as there, too:
for a token, they see the text before it and three masks.

White space counts with the word after it, because most tokenizers join a space and the word
that follows; Oh and Schuler (2024) and Pimentel and Meister (2024) discuss what this means.
"""

import math
import re
from pathlib import Path

import numpy as np
import pandas

from src.evaluation.models import Checkpoint, load
from src.evaluation.scoring.network import num_positions
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.scorer import Scorer
from src.evaluation.tasks.reading import NUM_MASKS
from src.foundation import UserError, naming, write_atomically

WINDOW = 2048  # tokens, for a model whose context has no limit


def write_surprisals(checkpoint: Checkpoint, text_file: Path, csv_file: Path) -> None:
    """Write the rows of `word_surprisals` for a text file to a CSV file with a header.

    A surprisal of NaN is an empty cell, which R and pandas read as missing.

    Args:
        text_file: Text in UTF-8.
        csv_file: In a folder that exists.

    Raises:
        UserError: The text cannot be read or has no words, or the model cannot be used.
    """
    try:
        text = text_file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text_file} cannot be read: {error}") from error
    with naming(checkpoint.origin):
        backend = checkpoint.backend()
        scorer = Scorer(*load(checkpoint, backend), backend)
    with naming(str(text_file)):
        rows = word_surprisals(scorer, text)
    write_atomically(csv_file, rows.to_csv(index=False))


def word_surprisals(scorer: Scorer, text: str) -> pandas.DataFrame:
    """Return the surprisal of each word of a text, given all text before it.

    The sum over the words is -log2 of the text's probability. If the text is longer than the
    model's context, a causal model sees at least half a context before a token. The text is
    encoded with the tokenizer's own defaults, such as BOS before it.

    Returns:
        A row for each word (what `str.split()` returns) with the columns:

        * line, position: The number of its line, and its number in the line, both from 1.
        * word
        * surprisal: In bits. It is NaN if one of its tokens cannot be predicted: the first
          token of the text, if the tokenizer puts no special token before a text.
        * tokens: The number of its tokens. A token counts for the word that it ends in, and
          white space at the end of the text for the last word.

    Raises:
        UserError: The text has no words, the tokenizer is not a fast one or lacks a mask token
            that is needed, or the model gives NaN.
    """
    words = list(re.finditer(r"\S+", text))
    if not words:
        raise UserError("the text has no words")
    encoded = scorer.encode([text])
    ids, ends = encoded.input_ids[0], np.array(encoded.offset_mapping[0])[:, 1]
    own = np.flatnonzero(np.equal(encoded.special_tokens_mask[0], 0))
    answers = scorer.log_probabilities(_queries(scorer, ids, own[0], own[-1] + 1))
    bits = np.concatenate([[np.nan], *answers])[-len(own) :] / -math.log(2)
    owners = np.searchsorted([word.end() for word in words[:-1]], ends[own])
    breaks = [match.start() for match in re.finditer("\n", text)]
    lines = 1 + np.searchsorted(breaks, [word.start() for word in words])
    rows = pandas.DataFrame({"line": lines, "word": [word[0] for word in words]})
    rows.insert(1, "position", rows.groupby("line").cumcount() + 1)
    rows["surprisal"] = np.bincount(owners, bits, len(words))
    rows["tokens"] = np.bincount(owners, minlength=len(words))
    return rows


def _queries(scorer: Scorer, ids: list[int], first: int, last: int) -> list[Query]:
    """Return queries for the tokens [first, last), in order; the others are special tokens.

    A causal model is asked for all tokens but the first, by windows that overlap by half. A
    masked one is asked for each token, with masks in place of what follows. `mntp` reads it
    one position earlier, so it is not asked for a token at the beginning.
    """
    size, queries, end = num_positions(scorer.model) or WINDOW, [], 0
    if scorer.backend == "causal":
        for start in range(0, last, (size + 1) // 2):
            begin, end = end, min(start + size, last - 1)
            inputs, targets = tuple(ids[start:end]), tuple(ids[begin + 1 : end + 1])
            positions = tuple(range(begin - start, end - start))
            queries.append(Query(inputs, positions, targets, "the text"))
        return queries
    shift = int(scorer.backend == "mntp")
    after = (*[scorer.tokenizer.mask_token_id] * NUM_MASKS, *ids[last:])
    room = size - first - len(after)
    for index in range(max(first, shift), last):
        before = (*ids[:first], *ids[max(first, index - room) : index])
        position, target = len(before) - shift, ids[index]
        queries.append(Query(before + after, (position,), (target,), "the text"))
    return queries
