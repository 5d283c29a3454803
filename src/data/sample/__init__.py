"""The sample: text and minimal pairs that this project wrote itself.

A seeded generator with a small grammar of English makes six sources, named as those of
the BabyLM corpus, with 100,000 words to train on and 10,000 to develop on, and minimal
pairs for seven phenomena. Words go together by kind, so the text can be read; a part of
the combinations of a noun with a verb, an adjective or a determiner is held out of all
text and makes the pairs, so a model answers them from the grammar and not from memory.
The files beside this one are what `python -m src.data.sample.generate` writes: small
enough to read, real enough to learn from, and the same bytes every time.
"""
