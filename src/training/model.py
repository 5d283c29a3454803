"""The model: any causal architecture of transformers, from scratch or from weights."""

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
    """Return the model's configuration. It does not have the tokenizer's vocabulary yet.

    Raises:
        UserError: the architecture or the weights do not exist, a key is unknown, blocks are
            longer than the model's context, or the optimizer does not suit the architecture.
    """
    config = architecture(args.model)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and args.data.block_size > positions:
        raise UserError(
            f"data.block_size={args.data.block_size} exceeds the model's {positions}"
            " positions"
        )
    check_optimizer(args.training, config)
    return config


def architecture(args: ModelArguments) -> PretrainedConfig:
    """Return the model's configuration with the user's overrides."""
    weights = args.model_name_or_path
    if weights:
        try:
            config = AutoConfig.from_pretrained(weights, **_hub_options(args))
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.model_name_or_path={weights}: {first_line(error)}"
            ) from error
    elif args.model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(args.model_type, list(CONFIG_MAPPING), n=3)
        raise UserError(
            f"model.model_type={args.model_type} is not an architecture of transformers"
            + (f"; near: {', '.join(close)}" if close else "")
        )
    else:
        config = CONFIG_MAPPING[args.model_type]()
    config = _override(config, args.config_overrides or {}, from_scratch=not weights)
    is_causal = type(config) in AutoModelForCausalLM._model_mapping
    if not (is_causal and hasattr(config, "vocab_size")):
        raise UserError(f"model: {config.model_type} has no causal language model")
    if hasattr(config, "is_decoder"):
        config.is_decoder = True  # otherwise BERT and similar models see later tokens
    return config


def _override(
    config: PretrainedConfig, overrides: Any, from_scratch: bool
) -> PretrainedConfig:
    """Return the configuration with the overrides.

    From scratch, values that depend on the overrides are computed anew: a Llama's `head_dim`
    is `hidden_size / num_attention_heads` unless it is given.
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
    values = {config.attribute_map.get(k, k): v for k, v in overrides.items()}
    try:
        if from_scratch:
            return type(config)(**values)
        config.update(values)
        return config
    except (StrictDataclassError, ValueError, TypeError, ZeroDivisionError) as error:
        last_line = str(error).strip().split("\n")[-1].strip()
        raise UserError(f"model.config_overrides: {last_line}") from error


def _hub_options(args: ModelArguments) -> dict[str, Any]:
    cache_dir = Path(args.cache_dir) / "hub"
    return dict(revision=args.revision or "main", token=args.token, cache_dir=cache_dir)


def build_model(
    args: Arguments, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Build the model in float32 on its device, with random or existing weights.

    Random weights are drawn from `training.seed`. The configuration gets the tokenizer's
    vocabulary and special tokens.

    Raises:
        UserError: the vocabulary is too small, or the library cannot build the model.
    """
    weights, overrides = args.model.model_name_or_path, args.model.config_overrides
    if not weights and "vocab_size" not in (overrides or {}):
        config.vocab_size = len(tokenizer)
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"the model's vocabulary of {config.vocab_size:,} is too small for the tokenizer's"
            f" {len(tokenizer):,} entries"
        )
    config.bos_token_id, config.eos_token_id = boundary_tokens(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.use_cache = False
    options: dict[str, Any] = dict(dtype=torch.float32)
    if args.model.attn_implementation:
        options["attn_implementation"] = args.model.attn_implementation
    set_seed(args.training.seed)
    try:
        if weights:
            options |= {"config": config, **_hub_options(args.model)}
            model = AutoModelForCausalLM.from_pretrained(weights, **options)
        else:
            model = AutoModelForCausalLM.from_config(config, **options)
    except (ValueError, ImportError, OSError, TypeError, KeyError) as error:
        raise UserError(
            f"model: cannot build {config.model_type}: {first_line(error)}"
        ) from error
    # Blocks have no padding. The library would look for some, and wait for the device.
    model.base_model.warn_if_padding_and_no_attention_mask = lambda *args: None
    return model.to(args.training.device)
