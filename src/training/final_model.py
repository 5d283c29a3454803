"""The end of a run: final scores, sample texts, the saved model and its card."""

import logging
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from src.arguments import FIGURES
from src.data.prepare import unigram_perplexity
from src.data.sanity import sanity
from src.evaluation.scoring.network import num_positions
from src.evaluation.suite import is_score, is_share, of_whole_tasks
from src.foundation import MANIFEST, counted
from src.training.record import card
from src.training.record.checkpoints import seal
from src.training.record.ledger import FILE, read_ledger
from src.training.trainer import LanguageModelTrainer

logger = logging.getLogger(__name__)


def final_scores(trainer: LanguageModelTrainer, kind: dict[str, int]) -> dict[str, Any]:
    """Return the reported numbers of the final model: {"eval_loss": 3.1, …}.

    In the main process, `sanity` is how the dev text compares with the training text.

    Args:
        kind: what the final model is, as `trainer.fit` returns it.
    """
    state, plan, data = trainer.state, trainer.plan, trainer.data
    size = trainer.tasks.suite.num_items
    parts = ["the dev text" * trainer.args.do_eval, f"all {size:,} items" * bool(size)]
    if any(parts):
        on = " and ".join(filter(None, parts))
        logger.info(f"Evaluating on {on}{final_step(kind)} …")
    scores = {**kind, **trainer.evaluate(all_items=True)}
    if trainer.args.do_eval and data.train_stream is not None:
        texts, tokenizer = (data.train_stream, data.validation), trainer.tokenizer
        scores["eval_unigram_perplexity"] = unigram_perplexity(*texts, len(tokenizer))
        if trainer.is_world_process_zero():
            logger.info("Comparing the dev text with the training text …")
            scores["sanity"] = sanity(*texts, tokenizer)
    if plan is not None:
        words = plan.words_seen(state.global_step)
        scores.update(steps=state.global_step, epochs=state.epoch, words_seen=words)
        scores["corpus_words"] = plan.blocks.stream.info["words"]
        scores["total_flos"] = state.total_flos
        last = read_ledger(trainer.run_dir / FILE)[-1:]
        scores.update({"joules": row["joules"] for row in last if "joules" in row})
    return scores


def show_texts(trainer: LanguageModelTrainer) -> None:
    """Log a few texts that the model generates from BOS."""
    args = trainer.arguments
    number = args.evaluation.num_generated_texts
    if not number:
        return
    with trainer.whole_model() as model:
        if not trainer.is_world_process_zero():
            return
        beginnings, seed = [""] * number, args.training.seed
        texts = write_texts(model.eval(), trainer.tokenizer, beginnings, seed)
    logger.info("\nWritten by the model:\n%s", "\n".join(f"  {x}" for x in texts))


