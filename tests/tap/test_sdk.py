"""The SDK's standard tests for taps, against the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from singer_sdk.testing import get_tap_test_class

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tap_pepper.tap import TapPepper
from tests.helpers.tap import NOW

if TYPE_CHECKING:
    from collections.abc import Iterator

# The suite makes a tap at import time, before the sandbox has an address.
CONFIG: dict[str, Any] = {
    "auth_token": "sandbox-token",
    "application_id": "pepper-mill",
    "api_url": "http://127.0.0.1:9",
    "start_date": "2026-09-25",
    "include_users": True,
    "include_credentials": True,
}


class TestTap(get_tap_test_class(TapPepper, config=CONFIG)):  # type: ignore[misc]
    """All tests of the suite."""

    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def pepper() -> Iterator[None]:
        with Sandbox(World(seed=7, users=60, days=6, now=NOW)) as sandbox:
            CONFIG["api_url"] = sandbox.url
            yield
