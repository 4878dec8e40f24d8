#!/usr/bin/env python3
"""Run sorter, or its tests, from a checkout with nothing but Python 3.11 or newer.

    python3 packaging/run.py [serve ARGUMENTS]      sorter serve --root ./sorter-data
    python3 packaging/run.py test [PYTEST ARGUMENTS] ruff, mypy and the tests of the first tier
    python3 packaging/run.py peers [PYTEST ARGUMENTS] the tests with every real client and server, as root
    python3 packaging/run.py soak [PYTEST ARGUMENTS] the long ones: hours of work, ten thousand cases
    python3 packaging/run.py COMMAND [ARGUMENTS]    any other command of sorter
    python3 packaging/run.py --python 3.12 …        the same with another Python, in an environment of its own

The first run makes the environment .venv beside this checkout and installs sorter and its plugins there; later runs
find it ready. It is made again when a pyproject.toml changes, and an interrupted run is taken up by the next one.
Nothing outside the checkout is touched, but for the tests as root on Debian: they install the packages of their peers.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LEAST = (3, 11)
NO_PIP = "This Python cannot make an environment with pip in it"

if sys.version_info < LEAST:  # before anything below that an older Python would stumble over
    sys.exit(
        "sorter needs Python {}.{} or newer; {} is {}. Run this file with a newer one, as: python3.12 {}".format(
            *LEAST, sys.executable, sys.version.split()[0], sys.argv[0]
        )
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the environment ------------------------------------------------------------------------------------------------


def distributions() -> list[str]:
    """What is installed: sorter itself, and each folder of plugins/ that is a distribution."""
    plugins = os.path.join(ROOT, "plugins")
    names = sorted(os.listdir(plugins)) if os.path.isdir(plugins) else []
    folders = [os.path.join(plugins, name) for name in names]
    return [ROOT, *(folder for folder in folders if os.path.isfile(os.path.join(folder, "pyproject.toml")))]


def fingerprint() -> str:
    """Changes with whatever the installed environment depends on: this Python, this place, each pyproject.toml."""
    digest = hashlib.sha256(repr((sys.version_info[:2], ROOT)).encode())
    for folder in distributions():
        with open(os.path.join(folder, "pyproject.toml"), "rb") as file:
            digest.update(folder.encode() + b"\0" + file.read() + b"\0")
    return digest.hexdigest()


def read_stamp(venv: str) -> "dict[str, object]":
    """What the last finished installation left: {"fingerprint": …, "test": bool}; empty when none finished."""
    try:
        with open(os.path.join(venv, "sorter-stamp.json"), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_stamp(venv: str, test: bool) -> None:
    path = os.path.join(venv, "sorter-stamp.json")
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump({"root": ROOT, "fingerprint": fingerprint(), "test": test}, file)
    os.replace(path + ".part", path)


def usable(venv: str) -> bool:
    """True if `venv` holds a working Python of this version, with pip, and was made for this checkout."""
    stamp = read_stamp(venv)
    if stamp and stamp.get("root") != ROOT:  # the scripts in it name the folder it was made in
        return False
    code = "import sys, pip; print(sys.version_info[:2], sys.prefix != sys.base_prefix)"
    try:
        said = subprocess.run([os.path.join(venv, "bin", "python"), "-c", code], capture_output=True, text=True)
    except OSError:
        return False
    return said.returncode == 0 and said.stdout.strip() == f"{sys.version_info[:2]} True"


def environment(venv: str, test: bool) -> None:
    """`venv` with sorter and its plugins (and the tools of the tests) in it; quick when nothing has changed."""
    os.makedirs(venv, exist_ok=True)
    with open(os.path.join(venv, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two first runs at once: the second waits, and finds it ready
        made = usable(venv)
        stamp = read_stamp(venv) if made else {}
        if stamp.get("fingerprint") == fingerprint() and (stamp.get("test") or not test):
            return
        if not made:
            say(f"Making an environment in {os.path.relpath(venv)} (once)")
            make_venv(venv)
        test = test or bool(stamp.get("test"))
        say(
            "Installing sorter, its plugins and the tools of its tests" if test else "Installing sorter and its plugins"
        )
        requirements: list[str] = []
        for folder in distributions():
            requirements += ["-e", f"{folder}[{'test,zstd' if test else 'zstd'}]" if folder == ROOT else folder]
        pip_install(venv, requirements)
        write_stamp(venv, test)


def clear(venv: str) -> None:
    """Empty the folder but for the lock that is held in it."""
    for name in os.listdir(venv):
        path = os.path.join(venv, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif name != ".lock":
            os.unlink(path)


def make_venv(venv: str) -> None:
    """A fresh environment with pip in it, by the first way that works here; exits with a sentence if none does."""
    clear(venv)
    if not has_ensurepip() and os.geteuid() == 0 and sys.executable.startswith("/usr/bin/"):
        apt_install("python{}.{}-venv".format(*sys.version_info[:2]))
    if has_ensurepip():
        made = run_quietly([sys.executable, "-m", "venv", venv])
        if made.returncode == 0:
            return
        say(made.stdout.rstrip())
        clear(venv)
    say(f"{NO_PIP} (on Debian: the package python3-venv is missing); fetching pip itself")
    made = run_quietly([sys.executable, "-m", "venv", "--without-pip", venv])
    if made.returncode != 0:
        sys.exit(
            f"{made.stdout}\nCannot make an environment in {venv}: see above. Install python3-venv and run this again."
        )
    bootstrap_pip(venv)


def has_ensurepip() -> bool:
    code = "import ensurepip; ensurepip.version()"  # asked anew: apt may have brought it meanwhile
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def run_quietly(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")


def pip_install(venv: str, requirements: list[str]) -> None:
    """Install with pip, one short line of progress each; exits with pip's own reason if it fails."""
    command = [os.path.join(venv, "bin", "python"), "-m", "pip", "install", "--progress-bar", "off", *requirements]
    settings = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    lines: list[str] = []
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            lines.append(line.rstrip())
            progress(lines[-1])
    if pip.returncode != 0:
        progress("")
        say("\n".join(lines[-30:]))
        sys.exit("pip could not install sorter; its reason is above. Run this again: it goes on from here.")
    progress("")


