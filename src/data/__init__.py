"""Text files in, a token stream out.

`corpus` finds and reads the text, `documents` says where it is cut, `tokenizer` trains or
loads the tokenizer, `packing` turns both into one flat `stream` of tokens on disk with
prefix sums of words and bytes, `blocks` gives the views of the stream that are trained and
evaluated on; `prepare` does all of that, `cache` keeps it. `sample/` is a corpus that comes
with the repository; `download` fetches the challenge's.
"""
