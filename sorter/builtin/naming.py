"""The names that sorter gives by default, those of the configuration, and those that a lab chose for itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from sorter import Name, Series, hookimpl
from sorter.config.lab import LabFile
from sorter.errors import SorterError
from sorter.model import UnitKind
from sorter.naming import DEFAULT_FILE, DEFAULT_FOLDER, DEFAULT_NIFTI_FILE, DEFAULT_NIFTI_FOLDER, Pattern


def _folder(text: str) -> str:
    return _checked(text, file=False)


def _file(text: str) -> str:
    return _checked(text, file=True)


def _checked(text: str, *, file: bool) -> str:
    try:
        Pattern(text, file=file)
    except SorterError as error:
        raise ValueError(str(error)) from None
    return text


class Patterns(BaseModel):
    """Of one product. Its `file` is a stem: what a tool adds to it, as `_e2.nii.gz`, is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[str, AfterValidator(_folder)] = DEFAULT_NIFTI_FOLDER
    file: Annotated[str, AfterValidator(_file)] = DEFAULT_NIFTI_FILE


class Settings(BaseModel):
    """`folder` and `file` are for the images themselves; `products` holds the patterns of what is made of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[str, AfterValidator(_folder)] = DEFAULT_FOLDER
    file: Annotated[str, AfterValidator(_file)] = DEFAULT_FILE
    products: dict[str, Patterns] = {}
    labs: dict[str, LabFile] = {}  # what the labs' own files say, filled in by sorter

    def usual(self, product: str, kind: UnitKind = UnitKind.SERIES) -> Name:
        """The patterns of who says nothing."""
        if product == "dicom":
            return Name(self.folder, self.file)
        patterns = self.products.get(product) or _default(product, kind)
        return Name(patterns.folder, patterns.file)


@hookimpl
def sorter_config() -> type[Settings]:
    return Settings


@hookimpl
def sorter_name(series: Series, product: str, target: str, settings: Settings) -> Name:
    """A lab has its say of its own series at its own root, which is the target of its name, and nowhere else."""
    usual = settings.usual(product, series.kind)
    own = settings.labs.get(target) if target == series.lab else None
    return usual if own is None else own.name(series, product, usual)


def _default(product: str, kind: UnitKind) -> Patterns:
    """Each product has a folder of its own in the session, so that two products never meet; one of a whole study or
    subject keeps the names that its maker gave."""
    session = DEFAULT_NIFTI_FOLDER.rpartition("/")[0]
    if kind is not UnitKind.SERIES:
        return Patterns(folder=f"{session if kind is UnitKind.STUDY else '{subject}'}/{product}", file=product)
    return Patterns() if product == "nifti" else Patterns(folder=f"{session}/{product}")
