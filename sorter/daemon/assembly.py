"""From a configuration to a pipeline: every part made and joined here, once."""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sorter.completion import Habits, Timing, Tracker
from sorter.config import Config, LabConfig, Node, Sender, server_context
from sorter.config.lab import LabFile
from sorter.config.models import SlurmConfig, SlurmTerms
from sorter.daemon.receive import keep_of
from sorter.durable import Files
from sorter.engine.engine import Engine
from sorter.engine.local import LocalEngine
from sorter.engine.slurm import Cluster, JobTerms, SlurmEngine
from sorter.engine.work import Limits
from sorter.errors import ConfigError, SorterError
from sorter.expected import ExpectedDaily, ExpectedSeries
from sorter.labs.corners import LabCorners
from sorter.labs.files import LabFiles
from sorter.labs.moving import Trials
from sorter.labs.news import News
from sorter.labs.python import Home, LabPython
from sorter.labs.requests import Requests
from sorter.labs.scans import Scans
from sorter.model import DICOM, Instance, Source
from sorter.pipeline import Pipeline
from sorter.pipeline.alarms import Awaited, Clocks
from sorter.pipeline.archives import Archives
from sorter.pipeline.commitments import CommitmentProvider, Peer, Terms
from sorter.pipeline.deciding import Trust, decision, trusting
from sorter.pipeline.evidence import Witness
from sorter.pipeline.intake import Intake
from sorter.pipeline.outlets import Outlet, Outlets
from sorter.pipeline.planning import Planner
from sorter.pipeline.queries import Answer, Queries, Question
from sorter.pipeline.recipes import faults as recipe_faults
from sorter.pipeline.units import Units
from sorter.pipeline.workshop import Workshop
from sorter.plugins import Plugins
from sorter.receive.space import NEAR, mark_of
from sorter.scu.association import Peer as Called
from sorter.scu.commitment import report_commitment
from sorter.scu.query import Series, instances
from sorter.spool import Spool
from sorter.spool.by_sop import BySop
from sorter.spool.commitments import Commitment
from sorter.spool.labs import LabRecords
from sorter.spool.veils import Veil, Veils
from sorter.take.filing import Filing
from sorter.take.received import Received
from sorter.trust import Ledger
from sorter.watch import Incoming, Lookout, Taken, Watched

log = logging.getLogger("sorter.sort")

UNASSIGNED = "unassigned"

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class FilingRules:
    """What filing asks: the plugins' grouping, and who may correct whose headers."""

    plugins: Plugins
    senders: Sequence[Sender]

    def group(self, instance: Instance) -> str | None:
        asked = self.plugins.group(instance)
        return str(asked.answers[0].value) if asked.answers else None

    def may_correct(self, first: Source, newer: Source) -> bool:
        """A dropped file never; without any configured sender that may, only who sent the first copy."""
        if newer.dropped or not newer.calling:
            return False
        trusted = [each for each in self.senders if each.may_correct]
        if not trusted:
            return newer.sender == first.sender
        return any(_is_sender(each, newer) for each in trusted)


def _is_sender(sender: Sender, source: Source) -> bool:
    if sender.ae is not None and sender.ae != source.calling:
        return False
    if sender.address is None:
        return True
    try:
        return ipaddress.ip_address(source.host) in ipaddress.ip_network(sender.address, strict=False)
    except ValueError:
        return False


def load_plugins(config: Config, files: Files, *, apart: bool = True) -> Plugins:
    """The plugins with their settings, those of others in a process of their own or, if not `apart`, in this one.

    ConfigError with all faults.
    """
    targets = config.all_targets()
    labs = {name: _targets_of(config, name) for name in config.labs}
    builtin: dict[str, dict[str, Any]] = {
        "identity": {"labs": [_owner(name, lab) for name, lab in config.labs.items()]},
        "routing": {"labs": labs, "default": UNASSIGNED if UNASSIGNED in targets else None},
    }
    load = Plugins.start if apart else Plugins.load
    return load(config.plugins, config.plugins_folder, files, builtin, config.locate)


