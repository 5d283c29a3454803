"""Every causal architecture of transformers that can be built tiny, compared twice.

    python -m tests.benchmarks.architectures losses
    python -m tests.benchmarks.architectures challenge <python with transformers 4.51.3>

`losses` compares the loss that training computes with the model's own, for every architecture
whose own loss is the mean cross-entropy of the next token, perhaps with a load-balancing loss of
its experts. It prints the differences, and what cannot be built.

`challenge` saves each model as a run does, loads it in transformers 4.51.3, which the challenge's
pipeline pins, and compares the logits. The models have other rotary settings than the default
ones. It writes `src/training/same_in_challenge.txt`, which is what warnings are based on.

The environment of transformers 4.51.3 is made by
`python -m venv old && old/bin/pip install torch transformers==4.51.3`.
"""

import copy
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from src.arguments import TrainingArguments
from src.data.blocks import IGNORE_INDEX
from src.training.model import SAME_IN_CHALLENGE, save_config
from src.training.step.forward import build_forward, choose_logit_chunk

MAX_PARAMETERS = 20_000_000
# Values of the keys that an architecture has.
SIZES = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64, head_dim=8,
    n_embd=32, n_layer=2, n_head=4, n_positions=64, ffn_dim=48, num_experts=4,
    num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_routed_experts=4,
    shared_expert_intermediate_size=16, sliding_window=16, q_lora_rank=8, kv_lora_rank=8,
    qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1,
    d_model=32, num_layers=2, num_heads=4,
)  # fmt: skip
SPECIAL_TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
BART = dict(
    encoder_layers=1, decoder_layers=2, decoder_attention_heads=4,
    encoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=32,
)  # fmt: skip
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1)
OF_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "gptj": dict(rotary_dim=8),
    "codegen": dict(rotary_dim=8),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=16),
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "jamba": dict(
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=4, use_mamba_kernels=False,
    ),
    "nemotron": dict(num_key_value_heads=2, head_dim=8),
    "reformer": dict(
        is_decoder=True, axial_pos_embds=False, attn_layers=["local"] * 2,
        local_attn_chunk_length=40,
    ),
    "xmod": dict(default_language="en_XX"),
    "deepseek_v3": dict(
        num_key_value_heads=4, head_dim=8, first_k_dense_replace=1, n_shared_experts=1
    ),
    "mpt": dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "roc_bert": dict(
        pronunciation_vocab_size=50, shape_vocab_size=50, pronunciation_embed_dim=8,
        shape_embed_dim=8,
    ),
}  # fmt: skip
OF_ARCHITECTURE |= dict.fromkeys(
    "bart mbart marian pegasus plbart mvp blenderbot blenderbot-small whisper".split(),
    BART,
)
# Runs in transformers 4.51.3: prints the largest relative difference of the logits.
COMPARE = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, logging
logging.set_verbosity_error()
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    ids, logits = torch.load(folder / "logits.pt")
    try:
        options = dict(torch_dtype=torch.float32, output_loading_info=True)
        model, info = AutoModelForCausalLM.from_pretrained(folder, **options)
        assert not any(info[key] for key in ("missing_keys", "mismatched_keys")), info
        with torch.no_grad():
            difference = (model.eval()(input_ids=ids).logits - logits).abs().max()
        found[folder.name] = (difference / logits.abs().max()).item()
    except Exception as error:
        found[folder.name] = (str(error).strip() or repr(error)).split("\\n")[0]