def progress(line: str) -> None:
    """One line of pip's: rewritten in place on a terminal; elsewhere only the longer steps are said."""
    terminal = sys.stderr.isatty()
    if terminal:
        width = shutil.get_terminal_size().columns - 4
        print(f"\r\033[K  {line.strip()[:width]}" if line else "\r\033[K", end="", file=sys.stderr, flush=True)
    elif re.match(r"(Collecting|Building wheels|Installing collected)", line.strip()):
        say("  " + line.strip().partition(" (from ")[0][:110])


# --- pip where there is none ----------------------------------------------------------------------------------------


def bootstrap_pip(venv: str) -> None:
    """Put pip into `venv` from its wheel on the package index ($PIP_INDEX_URL, else the public one)."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    try:
        url, sha256 = newest_pip(index)
        wheel = fetch(url)
    except (OSError, ValueError) as error:
        sys.exit(f"{NO_PIP}, and pip cannot be fetched from {without_password(index)}: {error}. Install python3-venv.")
    if sha256 and hashlib.sha256(wheel).hexdigest() != sha256:
        sys.exit(f"The pip that {without_password(index)} sent is not the one it announced. Install python3-venv.")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, os.path.basename(urllib.parse.urlsplit(url).path))
        with open(path, "wb") as file:
            file.write(wheel)
        python = os.path.join(venv, "bin", "python")
        made = run_quietly([python, os.path.join(path, "pip"), "install", "--no-index", path])
    if made.returncode != 0:
        sys.exit(f"{made.stdout}\nThe fetched pip could not install itself: see above. Install python3-venv.")


def newest_pip(index: str) -> tuple[str, str]:
    """(address, SHA-256 or "") of the newest final pip wheel on an index page (PEP 503)."""
    page = fetch(f"{index}/pip/").decode("utf-8", "replace")
    found = []
    for link in re.findall(r'href\s*=\s*"([^"]+)"', page):
        address = urllib.parse.urljoin(f"{index}/pip/", link.replace("&amp;", "&"))
        match = re.search(r"/pip-(\d+(?:\.\d+)*)-py3-none-any\.whl(?:#sha256=([0-9a-f]{64}))?$", address)
        if match:
            version = tuple(int(part) for part in match[1].split("."))
            found.append((version, address.partition("#")[0], match[2] or ""))
    if not found:
        raise ValueError("its page of pip lists no wheel")
    return max(found)[1:]


def fetch(url: str) -> bytes:
    """The body at `url`; a user and password in it are sent as pip sends them."""
    import base64
    import ssl

    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(
        urllib.parse.urlunsplit(parts._replace(netloc=host)), headers={"Accept": "text/html, */*"}
    )
    if parts.username:
        who = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(who.encode()).decode())
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        return bytes(answer.read())


def without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


# --- Debian's packages ----------------------------------------------------------------------------------------------


def apt_install(package: str) -> bool:
    """Install a Debian package as root; False, with the reason said, if that does not work here."""
    apt = shutil.which("apt-get")
    if apt is None:
        return False
    say(f"Installing the package {package}")
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [apt, "install", "-y", "--no-install-recommends", package]
    said = ""
    for command in (install, [apt, "update"], install):  # a fresh image has no lists yet
        ended = subprocess.run(
            command, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        said = ended.stdout + ended.stderr
        if ended.returncode == 0 and command is install:
            return True
    say("\n".join(said.splitlines()[-10:]))
    say(f"The package {package} could not be installed; the reason is above.")
    return False


PEERS = {  # package: a command that it brings
    "dcmtk": "dcmsend",
    "libgdcm-tools": "gdcmscu",
    "odil": "odil",
    "ctn": "send_image",
    "pixelmed-apps": "pixelmed",
    "orthanc": "Orthanc",
    "munge": "munged",
    "slurm-client": "sbatch",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "rclone": "rclone",
    "rsync": "rsync",
    "openssh-server": "sshd",
    "openssh-client": "sftp",
    "iproute2": "ip",
    "sshfs": "sshfs",
    "python3-fusepy": "",  # for Debian's own Python, which runs the share of tests/peers/fuse_share.py
    "acl": "setfacl",
    "fish": "fish",
    "zsh": "zsh",
    "e2fsprogs": "mkfs.ext4",
    "npm": "npm",
}
"""Debian's packages that the second tier is run with."""

