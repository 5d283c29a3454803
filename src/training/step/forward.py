"""The forward pass in training, with attention, compilation and loss that suit the hardware.

`build_forward` builds a function that replaces the `forward` of one model instance, so that
mixed precision, DDP and the Trainer wrap it like any other model's. Without labels or
in evaluation mode, it is the architecture's own forward pass. No decision depends on the name of
an architecture. Instead, both the original and the faster computation are applied to a few tokens,
and the faster one is used only if the results agree.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutput

from src.arguments import Arguments, TrainingArguments
from src.data.blocks import IGNORE_INDEX
from src.evaluation.scoring.network import (
    REFUSALS,
    Network,
    evaluating,
    num_positions,
)
from src.hardware import peak_flops
from src.training.decision import Decision
from src.training.step.document_masking import has_windows
from src.training.step.loss import NUM_LOGITS, fused_loss, loss_of_chunk
from src.training.step.regularization import with_random_tokens

# Names of attention functions for which transformers has no mask function. For others, it builds
# a mask if the step is compiled, which rules out the fused kernels. If the step is not compiled,
# it reads the values of the positions, which waits for the device.
CAUSAL, WRITTEN_OUT = "causal", "causal_written_out"
# Tolerance of the logits' comparison, in float32: a GPU may use TF32.
TOLERANCE = dict(atol=1e-3, rtol=1e-3)
# FLOP/s of a step that is not compiled, and the seconds of training above which compiling saves
# time. The values for the CPU were measured on two cores (150 GFLOP/s, 10 to 25 s to compile). A
# GPU reaches about a third of its peak; one that is not in the table is probably old.
FLOPS = {"cpu": 1.5e11, "cuda": 1e13}
MIN_SECONDS = {"cpu": 180, "cuda": 120}


def written_out(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention as two products and a softmax, which a compiler fuses.

    On a CPU this is faster than the library's kernel.

    Args:
        query: [B, heads, T, D].
        key, value: [B, groups, T, D].
        attention_mask: True where a token may attend [B, 1, T, T]; None: the causal mask.

    Returns:
        The output [B, T, heads, D], and None for the weights.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scale
    if attention_mask is None:
        positions = torch.arange(query.shape[-2], device=query.device)
        attention_mask = positions[:, None] >= positions
    scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    # In the products' dtype: autograd keeps the weights, a large part of its memory.
    weights = functional.softmax(scores, dim=-1, dtype=value.dtype)
    weights = functional.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL, sdpa_attention_forward)
AttentionInterface.register(WRITTEN_OUT, written_out)


@contextlib.contextmanager
def attention_of(model: PreTrainedModel, name: Optional[str]) -> Iterator[None]:
    """Use another attention within the block; None: the model's own."""
    config = model.base_model.config
    before = config._attn_implementation
    try:
        config._attn_implementation = name or before
        yield
    finally:
        config._attn_implementation = before


def choose_compilation(
    training: TrainingArguments,
    model: PreTrainedModel,
    dtype: torch.dtype,
    num_tokens: int,
) -> Decision[bool]:
    """Decide whether to compile the step, if each device trains on `num_tokens`.

    Args:
        dtype: dtype of the matrix products.
    """
    kind = model.device.type
    if training.torch_compile is not None:
        value = training.torch_compile
        reason = f"training.torch_compile={str(value).lower()}"
    elif kind not in FLOPS:
        value, reason = False, f"torch.compile is a prototype on {kind}"
    else:
        peak = peak_flops(model.device, dtype, bool(training.tf32))
        flops = 6 * model.num_parameters() * num_tokens
        value = flops / (peak / 3 if peak else FLOPS[kind]) > MIN_SECONDS[kind]
        reason = "a long run" if value else "a short run"
    return Decision(value, "compiled" if value else "not compiled", reason)


