"""Which header elements differ between two copies of one SOP instance that have the same pixels."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword

from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.take import elements, values
from sorter.take.contents import DEFLATED, codec_of, start

DEMOGRAPHIC: tuple[str, ...] = (
    # patient (PS3.3 C.7.1.1)
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID",
    "PatientBirthDate", "PatientBirthTime", "PatientBirthDateInAlternativeCalendar",
    "PatientDeathDateInAlternativeCalendar", "PatientAlternativeCalendar", "PatientSex",
    "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "PatientAddress", "PatientTelephoneNumbers", "PatientTelecomInformation", "EthnicGroup",
    "EthnicGroupCodeSequence", "PatientReligiousPreference", "MilitaryRank", "BranchOfService",
    "MedicalRecordLocator", "CountryOfResidence", "RegionOfResidence", "PatientComments",
    "ReferencedPatientSequence", "ReferencedPatientPhotoSequence", "QualityControlSubject", "ResponsiblePerson",
    "ResponsiblePersonRole", "ResponsibleOrganization", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "StrainDescription",
    "StrainNomenclature", "StrainCodeSequence", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "PatientPrimaryLanguageCodeSequence",
    # clinical trial subject and study (C.7.1.3, C.7.2.3)
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription", "ConsentForClinicalTrialUseSequence",
    # study (C.7.2.1)
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "IssuerOfAccessionNumberSequence", "StudyDescription",
    "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName",
    "ConsultingPhysicianIdentificationSequence", "PhysiciansOfRecord", "PhysiciansOfRecordIdentificationSequence",
    "NameOfPhysiciansReadingStudy", "PhysiciansReadingStudyIdentificationSequence", "RequestingService",
    "RequestingServiceCodeSequence", "ReferencedStudySequence", "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence", "StudyComments",
    # patient study (C.7.2.2)
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize", "PatientWeight",
    "PatientBodyMassIndex", "MeasuredAPDimension", "MeasuredLateralDimension", "PatientSizeCodeSequence",
    "MedicalAlerts", "Allergies", "SmokingStatus", "PregnancyStatus", "LastMenstrualDate", "PatientState",
    "Occupation", "AdditionalPatientHistory", "AdmissionID", "IssuerOfAdmissionIDSequence", "ServiceEpisodeID",
    "IssuerOfServiceEpisodeIDSequence", "ServiceEpisodeDescription", "PatientSexNeutered",
    "ReasonForVisit", "ReasonForVisitCodeSequence",
)  # fmt: skip
"""Attributes of the patient and of the study: what a correction at the scanner or in the PACS changes."""

_BOOKKEEPING = frozenset({0x00080005, 0x04000561})  # character set, original attributes: they go with a correction
_IGNORED = frozenset({0xFFFCFFFC})  # padding
_MANY = 64  # keywords named in an answer


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """What differs in the newer copy, as DICOM keywords (a private element as its tag, for instance "(0029,1010)").

    `changed` names every element that differs, `lost` those of them that the newer copy has not or has empty.
    `demographic_only`: the patient or the study was corrected, nothing else differs, nothing was lost.
    """

    changed: tuple[str, ...]
    lost: tuple[str, ...]
    demographic_only: bool


def header_change(files: Files, old_fd: int, new_fd: int) -> HeaderChange:
    """Compare the elements of two open files of one transfer syntax, pixel values apart.

    Padding and group lengths are no difference, nor is an empty element against none; short text is compared as it
    reads, each in its own character set; sequences are compared as bytes. Where a data set is deflated or cannot be
    walked, nothing is named and nothing is known to be demographic.
    """
    old, new = _outline(files, old_fd), _outline(files, new_fd)
    if old is None or new is None:
        return HeaderChange((), (), False)
    changed = sorted(tag for tag in old.keys() | new.keys() if old.get(tag) != new.get(tag))
    lost = [tag for tag in changed if tag not in new]
    corrected = _demographic().intersection(changed)
    only = bool(corrected) and not lost and all(tag in corrected or tag in _BOOKKEEPING for tag in changed)
    return HeaderChange(_names(changed), _names(lost), only)


# --- when the older copy is not here any more -----------------------------------------------------------------------


def sketch(files: Files, fd: int) -> dict[str, Any] | None:
    """What `is_correction` has to know of an image that is about to leave: digests, and no value of its header.

    None where it cannot be looked into: nothing that comes later is a correction of it then.
    """
    found = _outline(files, fd)
    if found is None:
        return None
    people = {tag: value for tag, value in found.items() if tag in _demographic()}
    rest = {tag: value for tag, value in found.items() if tag not in people and tag not in _BOOKKEEPING}
    may_change = sorted(f"{tag:08x}" for tag in found.keys() - rest.keys())
    return {"rest": _digest(rest), "people": _digest(people), "tags": may_change}


def is_correction(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> bool:
    """Of two sketches: `HeaderChange.demographic_only`."""
    if old is None or new is None or not set(old["tags"]) <= set(new["tags"]):
        return False
    return bool(old["rest"] == new["rest"] and old["people"] != new["people"])


def _digest(outline: Mapping[int, str | bytes]) -> str:
    return hashlib.sha256(repr(sorted(outline.items())).encode("utf-8", "surrogatepass")).hexdigest()[:32]


@functools.cache
def _demographic() -> frozenset[int]:
    return frozenset(tag for tag in map(tag_for_keyword, DEMOGRAPHIC) if tag is not None)


def _outline(files: Files, fd: int) -> dict[int, str | bytes] | None:
    """Every element that is not empty, comparable; None where it cannot be looked into."""
    try:
        stream, meta = start(files, fd)
        if meta.transfer_syntax in DEFLATED:
            return None
        found = elements.outline(stream, codec_of(stream, meta))
    except Quarantine:
        return None
    charset = values.encodings(found.get(0x00080005, (b"", b""))[1])
    clean = {tag: _comparable(tag, *element, charset) for tag, element in found.items() if _counts(tag)}
    return {tag: value for tag, value in clean.items() if value}


def _counts(tag: int) -> bool:
    return tag & 0xFFFF != 0 and tag not in _IGNORED


def _comparable(tag: int, vr: bytes, raw: bytes, charset: tuple[str, ...]) -> str | bytes:
    """Text without padding, decoded where its character set matters; else the bytes."""
    known = vr.decode("latin-1") or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
    if len(raw) > elements.SHORT or not values.is_text(known):
        return raw
    text = values.decode(raw, charset) if known in values.CODED else raw.decode("latin-1")
    return text.strip("\0 ")


def _names(tags: list[int]) -> tuple[str, ...]:
    names = [keyword_for_tag(tag) or elements.name(tag) for tag in tags[:_MANY]]
    return (*names, f"and {len(tags) - _MANY} more") if len(tags) > _MANY else tuple(names)
