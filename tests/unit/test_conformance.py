"""The conformance statement says what the code does: each table is held against the behaviour it tells of."""

from __future__ import annotations

import ast
import inspect
import os
import re
import ssl
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom._uid_dict import UID_dictionary

from sorter.cli.main import sorter
from sorter.config import Config, load
from sorter.config.certificates import tls_profile
from sorter.daemon.conformance import REJECTIONS, statement
from sorter.daemon.receive import settings_without_tls
from sorter.pipeline import commitments
from sorter.protocol import upper_layer
from sorter.protocol.dimse import Status
from sorter.protocol.uids import IMPLICIT, STORAGE_COMMITMENT, VERIFICATION
from sorter.protocol.upper_layer import Request
from sorter.receive import association, commitment, exchange, gate, negotiation, space

FULL = """
[receive]
ae_title = "SORTMR"
commitment = "delivered"
commitment_wait = 321
associations = 77
per_address = 11
called = "own"
keep_free = 2.5
keep_inodes = 4321
[receive.tls]
cert = "nowhere/cert.pem"
key = "nowhere/secret-key.pem"
ca = "nowhere/ca.pem"
port = 2799
[[senders]]
ae = "PRISMA"
address = "10.20.1.17"
port = 104
"""


def configured(folder: Path, text: str) -> Config:
    path = folder / "sorter.toml"
    path.write_text(text)
    return load(path, folder)