def choose_logit_chunk(
    training: TrainingArguments, model: PreTrainedModel, num_tokens: int
) -> Decision[Optional[int]]:
    """Decide for how many tokens, at most `num_tokens`, logits are in memory at once.

    None means all tokens of a micro-batch, with the architecture's own logits.
    """
    obstacles = {
        "the fused loss has no label smoothing": training.label_smoothing_factor,
        # The gradients are computed before the gradient scaler scales the loss.
        "the fused loss's gradients would underflow in float16": training.fp16,
        "training.logit_chunk=0": training.logit_chunk == 0,
        "the fused loss does not fit the architecture": not _has_plain_head(model),
        "the model adds a loss for its experts": balancing_coefficient(model),
    }
    reason = next((reason for reason, applies in obstacles.items() if applies), "")
    if reason:
        return Decision(None, "all logits at once", reason)
    vocab_size = model.get_output_embeddings().out_features
    num_logits = NUM_LOGITS.get(model.device.type, NUM_LOGITS["other"])
    chunk = training.logit_chunk or max(1, num_logits // vocab_size)
    chunk = min(chunk, num_tokens)
    return Decision(chunk, f"logits of {chunk} tokens at a time")


def balancing_coefficient(model: PreTrainedModel) -> float:
    """Return the factor of the load-balancing loss of a mixture of experts; 0: it has none.

    The library's models add this loss if their configuration has `output_router_logits`.
    """
    values = model.config.to_dict()
    if not values.get("output_router_logits"):
        return 0.0
    return next((x for k, x in values.items() if k.endswith("aux_loss_coef")), 0.0)


def _has_plain_head(model: PreTrainedModel) -> bool:
    """Return whether the logits are the last hidden states times one matrix."""
    head = model.get_output_embeddings()
    with evaluating(model):
        # The exact type, since a subclass may scale the logits, as Dory's does.
        is_plain = type(head) is nn.Linear and head.bias is None
        return is_plain and Network(model).head_is_all


def choose_attention(
    args: Arguments,
    model: PreTrainedModel,
    compiled: bool,
    masks_documents: bool,
) -> Decision[Optional[str]]:
    """Decide the attention of training; None: the model's own.

    Args:
        compiled: whether the step is compiled.
        masks_documents: whether our mask separates documents.
    """
    default, config = model.config._attn_implementation, model.base_model.config
    name = WRITTEN_OUT if compiled and model.device.type == "cpu" else CAUSAL
    keeps_positions = not (args.data.attend_across_documents or masks_documents)
    obstacles = {
        f"model.attn_implementation={default}": args.model.attn_implementation,
        "it finds the documents by their positions": keeps_positions,
        "the architecture's own": default != "sdpa" or has_windows(config),
        # Checkpointing must repeat exactly the same operations.
        "gradient checkpointing": name == WRITTEN_OUT
        and args.training.gradient_checkpointing,
    }
    reason = next((reason for reason, applies in obstacles.items() if applies), "")
    if not reason and not _gives_the_same_states(model, name):
        reason = "the architecture adds to the mask"
    if reason:
        return Decision(None, f"{default} attention", reason)
    if name == WRITTEN_OUT:
        return Decision(name, "attention written out", "for the compiler")
    return Decision(name, "causal attention", "no mask is needed")


def _gives_the_same_states(model: PreTrainedModel, attention: str) -> bool:
    """Return whether another attention gives the hidden states of the model's own attention.

    The states are compared for two sequences of up to 64 tokens.
    """
    size = model.base_model.config.get_text_config().vocab_size
    length = min(64, num_positions(model) or 64)
    ids = torch.arange(3, 2 * length + 3, device=model.device).view(2, length) % size
    with evaluating(model):
        expected = model.base_model(input_ids=ids)[0]
        try:
            with attention_of(model, attention):
                states = model.base_model(input_ids=ids)[0]
        except REFUSALS:
            return False
    return torch.allclose(states, expected, **TOLERANCE)


def build_forward(
    model: PreTrainedModel,
    attention: Optional[str] = None,
    logit_chunk: Optional[int] = None,
    compiled: bool = False,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    input_masking: float = 0.0,
) -> Callable[..., Any]:
    """Build the `forward` of a model in training.

    In training mode and with `labels` [B, T] (the next tokens), it returns the loss in nats,
    summed over the labels that are not `IGNORE_INDEX`. For a mixture of experts it also has the
    load-balancing loss, once for each of these labels. Otherwise it calls the model's own.

    Args:
        attention: the value of `choose_attention`.
        logit_chunk: the value of `choose_logit_chunk`.
        label_smoothing: share of the target distribution that is uniform; 0 with a chunk.
        z_loss: weight of the z-loss, which is added to the loss.
        input_masking: share of the inputs that are replaced by random tokens.
    """
    original, head = model.forward, model.get_output_embeddings()
    run = original if logit_chunk is None else model.base_model
    coefficient = balancing_coefficient(model)
    of_chunk = functools.partial(loss_of_chunk, z_loss=z_loss)
    if compiled:
        run, of_chunk = (torch.compile(f, dynamic=False) for f in (run, of_chunk))

    @functools.wraps(original)
    def forward(*args: Any, labels: Any = None, **inputs: Any) -> Any:
        if labels is None or not model.training:
            return original(*args, **inputs)
        if input_masking:
            ids = with_random_tokens(inputs["input_ids"], input_masking)
            inputs["input_ids"] = ids
        with attention_of(model, attention):
            output = run(*args, **inputs)
        if logit_chunk is None:
            loss = functional.cross_entropy(
                output.logits.flatten(0, 1).float(),
                labels.flatten(),
                ignore_index=IGNORE_INDEX,
                reduction="sum",
                label_smoothing=label_smoothing,
            )
            if z_loss:
                log_sums = output.logits.float().logsumexp(-1)[labels != IGNORE_INDEX]
                loss = loss + z_loss * (log_sums**2).sum()
            if coefficient and output.aux_loss is not None:
                num_labels = (labels != IGNORE_INDEX).sum()
                loss = loss + coefficient * output.aux_loss * num_labels
        else:
            hidden = output.last_hidden_state.flatten(0, 1)
            labels = labels.flatten()
            loss = fused_loss(hidden, head.weight, labels, logit_chunk, of_chunk)
        return CausalLMOutput(loss=loss)

    return forward
