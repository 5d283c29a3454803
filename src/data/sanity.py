"""How far the dev text is from the training text, and what any network must beat on it.

A dev text of other domains than the training text gives a loss that says little about the
training. Some figures show this before a run: the Kullback-Leibler divergence of the words'
frequencies, the share of words that the training text does not have, and the perplexity of a
trigram model, an anchor that any network must beat.
"""

from collections import Counter

import numpy as np
from transformers import PreTrainedTokenizerBase

from src.data.blocks import Blocks
from src.data.packing.stream import Stream

PIECE = 1 << 18  # tokens that are decoded at a time
PART = 1 << 21  # trigrams that are counted at a time, about; more are slower
# Of Kneser-Ney. On 10M words of BabyLM, discounts estimated from the counts (0.79, 0.70 and
# 0.31 for the three orders) change the perplexity by less than 1 %.
DISCOUNT = 0.75


def sanity(
    train: Stream, validation: Blocks, tokenizer: PreTrainedTokenizerBase
) -> list[dict]:
    """Compare the dev text with the training text, by file and as a whole.

    Words are what `str.split()` returns. For 10M words of training text and 1.4M of dev text,
    this takes about 10 s on one core.

    Args:
        train: The packed training text. What is held out of it for validation is left out.
        validation: The blocks of the dev text. With `data.max_eval_samples`, all text from
            the first block of a file to its last is compared.
        tokenizer: The tokenizer that both are packed with.

    Returns:
        A row for each file of the dev text, then one with the name "all":

        * name
        * kl: The Kullback-Leibler divergence of the dev text's word frequencies p from those of
          the training text q, the sum of p log2(p / q), in bits per word. p is not smoothed; q
          is, by adding one to the count of each word that is in either text. Compare texts of
          similar length: the same kind of text has a higher value if it is short.
        * unseen: The share (0 to 1) of the dev text's words that the training text lacks.
        * trigram: The perplexity per token of `trigram_probabilities`, over the same targets
          as a network's perplexity.

        The figures of a file without a block are NaN.
    """
    stream, edges, size = validation.stream, validation.edges, len(tokenizer)
    spans = np.zeros((len(stream.files), 2), int)
    for index in np.flatnonzero(np.diff(edges)):  # the files that have a block
        starts, ends = validation.bounds([edges[index], edges[index + 1] - 1])
        spans[index] = starts[0], ends[1] + 1
    held_out = np.sort(spans, axis=None) if stream is train else []
    rest = np.array([0, *held_out, len(train)], int).reshape(-1, 2)
    seen = count_words(train, rest, tokenizer)
    words = [count_words(stream, [span], tokenizer) for span in spans]
    keys = [trigram_keys(stream, [span], size) for span in spans]
    losses = -np.log(trigram_probabilities(train, rest, np.concatenate(keys), size))
    parts = np.split(losses, np.cumsum([len(k) for k in keys])[:-1])
    words.append(sum(words, Counter()))
    rows = zip([*stream.names, "all"], words, [*parts, losses])
    return [{"name": name, **_figures(*row, seen)} for name, *row in rows]


def _figures(words: Counter[str], losses: np.ndarray, seen: Counter[str]) -> dict:
    """Return the figures of the words of a text and the losses [n] of its tokens in nats."""
    if not words:
        return dict.fromkeys(("kl", "unseen", "trigram"), np.nan)
    known = np.array([seen[word] for word in words])
    p = np.array(list(words.values())) / words.total()
    q = (known + 1) / (seen.total() + len(seen.keys() | words.keys()))
    kl, unseen = p @ np.log2(p / q), p[known == 0].sum()
    trigram = np.exp(losses.mean())
    return dict(kl=float(kl), unseen=float(unseen), trigram=float(trigram))


def count_words(
    stream: Stream, spans: list, tokenizer: PreTrainedTokenizerBase
) -> Counter[str]:
    """Return how often each word occurs in the decoded text of spans of a stream.

    A word of which a span holds only the end does not count.

    Args:
        spans: Pairs (start, end) in tokens.
    """
    words: Counter[str] = Counter()
    for start, end in spans:
        # Cut where a word begins.
        before = stream.words[np.arange(start, end, PIECE)]
        starts = np.searchsorted(stream.words, before, side="right") - 1
        edges = np.minimum([*starts, end], end)
        for first, last in zip(edges, edges[1:]):
            ids = np.split(stream.tokens[first:last], _documents(stream, first, last))
            texts = tokenizer.backend_tokenizer.decode_batch([x.tolist() for x in ids])
            words.update(" ".join(texts).split())
    return words


