"""TLS connections that verify the server's certificate."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from sqlalchemy import make_url

from target_crm.errors import WarehouseError
from target_crm.settings import Settings
from tests.conformance import Unavailable
from tests.conformance.engines import DEBIANS_POSTGRESQL, postgresql
from tests.conformance.mariadb import mariadb
from tests.helpers.target import ACTIONS, action, load, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.warehouse

# Driver options: the trusted authority, and that the certificate has to name the host.
OPTIONS = {
    # The server in the wheel is built without TLS; Debian's has it.
    "postgresql": lambda authority: {"sslmode": "verify-full", "sslrootcert": authority},
    "mysql": lambda authority: {"ssl_ca": authority, "ssl_check_hostname": "true"},
}
START: dict[str, Callable[[tuple[Path, Path]], Any]] = {
    "postgresql": lambda certificate: postgresql(DEBIANS_POSTGRESQL, certificate),
    "mysql": mariadb,
}


@pytest.fixture(params=START)
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A function that returns settings for an authority and a host. The server's certificate names 127.0.0.1."""
    ours, others = trustme.CA(), trustme.CA()
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate = ours.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    for authority, name in ((ours, "ours"), (others, "others")):
        authority.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    with ExitStack() as stack:
        try:
            new_url = stack.enter_context(START[request.param]((chain, key)))
        except Unavailable as reason:
            pytest.skip(str(reason))
        url = make_url(new_url())

        def settings(authority: str, host: str = "127.0.0.1") -> dict[str, Any]:
            options = OPTIONS[request.param](str(tmp_path / f"{authority}.pem"))
            return {
                "dialect": request.param,
                "host": host,
                "port": url.port,
                "user": url.username,
                "database": url.database,
                "options": options,
            }

        yield settings


def load_one(settings: dict[str, Any]) -> None:
    url = Settings.from_config(settings).url
    load(url, [ACTIONS, action("a1")])
    assert [row["action_id"] for row in table(url, "actions")] == ["a1"]


def test_a_certificate_of_the_trusted_authority_is_accepted(connect: Any) -> None:
    load_one(connect("ours"))


def test_a_certificate_of_another_authority_is_refused(connect: Any) -> None:
    with pytest.raises(WarehouseError, match=r"(?i)certificate verify failed"):
        load_one(connect("others"))


def test_a_certificate_of_another_host_is_refused(connect: Any) -> None:
    with pytest.raises(WarehouseError, match=r"(?i)does not match|mismatch"):
        load_one(connect("ours", "localhost"))
