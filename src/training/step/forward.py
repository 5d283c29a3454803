"""The forward pass of a training step, as fast as the hardware: attention, compiler, loss.

What trains is `model.forward(labels=…)` of the instance, so that mixed precision, DDP and the
Trainer wrap it as they wrap any model; without labels, and where the model evaluates, it is
the architecture's own. What an architecture does not agree with is found by trying: a few
tokens must get the same numbers both ways.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutput

from src.data.blocks import IGNORE_INDEX
from src.evaluation.scoring.network import REFUSALS, Network, num_positions
from src.training.step.document_masking import has_windows
from src.training.step.loss import Chunk, chunk_tokens, fused_loss, loss_of_chunk

logger = logging.getLogger(__name__)

# Names of attention without a mask function. For those that have one, transformers makes a
# mask while it compiles, needed or not, and looks at the position's values while it does not:
# the first costs the fused kernels, the second waits for the device.
CAUSAL, WRITTEN_OUT = "causal", "causal_written_out"
NEAR = dict(atol=1e-3, rtol=1e-3)  # logits of the trial, float32; a GPU may use TF32


@dataclass
class FastForward:
    """What the forward pass of a step consists of; None or False: the architecture's own.

    `chunk` is the number of tokens whose logits exist at once; None: the micro-batch's.
    """

    attention: Optional[str] = None
    chunk: Optional[int] = None
    compiled: bool = False


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
    """Causal attention as two products and a softmax, which a compiler fuses.

    On a processor faster than the library's kernel. Queries [B, heads, T, D], keys and values
    [B, groups, T, D] → [B, T, heads, D].
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scale
    if attention_mask is None:
        here = torch.arange(query.shape[-2], device=query.device)
        attention_mask = here[:, None] >= here
    if attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + attention_mask.to(scores.dtype)
    # In the products' own type: autograd keeps it, a large part of what there is to keep.
    weights = functional.softmax(scores, dim=-1, dtype=value.dtype)
    weights = functional.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL, sdpa_attention_forward)
AttentionInterface.register(WRITTEN_OUT, written_out)


@contextlib.contextmanager
def attention_of(model: PreTrainedModel, name: Optional[str]) -> Iterator[None]:
    """The model with this attention while the block lasts."""
    config = model.base_model.config
    own = config._attn_implementation
    try:
        config._attn_implementation = name or own
        yield
    finally:
        config._attn_implementation = own


@torch.no_grad()
def find_fast_forward(
    model: PreTrainedModel, compiles: bool, chunk: Optional[int] = None
) -> FastForward:
    """What fits a model, on its device.

    Args:
        compiles: whether the step shall be compiled.
        chunk: tokens whose logits exist at once; None: what suits the device, 0: all.
    """
    training = model.training
    model.eval()
    found = FastForward(compiled=compiles)
    head = model.get_output_embeddings()
    if chunk != 0 and Network(model).head_is_all:
        if isinstance(head, nn.Linear) and head.bias is None:
            found.chunk = chunk or chunk_tokens(head.out_features, model.device)
            found.attention = _attention(model, compiles)
    model.train(training)
    return found


def _attention(model: PreTrainedModel, compiles: bool) -> Optional[str]:
    """The fastest attention that gives the same states; None where the model's own stays."""
    config = model.base_model.config
    if config._attn_implementation != "sdpa" or has_windows(config):
        return None
    name = WRITTEN_OUT if compiles and model.device.type == "cpu" else CAUSAL
    size = config.get_text_config().vocab_size
    length = min(64, num_positions(model) or 64)
    ids = torch.arange(3, 2 * length + 3, device=model.device).view(2, length) % size
    expected = model.base_model(input_ids=ids)[0]
    try:
        with attention_of(model, name):
            found = model.base_model(input_ids=ids)[0]
    except REFUSALS:
        return None
    return name if torch.allclose(found, expected, **NEAR) else None


def install(
    model: PreTrainedModel, fast: FastForward, label_smoothing: float = 0.0
) -> None:
    """Make `model(labels=…)` in training the fast one, which gives the summed loss.

    `labels` [B, T] are the next tokens; those that are IGNORE_INDEX do not count.
    """
    original, head = model.forward, model.get_output_embeddings()
    run: Callable[..., Any] = original if fast.chunk is None else model.base_model
    of_chunk: Chunk = loss_of_chunk
    if fast.compiled:
        run, of_chunk = compiled(run, of_chunk)

    @functools.wraps(original)
    def forward(
        *args: Any, labels: Optional[torch.Tensor] = None, **inputs: Any
    ) -> Any:
        if labels is None or not model.training:
            return original(*args, **inputs)
        with attention_of(model, fast.attention):
            output = run(*args, **inputs)
        if fast.chunk is None:
            loss = functional.cross_entropy(
                output.logits.flatten(0, 1).float(),
                labels.flatten(),
                ignore_index=IGNORE_INDEX,
                reduction="sum",
                label_smoothing=label_smoothing,
            )
        else:
            hidden = output.last_hidden_state.flatten(0, 1)
            labels = labels.flatten()
            loss = fused_loss(hidden, head.weight, labels, fast.chunk, of_chunk)
        return CausalLMOutput(loss=loss)

    model.forward = forward


def compiled(*functions: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions, compiled; themselves where this machine cannot, said once for all."""
    from torch._dynamo.exc import TorchDynamoException  # a second of a start

    is_told = False

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        fast = torch.compile(function, dynamic=False)

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal fast, is_told
            try:
                return fast(*args, **kwargs)
            except TorchDynamoException as error:
                if fast is function:
                    raise
                first = str(error).strip().split("\n")[0]
                if not is_told:
                    logger.warning(
                        "torch.compile fails here, going on without: %s", first
                    )
                fast, is_told = function, True
                return fast(*args, **kwargs)

        return run

    return [guarded(function) for function in functions]
