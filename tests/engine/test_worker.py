"""The thread that does all MLX work: one for a process, whichever thread asks for it first."""

import subprocess
import sys
from pathlib import Path

import pytest

# Threads switch as often as they can, so that a race is nearly certain where there can be one.
FIRST_USE = """
import sys, threading
from mlx_gemma_mtp.engine.worker import mlx_worker
sys.setswitchinterval(1e-6)
together, found = threading.Barrier(8), []
def use():
    together.wait()
    found.append(mlx_worker())
threads = [threading.Thread(target=use) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
print(len(found), len(set(found)), [one.name for one in threading.enumerate()].count("mgm"))
"""

OWN_IN_A_CHILD = """
import multiprocessing, sys
from mlx_gemma_mtp import SamplingParams, load
def answer(prompt):
    with load("demo") as engine:
        return engine.generate(prompt, SamplingParams(temperature=0))[0].text
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.map(answer, ["What is 17 + 25?"])[0])
"""


def run(script: Path, code: str, *arguments: str) -> str:
    script.write_text(code)
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


def test_threads_that_use_it_first_at_the_same_time_get_the_same_one(tmp_path: Path) -> None:
    assert run(tmp_path / "script.py", FIRST_USE) == "8 1 1\n"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_process_may_load_a_model_if_its_parent_has_not(
    tmp_path: Path, method: str
) -> None:
    assert run(tmp_path / "script.py", OWN_IN_A_CHILD, method) == "17 + 25 = 42\n"
