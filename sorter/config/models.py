"""The tables of sorter.toml, as frozen models. Every field says, for the docs, what it is and in which unit."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from sorter.expected import ExpectedDaily, ExpectedSeries, checked_glob, span

SENDER_WORDS = ("CallingAE", "CalledAE", "PeerAddress")
"""What `match` can ask for besides DICOM keywords: who sent it."""

_RULE = re.compile(r"\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*\S)\s*", re.DOTALL)
_AE = re.compile(r"[\x20-\x7e]{1,16}")
_SLURM_NAME = "^[A-Za-z0-9_.,-]{1,200}$"
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_HOST = re.compile(r"[A-Za-z0-9.:_-]{1,253}")


class Unknown(ValueError):
    """A word that is not among the known ones; the reader adds what may have been meant."""

    def __init__(self, says: str, word: str, known: tuple[str, ...]) -> None:
        self.word, self.known = word, known
        super().__init__(says)


def _folder(value: Any, info: ValidationInfo) -> Any:
    return _path(value, info, "folder")


def _file(value: Any, info: ValidationInfo) -> Any:
    return _path(value, info, "file")


def _path(value: Any, info: ValidationInfo, what: str) -> Any:
    if not isinstance(value, str):
        return value if isinstance(value, Path) else _wrong(f"must be a {what} in quotes", value)
    if not value.strip() or any(ord(char) < 32 for char in value):
        raise ValueError(f"must name a {what}")
    if value.startswith("~"):
        raise ValueError("~ is not known here; write the whole path")
    base = (info.context or {}).get("base", Path())
    return Path(os.path.abspath(base / value))


def _wrong(says: str, value: Any) -> Any:
    raise ValueError(f"{says}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value as it would stand in TOML, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}…"'
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else str(value)


def _ae_title(value: str) -> str:
    # PS3.5 6.2: at most 16 characters of the default repertoire, no backslash, no control; not only spaces.
    if not _AE.fullmatch(value) or "\\" in value or not value.strip():
        raise ValueError(
            f"{shown(value)} is no AE title: 1 to 16 ASCII characters, no backslash, not only spaces (PS3.5 6.2)"
        )
    return value.strip()


def _address(value: str) -> str:
    try:
        given = ipaddress.ip_interface(value.strip())
    except ValueError:
        raise ValueError(
            f'{shown(value)} is no address; write one as "10.1.2.3", or a range as "10.1.2.0/24"'
        ) from None
    mapped = getattr(given.ip, "ipv4_mapped", None)
    if mapped is not None:  # whoever comes from there is known by its address of IPv4
        raise ValueError(f'{shown(value)} is an address of IPv4; write it as "{mapped}"')
    if "%" in value:
        raise ValueError(f'{shown(value)} names a network card; write "{value.partition("%")[0]}" alone')
    if given.network.network_address != given.ip:  # it would admit many where one was meant
        raise ValueError(
            f'{shown(value)} is an address and a range at once; write "{given.ip}", or "{given.network}" for all of it'
        )
    return str(given.network)


def _called(value: Any) -> Any:
    if value in ("any", "own"):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        return _wrong('must be "any", "own" or a list of AE titles', value)
    if not value:
        raise ValueError("nobody could send, as no AE title may be called; list one, or leave this out")
    return tuple(_ae_title(each) for each in value)


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError(f'{shown(value)} is no host; write an address, as "0.0.0.0", or a host name')
    host, colon, port = value.partition(":")
    if colon and ":" not in port:
        raise ValueError(f'{shown(value)} is a host and a port; write host = "{host}" and port = {port or 11112}')
    return value


class Node(NamedTuple):
    """A DICOM application entity, and where it listens."""

    ae: str
    host: str
    port: int


def _node(value: Any) -> Any:
    """AE@host:port; an IPv6 address in brackets. The last @ counts, as an AE title may have one."""
    if isinstance(value, Node):
        return value
    if not isinstance(value, str):
        return _wrong('must be written as "AE@host:port"', value)
    ae, _, place = value.rpartition("@")
    host, _, port = place.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (ae and host and port.isdecimal() and port.isascii() and 1 <= int(port[:6]) <= 65535):
        raise ValueError(f'{shown(value)} is no node; write AE@host:port, as "GE750@10.1.2.3:104"')
    return Node(_ae_title(ae), _host(host), int(port))


def _remote(value: str) -> str:
    name, colon, _ = value.partition(":")
    if not colon or not re.fullmatch(r"[\w.+@ -]+", name) or re.search(r"[\x00-\x1f\]]", value):
        raise ValueError(
            f'{shown(value)} is no remote; write NAME:PATH, as "nas:mri", with a NAME that `config` describes'
        )
    return value


def _rule(value: str) -> str:
    found = _RULE.fullmatch(value)
    if not found:
        raise ValueError(f'{shown(value)} is no rule; write KEYWORD=GLOB, as "StudyDescription=Memory^*"')
    keyword, glob = found.groups()
    # Imported only here: it is large, and whoever configures no lab does not need it.
    from pydicom.datadict import keyword_dict

    if keyword not in keyword_dict and keyword not in SENDER_WORDS:
        raise Unknown(f'"{keyword}" is no DICOM keyword', keyword, (*SENDER_WORDS, *keyword_dict))
    return f"{keyword}={checked_glob(glob)}"


def _series(value: str) -> str:
    return str(ExpectedSeries.parse(value))


def _daily(value: str) -> str:
    return str(ExpectedDaily.parse(value))


def _span(value: Any) -> Any:
    if isinstance(value, float):
        return value
    return span(value) if isinstance(value, str) else _wrong('must be a time in quotes, as "8h"', value)


def _account(value: str) -> str:
    if not _ACCOUNT.fullmatch(value):
        raise ValueError(f'{shown(value)} is no name of an account; write one as "memory-mri"')
    return value


def _keep(value: Any) -> Any:
    if value == "forever" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    return _wrong('must be "forever" or a number of days, at least 1', value)


Folder = Annotated[Path, BeforeValidator(_folder)]
File = Annotated[Path, BeforeValidator(_file)]
MatchRule = Annotated[str, AfterValidator(_rule)]
AETitle = Annotated[str, AfterValidator(_ae_title)]
Umask = Annotated[str, Field(pattern="^0?[0-7]{1,3}$")]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400, allow_inf_nan=False)]


class Section(BaseModel):
    """What all tables have in common: nothing unknown, nothing guessed, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Sorter(Section):
    """`[sorter]`: where sorter keeps things. A relative path starts from the folder of the configuration file."""

    root: Folder | None = None
    """The folder that everything is kept below where nothing else is said. `--root DIR` takes its place."""
    spool: Folder | None = None
    """The spool: one folder on a local disk, never on NFS or SMB. Default: `spool` below `root`."""
    plugins: Folder | None = None
    """A folder of single-file plugins. Only its owner may write to it. Default: none."""