print(json.dumps(found))
"""


def values_of(model_type: str, rotary: bool) -> dict[str, Any]:
    """Return small values for an architecture, and other rotary settings if asked for."""
    default = CONFIG_MAPPING[model_type]()
    known = {**default.to_dict(), **default.attribute_map}
    sizes = {k: v for k, v in SIZES.items() if getattr(default, k, None) is not None}
    values = {k: v for k, v in {**sizes, **SPECIAL_TOKENS}.items() if k in known}
    if "head_dim" in known:
        values["head_dim"] = 8
    parameters = copy.deepcopy(getattr(default, "rope_parameters", None))
    if rotary and parameters:
        nested = [x for x in parameters.values() if isinstance(x, dict)]
        for layer in nested or [parameters]:
            layer["rope_theta"] = 100.0
            if "partial_rotary_factor" in layer:
                layer["partial_rotary_factor"] = 0.5
        values["rope_parameters"] = parameters
    return {**values, **OF_ARCHITECTURE.get(model_type, {})}


def models(rotary: bool, **values: Any) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield every architecture with random weights of a size that makes each of them matter.

    Args:
        rotary: whether rotary settings differ from the default ones.
        values: further values, for architectures that have such a key.
    """
    for model_type in sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        try:
            config = CONFIG_MAPPING[model_type](**values_of(model_type, rotary))
            for key, value in values.items():
                if hasattr(config, key):
                    setattr(config, key, value)
            with torch.device("meta"):  # without memory for the weights
                size = AutoModelForCausalLM.from_config(config).num_parameters()
            if size > MAX_PARAMETERS:
                raise ValueError(f"{size:,} parameters")
            model = AutoModelForCausalLM.from_config(config).float().eval()
            generator = torch.manual_seed(1)
            for weight in model.parameters():
                noise = 0.2 * torch.randn(weight.shape, generator=generator)
                weight.data.copy_(noise + (weight.dim() == 1))
            model(input_ids=torch.arange(3, 43)[None])
        except Exception as error:
            reason = (str(error).strip() or repr(error)).split("\n")[-1]
            print(f"{model_type:24}cannot be built: {reason.strip()[:90]}")
            continue
        yield model_type, model


def losses() -> None:
    """Compare the training loss with the model's own."""
    training = TrainingArguments(use_cpu=True)
    for name, model in models(False, output_router_logits=True, use_cache=False):
        ids = torch.randint(3, 99, (2, 24), generator=torch.manual_seed(1))
        labels = F.pad(ids[:, 1:], (0, 1), value=IGNORE_INDEX)
        try:
            own = model(input_ids=ids, labels=ids)
            logits = own.logits.flatten(0, 1)
            cross_entropy = F.cross_entropy(logits, labels.flatten())
            added = own.loss - cross_entropy
            chunk = choose_logit_chunk(training, model, 7).value
            forward = build_forward(model, logit_chunk=chunk)
            model.training = True  # not its modules, which would drop out
            ours = forward(input_ids=ids, labels=labels).loss / (2 * 23)
            difference = f"{(ours - own.loss).item():+.5f}"
        except Exception as error:
            difference, added = f"fails: {error!r}"[:90], 0.0
        experts = getattr(own, "aux_loss", None) is not None
        print(
            f"{name:24}{difference:>10}  own - cross-entropy {float(added):+.5f}{'  experts' * experts}"
        )


def challenge(python: str) -> None:
    """Compare the logits here and in transformers 4.51.3, and write the names that agree."""
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(True):
            ids = torch.randint(3, 99, (1, 40), generator=torch.manual_seed(1))
            with torch.no_grad():
                logits = model(input_ids=ids).logits
            try:
                model.save_pretrained(Path(folder, name))
                save_config(model, Path(folder, name))
            except Exception as error:
                print(f"{name:24}cannot be saved: {error}")
                shutil.rmtree(Path(folder, name))
                continue
            torch.save((ids, logits), Path(folder, name, "logits.pt"))
        command = [python, "-c", COMPARE, folder]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    same = [k for k, x in found.items() if isinstance(x, float) and x < 1e-4]
    for name, difference in found.items():
        if name not in same:
            print(f"{name:24}{str(difference)[:120]}")
    SAME_IN_CHALLENGE.write_text("\n".join(same) + "\n", encoding="utf-8")
    print(f"{len(same)} architectures agree: {', '.join(same)}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    command, *arguments = sys.argv[1:]
    {"losses": losses, "challenge": challenge}[command](*arguments)
