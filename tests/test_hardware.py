import pytest
import torch

from src import hardware
from src.arguments import TrainingArguments
from src.foundation import UserError
from src.hardware import best_device, peak_flops, resolve_hardware, set_up_device

OPEN = dict.fromkeys(("use_cpu", "bf16", "tf32", "accelerator_config"))
OPEN["fp16"] = False


@pytest.fixture
def machine(monkeypatch):
    """`machine(gpu=…, bf16=…, tf32=…)`: the tests run on such a machine from then on."""

    def call(gpu: bool, bf16: bool, tf32: bool = False) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *of: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
        monkeypatch.setattr(hardware, "is_torch_tf32_available", lambda: tf32)
        monkeypatch.setattr(hardware, "fast_bfloat16", lambda use_cpu: bf16)

    return call


def test_a_machine_without_a_gpu_trains_on_its_processor(machine):
    machine(gpu=False, bf16=False)
    assert resolve_hardware(OPEN) == {
        "use_cpu": (True, "there is no GPU"),
        "bf16": (False, "the CPU is not fast at it"),
    }
    machine(gpu=False, bf16=True)
    assert resolve_hardware(OPEN)["bf16"] == (True, "the CPU is fast at it")


def test_a_gpu_is_used_with_the_fastest_formats_that_it_has(machine):
    machine(gpu=True, bf16=True, tf32=True)
    resolved = resolve_hardware(OPEN)
    assert resolved["use_cpu"] == (False, "there is a GPU")
    assert resolved["bf16"] == (True, "the GPU is fast at it")
    assert resolved["tf32"] == (False, "the products have 16 bits")
    assert resolve_hardware({**OPEN, "bf16": False})["tf32"] == (True, "the GPU has it")
    assert resolved["accelerator_config"][0] == {"non_blocking": True}
    machine(gpu=True, bf16=False)
    resolved = resolve_hardware(OPEN)
    advice = "the GPU is not fast at it; it is fast at float16, training.fp16=true"
    assert resolved["bf16"] == (False, advice)
    assert resolved["tf32"] == (False, "the GPU lacks it")


def test_what_was_chosen_stays(machine):
    machine(gpu=True, bf16=True, tf32=True)
    chosen = dict(use_cpu=True, bf16=False, tf32=None, accelerator_config={"a": 1})
    assert resolve_hardware({**OPEN, **chosen}) == {}
    resolved = resolve_hardware({**OPEN, "fp16": True})
    assert resolved["bf16"] == (False, "training.fp16=true was chosen")


@pytest.mark.parametrize(
    "chosen, gpu, message",
    [
        ({"use_cpu": False}, False, "training.use_cpu=false needs a GPU"),
        ({"fp16": True}, False, "training.fp16=true needs a CUDA GPU"),
        ({"tf32": True}, True, "training.tf32=true needs an NVIDIA GPU of 2020"),
        ({"bf16": True}, True, "training.bf16=true: Tesla V100 has no bfloat16"),
    ],
)
def test_what_the_machine_lacks_is_refused(machine, chosen, gpu, message):
    machine(gpu=gpu, bf16=False)
    with pytest.raises(UserError, match=message):
        resolve_hardware({**OPEN, **chosen})


@pytest.mark.parametrize(
    "name, dtype, tf32, expected",
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, False, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, False, 19.5e12),
        ("NVIDIA A10G", torch.bfloat16, False, 70e12),
        ("NVIDIA RTX A4000", torch.bfloat16, False, 77e12),
        ("Tesla V100-SXM2-16GB", torch.float16, False, 125e12),
        ("NVIDIA GeForce GTX 1080 Ti", torch.float32, False, None),
    ],
)
def test_utilization_is_told_against_the_peak_of_the_card_and_the_format(
    monkeypatch, name, dtype, tf32, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), dtype, tf32) == expected
    assert peak_flops(torch.device("cpu"), dtype, tf32) is None


def test_each_job_sets_determinism_and_the_format_of_float32_products(tmp_path):
    def job(**values) -> None:
        values |= dict(output_dir=str(tmp_path), use_cpu=True)
        set_up_device(TrainingArguments(**values))

    try:
        job(full_determinism=True, tf32=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "high"
        job()  # the next job of a sweep
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


def test_models_are_scored_on_the_gpu_if_there_is_one(monkeypatch):
    assert best_device().type == "cpu"
    mps = torch.device("mps")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **of: mps)
    assert best_device() == mps
    assert best_device(use_cpu=True).type == "cpu"
