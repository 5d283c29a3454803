"""A model in, scores out: `language_modeling` on text, `minimal_pairs` on sentence pairs."""
