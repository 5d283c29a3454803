"""The network: any causal architecture of transformers, from scratch or from weights."""

import difflib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from src.arguments import Arguments, ModelArguments
from src.data.packing.tokenizer import boundary_tokens
from src.foundation import UserError, first_line
from src.training.optimization.optimizer import check_optimizer


def model_config(args: Arguments) -> PretrainedConfig:
    """Return the configuration that the arguments describe, without the tokenizer's part.

    Raises:
        UserError: no such architecture or weights, an unknown key, blocks that are longer than
            the model's positions, or an optimizer that does not fit.
    """
    config = architecture(args.model)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and args.data.block_size > positions:
        raise UserError(
            f"data.block_size={args.data.block_size} is beyond the model's {positions}"
            " positions"
        )
    check_optimizer(args.training, config)
    return config


def architecture(args: ModelArguments) -> PretrainedConfig:
    """Return the model's configuration, with the overrides."""
    if args.model_name_or_path:
        try:
            config = AutoConfig.from_pretrained(args.model_name_or_path, **_hub(args))
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.model_name_or_path={args.model_name_or_path}:"
                f" {first_line(error)}"
            ) from error
    elif args.model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(args.model_type, list(CONFIG_MAPPING), n=3)
        raise UserError(
            f"model.model_type={args.model_type} is no architecture of transformers"
            + (f"; near: {', '.join(close)}" if close else "")
        )
    else:
        config = CONFIG_MAPPING[args.model_type]()
    config = _override(config, args.config_overrides or {}, not args.model_name_or_path)
    if type(config) not in AutoModelForCausalLM._model_mapping or not hasattr(
        config, "vocab_size"
    ):
        raise UserError(f"model: {config.model_type} has no causal language model")
    if hasattr(config, "is_decoder"):
        config.is_decoder = True  # BERT and its kin would see the next tokens
    return config


def _override(
    config: PretrainedConfig, overrides: Any, from_scratch: bool
) -> PretrainedConfig:
    """Return the configuration with the overrides.

    From scratch, what is computed from other values follows them: a Llama's `head_dim` is
    `hidden_size / num_attention_heads` unless it is given.
    """
    if not isinstance(overrides, dict):
        raise UserError(
            f"model.config_overrides must be {{key: value, …}}, got {overrides!r}"
        )
    known = {**config.to_dict(), **config.attribute_map}
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise UserError(
                f"unknown key `model.config_overrides.{name}` for {config.model_type}"
                + (f"; did you mean `{close[0]}`?" if close else "")
            )
    values = {
        config.attribute_map.get(name, name): overrides[name] for name in overrides
    }
    try:
        if from_scratch:
            return type(config)(**values)
        for name, value in values.items():
            setattr(config, name, value)
        return config
    except (StrictDataclassError, ValueError, TypeError, ZeroDivisionError) as error:
        last_line = str(error).strip().split("\n")[-1].strip()
        raise UserError(f"model.config_overrides: {last_line}") from error


def _hub(args: ModelArguments) -> dict[str, Any]:
    return dict(
        revision=args.revision or "main",
        token=args.token,
        cache_dir=Path(args.cache_dir) / "hub",
    )


def build_model(
    args: Arguments, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Build the model in float32 on its device, with random or existing weights.

    Random weights are drawn from `training.seed`. The configuration gets the tokenizer's
    vocabulary and special tokens.

    Raises:
        UserError: the vocabulary is too small, or the library cannot build the model.
    """
    model_args = args.model
    has_own_vocabulary = "vocab_size" in (model_args.config_overrides or {})
    if not (has_own_vocabulary or model_args.model_name_or_path):
        config.vocab_size = len(tokenizer)
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"the model's vocabulary of {config.vocab_size:,} does not hold the tokenizer's"
            f" {len(tokenizer):,} entries"
        )
    config.bos_token_id, config.eos_token_id = boundary_tokens(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.use_cache = False
    options: dict[str, Any] = dict(dtype=torch.float32)
    if model_args.attn_implementation:
        options["attn_implementation"] = model_args.attn_implementation
    set_seed(args.training.seed)
    try:
        if model_args.model_name_or_path:
            model = AutoModelForCausalLM.from_pretrained(
                model_args.model_name_or_path,
                config=config,
                **options,
                **_hub(model_args),
            )
        else:
            model = AutoModelForCausalLM.from_config(config, **options)
    except (ValueError, ImportError, OSError, TypeError, KeyError) as error:
        raise UserError(
            f"model: cannot build {config.model_type}: {first_line(error)}"
        ) from error
    # It looks for padding, of which blocks have none, and waits for the device to do so.
    model.base_model.warn_if_padding_and_no_attention_mask = lambda *args: None
    return model.to(args.training.device)
