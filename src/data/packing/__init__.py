"""Packing: from pieces of text to a cached stream of tokens.

`tokenizer` trains or loads the tokenizer. `encoding` turns a piece of text into token ids and
the bytes where each token ends. `pack` encodes the pieces in parallel and appends them in
order to the files that `stream` describes.
"""
