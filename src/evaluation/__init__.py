"""Scores of models: `suite` scores one model, `evaluator` several models on disk.

`tasks` and `glue` define the tasks, `scoring` computes the probability of texts, `results`
writes scores and `table` shows them. `language_modeling` measures the loss on text.
"""
