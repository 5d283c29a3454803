"""A model in, scores out: `suite` asks it the tasks, `scoreboard` does so for many models.

`tasks` says what is asked, `scoring` how probable a text is, `results` and `table` what is
written and shown of it; `language_modeling` is the loss on text, `finetuning` GLUE.
"""