def _owner(name: str, lab: LabConfig) -> dict[str, Any]:
    return {"name": name, "match": lab.match, "projects": lab.projects}


def _targets_of(config: Config, lab: str) -> list[str]:
    return list(dict.fromkeys([lab, *config.labs[lab].targets]))


def outlets_of(config: Config, plugins: Plugins) -> dict[str, Outlet]:
    """Every configured target with the code of its kind; ConfigError where no plugin brings the kind."""
    kinds = {answer.value.name: answer.value.code for answer in plugins.target_kinds().answers}
    faults, found = [], {}
    for name, target in config.all_targets().items():
        if target.kind not in kinds:
            known = ", ".join(sorted(kinds))
            where = f"{config.locate('targets', name, 'kind')}: targets.{name}.kind"
            faults.append(f"{where}: no plugin brings {target.kind!r} (known: {known})")
            continue
        lab = config.labs.get(name)
        account = lab.user or "" if lab is not None else ""
        found[name] = Outlet(kinds[target.kind], target.settings, stay=lab is not None, account=account)
    if faults:
        raise ConfigError(faults)
    return found


def planner_of(
    config: Config, plugins: Plugins, labs: Mapping[str, LabFile | None] = MappingProxyType({}),
    veils: Mapping[str, Veil] = MappingProxyType({}),
) -> Planner:  # fmt: skip
    wanted = {name: lab.products for name, lab in config.labs.items() if lab.products is not None}
    nodes = {name: (DICOM,) for name, target in config.targets.items() if target.kind == "dicom"}
    planner = Planner(plugins, config.all_targets(), {**wanted, **nodes}, labs, veils)
    faults = [
        f"{config.locate('labs', lab, 'products')}: labs.{lab}.products: no plugin makes {product!r}"
        for lab, products in wanted.items()
        for product in products
        if product != "dicom" and product not in planner.products
    ]
    faults += [
        f"{config.locate('labs', name, 'only')}: labs.{name}.only: no plugin makes {product!r}"
        for name, lab in config.labs.items()
        for product in lab.only or ()
        if product != DICOM and product not in planner.products
    ]
    for product, says in recipe_faults(planner.products):
        maker = planner.makers[product]
        faults.append(f"{config.locate('plugins', maker)}: plugins.{maker}: product {product}: {says}")
    if faults:
        raise ConfigError(faults)
    return planner