NPM_PEERS = ("dcmjs-dimse",)
"""And what it brings by npm, into .peers/node_modules."""

BIDS_PEERS = ("heudiconv>=1.3", "dcm2bids>=3.2", "dcm2niix==1.0.20260724", "bids-validator-deno>=2.0")
"""And by pip, into .peers/bids: they bring a hundred others, which sorter has no use for."""


def ensure_peers() -> None:
    """Every peer that can be had; the tests of one that cannot say so and are skipped."""
    for package, command in PEERS.items():
        there = shutil.which(command) or os.path.isdir(os.path.join("/usr/share/doc", package))
        if not there and os.geteuid() == 0:
            apt_install(package)
    folder = os.path.join(ROOT, ".peers")
    for package in NPM_PEERS:
        if shutil.which("npm") and not os.path.isdir(os.path.join(folder, "node_modules", package)):
            say(f"Installing {package} with npm")
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder]
            done = run_quietly(["npm", "install", *options, package])
            if done.returncode:
                say(f"{done.stdout}{package} could not be installed; its tests are skipped.")
    ensure_bids_peers(os.path.join(folder, "bids"))


def ensure_bids_peers(venv: str) -> None:
    if os.path.exists(os.path.join(venv, "bin", "bids-validator-deno")):
        return
    say(f"Installing {', '.join(BIDS_PEERS)} into .peers/bids")
    python = os.path.join(venv, "bin", "python")
    for command in ([sys.executable, "-m", "venv", venv], [python, "-m", "pip", "install", "--quiet", *BIDS_PEERS]):
        done = run_quietly(command)
        if done.returncode:
            say(f"{done.stdout}They could not be installed; their tests are skipped.")
            return


