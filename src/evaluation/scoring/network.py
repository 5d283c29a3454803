"""A model as a function from queries to log-probabilities: exact, and no larger than need be.

Only outputs that are asked for go through the vocabulary layer, some hundred at a time;
attention follows the prefix tree where the architecture takes such a mask. Whether it does, and
whether the vocabulary layer alone gives the model's logits (some architectures transform, scale
or cap them), is not looked up by name but tried.
"""

import contextlib
import functools
import logging
from typing import Callable, Iterator, Optional

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from src.evaluation.scoring.prefix_tree import (
    Batch,
    Query,
    Row,
    Sequence,
    Wanted,
    equal_length_batches,
    single_rows,
    tree_batches,
    tree_rows,
    wanted_of_sequences,
)
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)
# Positions of a forward pass and logits at a time: on a processor, larger tensors leave its
# cache and are given back to the system, page by page, after each use.
MAX_CPU_TOKENS = 1024
NUM_LOGITS = {"cpu": 2**22, "other": 2**27}
# Of a forward pass where the vocabulary layer cannot be called alone.
MAX_LOGITS = 2**27
TOLERANCE = dict(atol=1e-4, rtol=1e-5)  # nats: float32 sums in another order
# What architectures raise at a mask or a position argument they do not know.
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, AssertionError)


def log_probabilities(
    model: PreTrainedModel,
    queries: list[Query],
    causal: bool,
    batch_tokens: int = 16384,
    dtype: Optional[torch.dtype] = None,
    progress: Optional[str] = None,
) -> list[np.ndarray]:
    """Of each query, the log-probability in nats of each of its targets, float64.

    A query that is longer than the model's positions gets NaN.

    Args:
        causal: whether an output depends on nothing behind it; then prefixes are shared.
        batch_tokens: bound of the positions of a forward pass; a longer query goes alone.
        dtype: of matrix products (autocast); None for what the weights are.
        progress: label of a bar; None for no bar.

    Raises:
        UserError: the model gives NaN, with the first query's name.
    """
    ends = np.cumsum([len(query.targets) for query in queries], dtype=np.int64)
    answers = np.full(ends[-1] if len(ends) else 0, np.nan)
    limit = num_positions(model)
    sequences = wanted_of_sequences(queries, causal, limit)
    with _evaluating(model), _fast_layers(model, dtype):
        network = Network(model)
        with _autocast(model.device.type, None):
            batches = network.batches(sequences, causal, batch_tokens)
        with _autocast(model.device.type, dtype):
            for batch in tqdm(batches, progress, disable=progress is None):
                answers[batch.slots] = network.log_probabilities(batch)
    split = np.split(answers, ends[:-1]) if len(ends) else []
    for query, found in zip(queries, split):
        if np.isnan(found).any() and not is_too_long(query, limit):
            raise UserError(f"the model gives NaN for {query.name!r}")
    return split


def num_positions(model: PreTrainedModel) -> Optional[int]:
    """The longest sequence that the model reads; None where it has no such limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind the padding's entry on.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            if module.padding_idx is not None:
                return module.num_embeddings - module.padding_idx - 1
    return positions


def is_too_long(query: Query, limit: Optional[int]) -> bool:
    return limit is not None and len(query.ids) > limit


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No dropout, no gradients, no cache of keys and values; all as it was at the end."""
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
def _autocast(device: str, dtype: Optional[torch.dtype]) -> Iterator[None]:
    """Matrix products in `dtype`, or explicitly not: whoever calls may be in an autocast."""
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        yield
    # Weights that were cast without gradients must not serve a training step.
    torch.clear_autocast_cache()


