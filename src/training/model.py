"""The model: any causal architecture of transformers, from scratch or from weights."""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from src.arguments import Arguments, ModelArguments, TrainingArguments
from src.data.packing.tokenizer import boundary_tokens
from src.data.prepare import named_tokenizer
from src.evaluation.models import find_checkpoints, load_config, load_model, loading
from src.evaluation.scoring.network import num_positions
from src.foundation import UserError, blaming, did_you_mean, naming, write_atomically
from src.hardware import memory_of
from src.training.optimization.optimizer import check_optimizer
from src.training.step.forward import CAUSAL, attention_of

# The architectures whose saved models give the same logits in transformers 4.51.3, which the
# challenge's pipeline pins. Models of 2 and 7 layers were compared, also with other rotary
# settings than the default ones: `tests/benchmarks/architectures.py` writes the file.
SAME_IN_CHALLENGE = Path(__file__).with_name("same_in_challenge.txt")
ROTARY_TYPES_IN_CHALLENGE = ("default", "linear", "dynamic", "yarn", "llama3")
# No model has more layers. Without this limit, building a model could take hours.
LAYERS, MAX_LAYERS = "num_hidden_layers", 1000
logger = logging.getLogger(__name__)
# Keys of rotary positions before transformers 5, which the constructors of configurations put into
# `rope_parameters`, and a value that no architecture has by default.
OLD_ROTARY = {
    "rope_theta": 3.0,
    "rope_scaling": {"rope_type": "linear", "factor": 3.0},
    "partial_rotary_factor": 0.375,
    "rotary_pct": 0.375,
    "rotary_emb_base": 3.0,
}


def model_config(args: Arguments) -> PretrainedConfig:
    """Return the model's configuration. It does not have the tokenizer's vocabulary yet.

    Raises:
        UserError: the architecture, the weights or the tokenizer do not exist, a key is
            unknown, the library cannot build the model, the model needs more memory than
            there is, blocks are longer than its context, or a training option cannot be used.
    """
    overrides = args.model.config_overrides or {}
    if not isinstance(overrides, dict):
        raise UserError(
            f"model.config_overrides must be {{key: value, …}}, got {overrides!r}"
        )

    def build(given: dict[str, Any]) -> Optional[PreTrainedModel]:
        model = _without_memory(args, given)
        fault = _fault(model) if model and given else None
        # Some architectures cannot compute without memory, whatever the overrides are.
        if fault and not _fault(_without_memory(args, {})):
            raise fault
        return model

    model = blaming(build, overrides, {}, "model.config_overrides")
    config = architecture(args.model)
    if model is None:
        positions = getattr(config, "max_position_embeddings", None)
    else:
        positions = num_positions(model)
        _check_memory(args.training, model.num_parameters())
    if positions is not None and args.data.block_size > positions:
        raise UserError(
            f"data.block_size={args.data.block_size} exceeds the model's {positions}"
            " positions"
        )
    check_optimizer(args.training, model)
    _warn_of_challenge(config)
    return config


def _without_memory(
    args: Arguments, overrides: dict[str, Any]
) -> Optional[PreTrainedModel]:
    """Return the model with these overrides. Its weights have shapes only.

    Returns:
        None for a model with Python code of its own, which may need memory.

    Raises:
        UserError: the vocabulary is too small, or an override would have no effect.
    """
    args = replace(args, model=replace(args.model, config_overrides=overrides))
    config = architecture(args.model)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return None
    _adopt_tokenizer(config, args, named_tokenizer(args.tokenizer, args.model))
    with torch.device("meta"):
        model = _with_random_weights(config, args.model)
    model.config.validate()  # as when it is saved
    final = model.config.to_dict()
    for name, value in overrides.items():
        used = final.get(config.attribute_map.get(name, name), value)
        if used is None or (type(used) is type(value) and used != value):
            raise UserError(
                f"model.config_overrides.{name}={value} has no effect: it is always {used}"
                " in this run"
            )
    return model


def _fault(model: PreTrainedModel) -> Optional[Exception]:
    """Return the error that a forward pass over shapes raises, if there is one."""
    model.base_model.warn_if_padding_and_no_attention_mask = lambda *args: None
    try:
        with attention_of(model, CAUSAL):
            model(torch.zeros(1, 2, dtype=torch.long, device="meta"))
    except (TypeError, ValueError):  # this attention does not suit the architecture
        return None
    except Exception as error:
        return error
    return None