def write_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    beginnings: Sequence[str],
    seed: int,
) -> list[str]:
    """Return a text of one line for each beginning, which a causal model continues by sampling.

    A BOS is before each beginning, which may be empty. At most 39 tokens follow the longest.

    Args:
        model: in evaluation mode.
    """
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    encoded = [tokenizer.encode(x, add_special_tokens=False) for x in beginnings]
    width = max(map(len, encoded))
    padding = [width - len(ids) for ids in encoded]
    start = [[eos] * n + [bos] + ids for n, ids in zip(padding, encoded)]
    mask = [[0] * n + [1] * (1 + width - n) for n in padding]
    set_seed(seed)
    ids = model.generate(
        torch.tensor(start, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        do_sample=True,
        top_p=0.9,
        max_length=min(width + 40, num_positions(model) or math.inf),
        pad_token_id=eos,
    )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [" / ".join(text.strip().split("\n")) for text in texts]


def save(trainer: LanguageModelTrainer, scores: dict[str, float], command: str) -> None:
    """Save the trained model, its tokenizer and its card in the run's directory.

    The files are written to a temporary folder first and then moved, so that none of them is
    ever incomplete under its final name.

    Args:
        command: the command that began the run.
    """
    args, data, model = trainer.arguments, trainer.data, trainer.model
    if not args.training.do_train:
        return
    staging = trainer.run_dir / ".model"
    trainer.save_model(str(staging))
    if not trainer.is_world_process_zero():
        return
    weights = args.model.model_name_or_path
    tokenizer = args.tokenizer.name_or_path or weights
    facts = {
        **scores,
        "args": args,
        "command": command,
        "origin": f"further from {weights}" if weights else "from scratch",
        "model_type": model.config.model_type,
        "parameters": model.num_parameters(),
        "files": ", ".join(data.train_stream.names),
        "text": data.train_stream.info,
        "final_step": final_step(scores),
        "energy": f", {scores.get('joules', 0) / 3.6e6:.3g} kWh" * ("joules" in scores),
        "vocab_size": len(trainer.tokenizer),
        "tokenizer": tokenizer or "trained on the same text",
        "eval_files": ", ".join(data.validation.stream.names),
    }
    named = {key.removeprefix("eval_"): score for key, score in scores.items()}
    shown = [*FIGURES, *of_whole_tasks(named)]
    card.write(staging, facts, {name: named[name] for name in shown if name in named})
    seal(staging)
    # The manifest comes last, so that it never describes files that are not there yet.
    for file in sorted(staging.iterdir(), key=lambda file: file.name == MANIFEST):
        os.replace(file, trainer.run_dir / file.name)
    staging.rmdir()


def final_step(scores: dict[str, Any]) -> str:
    """Return a phrase with the step of the final model; "" for the last step."""
    if "averaged_steps" in scores:
        return f"; the model is an average over {scores['averaged_steps']:,} steps"
    if "best_step" not in scores:
        return ""
    return (
        f"; the model is that of step {scores['best_step']:,}, after"
        f" {scores['best_words_seen']:,} words"
    )


def table(scores: dict[str, Any]) -> str:
    """Return the scores as a small table: one row for each file, then the tasks."""
    lines = _text_rows(scores) if "eval_loss" in scores else []
    if "eval_unigram_perplexity" in scores:
        lines.append(f"{'(unigram)':<29}{scores['eval_unigram_perplexity']:>12.2f}")
    for key, score in scores.items():
        if is_score(name := key.removeprefix("eval_")):
            label = re.sub("^pairs[/_]", "pairs: ", name)
            # Correlations are multiplied by 100 and have no percent sign, as in `run_eval`.
            value = f"{score:.1%}" if is_share(name) else f"{100 * score:.2f}"
            lines.append(f"{label:<43}{value:>12}")
    if "words_seen" in scores:
        epochs = f"{scores['epochs']:.4g}"
        lines.append(
            f"{counted(scores['words_seen'], 'word')} seen in {epochs} epoch"
            f"{'s' * (epochs != '1')}, {counted(scores['steps'], 'step')}{final_step(scores)}"
        )
    return "\n".join(lines)


def _text_rows(scores: dict[str, Any]) -> list[str]:
    """Return the heading, a row for each dev file and a row for all of them.

    A figure of a file is called `eval_files/<file>/loss`, and in earlier versions
    `eval_<file>_loss`.
    """
    matches = (
        re.match(r"(eval_(?:files/)?(.*)[/_])bits_per_byte$", key) for key in scores
    )
    prefixes = dict(match.groups() for match in matches if match)
    columns = f"{'loss':>7}{'perplexity':>12}{'accuracy':>10}{'bits/byte':>11}"
    lines = [f"{'':<22}{columns}{'perplexity/word':>17}"]
    for prefix, file in {**prefixes, "eval_": "all"}.items():
        loss, perplexity, accuracy, bits, word = (scores[prefix + f] for f in FIGURES)
        # A long name gets a line of its own, so that 80 columns are enough.
        label = f"{file}\n{'':<22}" if len(file) > 22 else file
        row = f"{label:<22}{loss:>7.3f}{_short(perplexity, 2):>12}{accuracy:>10.1%}"
        lines.append(f"{row}{bits:>11.3f}{_short(word, 1):>17}")
    return lines


def _short(perplexity: float, digits: int) -> str:
    """Format a perplexity. One too wide for its column is written as 1.23e+07."""
    return f"{perplexity:.{'2e' if perplexity >= 1e6 else f'{digits}f'}}"