class Tls(Section):
    """`[receive.tls]`: a second port, on which TLS is spoken. What the files hold is checked before it is opened."""

    cert: File
    """The certificate of this machine, in PEM, with those between it and its CA behind it."""
    key: File
    """Its private key, in PEM, without a passphrase."""
    ca: File | None = None
    """The certificates of the CAs, in PEM, that those of senders must be signed by. Without it senders show none."""
    port: int = Field(default=2762, ge=0, le=65535)
    """The port to speak TLS on; 0 takes any free one. 2762 is DICOM's own (PS3.8 9.1.1)."""
    host: Annotated[str, AfterValidator(_host)] | None = None
    """The address to listen on. Default: `host` of `[receive]`."""


class Receive(Section):
    """`[receive]`: the port that scanners send to."""

    ae_title: AETitle = "SORTER"
    """The AE title that scanners call: 1 to 16 ASCII characters."""
    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    """The address to listen on. `127.0.0.1` reaches this machine alone, `0.0.0.0` every network it is in."""
    port: int = Field(default=11112, ge=0, le=65535)
    """The port to listen on; 0 takes any free one."""
    processes: int = Field(default_factory=lambda: min(4, len(os.sched_getaffinity(0))), ge=1, le=64)
    """How many processes receive on that port. Default: as many as the machine has processors, 4 at most."""
    commitment: Literal["off", "stored", "delivered"] = "off"
    """Whether senders may ask for storage commitment (PS3.4 annex J), and when an image counts: `"stored"` when it is
    in the store, `"delivered"` when it is also at every place it is to be delivered to."""
    commitment_wait: Seconds = 600.0
    """For so many seconds an image that storage commitment is asked for may still come; then it is reported missing."""
    strangers: bool | None = None
    """Whether senders that are not listed in `[[senders]]` are admitted. Default: only while none is listed."""
    called: Annotated[Literal["any", "own"] | tuple[str, ...], BeforeValidator(_called)] = "any"
    """The AE titles that may be called: `"any"`, `"own"` (that is `ae_title`), or a list of them."""
    associations: int = Field(default=500, ge=1, le=10_000)
    """How many associations there may be at once; one more is rejected for the moment."""
    per_address: int = Field(default=128, ge=1, le=10_000)
    """How many of these one address may have."""
    reserve: int = Field(default=50, ge=0, le=10_000)
    """How many of these are kept for listed senders, where strangers are admitted too."""
    keep_free: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)
    """Gigabytes (1,000,000,000 bytes) that stay free on the spool's disk: below, new associations are rejected for the
    moment; below an eighth of it, every image. Default: a twentieth of the disk, 10 at most."""
    keep_inodes: int | None = Field(default=None, ge=0)
    """Inodes that stay free, in the same way. Default: a twentieth of all, 100,000 at most."""
    tls: Tls | None = None
    """`[receive.tls]`: a second port, on which TLS is spoken. Default: none."""


