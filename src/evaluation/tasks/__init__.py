"""Files of the challenge's zero-shot tasks in, texts to be scored out; scores in, results out.

`catalogue` says which tasks there are, where their data lies and which are asked for,
`rows` reads the files, `formats` turns a row into a `choice` between texts, and `choice`
turns log-probabilities into right and wrong, shares and correlations. Nothing here knows
a model: items are made once and scored by many checkpoints.
"""
