"""The end of a run: scores, a few texts, the saved model and its card."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from src.arguments import FIGURES, Arguments
from src.data.prepare import Data, unigram_perplexity
from src.evaluation.suite import is_score, is_share, of_whole_tasks
from src.training.record import card
from src.training.record.run_record import RunRecord
from src.training.trainer import LanguageModelTrainer

logger = logging.getLogger(__name__)


def finish(
    trainer: LanguageModelTrainer,
    args: Arguments,
    data: Data,
    record: RunRecord,
) -> dict[str, float]:
    """Score, save and show the final model; then the run is finished. Returns the scores."""
    scores = final_scores(trainer, args, data)
    if args.training.do_train:
        save(trainer, args, data, scores, record.command)
    if not trainer.is_world_process_zero():
        return scores
    number = args.evaluation.num_generated_texts
    if number:
        set_seed(args.training.seed)
        length = min(40, args.data.block_size)
        texts = generate(trainer.model, trainer.tokenizer, number, length)
        lines = ["  " + " / ".join(text.split("\n")) for text in texts]
        logger.info("\nWritten by the model:\n%s", "\n".join(lines))
    logger.info("\n%s\n\nResults: %s", table(scores), record.directory)
    record.finish(scores)
    return scores


def final_scores(
    trainer: LanguageModelTrainer, args: Arguments, data: Data
) -> dict[str, float]:
    """Everything that is reported of the final model, flat: {"eval_loss": 3.1, …}."""
    scores: dict[str, float] = {}
    state = trainer.state
    if trainer.average_kept:
        scores["averaged_steps"] = trainer.weight_average.steps
    elif args.training.load_best_model_at_end and state.best_global_step is not None:
        if state.best_global_step != state.global_step:
            logger.info(
                "The final model is the best one, that of step %d:",
                state.best_global_step,
            )
            words = trainer.plan.words_seen(state.best_global_step)
            scores.update(best_step=state.best_global_step, best_words_seen=words)
    if args.training.do_eval:
        scores.update(trainer.evaluate())
        if data.train_stream is not None:
            scores["eval_unigram_perplexity"] = unigram_perplexity(
                data.train_stream, data.validation, len(trainer.tokenizer)
            )
    elif trainer.task_scores is not None:
        found = trainer.task_scores.score(trainer.model, trainer.tokenizer, final=True)
        scores.update({f"eval_{name}": score for name, score in found.items()})
        trainer.log({f"eval_{name}": score for name, score in found.items()})
    if args.training.do_train:
        scores.update(steps=trainer.state.global_step, epochs=trainer.state.epoch)
        scores["words_seen"] = trainer.plan.words_seen(trainer.state.global_step)
    return scores


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, number: int, length: int
) -> list[str]:
    """`number` texts that the model writes from BOS, up to `length` tokens each."""
    model.eval()
    start = torch.full((number, 1), model.config.bos_token_id, device=model.device)
    texts = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        top_p=0.9,
        max_length=length,
        pad_token_id=model.config.eos_token_id,
    )
    return [
        text.strip() for text in tokenizer.batch_decode(texts, skip_special_tokens=True)
    ]


def save(
    trainer: LanguageModelTrainer,
    args: Arguments,
    data: Data,
    scores: dict[str, float],
    command: str,
) -> None:
    """The final model, its tokenizer and its card, in the run's directory."""
    model = trainer.model
    model.config.use_cache = True  # off while training; generating is slow without
    run_dir = Path(args.training.output_dir)
    staging = (
        run_dir / ".model"
    )  # moved when complete: no half-written file has its name
    trainer.save_model(str(staging))
    weights = args.model.model_name_or_path
    stream = data.train_stream
    facts = {
        "title": f"{args.wandb.group}/{args.wandb.name}",
        "origin": (
            f"Trained further from {weights}" if weights else "Trained from scratch"
        ),
        "command": command,
        "model_type": model.config.model_type,
        "parameters": model.num_parameters(),
        "block_size": args.data.block_size,
        "files": ", ".join(file["name"] for file in stream.files),
        "corpus_words": stream.info["words"],
        "corpus_tokens": stream.info["tokens"],
        "words_seen": scores["words_seen"],
        "epochs": scores["epochs"],
        "steps": scores["steps"],
        "chosen": chosen(scores),
        "vocab_size": len(trainer.tokenizer),
        "tokenizer": args.tokenizer.name_or_path
        or weights
        or "trained on the same text",
        "eval_files": ", ".join(data.validation_names),
    }
    named = {key.removeprefix("eval_"): score for key, score in scores.items()}
    shown = {name: named[name] for name in FIGURES if name in named}
    shown |= {name: named[name] for name in of_whole_tasks(named)}
    if trainer.is_world_process_zero():
        card.write(staging, facts, shown)
        for file in staging.iterdir():
            os.replace(file, run_dir / file.name)
        staging.rmdir()


def _short(perplexity: float, digits: int) -> str:
    """With so many digits behind the point; a huge one would be wider than its column."""
    return f"{perplexity:.{'2e' if perplexity >= 1e6 else f'{digits}f'}}"


def chosen(scores: dict[str, Any]) -> str:
    """Which model of the run it is, where it is not the last."""
    if "best_step" not in scores:
        return ""
    return (
        f"; the model is that of step {scores['best_step']:,}, after"
        f" {scores['best_words_seen']:,} words"
    )


def table(scores: dict[str, Any]) -> str:
    """The scores as a small table: one row a file, then the tasks."""
    suffix = "_bits_per_byte"
    rows = [key[len("eval_") : -len(suffix)] for key in scores if key.endswith(suffix)]
    rows = [row for row in rows if f"eval_{row}_loss" in scores]
    lines = []
    if "eval_loss" in scores:
        lines.append(
            f"{'':<24}{'loss':>9}{'perplexity':>12}{'accuracy':>10}{'bits/byte':>11}"
            f"{'perplexity/word':>17}"
        )
        for row in [*rows, ""]:
            prefix = f"eval_{row}_" if row else "eval_"
            loss, perplexity, accuracy, bits, word = (
                scores[prefix + f] for f in FIGURES
            )
            lines.append(
                f"{row or 'all':<24}{loss:>9.3f}{_short(perplexity, 2):>12}"
                f"{accuracy:>10.1%}{bits:>11.3f}{_short(word, 1):>17}"
            )
    if "eval_unigram_perplexity" in scores:
        lines.append(
            f"{'(unigram)':<24}{'':>9}{scores['eval_unigram_perplexity']:>12.2f}"
        )
    for key, score in scores.items():
        if is_score(name := key.removeprefix("eval_")):
            label = name.replace("pairs_", "pairs: ")
            # As `run_eval` has them; what is no share of right choices has no percent sign.
            figure = f"{score:.1%}" if is_share(name) else f"{100 * score:.2f}"
            lines.append(f"{label:<43}{figure:>12}")
    if "words_seen" in scores:
        lines.append(
            f"{scores['words_seen']:,} words seen in {scores['epochs']:.4g} epochs,"
            f" {scores['steps']:,} steps{chosen(scores)}"
        )
    return "\n".join(lines)