class Sender(Section):
    """`[[senders]]`: a scanner or another node that is known. `ae`, `address`, or both say which one is meant. Where
    one is listed, nobody else may send, unless `strangers` in `[receive]` says so."""

    ae: AETitle | None = None
    """The AE title that it calls itself."""
    address: Annotated[str, AfterValidator(_address)] | None = None
    """Its address, or a range of addresses as `10.1.2.0/24`."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """The port that it listens on, for what is told it later: the report of storage commitment. Default: none."""
    query: Annotated[Node, BeforeValidator(_node)] | None = None
    """Whom to ask which images there are of a series that it sent, as `"AE@host:port"`: itself, or a PACS that has
    them too. It is asked by C-FIND when nothing comes any more, and `sorter ask` has it send what is missing. Default:
    none."""
    may_correct: bool = False
    """Whether a header that it sends again, with the same pixels, takes the place of the first one. As long as no
    sender may, whoever sent the first copy may correct it."""
    silent_after: Annotated[float, BeforeValidator(_span)] | None = None
    """For so long it may send no image, as `"90m"`, `"8h"` or `"3d"`; then it is said. Default: as long as it likes."""


class Watch(Section):
    """`[[watch]]`: a folder that others fill, and that is looked into besides `incoming/`. It may lie on a share."""

    path: Folder
    """The folder. It need not be there all the time: a share that is away is waited for."""
    take: Literal["copy", "move"] = "copy"
    """`"copy"`: what is there stays, and is remembered. `"move"`: it is removed there when it is safe here."""
    observer: Literal["auto", "polling"] = "auto"
    """`"auto"`: events of the kernel say when to look, where the folder is local. `"polling"`: no events are asked
    for. The folder is looked through every few seconds either way."""


class Completion(Section):
    """`[completion]`: how long to wait for more images of a series. All in seconds."""

    quiet: Seconds = 30.0
    """Without an image for so long, a series of which nothing better is known is delivered as it is."""
    cap: Seconds = 900.0
    """At most so long after the last image, even while the association that brought it stays open."""
    aborted: Seconds = 300.0
    """In place of `quiet` where an association that brought images was aborted or lost, for a retry is likely then."""
    stopped: Seconds = 600.0
    """A series that is whole so far, or but for its last volume, though more was expected, is delivered after so long.
    """
    incomplete: Seconds = 1800.0
    """A series that is known to have holes is delivered after so long."""
    study: Seconds = 1200.0
    """A study of which nothing came for so long has settled, if none of its series is open. Where its sender went on to
    another study, it has sooner."""


class Delivery(Section):
    """`[delivery]`: targets that nothing can be delivered to, and what the labs themselves say."""

    tell_after: Seconds = 900.0
    """After so many seconds an outage of a target is an event, which plugins hear of, as is its end."""
    look_every: Seconds = 30.0
    """So often, in seconds, the own file of each lab, `.sorter/lab.toml` in its folder, is looked at."""


class Store(Section):
    """`[store]`: what happens to images that were delivered."""

    keep: Annotated[Literal["forever"] | int, BeforeValidator(_keep)] = "forever"
    """`"forever"`, or the days that a delivered image stays in the store: days that sorter saw pass."""


class SlurmTerms(Section):
    """`[engine.slurm.labs.NAME]`: on which terms the jobs of one lab run."""

    partition: Annotated[str, Field(pattern=_SLURM_NAME)] | None = None
    """The partition. Default: what `[engine.slurm]` says, else the cluster's own default."""
    account: Annotated[str, Field(pattern=_SLURM_NAME)] | None = None
    """The account that is charged. Default: what `[engine.slurm]` says, else the cluster's own default."""
    time: int | None = Field(default=None, ge=2, le=100_000)
    """Minutes that Slurm gives a job. Default: what `[engine.slurm]` says, else what the product may take, and ten."""
    memory: int | None = Field(default=None, ge=64)
    """MiB that Slurm gives a job. Default: what `[engine.slurm]` says, else what the product may take, and 256."""


