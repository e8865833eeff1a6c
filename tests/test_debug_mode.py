"""That PYTHONASYNCIODEBUG=1 makes a failure of what holds the loop; tests/conftest.py does it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
SLOW = """
import time
import pytest

async def test_that_holds_the_loop():
    time.sleep(0.15)

@pytest.mark.blocks_loop("as it says")
async def test_that_may():
    time.sleep(0.15)

async def test_that_does_not():
    pass
"""


def test_a_test_that_holds_its_loop_fails_in_debug_mode(tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text(SLOW)
    shutil.copy(TESTS / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-c", TESTS.parent / "pyproject.toml", f"--rootdir={tmp_path}", tmp_path]
    environment = os.environ | {"PYTHONASYNCIODEBUG": "1", "PYTHONPATH": str(TESTS), "AIOSTAGE_TEST_LOOP": "asyncio"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, check=False)
    assert re.search(r"^ERROR .*::test_that_holds_the_loop\b", run.stdout, re.MULTILINE), run.stdout + run.stderr
    assert "3 passed, 1 error" in run.stdout
