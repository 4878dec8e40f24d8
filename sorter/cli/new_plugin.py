"""What `sorter plugins new` writes: a plugin that works, and its test."""

from __future__ import annotations

CODE = '''\
"""The series of one project belong to one lab, under subjects in small letters."""

from sorter import Identity, hookimpl


@hookimpl
def sorter_identify(series, settings):
    if str(series.StudyDescription or "").startswith(settings.get("project", "PILOT")):
        return Identity(lab=settings.get("lab"), subject=str(series.PatientID or "unknown").lower())
'''

TEST = """\
from sorter.testing.plugins import check_plugin, load_plugin, made_up

PLUGIN = {plugin}


def test_the_project_belongs_to_the_lab():
    plugin = load_plugin(PLUGIN, project="MEMORY", lab="memory")
    found = plugin.identify(made_up(StudyDescription="MEMORY^aging", PatientID="S07"))
    assert (found.identity.lab, found.identity.subject, found.failures) == ("memory", "s07", ())


def test_it_has_no_opinion_of_other_series():
    plugin = load_plugin(PLUGIN, project="MEMORY", lab="memory")
    assert plugin.identify(made_up(StudyDescription="VISION")).identity.lab is None


def test_it_stands_whatever_scanners_send():
    check_plugin(PLUGIN, project="MEMORY", lab="memory")
"""

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "sorter-{name}"
version = "0.1.0"
description = "A plugin of sorter."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["mri-sorter"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.sorter]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""

README = """\
# sorter-{name}

A plugin of sorter: the series of one project belong to one lab.

    pip install sorter-{name}

In `sorter.toml`:

    [plugins.{name}]
    project = "MEMORY"
    lab = "memory"

`sorter plugins` lists it, `sorter plugins try UID` shows what it says of a series.
"""


def distribution(name: str) -> dict[str, str]:
    """Path below the present folder, and text, of each file of the distribution `sorter-NAME`."""
    home, module = f"sorter-{name}", f"sorter_{name.replace('-', '_')}"
    return {
        f"{home}/pyproject.toml": PROJECT.format(name=name, module=module),
        f"{home}/README.md": README.format(name=name),
        f"{home}/{module}/__init__.py": CODE,
        f"{home}/tests/test_{name.replace('-', '_')}.py": TEST.format(plugin=repr(name).replace("'", '"')),
    }


def single_file(name: str) -> dict[str, str]:
    """The same of a single file and its test."""
    where = f'__file__.replace("test_{name.replace("-", "_")}.py", "{name}.py")'
    return {f"{name}.py": CODE, f"test_{name.replace('-', '_')}.py": TEST.format(plugin=where)}
