"""Text files in, a token stream out.

`corpus` finds and reads the text, `documents` says where it is cut and `words` what a word
is, `tokenizer` trains or loads the tokenizer, `encoding` gives ids and `packing` makes them
one flat `stream` of tokens on disk with prefix sums of words and bytes. `blocks` are views
of the stream, `order` says which of them a step trains on. `prepare` does all of that,
`cache` keeps it, `summary` shows it. `sample/` is a corpus that comes with the repository;
`download` fetches the challenge's.
"""
