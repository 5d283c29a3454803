"""The model card: the README.md beside a trained model."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

CARD = """\
---
{metadata}
---

# {args.wandb.group}/{args.wandb.name}

Trained {origin} with the command

```
{command}
```

* Architecture: {model_type}, {parameters:,} parameters, sequences of {args.data.block_size} tokens.
* Training text: {files} ({text[words]:,} whitespace words, {text[tokens]:,} tokens);
  {words_seen:,} words were seen in {epochs:.4g} epochs ({steps:,} steps){final_step}.
* Tokenizer: {vocab_size:,} entries, {tokenizer}.
* Cost: {total_flos:.3g} FLOPs{energy}.

| measured on {eval_files} | |
|---|---|
{scores}

Load it with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.
It is a small model made for research on learning from little text; it was not tuned to be
helpful or harmless.
"""


def write(directory: Path, facts: dict[str, Any], scores: dict[str, float]) -> None:
    """Write README.md into `directory`.

    Args:
        facts: values for the placeholders of `CARD`, by name.
        scores: rows of the table: name -> score.
    """
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in scores.items())
    metadata = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["babylm", facts["model_type"]],
    )
    text = CARD.format_map({**facts, "metadata": metadata, "scores": rows})
    (directory / "README.md").write_text(text, encoding="utf-8")