def _check_memory(training: TrainingArguments, num_parameters: int) -> None:
    """Raise `UserError` if the model needs more memory than there is."""
    with_moments = training.optim in ("adamw_torch", "adamw_torch_fused")
    copies = 1 if not training.do_train else 4 if with_moments else 2
    needed, memory = 4 * copies * num_parameters, memory_of(training.device)
    if needed > memory:
        raise UserError(
            f"model: {num_parameters:,} parameters need {needed / 1e9:,.0f} GB with their"
            f" gradients and the optimizer's state; there are {memory / 1e9:,.0f} GB"
        )


def architecture(args: ModelArguments) -> PretrainedConfig:
    """Return the model's configuration with the user's overrides."""
    weights = args.model_name_or_path
    if weights:
        with _naming_weights(args):
            config = load_config(_directory(args), args.trust_remote_code)
    elif args.model_type not in CONFIG_MAPPING:
        hint = did_you_mean(args.model_type, CONFIG_MAPPING)
        raise UserError(
            f"model.model_type={args.model_type} is not an architecture of transformers"
            + hint
        )
    else:
        config = CONFIG_MAPPING[args.model_type]()
    config = _override(config, args.config_overrides or {}, from_scratch=not weights)
    own_code = args.trust_remote_code and getattr(config, "auto_map", None) or {}
    is_causal = type(config) in AutoModelForCausalLM._model_mapping
    is_causal = is_causal or "AutoModelForCausalLM" in own_code
    if not (is_causal and hasattr(config, "vocab_size")):
        raise UserError(f"model: {config.model_type} has no causal language model")
    if hasattr(config, "is_decoder"):
        config.is_decoder = True  # otherwise BERT and similar models see later tokens
    return config


def _override(
    config: PretrainedConfig, overrides: dict[str, Any], from_scratch: bool
) -> PretrainedConfig:
    """Return the configuration with the overrides.

    From scratch, values that depend on the overrides are computed anew: a Llama's `head_dim`
    is `hidden_size / num_attention_heads` unless it is given.
    """
    known, values = {**config.to_dict(), **config.attribute_map}, {}
    for name, value in overrides.items():
        key = f"model.config_overrides.{name}"
        is_old = from_scratch and name in OLD_ROTARY and _is_rotary(config, name)
        if name not in known and not is_old:
            hint = did_you_mean(str(name), known)
            raise UserError(f"unknown key `{key}` for {config.model_type}{hint}")
        own_name = config.attribute_map.get(name, name)
        least = int(own_name == config.attribute_map.get(LAYERS, LAYERS))
        if "layer" in name and type(value) is int and not least <= value <= MAX_LAYERS:
            raise UserError(
                f"{key} must be at least {least} and at most {MAX_LAYERS:,}, got {value}"
            )
        values[own_name] = value
    if from_scratch:
        return type(config)(**values)
    config.update(values)
    return config


def _is_rotary(config: PretrainedConfig, name: str) -> bool:
    """Return whether a key of `OLD_ROTARY` changes `rope_parameters` of this architecture."""
    before = vars(config).get("rope_parameters")
    changed = type(config)(**{name: OLD_ROTARY[name]})
    return before is not None and changed.rope_parameters != before


def _directory(args: ModelArguments) -> Path:
    """Return the directory of the initial weights, which are downloaded if necessary."""
    name, cache_dir = args.model_name_or_path, Path(args.cache_dir)
    models = find_checkpoints(name, args.revision, cache_dir, args.token)
    if len(models) > 1:
        raise UserError(f"there are {len(models)} models with this name")
    return models[0].directory


@contextlib.contextmanager
def _naming_weights(args: ModelArguments) -> Iterator[None]:
    """Turn every error in the block into a `UserError` that names the initial weights."""
    key = f"model.model_name_or_path={args.model_name_or_path}"
    with naming(key), loading("model.trust_remote_code"):
        yield


