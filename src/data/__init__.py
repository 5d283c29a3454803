"""Data: from text files to the blocks that a model is trained on.

1. `text` finds the files, reads them in pieces of bounded size and splits them into
   documents.
2. `packing` turns the pieces into token ids and writes them, with BOS and EOS around each
   document, as one flat stream that is cached on disk.
3. `blocks` gives views of that stream of `data.block_size` tokens, and `order` decides which
   blocks each training step uses.

`prepare` runs these steps for the command line, and `summary` prints a table of the result.
`cache` keeps each tokenizer and each stream, under a key that depends on its content.
`download` fetches the challenge's data; `sample` is a small corpus that is part of the
repository.
"""
