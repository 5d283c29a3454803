"""Values that are refused before the data is read: arguments -> message."""

import pytest

from src.configuration.errors import explain
from src.configuration.run_configuration import run_configuration
from src.training.model import model_config

SAMPLE = ("+model=gpt2-tiny", "+dataset=sample")
LLAMA = (
    "model.model_type=llama",
    "model.config_overrides={hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,"
    " num_attention_heads: 4, %s}",
)
ROBERTA = (
    "model.model_type=roberta",
    "model.config_overrides={hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,"
    " num_attention_heads: 2, max_position_embeddings: %s}",
)
GPT2 = (
    "model.model_type=gpt2",
    "model.config_overrides={n_layer: 1, n_embd: 768, %s}",
)


@pytest.fixture
def refusal(composed):
    """`refusal(*overrides)`: the message that refuses them, without any data."""

    def call(*overrides: str) -> str:
        try:
            model_config(run_configuration(composed(*overrides)).args)
        except Exception as error:
            return explain(error)
        return ""

    return call


# Each row: what is typed after SAMPLE, and what the message says.
VALUES = """
training.seed=-1 | training.seed must be at least 0 and at most 4,294,967,295, got -1
training.seed=4294967296 | training.seed must be at least 0 and at most 4,294,967,295
training.data_seed=-1 | training.data_seed must be at least 0
training.max_steps=0 | training.max_steps must be at least 1, got 0
training.max_steps=-5 | training.max_steps must be at least 1, got -5
training.learning_rate=nan | training.learning_rate must be a finite number above 0, got nan
training.warmup_steps=inf | training.warmup_steps must be a finite number at least 0, got inf
training.warmup_steps=-1 | training.warmup_steps must be at least 0
training.weight_decay=-1 | training.weight_decay must be at least 0
training.max_grad_norm=-1 | training.max_grad_norm must be at least 0
training.adam_beta1=1 | training.adam_beta1 must be at least 0 and below 1, got 1.0
training.adam_beta2=-0.1 | training.adam_beta2 must be at least 0 and below 1
training.adam_epsilon=-1 | training.adam_epsilon must be at least 0
training.label_smoothing_factor=5 | training.label_smoothing_factor must be at least 0 and at most 1
training.neftune_noise_alpha=-5 | training.neftune_noise_alpha must be at least 0
training.logging_steps=-1 | training.logging_steps must be above 0
training.logging_steps=2.5 | training.logging_steps=2.5: --logging_steps must be an integer
training.eval_steps=0 | training.eval_steps must be above 0
training.save_steps=0 | training.save_steps must be above 0
training.eval_delay=-1 | training.eval_delay must be at least 0
training.eval_accumulation_steps=0 | training.eval_accumulation_steps must be at least 1
training.dataloader_num_workers=-1 | training.dataloader_num_workers must be at least 0
training.per_device_train_batch_size=1000000000 | must be above 0 and at most 1,000,000
training.ddp_timeout=-1 | training.ddp_timeout must be at least 1
training.logit_chunk=-5 | training.logit_chunk must be at least 0
training.max_words=0 | training.max_words must be at least 1
tokenizer.vocab_size=1000000000 | tokenizer.vocab_size must be at least 259 and at most 1,000,000
data.block_size=1000000000 | data.block_size must be at least 2 and at most 1,000,000
training.output_dir=null | training.output_dir: null is not allowed
data.train_file=5 | data.train_file must be a text or a list of texts, got 5
evaluation.num_generated_texts=1000000000 | evaluation.num_generated_texts must be
training.greater_is_better=true | training.greater_is_better=True: a lower loss is better
model.revision=v1 | model.revision=v1 has no effect without model.model_name_or_path
tokenizer.revision=v1 | tokenizer.revision=v1 has no effect without tokenizer.name_or_path
data.dataset_revision=v1 | data.dataset_revision=v1 has no effect without data.dataset_name
data.dataset_config_name=x | data.dataset_config_name=x has no effect without data.dataset_name
training.averaging_steps=0.5 | needs training.averaging=ema or tail, got None
training.cooldown_steps=0.5 | needs training.lr_scheduler_type=warmup_stable_decay, got cosine
training.weight_decay=0 training.weight_decay_schedule=dip | training.weight_decay_schedule=dip has no effect: it needs training.weight_decay above 0
training.eval_delay=2 training.eval_strategy=no | training.eval_delay=2.0 has no effect
training.load_best_model_at_end=true training.do_eval=false | has no effect
training.eval_steps=3 training.eval_strategy=epoch | training.eval_steps=3.0 has no effect
training.save_steps=3 training.save_strategy=epoch training.eval_strategy=epoch | has no effect
training.eval_steps=3 training.save_steps=4 | training.load_best_model_at_end=True: --load_best_model_at_end
training.do_predict=true | training.do_predict must be False
training.optim=adamw_bnb_8bit | training.optim=adamw_bnb_8bit: You need to install `bitsandbytes`
training.optim=lomo | training.optim=lomo: You need to install `lomo_optim`
training.optim_args=nonsense | training.optim_args=nonsense: not enough values
training.optim_args='foo=1' | training.optim_args=foo=1: adamw_torch_fused has no such
training.lr_scheduler_kwargs={foo: 1} | training.lr_scheduler_kwargs={'foo': 1}: get_cosine
training.lr_scheduler_kwargs=5 | training.lr_scheduler_kwargs=5: 'int' object
training.lr_scheduler_type=polynomial training.lr_scheduler_kwargs={lr_end: 5} | lr_end (5) must be smaller
training.lr_scheduler_type=polynomial training.lr_scheduler_kwargs={power: a} | training.lr_scheduler_kwargs={'power': 'a'}
training.lr_scheduler_type=inverse_sqrt training.lr_scheduler_kwargs={timescale: 0} | division by zero
training.lr_scheduler_type=cosine_with_min_lr | One of min_lr or min_lr_rate should be set
training.report_to=[nope] | training.report_to=['nope']: nope is not supported
training.use_liger_kernel=true | training.use_liger_kernel=True: the package liger-kernel is not
training.deepspeed=gone.json | training.deepspeed must be None, got gone.json
training.fsdp=full_shard | training.fsdp: Value 'full_shard' is not a valid bool
training.accelerator_config=gone.json | training.accelerator_config=gone.json: [Errno 2]
training.parallelism_config=foo | training.parallelism_config must be None, got foo
training.gradient_checkpointing_kwargs={foo: 1} | Unexpected keyword arguments: foo
training.debug=5 | training.debug=5: 'int' object is not iterable
training.log_level=nope | training.log_level=nope: KeyError 'nope'
training.dataloader_persistent_workers=true | persistent_workers option needs num_workers > 0
training.dataloader_multiprocessing_context=nope training.dataloader_num_workers=1 | valid start method
model.attn_implementation=flash_attention_2 | FlashAttention2 has been toggled on
tokenizer.name_or_path=./gone | tokenizer.name_or_path: there is no folder or file ./gone
"""