@dataclass(slots=True)
class Parts:
    """A pipeline and what has to be changed in it when the configuration does."""

    spool: Spool
    pipeline: Pipeline
    rules: FilingRules
    config: Config
    commitments: CommitmentProvider | None
    lab_files: LabFiles
    lab_python: LabPython
    wake: InitVar[Callable[[], None]]
    lab_corners: LabCorners = field(init=False)
    trials: Trials = field(init=False)
    reread: Callable[[], None] = lambda: None  # what to do where a command has changed the configuration
    put_off: dict[str, float] = field(default_factory=dict)  # requests that the disk does not allow -> when again

    def __post_init__(self, wake: Callable[[], None]) -> None:
        records, pipeline = self.lab_files.records, self.pipeline
        scans = Scans(records, lambda: pipeline.looked_around)
        news = News(records, self.lab_files.in_force_of)
        requests = Requests(
            self.spool, records, pipeline.outlets, wake, pipeline.bring_back, lambda lab: self.config.granted(lab)
        )
        self.lab_corners = LabCorners(
            pipeline.outlets, records, self.take_lab_file, self.lab_files.say, scans, news, requests, self.lab_python
        )
        self.lab_corners.configure(roots_of(self.config), self.config.delivery.look_every)
        pipeline.told = self.lab_corners.told
        self.trials = Trials(
            self.spool, records, lambda: pipeline.planner, self.lab_corners.look,
            lambda keys, by: pipeline.deciding.decide(keys, [], decision(None, None, by)),
        )  # fmt: skip

    def turn(self, now: float) -> float:
        """What the labs say themselves is looked at, and obeyed; returns when to be called again at the latest."""
        changed, until = self.lab_python.turn(now)
        for lab in changed:
            asked, going = self.pipeline.ask_again_for(lab, self.pipeline.planner)
            log.info("lab %s has other plugins now; %d of its series waited, %d of these go now", lab, asked, going)
        return min(until, self.lab_corners.turn(now), self.trials.turn(now))

    def reload(self, config: Config, files: Files) -> None:
        """Take up a new configuration: all of it, or, after ConfigError, nothing."""
        plugins = load_plugins(config, files)
        try:
            outlets = outlets_of(config, plugins)
            planner_of(config, plugins)  # a fault of the configuration, before anything is changed
        except ConfigError:
            plugins.close()
            raise
        self.lab_files.load(config.labs)
        self.lab_files.give(plugins)
        plugins.of_lab = self.lab_python.ask
        self.lab_python.configure(homes_of(config))
        planner = planner_of(config, plugins, self.lab_files.in_force, veils_of(config, self.spool))
        self.config = config
        self.rules.plugins.close()
        self.rules.plugins, self.rules.senders = plugins, config.senders
        self.pipeline.settling.timing = self.pipeline.studies.timing = timing_of(config)
        self.pipeline.studies.expected = expected_of(config)
        self.pipeline.outlets.outages.tell_after = config.delivery.tell_after
        self.pipeline.retention.keep = days_to_keep(config)
        self.pipeline.alarms.configure(daily_of(config), awaited_of(config), labs=bool(config.labs))
        self.pipeline.deciding.trust = trust_of(config)
        self.pipeline.outlets.configure(outlets)
        self.pipeline.intake.watch(watched_of(config))
        self.pipeline.ask_again(planner, plugins)
        self.lab_corners.configure(roots_of(config), config.delivery.look_every)
        if self.commitments is not None:
            self.commitments.terms = terms_of(config)
            self.commitments.retry()

    def take_lab_file(self, lab: str, data: bytes | None) -> tuple[str, ...]:
        """What a lab's worker found in its lab.toml (None: there is none); what is wrong with it, in sentences."""
        if lab not in self.config.labs:  # it is gone since the worker looked
            return ()
        plugins = self.rules.plugins
        taken = self.lab_files.take(lab, data, plugins, self.pipeline.planner.products)
        if taken.changed:
            veils = veils_of(self.config, self.spool)
            planner = planner_of(self.config, plugins, self.lab_files.in_force, veils)
            asked, going = self.pipeline.ask_again_for(lab, planner)
            self.spool.note("lab file", lab=lab, removed=data is None, asked=asked, going=going)
            log.info("lab %s has other rules now; %d of its series waited, %d of these go now", lab, asked, going)
        return taken.faults

    def retry(self) -> None:
        """A person says that what was wrong is mended."""
        self.pipeline.ask_again()
        if self.commitments is not None:
            self.commitments.retry()


def check(config: Config) -> None:
    """Say all faults of a configuration and its plugins, before anything is started. SorterError: the first."""
    plugins = load_plugins(config, Files())
    outlets_of(config, plugins)
    planner_of(config, plugins)
    server_context(config)


def veils_of(config: Config, spool: Spool) -> dict[str, Veil]:
    """Kept in the spool before anything is done by it: every door looks there."""
    return Veils(spool.labs, spool.files).keep({name: lab.only for name, lab in config.labs.items()})


def timing_of(config: Config) -> Timing:
    """Whoever shortens the quiet time shortens with it what is not configured."""
    given, usual = config.completion, Timing()

    def wait(name: str) -> float:
        if name in given.model_fields_set:
            return float(getattr(given, name))
        return float(getattr(usual, name)) if given.quiet >= usual.quiet else 10 * given.quiet

    return Timing(
        quiet=given.quiet,
        cap=given.cap,
        aborted=wait("aborted"),
        stopped=wait("stopped"),
        incomplete=wait("incomplete"),
        study=wait("study"),
        settle=min(usual.settle, given.quiet),
    )