def section(text: str, title: str) -> str:
    """What stands under a heading, to the next one."""
    [found] = re.findall(rf"^#+ {re.escape(title)}.*?\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, heads left out."""
    found, head = [], True
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if cells and not head:
            found.append(cells)
        head = not cells or (head and set(cells) != {"---"})
    return found


@pytest.fixture(params=["", FULL], ids=["defaults", "everything"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    return configured(tmp_path, request.param)


def accepted(config: Config, abstract: str, transfers: list[str]) -> str | None:
    """The transfer syntax that the receiver takes for this, when it is asked."""

    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(value)) + value

    inner = item(0x30, abstract.encode()) + b"".join(item(0x40, each.encode()) for each in transfers)
    user = item(0x50, item(0x51, struct.pack(">I", 16384)))
    items = item(0x10, upper_layer.APPLICATION_CONTEXT.encode()) + item(0x20, b"\1\0\0\0" + inner) + user
    body = struct.pack(">HH", 1, 0) + b"SORTER".ljust(16) + b"SCANNER".ljust(16) + bytes(32) + items
    request: Request = upper_layer.decode_request(body)
    settings = settings_without_tls(config)
    found = negotiation.negotiate(request, settings.max_pdu, settings.commitments is not None).contexts
    return found[1].transfer if found else None


def test_the_sop_classes_are_those_that_are_accepted(config: Config) -> None:
    listed = {uid for _, uid in rows(section(statement(config), "A.4.2.1.1 SOP classes"))}
    known = {uid for uid, entry in UID_dictionary.items() if entry[1] in ("SOP Class", "Meta SOP Class")}
    assert len(listed) > 150
    assert listed <= known | listed
    assert {uid for uid in known | listed if accepted(config, uid, [IMPLICIT])} == listed
    assert (STORAGE_COMMITMENT in listed) == (config.receive.commitment != "off")
    assert VERIFICATION in listed


def test_the_transfer_syntaxes_are_those_that_are_accepted(config: Config) -> None:
    listed = {cells[1] for cells in rows(section(statement(config), "A.4.2.1.4 Association")) if len(cells) == 2}
    known = {uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    mr = "1.2.840.10008.5.1.4.1.1.4"
    assert {uid for uid in known if accepted(config, mr, [uid])} == listed


def test_the_transfer_syntaxes_of_commitment_are_those_that_are_accepted(tmp_path: Path) -> None:
    config = configured(tmp_path, FULL)
    [line] = re.findall(r"For storage commitment only (.*)\.", statement(config))
    known = {uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    said = set(re.findall(r"`([0-9.]+)`", line))
    assert {uid for uid in known if accepted(config, STORAGE_COMMITMENT, [uid])} == said


def used(*modules: object) -> set[int]:
    """The statuses that the code of these modules names."""
    names = {name for module in modules for name in re.findall(r"\bStatus\.([A-Z_]+)", inspect.getsource(module))}  # type: ignore[arg-type]
    return {getattr(Status, name) for name in names}


def test_every_status_that_the_code_answers_with_is_told(tmp_path: Path) -> None:
    told = rows(section(statement(configured(tmp_path, FULL)), "A.4.2.1.4.1 SOP"))
    by_service = {service: {int(row[1], 16) for row in told if row[0] == service} for service, *_ in told}
    assert by_service.pop("N-ACTION (storage commitment)") == used(commitment)
    assert set().union(*by_service.values()) == used(exchange)
    assert set().union(used(commitment), used(exchange)) == {
        value for name, value in vars(Status).items() if not name.startswith("_")
    }
    everything = {row[2] for row in told} - {"–"}
    for module in (commitment, exchange):
        spoken = re.findall(r'Outcome\(Status\.[A-Z_]+, f?"([^"]*)"\)', inspect.getsource(module))
        assert all(any(re.sub(r"\{.*?\}", "4", said) == one for one in everything) for said in spoken)


def test_no_answer_is_made_beside_the_tables() -> None:
    """An Outcome made inside a function would be told to a peer and not in the statement."""
    for module in (commitment, exchange):
        inside = re.findall(
            r"^ +.*\bOutcome\((?!Status\.INVALID_ARGUMENT, str\()", inspect.getsource(module), re.MULTILINE
        )
        assert inside == []


def test_storage_commitment_is_told_only_where_it_is_served(tmp_path: Path) -> None:
    without, served = statement(configured(tmp_path, "")), statement(configured(tmp_path, FULL))
    assert "N-ACTION" not in without
    assert "A.4.2.2" not in without
    reasons = {int(row[0], 16) for row in rows(section(served, "A.4.2.2")) if re.fullmatch("[0-9A-F]{4}", row[0])}
    named = {
        getattr(commitments, name)
        for name in ("PROCESSING_FAILURE", "NO_SUCH_OBJECT", "CLASS_CONFLICT", "DUPLICATE_TRANSACTION")
    }
    assert reasons == named


def test_every_rejection_is_told(config: Config) -> None:
    table = [cells for cells in rows(section(statement(config), "A.4.2.1.4 Association")) if len(cells) == 4]
    told = {(int(result[0]), int(source[0]), int(reason)) for result, source, reason, _ in table}
    text = inspect.getsource(upper_layer)
    codes = {ast.literal_eval(code) for code in re.findall(r"^[A-Z_]+ = (\(\d, \d, \d\))$", text, re.MULTILINE)}
    assert told == codes
    raised = {name for module in (negotiation, association) for name in re.findall(
        r"Rejection\(\*upper_layer\.([A-Z_]+)\)", inspect.getsource(module)
    )}  # fmt: skip
    by_gate = {each.rejection for each in vars(gate).values() if isinstance(each, gate.Refusal)}
    assert {getattr(upper_layer, name) for name in raised} <= {*REJECTIONS, *by_gate}


def test_the_values_are_those_of_the_configuration(tmp_path: Path) -> None:
    config = configured(tmp_path, FULL)
    text = statement(config)
    cells = {(row[0], row[1]) for row in rows(text)}
    assert {
        ("AE title", "SORTMR"), ("Associations at once", "77"), ("- of one address", "11"), ("TLS port", "2799"),
        ("Storage commitment", "delivered"), ("What is missing may still come for, s", "321"),
        ("Longest PDU received, bytes", str(settings_without_tls(config).max_pdu)),
        ("bytes", "2500000000"), ("inodes", "4321"), ("Kept free, gigabytes", "2.5"), ("Kept free, inodes", "4321"),
    } <= cells  # fmt: skip
    assert "Called AE title: SORTMR. Senders listed: 1; others are refused." in text
    assert "secret-key" not in text
    assert "PRISMA" not in text
    assert "10.20.1.17" not in text


def test_what_stays_free_is_told_as_the_gauge_keeps_it(config: Config) -> None:
    told = dict(row for row in rows(section(statement(config), "A.4.2.1.2 Association")) if len(row) == 2)
    keep = settings_without_tls(config).keep
    large = os.statvfs_result((4096, 4096, 10**9, 10**9, 10**9, 10**8, 10**8, 10**8, 0, 255))
    mark = space.mark_of(large, keep)  # of a disk that is large enough for the most of it
    assert int(told["bytes"].rpartition(" ")[2]) == mark.bytes
    assert int(told["inodes"].rpartition(" ")[2]) == mark.inodes
    assert told["below, an association"].startswith("rejected: result 2, source 3, reason 2")
    assert told[f"below 1/{space.LAST} of it, an instance"].startswith("answered A700")


def test_the_cipher_suites_are_those_that_are_spoken(tmp_path: Path) -> None:
    told = {row[0] for row in rows(section(statement(configured(tmp_path, FULL)), "A.7 Security"))}
    assert told == {each["name"] for each in tls_profile().get_ciphers()}
    assert tls_profile().minimum_version is ssl.TLSVersion.TLSv1_2
    assert rows(section(statement(configured(tmp_path, "")), "A.7 Security")) == []


def test_the_command_prints_it(tmp_path: Path) -> None:
    config = configured(tmp_path, FULL)
    done = CliRunner().invoke(sorter, ["conformance", "-c", str(tmp_path / "sorter.toml"), "--root", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, statement(config))
    assert not (tmp_path / "spool").exists()