class SlurmConfig(SlurmTerms):
    """`[engine.slurm]`: where jobs are staged for the nodes of a cluster, and on which terms they run."""

    shared: Folder
    """A folder on a share that this machine and all nodes see under the same path; for this sorter alone."""
    jobs: int = Field(default=100, ge=1, le=10_000)
    """How many jobs are in Slurm's hands at a time, and staged in `shared`."""
    python: str | None = None
    """The Python that nodes run, with sorter and the same plugins installed. Default: the one that runs sorter here."""
    labs: dict[str, SlurmTerms] = Field(default_factory=dict)
    """`[engine.slurm.labs.NAME]`: other terms for one lab."""


class Engine(Section):
    """`[engine]`: where products, as NIfTI, are made. Changed at a start only."""

    kind: Literal["local", "slurm"] = "local"
    """`"local"`: in processes of this machine. `"slurm"`: on a cluster, see `[engine.slurm]`."""
    jobs: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 2) - 1), ge=1, le=256)
    """How many at a time on this machine. Default: as many as it has processors, less one."""
    slurm: SlurmConfig | None = None
    """`[engine.slurm]`: needed with `kind = "slurm"`."""


class DoorConfig(Section):
    """`[door]`: the socket at which accounts of this machine that may not read the spool are answered."""

    socket: File | None = None
    """The socket. Default: `run/sock` in the spool."""
    admins: Annotated[tuple[str | int, ...], Field(strict=False)] = ()
    """Unix groups whose members see the series of all labs, and those of none. root, and the account that sorter runs
    as, always do."""


