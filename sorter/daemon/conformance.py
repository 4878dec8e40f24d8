"""The DICOM Conformance Statement (PS3.2) of a configuration, made from the tables that the code itself uses.

Sections are numbered as PS3.2 numbers those of its annex A. Nothing is claimed here in words that a table could say.
"""

from __future__ import annotations

import importlib.metadata
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from sorter.config import Config
from sorter.config.certificates import tls_profile
from sorter.daemon.receive import settings_without_tls
from sorter.deliver import backoff
from sorter.pipeline import commitments, queries
from sorter.protocol import upper_layer
from sorter.protocol.commitment import MOST_BYTES, MOST_INSTANCES, SYNTAXES
from sorter.protocol.dimse import Outcome
from sorter.protocol.uids import NATIVE, STORAGE_COMMITMENT, VERIFICATION
from sorter.receive import commitment, exchange, gate, lobby, negotiation, space
from sorter.receive.settings import ReceiveSettings
from sorter.scu import committed, ear, query
from sorter.scu.association import CONTEXTS, PATIENCE, USUAL
from sorter.scu.storage import STATUSES
from sorter.take.values import CHARACTER_SETS

SERVICES = {VERIFICATION: "Verification SOP Class", STORAGE_COMMITMENT: "Storage Commitment Push Model SOP Class"}

REJECTIONS = {
    upper_layer.VERSION_NOT_SUPPORTED: "bit 0 of the protocol version is not set",
    upper_layer.APPLICATION_CONTEXT_NOT_SUPPORTED: "another application context than DICOM's",
}
"""What is rejected for what the request says; `gate` rejects for who asks."""

_SOURCES = {1: "service user", 2: "service provider (ACSE)", 3: "service provider (presentation)"}