@contextlib.contextmanager
def _fast_layers(
    model: PreTrainedModel, dtype: Optional[torch.dtype]
) -> Iterator[None]:
    """The same functions faster, as `forward` of the instances, which goes again at the end.

    GELU's eight operations in one pass over memory; float32 products with weights laid out
    for oneDNN instead of MKL, at the price of a copy of the matrices. Processor time with
    GPT2-Small, both together: 1.25x to 1.3x on BLiMP and AoA; in bf16 (GELU only) 1.0x to 1.07x.
    """
    layers = (nn.Linear, Conv1D)  # themselves: a subclass may compute something else
    packs = model.device.type == "cpu" and dtype is None
    packs = packs and torch.backends.mkldnn.is_available()
    changed = []
    try:
        for module in model.modules():
            if "forward" in vars(module):  # somebody else's
                continue
            if type(module) is NewGELUActivation:
                module.forward = functools.partial(
                    nn.functional.gelu, approximate="tanh"
                )
            elif packs and type(module) in layers:
                module.forward = _packed(module)
            else:
                continue
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _packed(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's `forward` with its weights in oneDNN's own layout, where they are float32."""
    plain, weight, bias = layer.forward, layer.weight.detach(), layer.bias
    if weight.dtype != torch.float32:
        return plain
    try:
        matrix = (weight.T if isinstance(layer, Conv1D) else weight).contiguous()
        matrix = torch.ops.mkldnn._reorder_linear_weight(matrix)
        product = torch.ops.mkldnn._linear_pointwise
    except (*REFUSALS, AttributeError):  # not public: another torch may lack it
        return plain

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return plain(x)
        return product(x.contiguous(), matrix, bias, "none", [], "")

    return forward


class Network:
    """A model that is evaluating, its forward pass taken apart where that is exact."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.vocab_size = model.get_input_embeddings().weight.shape[0]
        # Not model(...): accelerate wraps an instance's `forward` in the training's autocast.
        self.forward = functools.partial(type(model).forward, model)
        self.base = model.base_model
        self.head = model.get_output_embeddings()
        with _autocast(self.device.type, None):
            self.head_is_all = self._head_is_all()

    def _head_is_all(self) -> bool:
        """Whether the vocabulary layer over the base's states gives the model's logits.

        To the last bit: the same operations do, and a cap on small logits is a small change.
        """
        if self.head is None or self.base is self.model:
            return False
        ids = torch.arange(1, 4, device=self.device)[None] % self.vocab_size
        expected = self._logits(input_ids=ids)
        try:
            found = self.head(self.base(input_ids=ids)[0])
        except REFUSALS:
            return False
        return torch.equal(found.nan_to_num(), expected.nan_to_num())

    def _logits(self, **inputs: torch.Tensor) -> torch.Tensor:
        output = self.forward(**inputs)
        return output[0] if isinstance(output, tuple) else output.logits

    def batches(
        self, sequences: dict[Sequence, Wanted], causal: bool, batch_tokens: int
    ) -> list[Batch]:
        """All that is to be computed, as a tree if it has branches and the model takes them."""
        if not self.head_is_all:
            batch_tokens = min(batch_tokens, MAX_LOGITS // self.vocab_size)
        rows = tree_rows(sequences, batch_tokens) if causal else []
        if self.device.type == "cpu":
            batch_tokens = min(batch_tokens, MAX_CPU_TOKENS)
        if len(rows) < len(sequences) and rows and self._takes(rows, sequences):
            return list(tree_batches(rows, batch_tokens))
        return list(equal_length_batches(single_rows(sequences), batch_tokens))

    def _takes(self, rows: list[Row], sequences: dict[Sequence, Wanted]) -> bool:
        """Whether rows of the tree give what their sequences give one by one.

        Tried on a row of the task itself: that with the longest sequence, since some layers see
        a limited distance only; if it has no branches, on the one with the most as well.
        """
        tried = [max(rows, key=lambda row: max(map(len, row.sequences)))]
        if len(tried[0].sequences) == 1:
            tried.append(max(rows, key=lambda row: len(row.sequences)))
        try:
            return all(self._agrees(row, sequences) for row in tried)
        except REFUSALS as error:
            LOGGER.info("no prefix tree with this architecture: %s", error)
            return False

    def _agrees(self, row: Row, sequences: dict[Sequence, Wanted]) -> bool:
        (batch,) = tree_batches([row], len(row.ids))
        found = dict(zip(batch.slots, self.log_probabilities(batch)))
        some = {row.sequences[0], row.sequences[-1], max(row.sequences, key=len)}
        singles = single_rows({ids: sequences[ids] for ids in sorted(some)})
        for single in equal_length_batches(singles, 1):
            ours = [found[slot] for slot in single.slots]
            theirs = self.log_probabilities(single)
            if not np.allclose(ours, theirs, **TOLERANCE, equal_nan=True):
                LOGGER.info("no prefix tree with this architecture: other results")
                return False
        return True

    def log_probabilities(self, batch: Batch) -> np.ndarray:
        """What the batch wants [W], in nats, from float32 logits."""
        inputs = {"input_ids": torch.from_numpy(batch.ids).to(self.device)}
        if batch.ends is not None:
            inputs["position_ids"] = torch.from_numpy(batch.depths).to(self.device)
            inputs["attention_mask"] = self._tree_mask(torch.from_numpy(batch.ends))
        if self.head_is_all:
            outputs, head = self.base(**inputs)[0], self.head
        else:
            outputs, head = self._logits(**inputs), nn.Identity()
        places, which = np.unique(batch.places, return_inverse=True)
        outputs = outputs.flatten(0, 1)[torch.from_numpy(places).to(self.device)]
        num_logits = NUM_LOGITS.get(self.device.type, NUM_LOGITS["other"])
        step = max(1, num_logits // self.vocab_size)
        found = []
        for start in range(0, len(places), step):
            begin, end = np.searchsorted(which, [start, start + step])
            rows = torch.from_numpy(which[begin:end] - start).to(self.device)
            targets = torch.from_numpy(batch.targets[begin:end]).to(self.device)
            logits = head(outputs[start : start + step]).float()
            found.append(logits[rows, targets] - logits.logsumexp(-1)[rows])
        return torch.cat(found).double().cpu().numpy()

    def _tree_mask(self, ends: torch.Tensor) -> torch.Tensor:
        """A token sees itself and those before it that it lies below [B, 1, T, T].

        To be added to the scores: of a mask of booleans, every layer would make that anew.
        """
        ends = ends.to(self.device)[:, None, None, :]
        here = torch.arange(ends.shape[-1], device=self.device)
        seen = (here[:, None] >= here) & (here[:, None] < ends)
        dtype = self.model.dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        unseen = torch.finfo(dtype).min
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, unseen)
