"""Text: from files to documents.

`corpus` finds text files, tables and hub datasets and reads them in parts of bounded size.
`documents` splits the parts into documents and joins them into pieces, which are tokenized
one at a time. `words` counts words as the challenge does.
"""