OVERRIDES = {
    "n_layer: 0": "n_layer must be at least 1 and at most 1,000, got 0",
    "n_layer: 1000000000": "n_layer must be at least 1 and at most 1,000",
    "n_layer: two": "n_layer=two: Validation error for field 'n_layer'",
    "n_head: 7": "n_head=7: `embed_dim` must be divisible by num_heads",
    "n_head: 0": "n_head=0: integer division or modulo by zero",
    "n_head: -2": "n_head=-2: invalid shape dimension",
    "n_embd: 1200000": "parameters need",
    "n_positions: 1000000000000": "parameters need",
    "activation_function: nope": "activation_function=nope: KeyError",
    "vocab_size: 5": "vocabulary of 5 is too small for the tokenizer's 259 entries",
    "vocab_size: 100000000000": "parameters need",
    "bos_token_id: 99999": "bos_token_id=99999 has no effect: it is always 1",
    "use_cache: true": "use_cache=True has no effect: it is always False",
    "resid_pdrop: 5": "resid_pdrop=5: dropout probability",
    "n_layers: 3": "unknown key `model.config_overrides.n_layers` for gpt2; did you mean",
}
ROWS = [row.split(" | ") for row in VALUES.strip().split("\n")]


@pytest.mark.parametrize("typed, message", ROWS)
def test_a_value_that_cannot_be_used_is_refused(refusal, typed, message):
    overrides = typed.replace(" training.", "\ntraining.").split("\n")
    told = refusal(*SAMPLE, *overrides)
    assert message in told and "\n" not in told, told


@pytest.mark.parametrize("typed, message", OVERRIDES.items())
def test_an_override_that_the_architecture_cannot_have_is_refused(
    refusal, typed, message
):
    told = refusal(SAMPLE[1], GPT2[0], GPT2[1] % typed)
    assert message in told and "\n" not in told, told


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([LLAMA[0], LLAMA[1] % "num_key_value_heads: 3"], "num_key_value_heads=3: The size"),
        ([LLAMA[0], LLAMA[1] % "num_key_value_heads: 0"], "num_key_value_heads=0: integer"),
        ([ROBERTA[0], ROBERTA[1] % 128], "data.block_size=128 exceeds the model's 127"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_go_together_are_refused(refusal, overrides, message):
    told = refusal(SAMPLE[1], "data.block_size=128", *overrides)
    assert message in told, told
