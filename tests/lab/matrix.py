"""Which engines a test of tests/engines runs with: all four, unless it is marked with one of these."""

import pytest

ALL = ["user-runc", "user-crun", "root-runc", "root-crun"]
rootless = pytest.mark.parametrize("engine", ["user-runc", "user-crun"], indirect=True)
user_and_root = pytest.mark.parametrize("engine", ["user-crun", "root-runc"], indirect=True)
one = pytest.mark.parametrize("engine", ["user-crun"], indirect=True)