def statement(config: Config) -> str:
    """The whole statement, as Markdown. It names no key, no file and no sender of the configuration."""
    settings = settings_without_tls(config)
    parts = (_overview(settings), _networking(config, settings), _rest(config))
    return "\n".join(line for part in parts for line in part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table in Markdown, with an empty line behind it."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def prose(text: str) -> list[str]:
    """A paragraph, or an item of a list, in lines of usual length."""
    return textwrap.wrap(text, 118, subsequent_indent="  " if text.startswith("- ") else "")


# --- A.1 to A.3 -----------------------------------------------------------------------------------------------------


def _overview(settings: ReceiveSettings) -> Iterator[str]:
    version = importlib.metadata.version("mri-sorter")
    yield f"# DICOM Conformance Statement: sorter {version}"
    yield ""
    yield from prose(
        "Product: mri-sorter. Printed by `sorter conformance` from one configuration; another one may say otherwise."
    )
    yield ""
    yield "## A.1 Overview"
    yield ""
    yield from prose(
        "sorter receives images, keeps them unchanged, and delivers them to folders and other nodes. It is no archive: "
        "it answers no query (no C-FIND, C-MOVE, C-GET as SCP), no worklist or MPPS is served, nothing is shown or "
        "printed."
    )
    yield ""
    rows = [
        (
            "Transfer",
            "Storage: every storage SOP class, see A.4.2.1.1",
            "to targets of the kind `dicom`, and by `sorter send`",
            "yes",
        )
    ]
    rows += [("Verification", SERVICES[VERIFICATION], "`sorter echo`", "yes")]
    rows += [("Query/Retrieve", "C-FIND, C-MOVE, see A.4.2.4", "of `query` in `[[senders]]`, and `sorter ask`", "no")]
    served = "yes" if settings.commitments else "not in this configuration"
    rows += [("Workflow management", SERVICES[STORAGE_COMMITMENT], "of targets with a `commitment_port`", served)]
    yield from table(("service", "SOP classes", "user (SCU)", "provider (SCP)"), rows)
    yield "## A.3 Introduction"
    yield ""
    yield from prose(
        "For whoever connects a scanner or another node. A statement alone is no proof that two devices work "
        "together. AE: application entity; SCU, SCP: service class user, provider; PDU: protocol data unit."
    )
    yield ""


# --- A.4 ------------------------------------------------------------------------------------------------------------


def _networking(config: Config, settings: ReceiveSettings) -> Iterator[str]:
    yield from _model(settings)
    yield from _receiver(settings)
    if settings.commitments:
        yield from _reporter(config)
    yield from _sender(config)
    yield from _asker()
    yield from _interfaces(config, settings)


def _model(settings: ReceiveSettings) -> Iterator[str]:
    yield "## A.4 Networking"
    yield ""
    yield "### A.4.1 Implementation model"
    yield ""
    yield from prose(
        f"- **{settings.ae_title}**, the receiver, waits for associations. It answers C-ECHO, stores what comes by "
        "C-STORE, and answers success only when the instance would survive a power cut."
    )
    if settings.commitments:
        yield from prose(
            "- It takes requests for storage commitment too (N-ACTION), and itself opens an association for each "
            "report (N-EVENT-REPORT): by then the images are sorted, and the association of the request may be long "
            "over."
        )
    yield from prose(
        "- It asks the nodes that `query` of `[[senders]]` names what they have of a series (C-FIND), each on an "
        "association of its own, and never while the series' sender has one open."
    )
    yield "- **Commands**: `sorter echo`, `sorter send` and `sorter ask` open associations when a person calls them."
    yield ""


def _receiver(settings: ReceiveSettings) -> Iterator[str]:
    yield f"### A.4.2 AE specification: {settings.ae_title}, the receiver"
    yield ""
    yield "#### A.4.2.1.1 SOP classes"
    yield ""
    yield from prose(
        "As SCP. A SOP class with a UID that is not known to belong to another service is taken as one for storage, "
        "so private classes and those younger than this table are stored as well."
    )
    yield ""
    services = [SERVICES[VERIFICATION]] + [SERVICES[STORAGE_COMMITMENT]] * bool(settings.commitments)
    uids = {name: uid for uid, name in SERVICES.items()}
    rows = [(name, f"`{uids[name]}`") for name in services]
    rows += [(name or "(retired)", f"`{uid}`") for uid, name in negotiation.known_storage_classes().items()]
    yield from table(("SOP class", "UID"), rows)
    yield from _association_policies(settings)
    yield from _acceptance(settings)
    yield from _answers(settings)


def _association_policies(settings: ReceiveSettings) -> Iterator[str]:
    yield "#### A.4.2.1.2 Association policies"
    yield ""
    rows: list[tuple[object, ...]] = [
        ("Application context name", f"`{upper_layer.APPLICATION_CONTEXT}`"),
        ("Associations at once", settings.associations),
        ("- of one address", settings.per_address),
        ("- of these, kept for listed senders", settings.reserve if settings.senders and settings.strangers else 0),
        ("Asynchronous operations", "not negotiated: one at a time"),
        ("Implementation class UID", f"`{upper_layer.IMPLEMENTATION_CLASS_UID}`"),
        ("Implementation version name", upper_layer.IMPLEMENTATION_VERSION_NAME),
        ("Longest PDU received, bytes", settings.max_pdu),
        ("Longest A-ASSOCIATE-RQ, bytes", settings.max_request),
        ("Longest command set, bytes", settings.max_command),
        ("Longest data set, bytes", settings.max_instance),
        ("Connection to A-ASSOCIATE-RQ (ARTIM), s", f"{settings.request_timeout:g}"),
        ("Silence inside a message, s", f"{settings.stall_timeout:g}"),
        ("Least rate inside a message, bytes/s", f"{settings.least_rate:g}"),
        ("Silence between messages, s", f"{settings.idle_timeout:g}"),
        ("Negotiation of roles, user identity, extended", "not answered: the defaults hold (PS3.7 D.3.3)"),
    ]
    yield from table(("property", "value"), rows)
    yield from _free_space(settings)


def _free_space(settings: ReceiveSettings) -> Iterator[str]:
    gate_says, store_says = gate.NO_SPACE.rejection, exchange.STORE_ANSWERS[1].status
    assert gate_says is not None
    result, source, reason = gate_says
    rows = [
        ("below, an association", f"rejected: result {result}, source {source}, reason {reason} (A.4.2.1.4)"),
        (f"below 1/{space.LAST} of it, an instance", f"answered {store_says:04X}; the association goes on"),
    ]
    kept = settings.keep
    share = f"{space.SHARE:.0%} of the disk, at most "
    free = [
        ("bytes", kept.bytes if kept.bytes is not None else f"{share}{space.MOST_BYTES}"),
        ("inodes", kept.inodes if kept.inodes is not None else f"{share}{space.MOST_INODES}"),
    ]
    yield from table(("kept free on the disk of received images", "value"), [*free, *rows])


def _acceptance(settings: ReceiveSettings) -> Iterator[str]:
    yield "#### A.4.2.1.4 Association acceptance policy"
    yield ""
    called = "any AE title" if settings.called is None else ", ".join(sorted(settings.called))
    others = "admitted" if settings.strangers else "refused"
    yield f"Called AE title: {called}. Senders listed: {len(settings.senders)}; others are {others}."
    yield ""
    rows = [(*key, why) for key, why in REJECTIONS.items()]
    refusals = [each for each in vars(gate).values() if isinstance(each, gate.Refusal)]
    rows += [(*each.rejection, each.reason) for each in refusals if each.rejection]
    kinds = {1: "1 permanent", 2: "2 transient"}
    yield from table(
        ("result", "source", "reason", "when"),
        [(kinds[result], f"{source} {_SOURCES[source]}", reason, why) for result, source, reason, why in rows],
    )
    yield from prose(
        "Of the transfer syntaxes of a presentation context the first that the sender lists is taken; one that leaves "
        "the pixels at the sender (JPIP) only if it lists nothing else. Private transfer syntaxes are taken as they "
        "are."
    )
    if settings.commitments:
        native = ", ".join(f"`{uid}`" for uid in NATIVE)
        yield f"For storage commitment only {native}."
    yield ""
    rows_of = [(name, f"`{uid}`") for uid, name in negotiation.known_transfer_syntaxes().items()]
    yield from table(("transfer syntax", "UID"), rows_of)


def _answers(settings: ReceiveSettings) -> Iterator[str]:
    yield "#### A.4.2.1.4.1 SOP specific conformance"
    yield ""
    yield from prose(
        "Storage: level 2 (full). The data set is kept bit for bit in the transfer syntax it came in; no attribute is "
        "coerced, none is required, and no value is checked. Digital signatures stay valid and are not verified. The "
        "file meta information is ours, and tells AE titles and address of the sender."
    )
    yield ""
    services = [("C-ECHO", exchange.ECHO_ANSWERS), ("C-STORE", exchange.STORE_ANSWERS)]
    if settings.commitments:
        services += [("N-ACTION (storage commitment)", commitment.ACTION_ANSWERS)]
    services += [("anything else", exchange.OTHER_ANSWERS)]
    yield from table(("operation", "status", "Error Comment (0000,0902)"), _statuses(services))
    if not settings.commitments:
        return
    yield from prose(
        f"A request may name up to {MOST_INSTANCES} instances in {MOST_BYTES} bytes. It is on "
        "disk before it is answered with success."
    )
    yield ""


def _statuses(services: Iterable[tuple[str, Sequence[Outcome]]]) -> Iterator[tuple[str, str, str]]:
    for operation, answers in services:
        for each in answers:
            yield operation, f"{each.status:04X}", each.comment or "–"


def _reporter(config: Config) -> Iterator[str]:
    what = {
        "stored": "it is in the store, durable, at its whole length",
        "delivered": "it is in the store, and everything that is planned for it was delivered and compared",
    }
    yield "### A.4.2.2 AE specification: reports of storage commitment"
    yield ""
    yield from prose(
        "As SCP of the Push Model, on an association that it initiates, from the AE title that was called to the AE "
        "title that asked, at the address that asked and the `port` of its `[[senders]]`. The SCP role is proposed "
        "(PS3.7 D.3.3.4). An instance is committed when " + what[config.receive.commitment] + "."
    )
    yield ""
    syntaxes = ", ".join(f"`{uid}`" for uid in SYNTAXES)
    yield from table(
        ("property", "value"),
        [
            ("Transfer syntaxes proposed", syntaxes),
            ("What is missing may still come for, s", f"{config.receive.commitment_wait:g}"),
            ("Reports at once", f"{commitments.MOST_REPORTS}, one to each peer"),
            ("Tried again after, s", f"{backoff.FIRST:g}, doubling to {backoff.LONGEST:g}"),
            ("Given up after, s", f"{commitments.GIVE_UP:g}"),
            ("Connection and association, s", PATIENCE),
        ],
    )
    rows = [(f"{reason:04X}", standing.value) for standing, reason in commitments.REASONS.items()]
    rows += [
        (f"{commitments.DUPLICATE_TRANSACTION:04X}", "an open request has the Transaction UID and other instances")
    ]
    yield from table(("Failure Reason (0008,1197)", "the instance is"), rows)


def _sender(config: Config) -> Iterator[str]:
    asks = any("commitment_port" in each.settings for each in config.all_targets().values())
    yield "### A.4.2.3 AE specification: targets of the kind `dicom`, `sorter echo` and `sorter send`"
    yield ""
    yield from prose(
        "As SCU of Verification, and of Storage for the SOP classes and in the transfer syntaxes of the files that "
        "are sent; nothing is converted. A warning (Bxxx) counts as sent. Statuses that are told in words:"
    )
    yield ""
    yield from table(("status", "meaning"), [(f"{status:04X}", says) for status, says in STATUSES.items()])
    rows: list[tuple[object, ...]] = [
        ("Implementation class UID", f"`{upper_layer.IMPLEMENTATION_CLASS_UID}`"),
        ("Implementation version name", upper_layer.IMPLEMENTATION_VERSION_NAME),
        ("Presentation contexts of one association", CONTEXTS),
        ("Associations at once", "1 to each node"),
        ("Until each answer, s", f"{USUAL.message:g}"),
    ]
    yield from table(("property", "value"), rows)
    if asks:
        yield from _asks_for_commitment()


def _asks_for_commitment() -> Iterator[str]:
    yield from prose(
        "Of targets with a `commitment_port` also as SCU of the Storage Commitment Push Model: the N-ACTION goes over "
        "the association that sent the images; the report may come over it, or over one that the node asks for at that "
        "port, whether it proposes the SCP role or not."
    )
    yield ""
    rows: list[tuple[object, ...]] = [
        ("Transfer syntaxes proposed", ", ".join(f"`{uid}`" for uid in SYNTAXES)),
        ("Instances that one N-ACTION asks for", committed.MOST_AT_ONCE),
        ("Connections to the port at once", ear.MOST_CONNECTIONS),
    ]
    yield from table(("property", "value"), rows)
    yield from table(
        ("Failure Reason", "is told as"), [(f"{reason:04X}", says) for reason, says in committed.FAILURES.items()]
    )


def _asker() -> Iterator[str]:
    yield "### A.4.2.4 AE specification: Query/Retrieve"
    yield ""
    yield from prose(
        "As SCU of C-FIND and C-MOVE, of the nodes that `query` of `[[senders]]` names: by itself C-FIND, at the "
        "IMAGE level for the SOP Instance UIDs of one series, once its sender is silent; by `sorter ask` also C-MOVE, "
        "at the IMAGE level of a list of SOP Instance UIDs, or at the SERIES level where the node does not say what "
        "it has. The destination is the AE title of A.4.1, which is also the calling one. Neither relational queries "
        "nor extended negotiation are used. Study Root is preferred; Patient Root is used where a peer accepts no "
        "other."
    )
    yield ""
    rows: list[tuple[object, ...]] = [
        (f"{root} Root, C-{service.upper()}", f"`{uid}`")
        for root, model in (("Study", query.STUDY_ROOT), ("Patient", query.PATIENT_ROOT))
        for service, uid in model.items()
    ]
    yield from table(("SOP class", "UID"), rows)
    limits: list[tuple[object, ...]] = [
        ("Transfer syntaxes proposed", ", ".join(f"`{uid}`" for uid in query.SYNTAXES)),
        ("SOP instances that an answer may name", query.MOST_NAMES),
        ("SOP instances in one C-MOVE", query.MOST_AT_ONCE),
        ("C-FIND: until each answer, and in all, s", f"{query.QUERY.message:g}, {query.QUERY.seconds:g}"),
        ("C-MOVE: until each answer, s", f"{query.RETRIEVE.message:g}"),
        ("C-FIND is tried again after, s", ", ".join(f"{each:g}" for each in queries.RETRIES)),
        ("Questions at once", "one to each node"),
    ]
    yield from table(("property", "value"), limits)
    yield from table(("status", "meaning"), [(f"{status:04X}", says) for status, says in query.SAYS.items()])


def _interfaces(config: Config, settings: ReceiveSettings) -> Iterator[str]:
    yield "### A.4.3 Network interfaces"
    yield ""
    yield "TCP/IP, IPv4 and IPv6. No delay of small packets (TCP_NODELAY)."
    idle, pause, times = lobby.KEEPALIVE
    yield f"Keep-alive after {idle} s, every {pause} s, {times} times."
    yield ""
    yield "### A.4.4 Configuration"
    yield ""
    rows: list[tuple[object, ...]] = [
        ("AE title", settings.ae_title, "receive.ae_title"),
        ("Host", settings.host, "receive.host"),
        ("Port", settings.port or "any free one", "receive.port"),
        ("Processes on that port", settings.processes, "receive.processes"),
        ("Kept free, gigabytes", _given(config.receive.keep_free), "receive.keep_free"),
        ("Kept free, inodes", _given(config.receive.keep_inodes), "receive.keep_inodes"),
        ("Storage commitment", config.receive.commitment, "receive.commitment"),
    ]
    tls = config.receive.tls
    if tls is not None:
        rows += [("TLS host", tls.host or config.receive.host, "receive.tls.host")]
        rows += [("TLS port", tls.port or "any free one", "receive.tls.port")]
    yield from table(("parameter", "value", "key"), rows)


def _given(value: float | None) -> str:
    return "a share, see A.4.2.1.2" if value is None else f"{value:g}"


# --- A.5 to A.8 -----------------------------------------------------------------------------------------------------


def _rest(config: Config) -> Iterator[str]:
    yield "## A.5 Media interchange"
    yield ""
    yield from prose(
        "No conformance is claimed. DICOM files are taken from folders whatever their names; DICOMDIR is no source"
        " of anything; a person can compare what it lists with what came."
    )
    yield ""
    yield "## A.6 Support of character sets"
    yield ""
    yield from prose(
        "Every character set is received and kept. Text for names is decoded from these values of Specific Character "
        "Set (0008,0005); others count as ISO_IR 100. No text is changed in an image."
    )
    yield ""
    yield ", ".join(term for term in CHARACTER_SETS if term) + "."
    yield ""
    yield "## A.7 Security"
    yield ""
    yield from _tls(config)
    yield from prose(
        "Associations are limited by address, AE titles and number, see A.4.2.1.4. No user identity is asked for; no "
        "audit trail (PS3.15 A.5) is written."
    )
    yield ""
    yield "## A.8 Annexes"
    yield ""
    yield from prose(
        "No instance is created or changed; there are no private attributes, SOP classes or transfer syntaxes of "
        "sorter's own."
    )


def _tls(config: Config) -> Iterator[str]:
    if config.receive.tls is None:
        yield "No secure transport connection profile in this configuration."
        yield ""
        return
    profile = tls_profile()
    asked = "must be shown, signed by a configured CA" if config.receive.tls.ca else "are not asked for"
    yield from prose(
        "Secure transport by the BCP 195 TLS profile (PS3.15 B.12), as acceptor, on a port of its own; at least "
        f"{profile.minimum_version.name}. Certificates of senders {asked}."
    )
    yield ""
    yield from table(("cipher suite", "version"), [(each["name"], each["protocol"]) for each in profile.get_ciphers()])
