"""Scores of models: `suite` asks one model, `evaluator` asks many and keeps their results.

`tasks` and `glue` define what is asked, `scoring` computes how probable a text is, `results`
and `table` write and show scores. `language_modeling` measures the loss on text.
"""
