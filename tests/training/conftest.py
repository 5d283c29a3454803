"""What takes long and needs no processor, started early."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from tests.conftest import REPOSITORY, is_wanted

SCRIPT = """
import logging, sys
from pathlib import Path
from src.foundation import UserError
from src.training import final_model, trainer
from src.training.record import wandb_logging
from tests.training.record.test_wandb_logging import opened
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
run_dir, *modes = sys.argv[1:]
with opened(Path(run_dir), log=False) as callbacks:
    print("log=false:", callbacks, "wandb" in sys.modules)
wandb_logging.INIT_TIMEOUT = 1
for mode in modes:
    try:
        with opened(Path(run_dir), mode=mode, group="g", name="n") as (callback,):
            print(mode, "runs; offline:", callback.run.settings._offline)
    except UserError as error:
        print("UserError:", str(error).splitlines()[0])
"""


def started(run_dir: Path, *modes: str, **environment: str) -> subprocess.Popen:
    """A process of a user with an empty home, whose W&B nothing is decided about."""
    run_dir.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"HOME": str(run_dir), "NETRC": str(run_dir / ".netrc"), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(run_dir), *modes], cwd=REPOSITORY, env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.fixture(scope="package", autouse=True)
def wandb_users(request, tmp_path_factory) -> Iterator[dict[str, subprocess.Popen]]:
    """A user without a key, and one with a key but no network, of test_wandb_logging.py. They
    start before all other tests here: to find that a network is dead takes W&B 15 seconds.
    """
    if not is_wanted("shown", request):
        yield {}
        return
    folder = tmp_path_factory.mktemp("homes")
    dead = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    found = {
        "no network": started(folder / "b", "auto", **dead),
        "no key": started(folder / "a", "online", "auto"),
    }
    yield found
    for process in found.values():
        process.kill()
        process.communicate()
