"""What the README says is so."""

import re
import shlex

import pytest

from src.configuration.run_configuration import run_configuration
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINES = [line.strip() for line in README.splitlines() if line.startswith("    ")]
COMMANDS = sorted({line for line in LINES if "-m src.run_clm" in line})


def test_there_are_commands_in_the_readme():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(composed, command, monkeypatch):
    words = shlex.split(command.split("&&")[-1].removesuffix("& wait"))
    words = words[words.index("src.run_clm") + 1 :]
    if "--help" in words or "--cfg" in words:
        return  # run in configuration/test_schema.py
    jobs = [[]]
    for word in words:
        if word == "-m":
            continue
        key, _, value = word.partition("=")
        values = value.split(",") if "-m" in words and "," in value else [value]
        jobs = [[*job, f"{key}={v}"] for job in jobs for v in values]
    names = set()
    for job in jobs:
        config = composed(*job)
        run_configuration(config)
        names.add(config.training.output_dir)
    assert len(names) == len(jobs)


def test_the_example_group_can_be_pasted(composed, own_group):
    text = re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1)
    own_group("model/mini.yaml", text)
    config = composed("+model=mini", "+dataset=sample")
    assert config.model.model_type == "llama"
    assert config.model.config_overrides.hidden_size == 128


def test_the_tree_names_every_module():
    for module in (REPOSITORY / "src").rglob("*.py"):
        if module.name != "__init__.py" and "sample" not in module.parts:
            assert re.search(rf"^ +{module.name} ", README, re.MULTILINE), module


def test_ci_installs_and_tests_as_the_readme_says():
    script = (
        (REPOSITORY / ".ci/run").read_text(encoding="utf-8").replace("--quiet ", "")
    )
    for part in (
        "pip install torch==",
        "pip install -r requirements.txt",
        "python -m pytest -n",
    ):
        (line,) = [line for line in script.splitlines() if line.startswith(part)]
        assert line in README


def test_the_readme_is_short_enough_to_read():
    assert README.count("\n") < 490


def test_hooks_and_requirements_name_the_same_formatters():
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    requirements = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    for formatter in ("black", "isort"):
        (version,) = re.findall(rf"^{formatter}==(\S+)$", requirements, re.MULTILINE)
        assert f"{formatter}=={version}]" in hooks