def expected_of(config: Config) -> dict[str, tuple[ExpectedSeries, ...]]:
    """What each lab expects of its studies."""
    return {name: tuple(map(ExpectedSeries.parse, lab.expect)) for name, lab in config.labs.items()}


def roots_of(config: Config) -> dict[str, str]:
    """The labs, and where their folders are."""
    targets = config.all_targets()
    return {name: str(targets[name].settings.get("root", "")) for name in config.labs}


def homes_of(config: Config) -> dict[str, Home]:
    """The labs that may have plugins of their own: those with an account of their own, and to which
    nothing of a header is closed."""
    return {
        name: Home(
            lab.user,
            Path(str(config.all_targets()[name].settings.get("root", ""))),
            str(lab.python or ""),
            frozenset({*_targets_of(config, name), *lab.on_demand}),
        )
        for name, lab in config.labs.items()
        if lab.user and not lab.only
    }


def daily_of(config: Config) -> dict[str, ExpectedDaily]:
    """What should come to a lab every day."""
    return {
        name: ExpectedDaily.parse(lab.expect_daily) for name, lab in config.labs.items() if lab.expect_daily is not None
    }


def awaited_of(config: Config) -> list[Awaited]:
    """The senders that may not be silent for long."""
    return [
        Awaited("@".join(filter(None, (each.ae, each.address))), each.silent_after, functools.partial(_is_sender, each))
        for each in config.senders
        if each.silent_after is not None
    ]


def trust_of(config: Config) -> dict[str, Trust]:
    """What each lab may claim without asking anybody."""
    return {name: trusting(lab.may_claim) for name, lab in config.labs.items() if lab.may_claim}


def days_to_keep(config: Config) -> int | None:
    """The days that a delivered image stays in the store; None for ever."""
    return config.store.keep if isinstance(config.store.keep, int) else None


def clocks_of(files: Files) -> Clocks:
    """Those of this machine."""
    try:
        return Clocks(boot_id=files.read_file(BOOT_ID).decode().strip())
    except OSError:
        return Clocks()


def watched_of(config: Config) -> list[Watched]:
    """The trees of `[[watch]]`; none may lead into a folder that sorter delivers to."""
    settings = [target.settings for target in config.all_targets().values() if target.kind == "path"]
    apart = tuple(Path(each["root"]) for each in settings if "root" in each)
    return [Watched(each.path, each.take == "copy", each.observer == "polling", apart) for each in config.watch]


def assemble(
    config: Config, spool: Spool, wake: Callable[[], None], hear: Callable[[Path], bool] = lambda _: True
) -> Parts:
    """Everything that sorts, for this spool. `wake` is called, from any thread, when there is something to do.

    `hear` is given the receiver's arrivals files: see `Received`.
    """
    files = spool.files
    plugins = load_plugins(config, files)
    outlets = Outlets(spool, wake, config.delivery.tell_after)
    lab_records = LabRecords(spool.labs, files)
    lab_files = LabFiles(lab_records)
    lab_files.load(config.labs)
    lab_files.give(plugins)
    lab_python = LabPython(spool.workers, files, lab_records, wake)
    lab_python.configure(homes_of(config))
    plugins.of_lab = lab_python.ask
    configured = outlets_of(config, plugins)
    planner = planner_of(config, plugins, lab_files.in_force, veils_of(config, spool))
    rules = FilingRules(plugins, config.senders)
    engine = engine_of(config, spool, wake)
    workshop = Workshop(spool, engine, lambda product: _settings(pipeline, product))
    units = Units(spool, timing_of(config), lambda unit: filing.adopt(unit))
    tracker = Tracker(Habits(), units.timing.cap)
    witness = Witness(tracker, Ledger(), lambda: rules.plugins, lambda says: spool.note("trust", says=says))
    filing = Filing(spool, rules, lambda key: pipeline.unit(key), lambda key: pipeline.let_go(key))
    intake = Intake(
        filing,
        Received(spool.received, files, hear),
        Incoming(spool.incoming, files, Taken(spool.left / "incoming", files)),
        Archives(spool),
        lambda watched: Lookout(watched, spool, wake),
    )
    intake.watch(watched_of(config))
    index = BySop(spool)
    commitments = CommitmentProvider(spool, index, terms_of(config), _report, wake) if _commits(config) else None
    if commitments is not None:
        commitments.begin()
    else:
        index.discard()
    queries = Queries(
        lambda sender: node_of(rules.senders, sender),
        lambda question: _ask(question, config.receive.ae_title),
        intake.received.open_sources,
        wake,
    )
    pipeline = Pipeline(
        spool, plugins, planner, units, intake, workshop, outlets, witness, queries,
        index if commitments is not None else None, clocks_of(files),
    )  # fmt: skip
    if commitments is not None:
        commitments.heard = lambda request: pipeline.hear("commitment", request.sender, request.names)
    outlets.configure(configured)
    pipeline.studies.expected = expected_of(config)
    pipeline.retention.keep, pipeline.retention.doubted = days_to_keep(config), lab_python.doubted
    pipeline.alarms.configure(daily_of(config), awaited_of(config), labs=bool(config.labs))
    pipeline.deciding.trust = trust_of(config)
    return Parts(spool, pipeline, rules, config, commitments, lab_files, lab_python, wake)


