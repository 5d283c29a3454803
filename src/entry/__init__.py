"""From a run to an entry of the BabyLM challenge: checks, scores, forms, the hub."""