def _warn_of_challenge(config: PretrainedConfig) -> None:
    """Log a warning if the challenge's pipeline would compute something else with the model."""
    parameters = getattr(config, "rope_parameters", None) or {}
    full = (parameters.get("full_attention") or parameters).get("rope_type", "default")
    windows = (parameters.get("sliding_attention") or {}).get("rope_type", "default")
    types = ROTARY_TYPES_IN_CHALLENGE[: 1 if "olmo" in config.model_type else None]
    is_same = config.model_type in SAME_IN_CHALLENGE.read_text("utf-8").split()
    if not is_same or full not in types or windows != "default":
        logger.warning(
            "warning: the challenge's pipeline, which pins transformers 4.51.3, cannot load or"
            " does not reproduce %s",
            f"rope_type={full}" if is_same else f"a {config.model_type}",
        )


def build_model(
    args: Arguments, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Build the model in float32 on its device, with random or existing weights.

    Random weights are drawn from `training.seed`.

    Args:
        config: what `model_config` returned. It gets the tokenizer's vocabulary and special
            tokens.

    Raises:
        UserError: the vocabulary is too small, or the stored weights are not those of the
            configuration.
    """
    _adopt_tokenizer(config, args, tokenizer)
    set_seed(args.training.seed)
    if args.model.model_name_or_path:
        with _naming_weights(args.model):
            model = load_model(
                AutoModelForCausalLM,
                _directory(args.model),
                config,
                args.model.trust_remote_code,
                attn_implementation=args.model.attn_implementation,
            )
    else:
        model = _with_random_weights(config, args.model)
    # Blocks have no padding. The library would look for some, and wait for the device.
    model.base_model.warn_if_padding_and_no_attention_mask = lambda *args: None
    return model.to(args.training.device)


def _with_random_weights(
    config: PretrainedConfig, args: ModelArguments
) -> PreTrainedModel:
    """Return a model in float32 with random weights."""
    attention = args.attn_implementation
    return AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )


def _adopt_tokenizer(
    config: PretrainedConfig,
    args: Arguments,
    tokenizer: Optional[PreTrainedTokenizerBase],
) -> None:
    """Give the configuration the tokenizer's size and special tokens.

    Args:
        tokenizer: None: one that will be trained. It may learn nothing but 256 bytes and
            three special tokens.
    """
    if tokenizer is None:
        size, least, special = args.tokenizer.vocab_size, 259, (1, 2, 0)
    else:
        size = least = len(tokenizer)
        special = (*boundary_tokens(tokenizer), tokenizer.pad_token_id)
    overrides = args.model.config_overrides or {}
    if not (args.model.model_name_or_path or "vocab_size" in overrides):
        config.vocab_size = size
    if config.vocab_size < least:
        raise UserError(
            f"the model's vocabulary of {config.vocab_size:,} is too small for the tokenizer's"
            f" {least:,} entries"
        )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = special
    config.use_cache = False


def save_config(model: PreTrainedModel, directory: Path) -> None:
    """Add the keys to a saved `config.json` that transformers 4.51.3 reads, and the cache.

    The key-value cache is off in training, but speeds up generation.

    The challenge's pipeline pins this version. It ignores newer names, and would use its own
    defaults. For Gemma 2 it would use an attention that leaves out the cap on the scores.
    """
    file = directory / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    config = model.config
    names = [name for name in config.attribute_map if "expert" in name]
    old = {name: getattr(config, name) for name in names} | _old_rotary_keys(written)
    if not model._supports_sdpa:
        old["_attn_implementation"] = "eager"
    write_atomically(file, {**written, **old, "use_cache": True}, indent=2)


def _old_rotary_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary settings of a configuration under their names in transformers 4.51.3."""
    parameters = config.get("rope_parameters") or {}
    rotary = dict(parameters.get("full_attention") or parameters)
    if "rope_theta" not in rotary:
        return {}
    keys = {"rope_theta": rotary.pop("rope_theta")}
    if "partial_rotary_factor" in rotary:
        keys["partial_rotary_factor"] = rotary.pop("partial_rotary_factor")
    if config.get("model_type", "").startswith("gpt_neox"):
        keys["rotary_emb_base"] = keys["rope_theta"]
        keys["rotary_pct"] = keys["partial_rotary_factor"]
    if parameters.get("sliding_attention"):
        keys["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    rope_type = rotary.pop("rope_type", "default")
    if rope_type != "default":
        keys["rope_scaling"] = {**rotary, "rope_type": rope_type, "type": rope_type}
    return keys
