import pytest

from src.configuration.errors import explain
from src.configuration.run_configuration import run_configuration


@pytest.fixture
def refusal(composed):
    """`refusal(*overrides)`: the message that refuses them; a test fails if there is none."""

    def call(*overrides: str) -> str:
        try:
            run_configuration(composed(*overrides))
        except Exception as error:
            return explain(error, arguments=overrides)
        pytest.fail(f"{overrides} was not refused")

    return call
