"""The SDK's standard suite for targets, on each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from singer_sdk.testing import get_target_test_class
from singer_sdk.testing.suites import SingerTestSuite, target_tests
from singer_sdk.testing.target_tests import TargetRecordBeforeSchemaTest, TargetRecordMissingKeyProperty

from target_crm.loader.target import TargetCrm

if TYPE_CHECKING:
    from singer_sdk.testing.runners import TargetTestRunner

# These two expect a bad record to stop the run; all others run with the default, which puts it into quarantine.
STOPPING = [TargetRecordBeforeSchemaTest, TargetRecordMissingKeyProperty]
LOADING = [test for test in target_tests.tests if test not in STOPPING]


def suite(tests: list[type], **config: object) -> type:
    return get_target_test_class(
        TargetCrm,
        config=config,
        custom_suites=[SingerTestSuite(kind="target", tests=tests)],
        include_target_tests=False,
    )


class AgainstAWarehouse:
    @pytest.fixture
    def resource(self, runner: TargetTestRunner, warehouse_url: str) -> None:
        runner.config["sqlalchemy_url"] = warehouse_url


class TestLoading(AgainstAWarehouse, suite(LOADING)):  # type: ignore[misc]
    """The tests that load."""


class TestStopping(AgainstAWarehouse, suite(STOPPING, on_invalid_record="fail")):  # type: ignore[misc]
    """The tests that stop."""