def engine_of(config: Config, spool: Spool, wake: Callable[[], None]) -> Engine:
    """What makes products. On this machine jobs end before the receiver has to slow down for want of room."""
    given = config.engine
    if given.kind == "slurm" and given.slurm is not None:
        return SlurmEngine(cluster_of(given.slurm, config.spool), spool.scratch, spool.files, Limits(), wake)
    mark = mark_of(spool.files.space(config.spool), keep_of(config)).bytes
    limits = Limits(free=int(mark * (1 + NEAR)))
    return LocalEngine(config.engine.jobs, spool.scratch, spool.files, limits, wake)


def cluster_of(given: SlurmConfig, spool: Path) -> Cluster:
    """Where jobs run, and on which terms; what a lab does not name is as for all."""
    usual = JobTerms(given.partition, given.account, given.time, given.memory)
    labs = {
        name: replace(usual, **each.model_dump(exclude_none=True, include=set(SlurmTerms.model_fields)))
        for name, each in given.labs.items()
    }
    return Cluster(given.shared, f"{socket.gethostname()}:{spool}", given.jobs, given.python, usual, labs)


def _commits(config: Config) -> bool:
    return config.receive.commitment != "off"


def terms_of(config: Config) -> Terms:
    """What the configuration says of storage commitment; where reports go stands in `[[senders]]`."""

    def peer(request: Commitment) -> Peer | None:
        host = f"[{request.address}]" if ":" in request.address else request.address
        asked = Source(calling=request.calling, called=request.called, address=f"dicom://{host}:0")
        found = next((each for each in config.senders if each.port is not None and _is_sender(each, asked)), None)
        return Peer(request.address, found.port) if found is not None and found.port is not None else None

    return Terms(config.receive.commitment == "delivered", config.receive.commitment_wait, peer)


def node_of(senders: Sequence[Sender], sender: str) -> Node | None:
    """Whom to ask what `sender` (AE@host) has: `query` of the first of `[[senders]]` that fits it and has one."""
    calling, _, host = sender.rpartition("@")
    source = Source(calling=calling, address=f"dicom://{f'[{host}]' if ':' in host else host}:0")
    return next((each.query for each in senders if each.query is not None and _is_sender(each, source)), None)


def _ask(question: Question, ae_title: str) -> Answer:
    peer = Called(question.node.host, question.node.port, question.node.ae, ae_title)
    wanted = [Series(question.study_uid, each, question.patient_id) for each in question.series_uids]
    try:
        return Answer(instances(peer, wanted))
    except SorterError as error:
        return Answer(why=str(error))


def _report(peer: Peer, request: Commitment) -> str:
    try:
        report_commitment(request, peer.host, peer.port)
    except SorterError as error:
        return str(error)
    return ""


def _settings(pipeline: Pipeline, product: str) -> Mapping[str, Any]:
    return pipeline.plugins.settings(pipeline.planner.makers[product])
