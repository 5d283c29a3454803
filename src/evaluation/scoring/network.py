"""Log-probabilities of tokens, by a forward pass that computes no logits that are not read.

Only the outputs that a query reads go through the vocabulary layer, a few hundred at a time.
Tokens attend along the prefix tree if the architecture supports such a mask. Two properties are
tested on the model itself, not looked up by its name. The first is that it supports the mask.
The second is that its logits are the unchanged output of the vocabulary layer, since some
architectures transform, scale or cap them.
"""

import contextlib
import functools
import logging
from typing import Any, Callable, Iterator, Optional

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from src.evaluation.scoring import prefix_tree
from src.evaluation.scoring.prefix_tree import Batch, Row, Sequence, Wanted

LOGGER = logging.getLogger(__name__)
# Limits of the positions per forward pass, and of the logits that are computed at a time. Larger
# tensors do not fit into the cache of a CPU, and their memory is returned to the system, page by
# page, after each use.
MAX_CPU_TOKENS = 1024
MAX_CPU_LOGITS = 2**22
MAX_LOGITS = 2**27
TOLERANCE = dict(atol=1e-4, rtol=1e-5)  # nats; for float32 sums in another order
# Errors that architectures raise if they do not support a mask or a position argument.
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, AssertionError)


def num_positions(model: PreTrainedModel) -> Optional[int]:
    """Return the length in tokens of the model's context; None if it has no limit."""
    for name, module in model.named_modules():
        # RoBERTa's positions begin after the entry for padding.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            if module.padding_idx is not None:
                return module.num_embeddings - module.padding_idx - 1
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch off dropout, gradients and the key-value cache within the block."""
    training = [module for module in model.modules() if module.training]
    config = model.config.get_text_config()
    before = {"use_cache": config.use_cache} if hasattr(config, "use_cache") else {}
    model.eval()
    config.update(dict.fromkeys(before, False))
    try:
        with torch.no_grad():
            yield
    finally:
        config.update(before)
        for module in training:
            module.training = True


@contextlib.contextmanager
def autocast(model: PreTrainedModel, dtype: Optional[torch.dtype]) -> Iterator[None]:
    """Compute matrix products in `dtype`; None: in the weights' type.

    None also switches off an autocast of the caller. TF32 is off, even if training uses it.
    """
    enabled, before = dtype is not None, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(
            model.device.type, dtype or torch.bfloat16, enabled=enabled
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
    # A training step must not use weights that were cast without gradients.
    torch.clear_autocast_cache()


@contextlib.contextmanager
def fast_layers(model: PreTrainedModel, dtype: Optional[torch.dtype]) -> Iterator[None]:
    """Replace `forward` of some layers by a faster equivalent within the block.

    GELU's eight operations become one. On a CPU, float32 products use oneDNN with a copy of the
    weights in its layout, instead of MKL. With both, GPT2-Small on a CPU is 1.25 to 1.3 times as
    fast on BLiMP and AoA; in bfloat16 (GELU only) it is 1.0 to 1.07 times as fast.
    """
    has_onednn = model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    # Exact types only, since a subclass may compute something else.
    linear = (nn.Linear, Conv1D) if has_onednn and dtype is None else ()
    replaced = {}
    for module in model.modules():
        if "forward" in vars(module):
            continue  # another library has replaced it already
        if type(module) is NewGELUActivation:
            gelu = functools.partial(nn.functional.gelu, approximate="tanh")
            replaced[module] = gelu
        elif type(module) in linear and module.weight.dtype == torch.float32:
            # The functions are private, and torch may remove them.
            with contextlib.suppress(*REFUSALS, AttributeError):
                replaced[module] = _packed(module)
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        for module in replaced:
            del module.forward


def _packed(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the layer's `forward`, with weights in oneDNN's layout."""
    weight = layer.weight.detach()
    matrix = (weight.T if isinstance(layer, Conv1D) else weight).contiguous()
    matrix = torch.ops.mkldnn._reorder_linear_weight(matrix)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x.contiguous(), matrix, layer.bias, "none", [], "")


