"""The matrix of scores, printed when the tests are done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_scores = pytest.StashKey[Path]()


@pytest.fixture(scope="session", autouse=True)
def scores(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    path = tmp_path_factory.mktemp("truth") / "scores"
    path.touch()
    request.config.stash[_scores] = path
    os.environ["TRUTH_SCORES"] = str(path)
    yield
    del os.environ["TRUTH_SCORES"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path = config.stash.get(_scores, None)
    if path is None or not path.exists():
        return
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not lines:
        return
    terminalreporter.section("truth: right / null / wrong (missing)")
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row, case, method, right, null, wrong, missing in lines:
        text = f"{right}/{null}/{wrong}" + (f" ({missing})" if missing else "")
        cells.setdefault((row, case), {})[method] = text
    methods = sorted({line[2] for line in lines})
    terminalreporter.write_line(f"{'row':>3}  {'situation':58}" + "".join(f"{name:>16}" for name in methods))
    for (row, case), by_method in sorted(cells.items(), key=lambda item: (int(item[0][0]), item[0][1])):
        text = "".join(f"{by_method.get(name, '-'):>16}" for name in methods)
        terminalreporter.write_line(f"{row:>3}  {case:58}{text}")
    total = [sum(line[at] for line in lines) for at in (3, 4, 5, 6)]
    terminalreporter.write_line(f"all: {total[0]} right, {total[1]} null, {total[2]} wrong, {total[3]} missing")
