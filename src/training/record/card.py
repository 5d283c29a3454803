"""The README.md beside a trained model: what it is, and how it came about."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

CARD = """\
---
{{{{ card_data }}}}
---

# {title}

{origin} with the command

```
{command}
```

* Architecture: {model_type}, {parameters:,} parameters, sequences of {block_size} tokens.
* Training text: {files} ({corpus_words:,} whitespace words, {corpus_tokens:,} tokens);
  {words_seen:,} words were seen in {epochs:.4g} epochs ({steps:,} steps){final_step}.
* Tokenizer: {vocab_size:,} entries, {tokenizer}.

| measured on {eval_files} | |
|---|---|
{scores}

Load it with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.
It is a small model made for research on learning from little text; it was not tuned to be
helpful or harmless.
"""


def write(directory: Path, facts: dict[str, Any], scores: dict[str, float]) -> None:
    """Write README.md into `directory` from the `facts` that `CARD` names."""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in scores.items())
    data = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["babylm", facts["model_type"]],
    )
    text = CARD.format(**facts, scores=rows).replace("{{ card_data }}", data.to_yaml())
    ModelCard(text).save(Path(directory) / "README.md")