def _documents(stream: Stream, start: int, end: int) -> np.ndarray:
    """Return where documents begin in tokens [start, end), counted from `start` [n]."""
    first, last = stream.documents_before([start, end])
    return stream.documents[first:last].astype(int) - start


def trigram_keys(
    stream: Stream, spans: list, size: int, part: int = 0, num_parts: int = 1
) -> np.ndarray:
    """Return the trigrams u v w of spans as (u * size + v) * size + w, int64 [n], in order.

    The w are the targets of `Blocks`: all tokens but the first of a span and the BOS of each
    document. The tokens before it may belong to another span; before the stream is an EOS.

    Args:
        spans: Pairs (start, end) in tokens.
        size: The number of entries of the vocabulary, at most 2^21.
        part, num_parts: Return only the trigrams whose v is `part` modulo `num_parts`.
    """
    keys = []
    for start, end in spans:
        kept = np.ones(end - start, bool)
        kept[:1] = False
        kept[_documents(stream, start, end)] = False
        kept[1:] &= stream.tokens[start:end][:-1] % num_parts == part
        at = start + np.flatnonzero(kept)
        u, v, w = (stream.tokens[at - back].astype(np.int64) for back in (2, 1, 0))
        keys.append((u * size + v) * size + w)
    return np.concatenate(keys)


def trigram_probabilities(
    train: Stream, spans: list, keys: np.ndarray, size: int
) -> np.ndarray:
    """Return the probabilities of the last tokens of trigrams, float64 [n].

    The model is a trigram model with interpolated Kneser-Ney smoothing (Kneser and Ney 1995;
    Chen and Goodman 1998, section 2.7) and the same discount D for all orders:

        p(w | u v) = max(c(u v w) - D, 0) / c(u v) + D t(u v) / c(u v) * p(w | v)

    c(u v) is the number of trigrams that begin with u v, and t(u v) the number of different
    ones. In p(w | v) and p(w), the counts are of different words before: c(v w) is the number
    of different u in trigrams u v w. Below p(w) are equal probabilities of all entries. So
    each probability is positive, and those of all entries after u v sum to 1.

    Args:
        train, spans: The text whose trigrams are counted, part by part to bound the memory.
        keys: The trigrams [n] as `trigram_keys` returns them.
        size: The number of entries of the vocabulary.
    """
    # p(w | u v) = fixed + weight * p(w); p(w) is known when all parts are counted.
    fixed, weight = np.zeros((2, len(keys)))
    preceding = np.zeros(size, int)  # different tokens before each token
    num_parts = -(-len(train) // PART)
    for part in range(num_parts):
        # All that p(w | u v) and p(w | v) need are trigrams with this v.
        counted = trigram_keys(train, spans, size, part, num_parts)
        trigrams, counts = np.unique(counted, return_counts=True)
        bigrams, before = np.unique(trigrams % size**2, return_counts=True)
        preceding += np.bincount(bigrams % size, minlength=size)
        at = np.flatnonzero(keys // size % size % num_parts == part)
        share, rest = _discounted(trigrams, counts, keys[at], size)
        lower = _discounted(bigrams, before, keys[at] % size**2, size)
        fixed[at], weight[at] = share + rest * lower[0], rest * lower[1]
    known = np.flatnonzero(preceding)
    share, rest = _discounted(known, preceding[known], keys % size, size)
    return fixed + weight * (share + rest / size)


def _discounted(
    ngrams: np.ndarray, counts: np.ndarray, keys: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return max(c - D, 0) / total and D * types / total of the n-grams with these keys [n].

    The totals are of all n-grams with the same context. After an unknown context, the values
    are 0 and 1.

    Args:
        ngrams, counts: The keys of all n-grams [m], sorted, and their counts.
    """
    contexts, first, types = np.unique(ngrams // size, True, False, True)
    totals = _look_up(contexts, np.add.reduceat(counts, first), keys // size)
    left = DISCOUNT * _look_up(contexts, types, keys // size)
    kept = np.maximum(_look_up(ngrams, counts, keys) - DISCOUNT, 0)
    left[totals == 0] = totals[totals == 0] = 1
    return kept / totals, left / totals


def _look_up(table: np.ndarray, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the values of keys in a sorted table, which may be empty; 0 for other keys [n]."""
    at = np.searchsorted(table, keys)
    return np.where(np.append(table, -1)[at] == keys, np.append(values, 0)[at], 0)