class Network:
    """A model in evaluation mode that computes no more logits than are read.

    Attributes:
        head_is_all: whether the model's logits are the vocabulary layer's output for the base
            model's states.
        base, head: the base model and the vocabulary layer. If `head_is_all` is false, `base`
            computes all logits, and `head` is the identity.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.vocab_size = model.get_input_embeddings().weight.shape[0]
        self.base, self.head = model.base_model, model.get_output_embeddings()
        # Not `model(...)`: accelerate wraps the instance's `forward` in training's autocast.
        forward = functools.partial(type(model).forward, model)
        self.head_is_all = self._gives_logits_of(forward)
        if not self.head_is_all:
            self.base, self.head = forward, nn.Identity()

    def _gives_logits_of(self, forward: Callable[..., Any]) -> bool:
        """Return whether head(base(ids)) equals the model's logits to the last bit.

        The comparison is exact, since a cap on logits changes small ones only a little.
        """
        if self.head is None or self.base is self.model:
            return False
        ids = torch.arange(1, 4, device=self.device)[None] % self.vocab_size
        expected = forward(input_ids=ids)[0]
        try:
            logits = self.head(self.base(input_ids=ids)[0])
        except REFUSALS:
            return False
        return torch.equal(logits.nan_to_num(), expected.nan_to_num())

    def batches(
        self, sequences: dict[Sequence, Wanted], causal: bool, batch_tokens: int
    ) -> list[Batch]:
        """Return all batches: of a prefix tree if it has branches and the model supports it."""
        if not self.head_is_all:
            batch_tokens = min(batch_tokens, MAX_LOGITS // self.vocab_size)
        rows = prefix_tree.tree_rows(sequences, batch_tokens) if causal else []
        tree = 0 < len(rows) < len(sequences) and self._takes_tree(rows, sequences)
        if not tree:
            rows = prefix_tree.single_rows(sequences)
        if self.device.type == "cpu":
            batch_tokens = min(batch_tokens, MAX_CPU_TOKENS)
        return list(prefix_tree.batches(rows, batch_tokens, tree))

    def _takes_tree(self, rows: list[Row], sequences: dict[Sequence, Wanted]) -> bool:
        """Return whether rows of the tree give the same results as single sequences.

        The row with the longest sequence is tested, since some layers attend only to a
        window. If it has no branches, the row with the most sequences is tested as well.
        """
        tested = [max(rows, key=lambda row: max(map(len, row.sequences)))]
        if len(tested[0].sequences) == 1:
            tested.append(max(rows, key=lambda row: len(row.sequences)))
        in_tree, chosen = {}, {}
        for row in tested:
            some = row.sequences[0], row.sequences[-1], max(row.sequences, key=len)
            chosen |= {ids: sequences[ids] for ids in some}
        singles = prefix_tree.single_rows(chosen)
        try:
            for batch in prefix_tree.batches(tested, 1, tree=True):
                in_tree |= dict(zip(batch.slots, self.log_probabilities(batch)))
            for batch in prefix_tree.batches(singles, 1, tree=False):
                alone = self.log_probabilities(batch)
                same = [in_tree[slot] for slot in batch.slots]
                if not np.allclose(same, alone, **TOLERANCE, equal_nan=True):
                    raise ValueError("results differ")
        except torch.OutOfMemoryError:
            raise  # the processes of a run must have the same batches
        except REFUSALS as error:
            LOGGER.info("no prefix tree for this architecture: %s", error)
            return False
        return True

    def log_probabilities(self, batch: Batch) -> np.ndarray:
        """Return the W log-probabilities of a batch in nats, float64, from float32 logits."""
        inputs = {"input_ids": torch.from_numpy(batch.ids).to(self.device)}
        if batch.tree:
            inputs["position_ids"] = torch.from_numpy(batch.depths).to(self.device)
            inputs["attention_mask"] = self._tree_mask(torch.from_numpy(batch.ends))
        outputs = self.base(**inputs)[0]
        # An output that several queries read goes through the vocabulary layer once.
        unique, row_of = np.unique(batch.outputs, return_inverse=True)
        outputs = outputs.flatten(0, 1)[torch.from_numpy(unique).to(self.device)]
        max_logits = MAX_CPU_LOGITS if self.device.type == "cpu" else MAX_LOGITS
        step = max(1, max_logits // self.vocab_size)
        answers = []
        for start in range(0, len(unique), step):
            begin, end = np.searchsorted(row_of, [start, start + step])
            rows = torch.from_numpy(row_of[begin:end] - start).to(self.device)
            targets = torch.from_numpy(batch.targets[begin:end]).to(self.device)
            logits = self.head(outputs[start : start + step]).float()
            answers.append(logits[rows, targets] - logits.logsumexp(-1)[rows])
        return torch.cat(answers).cpu().double().numpy()

    def _tree_mask(self, ends: torch.Tensor) -> torch.Tensor:
        """Return the mask [B, 1, T, T] with which a token sees only itself and its ancestors.

        It is added to the attention scores. A boolean mask would be converted in every layer.
        """
        ends = ends.to(self.device)[:, None, None, :]
        index = torch.arange(ends.shape[-1], device=self.device)
        seen = (index[:, None] >= index) & (index[:, None] < ends)
        dtype = self.model.dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        unseen = torch.finfo(dtype).min
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, unseen)