class LabConfig(Section):
    """`[labs.NAME]`: a lab, which series are its own, and where they go. Its root is a target of the same name."""

    match: Annotated[tuple[MatchRule, ...], Field(strict=False)] = ()
    """Rules `"KEYWORD=GLOB"`; a series that any of them fits is the lab's, and the first lab in the file that fits
    has it. KEYWORD is a DICOM keyword, CallingAE, CalledAE or PeerAddress. GLOB has `*`, `?` and `[abc]`; capital and
    small letters are the same."""
    projects: Annotated[tuple[Annotated[str, AfterValidator(checked_glob)], ...] | None, Field(strict=False)] = None
    """Globs of what `extract` of `[plugins.identity]` reads: of a group, of a project, or of both as `GROUP/PROJECT`.
    Default: the lab's own name."""
    may_claim: Annotated[tuple[Annotated[str, AfterValidator(_rule)], ...], Field(strict=False)] = ()
    """Rules as those of `match`: a series that belongs to no lab, and that any of them fits, is the lab's as soon as
    one of its people claims it. Default: every claim is granted by a person, with `sorter claim CODE --grant`."""
    root: Folder | None = None
    """The lab's folder. Default: `labs/NAME` below `[sorter] root`."""
    group: str | int | None = None
    """The Unix group that delivered files belong to, by name or number."""
    umask: Umask | None = None
    """Octal, in quotes: the permissions that delivered files and folders do not get. Default: `"022"`, with a group
    `"027"`."""
    user: Annotated[str, AfterValidator(_account)] | None = None
    """The Unix account that the lab's files belong to: what is delivered to `root` is written by a process that runs as
    this account (delivery.md says how). `root` has to be given then. Default: the account that sorter runs as."""
    python: File | None = None
    """The interpreter that runs the lab's own plugins, `.sorter/plugins/*.py` in its folder, with mri-sorter and what
    they need installed for it. They run as `user`, which has to be given. Default: the one that runs sorter."""
    groups: Annotated[tuple[str | int, ...], Field(strict=False)] = ()
    """Unix groups, besides `group`, whose members may see what the lab has, by `sorter list`, `why` and `rename`."""
    users: Annotated[tuple[str | int, ...], Field(strict=False)] = ()
    """Unix accounts that may see it without being in such a group."""
    targets: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Targets that this lab's series go to besides its root."""
    on_demand: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Targets that get nothing of the lab by themselves, but to which its people may have copies made, by
    `sorter rename SUBJECT target:NAME`; to its root and `targets` they may anyway."""
    products: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """What is delivered, as `["dicom", "nifti"]`. Default: everything that the plugins make."""
    only: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Nothing leaves of this lab's series but these products, as `["deid"]`: to no target, by no list, copy or name.
    Who asks for images gets the first of them. Default: everything may leave."""
    expect_daily: Annotated[str, AfterValidator(_daily)] | None = None
    """A local time, as `"09:00"`, by which something should have come to this lab on every day; with a glob of the
    subject behind it, as `"09:00 PHANTOM*"`, something of such a subject. Default: nothing is expected."""
    expect: Annotated[tuple[Annotated[str, AfterValidator(_series)], ...], Field(strict=False)] = ()
    """The series that each of its studies should have: globs of the series description, with ` x2` behind one that
    should come twice, as `["T1*", "rest* x2"]`. What is missing when a study has settled is said."""


class TargetConfig(Section):
    """`[targets.NAME]`: another place to deliver to. What else the table holds are settings of its kind."""

    model_config = ConfigDict(extra="allow")

    kind: str
    """The kind of target, as `"path"`. Plugins bring kinds."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the kind: plain values that JSON can carry."""
        return dict(self.__pydantic_extra__ or {})


class PathSettings(Section):
    """`[targets.NAME]` of kind `"path"`: a folder, local or mounted."""

    root: Folder
    """The folder to deliver to. It has to hold the marker `.sorter/id`."""
    group: str | int | None = None
    """The Unix group that delivered files belong to, by name or number."""
    umask: Umask | None = None
    """Octal, in quotes: the permissions that delivered files and folders do not get. Default: `"022"`, with a group
    `"027"`."""
    threads: int | None = Field(default=None, ge=1, le=64)
    """How many files are written at a time. Default: 8."""

    def plain(self) -> dict[str, Any]:
        """As the target's worker gets it: without what is not set."""
        found = {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}
        return {**found, "root": str(self.root)}


class NodeSettings(Section):
    """`[targets.NAME]` of kind `"dicom"`: another node, to which images go by C-STORE."""

    host: Annotated[str, AfterValidator(_host)]
    """The node's address, or its name."""
    port: int = Field(ge=1, le=65535)
    """The port that it listens on."""
    ae_title: AETitle
    """The AE title that it is called by."""
    calling: AETitle | None = None
    """The AE title that sorter calls itself there. Default: `"SORTER"`."""
    commitment_port: int | None = Field(default=None, ge=1, le=65535)
    """A port of this machine for the node's reports of storage commitment, which is asked for where the node offers it.
    Default: it is not asked for."""
    commitment_wait: Seconds | None = None
    """Seconds after which a report that has not come is asked for again. Default: 600."""

    def plain(self) -> dict[str, Any]:
        """As the target's worker gets it: without what is not set."""
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}


class RcloneSettings(Section):
    """`[targets.NAME]` of kind `"rclone"`: a place that rclone reaches, by SFTP, S3, WebDAV or another way."""

    remote: Annotated[str, AfterValidator(_remote)]
    """Where to deliver to, as `"NAME:PATH"`. It has to hold the marker `.sorter/id`."""
    config: File
    """The configuration file of rclone that describes NAME, with its secrets. The account that runs sorter reads it."""

    def plain(self) -> dict[str, Any]:
        """As the target's worker gets it."""
        return {"remote": self.remote, "config": str(self.config)}
