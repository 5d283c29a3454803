"""What the processes of a run tell each other, and what the death of one looks like."""

import pytest

from src.foundation import UserError
from src.processes import is_of_peers

GLOO = "[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:9111"


@pytest.mark.parametrize("message", [GLOO, "NCCL communicator was aborted on rank 1"])
def test_the_death_of_another_process_is_no_fault_of_the_command(message):
    """torchrun starts such a run again, also if the error has been taken for a wrong input."""
    with pytest.raises(UserError) as wrapped:
        try:
            raise RuntimeError(message)
        except RuntimeError as error:
            raise UserError("model: gpt2 cannot compute a batch") from error
    assert is_of_peers(wrapped.value)
    assert not is_of_peers(UserError("model: gpt2 cannot compute a batch"))
