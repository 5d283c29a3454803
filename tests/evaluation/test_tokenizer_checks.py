"""Warnings about tokenizers, each with the scores that suffer and the remedy."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from src.data.packing.tokenizer import train
from src.evaluation.tokenizer_checks import check_tokenizer

BOS = ("<s>", 1)
EOS = ("</s>", 2)


def tokenizer(single="<s> $A", prefix_space=True, **special):
    made = train(["The dog sees the cats."], 300)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[BOS, EOS]
    )
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=prefix_space
    )
    for name, token in special.items():
        setattr(made, name, token)
    return made


def test_our_own_tokenizer_spoils_nothing():
    for backend in ("causal", "mlm", "mntp"):
        assert check_tokenizer(tokenizer(), backend) == []


def test_padding_may_be_eos_or_absent():
    assert check_tokenizer(tokenizer(pad_token="</s>")) == []
    assert check_tokenizer(tokenizer(pad_token=None)) == []


@pytest.mark.parametrize(
    "changes, fault, score, remedy",
    [
        ({"single": "$A"}, "no BOS", "BLiMP", "TemplateProcessing"),
        ({"single": "<s> $A </s>"}, "special token", "Reading", "post-processor"),
        ({"prefix_space": False}, "no leading space", "Reading", "add_prefix_space"),
        ({"pad_token": "!"}, "pad token '!'", "GLUE", "a separate token"),
        ({"pad_token": "Ġthe"}, "pad token 'Ġthe'", "GLUE", "a separate token"),
    ],
)
def test_each_trap_is_reported_with_its_score_and_its_remedy(
    changes, fault, score, remedy
):
    (warning,) = check_tokenizer(tokenizer(**changes))
    assert fault in warning and score in warning and remedy in warning


def test_a_masked_model_may_do_without_bos_and_end_in_a_special_token():
    assert check_tokenizer(tokenizer("$A </s>"), "mlm") == []
    assert check_tokenizer(tokenizer("<s> $A </s>"), "mntp") == []
    (warning,) = check_tokenizer(tokenizer("$A </s>"), "mntp")
    assert "no BOS" in warning


def test_traps_add_up():
    assert len(check_tokenizer(tokenizer("$A </s>", prefix_space=False))) == 3


def test_two_words_may_be_a_single_token():
    backend = Tokenizer(models.WordLevel({"The dog": 0, "?": 1}, unk_token="?"))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    assert "no BOS" in check_tokenizer(made)[0]
