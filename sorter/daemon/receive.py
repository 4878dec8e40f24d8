"""The receiving processes: the storage SCP, and nothing else. They share only the spool's folder with the sorter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from sorter.config import Config, remark, server_context
from sorter.durable import Files
from sorter.receive import Job, Keep, Known, ReceiveSettings, Tls, open_to_everybody, run
from sorter.spool import Spool

log = logging.getLogger("sorter.receive")


def run_receive(load: Callable[[], Config], ready: Callable[..., None], over: Callable[[], bool]) -> None:
    """Receive until SIGTERM or SIGINT, or until `over`; `ready` is told the ports once they answer.

    At SIGHUP the configuration is loaded again: who may send, and the certificates of TLS. The rest needs a restart.
    """
    config, files = load(), Files()
    settings = settings_of(config)
    spool = Spool(config.spool, files)
    spool.create()
    if open_to_everybody(settings):
        log.warning("WARNING: whoever reaches this machine may send images to it; list your scanners as [[senders]]")
    run(Job(settings, spool.received, files, reload=lambda: settings_of(load())), ready, over)


def settings_of(config: Config) -> ReceiveSettings:
    """What the configuration says to the receiver."""
    given, context = config.receive, server_context(config)
    doubtful = remark(config, time.time())
    if doubtful:
        log.warning("WARNING: %s", doubtful)
    tls = Tls(context, given.tls.host or given.host, given.tls.port) if given.tls and context else None
    return replace(settings_without_tls(config), tls=tls)


def settings_without_tls(config: Config) -> ReceiveSettings:
    """The same, for whoever may not read the key."""
    given = config.receive
    kept = Spool(config.spool, Files()).commitments if given.commitment != "off" else None
    return ReceiveSettings(
        ae_title=given.ae_title,
        host=given.host,
        port=given.port,
        processes=given.processes,
        commitments=kept,
        senders=tuple(Known(each.ae, each.address) for each in config.senders),
        strangers=config.admits_strangers,
        called=config.called,
        associations=given.associations,
        per_address=given.per_address,
        reserve=given.reserve,
        keep=keep_of(config),
    )


def keep_of(config: Config) -> Keep:
    """What is to stay free on the spool's disk."""
    given = config.receive
    return Keep(None if given.keep_free is None else round(given.keep_free * 1e9), given.keep_inodes)