def ensure_dcmtk() -> None:
    if shutil.which("dcmsend") or (os.geteuid() == 0 and apt_install("dcmtk")):
        return
    say("DCMTK is missing, so the tests with its tools cannot run. Install the package dcmtk to run them too.")


# --- the commands ---------------------------------------------------------------------------------------------------


def run_tier(venv: str, tier: str, arguments: list[str]) -> int:
    """The tests of one of the longer tiers, one after the other: they measure, and use whole machines."""
    ensure_peers()
    pytest = os.path.join(venv, "bin", "pytest")
    return subprocess.run([pytest, "-q", "-m", tier, "--timeout", "3600", *arguments], cwd=ROOT).returncode


WORKERS = 3
"""One more than the processors that the tests are made for: many wait for a sorter that runs."""


def run_tests(venv: str, arguments: list[str]) -> int:
    """Every check, whatever the ones before it said; the exit code is the first failure's."""
    ensure_dcmtk()
    tool = {name: os.path.join(venv, "bin", name) for name in ("ruff", "mypy", "pytest")}
    checks = [
        [tool["ruff"], "check", "--quiet"],
        [tool["ruff"], "format", "--check", "--quiet"],
        [tool["mypy"], "--no-error-summary"],
    ]
    failed: list[tuple[int, str]] = []
    for command in checks:
        name = " ".join([os.path.basename(command[0]), *command[1:]])
        say(name)
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            failed.append((code, name))
    if not any(argument.startswith("--hypothesis-seed") for argument in arguments):
        # said with every run, so that what one run found can be found again
        arguments = [f"--hypothesis-seed={secrets.randbelow(1 << 32)}", *arguments]
    say(" ".join(["pytest", *arguments]))
    spread = ["-n", str(WORKERS), "--dist", "worksteal"]
    # hundreds of processes are started: without compiled files each would compile all of sorter, for most of a second
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    code = subprocess.run([tool["pytest"], "-q", *spread, *arguments], cwd=ROOT, env=inherited).returncode
    for _, name in failed:
        say(f"failed: {name}")
    return failed[0][0] if failed else code


def sorter(venv: str, arguments: list[str]) -> None:
    """Become the sorter command. Without a command it serves; `serve` without a place serves ./sorter-data."""
    if not arguments or arguments[0].startswith("-"):
        arguments = ["serve", *arguments]
    placed = any(re.match(r"(-c|--config|--root)(=|$)|-c.", argument) for argument in arguments)
    if arguments[0] == "serve" and not placed:
        arguments = ["serve", "--root", "./sorter-data", *arguments[1:]]
    program = os.path.join(venv, "bin", "sorter")
    os.execv(program, [program, *arguments])


def other_python(version: str, arguments: list[str]) -> None:
    """Run this file again with the Python named 3.12, python3.12 or /a/path; its environment is .venv-NAME."""
    name = version if not version[:1].isdigit() else f"python{version}"
    program = shutil.which(name)
    if program is None:
        sys.exit(f"There is no {name} here.")
    label = re.sub(r"[^\w.]+", "-", version).strip("-")
    os.environ["SORTER_VENV"] = os.path.join(ROOT, f".venv-{label}")
    os.execv(program, [program, os.path.abspath(__file__), *arguments])


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if arguments[:1] == ["--python"]:
        if len(arguments) < 2:
            sys.exit("--python needs a version, as: --python 3.12")
        other_python(arguments[1], arguments[2:])
    venv = os.environ.get("SORTER_VENV") or os.path.join(ROOT, ".venv")
    tier = next((each for each in ("test", "peers", "soak") if arguments[:1] == [each]), None)
    try:
        environment(venv, tier is not None)
        if tier == "test":
            return run_tests(venv, arguments[1:])
        if tier is not None:
            return run_tier(venv, tier, arguments[1:])
        sorter(venv, arguments)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
