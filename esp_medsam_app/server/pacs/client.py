"""Questions to the PACS: each with a time-out, and none while it is known not to answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import requests
from dicomweb_client.session_utils import create_session_from_gcp_credentials
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset

from esp_medsam_app.errors import InputError, UnknownNameError, UnreachableError

# Seconds for a connection; a PACS is in the same building.
_CONNECT = 3.0
# After a time-out nobody waits for the PACS again before so many seconds have passed.
PAUSE = 10.0
# Series and instances are listed in pages of so many.
PAGE = 500
# Seconds for a whole series, however slowly it drips.
_LONGEST_DOWNLOAD = 900.0

_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TimeOuts:
    """Seconds that the PACS may be silent.

    Attributes:
        search: while it looks something up (MONAI_LABEL_DICOMWEB_READ_TIMEOUT).
        transfer: while it sends or stores instances (MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT).
        pause: after it was silent, before it is asked again.
    """

    search: float = 5.0
    transfer: float = 30.0
    pause: float = PAUSE


class PacsClient:
    """A DICOMweb server as this project uses it.

    Threads may share one. The first call that the PACS leaves unanswered ends with its time-out;
    for `pause` seconds from then on, every other one fails at once.

    Args:
        url: of the DICOMweb root.
        credentials: user and password, if it wants any.
        time_outs: how long to wait; may be altered later.
        prefixes: what the addresses of QIDO, WADO and STOW begin with, after the root.
    """

    def __init__(
        self,
        url: str,
        credentials: tuple[str, str] | None = None,
        time_outs: TimeOuts | None = None,
        prefixes: tuple[str | None, str | None, str | None] = (None, None, None),
    ) -> None:
        self.url = url.rstrip("/")
        self.time_outs = time_outs or TimeOuts()
        session = _session(self.url, credentials, lambda: self.time_outs)
        qido, wado, stow = prefixes
        self.web = DICOMwebClientX(
            url=self.url,
            session=session,
            qido_url_prefix=qido,
            wado_url_prefix=wado,
            stow_url_prefix=stow,
        )
        # its retries would wait for half a minute, which our callers do not have
        self.web.set_http_retry_params(retry=False)
        self._silent_until = 0.0
        self._why = ""
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, url: str) -> PacsClient:
        """With MONAI Label's own settings."""
        return cls(
            url,
            credentials(),
            TimeOuts(
                settings.MONAI_LABEL_DICOMWEB_READ_TIMEOUT,
                settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
            ),
            (
                settings.MONAI_LABEL_QIDO_PREFIX,
                settings.MONAI_LABEL_WADO_PREFIX,
                settings.MONAI_LABEL_STOW_PREFIX,
            ),
        )

    @property
    def is_silent(self) -> bool:
        """Whether it was silent a moment ago; asking it now fails at once."""
        return time.monotonic() < self._silent_until

    def probe(self) -> Dataset | None:
        """One series that the PACS holds, after a look at one of its instances; none: it is empty.

        Raises:
            UnreachableError: the PACS does not answer, or answers nonsense.
            UnknownNameError: there is no DICOMweb at this address.
        """
        series = self._asked(
            partial(
                _parsed,
                lambda offset: self.web.search_for_series(fields=_FIELDS, limit=1, offset=offset),
                0,
            )
        )
        if not series:
            return None
        study, uid = str(series[0].StudyInstanceUID), str(series[0].SeriesInstanceUID)
        found = self._asked(
            partial(_parsed, lambda offset: self.web.search_for_instances(study, uid, limit=1), 0)
        )
        if found:
            instance = str(found[0].SOPInstanceUID)
            self._asked(lambda: self.web.retrieve_instance_metadata(study, uid, instance))
        return series[0]

    def search_series(self, filters: Mapping[str, Any]) -> list[Dataset]:
        """All series that match, page by page.

        Raises:
            UnreachableError: the PACS does not answer, or answers nonsense.
        """
        return self._pages("SeriesInstanceUID", lambda offset: self.web.search_for_series(
            search_filters=dict(filters),
            fields=_FIELDS,
            limit=PAGE,
            offset=offset,
        ))  # fmt: skip

    def instances(self, study: str, series: str) -> list[Dataset]:
        """The instances that the PACS has of a series, their UIDs and little more.

        Raises:
            UnreachableError: the PACS does not answer, or answers nonsense.
        """
        return self._pages("SOPInstanceUID", lambda offset: self.web.search_for_instances(
            study, series, limit=PAGE, offset=offset
        ))  # fmt: skip

    def metadata(self, study: str, series: str) -> list[Dataset]:
        """Everything but the bulk of a series' instances.

        Raises:
            UnreachableError: the PACS does not answer, or answers nonsense.
            UnknownNameError: it has no such series.
        """
        return self._asked(lambda: [
            Dataset.from_json(item) for item in self.web.retrieve_series_metadata(study, series)
        ])  # fmt: skip

    def download(self, study: str, series: str) -> Iterator[Dataset]:
        """The instances of a series as they are stored, one after another.

        Raises:
            UnreachableError: the PACS does not answer, or stops in the middle.
            UnknownNameError: it has no such series.
        """
        deadline = time.monotonic() + _LONGEST_DOWNLOAD
        with self._watched():
            for instance in self.web.iter_series(study, series, (("application/dicom", "*"),)):
                if time.monotonic() > deadline:
                    raise requests.Timeout(f"not done in {_LONGEST_DOWNLOAD:.0f} s")
                yield instance

    def store(self, dataset: Dataset) -> None:
        """Put an instance into the PACS.

        Raises:
            UnreachableError: the PACS does not answer.
            InputError: it refuses the instance.
        """
        try:
            answer = self._asked(lambda: self.web.store_instances([dataset]))
        except UnknownNameError as error:
            raise InputError(f"the PACS refuses to store the DICOM SEG: {error.problem}") from error
        failed = answer.get("FailedSOPSequence") or []
        if failed:
            reason = failed[0].get("FailureReason", "no reason given")
            raise InputError(f"the PACS refuses to store the DICOM SEG (reason {reason})")

    def _pages(self, key: str, page: Callable[[int], list[dict[str, Any]]]) -> list[Dataset]:
        found: dict[str, Dataset] = {}
        offset = 0
        while True:
            answer = self._asked(partial(_parsed, page, offset))
            before = len(found)
            for dataset in answer:
                uid = str(dataset.get(key, ""))
                if uid:
                    found.setdefault(uid, dataset)
            offset += len(answer)
            # archives cap pages as they like, and some know no offset and send the same one again
            if len(found) == before:
                return list(found.values())

    def _asked(self, question: Callable[[], _Answer]) -> _Answer:
        with self._watched():
            return question()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if self.is_silent:
            raise UnreachableError(
                f"the PACS does not answer ({self._why})", remedy="Try again in a minute"
            )
        try:
            yield
        except requests.HTTPError as error:
            raise _refused(error) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            self._fell_silent(type(error).__name__)
            raise UnreachableError(
                f"the PACS does not answer ({type(error).__name__})",
                remedy="Try again in a minute",
            ) from error
        except requests.RequestException as error:
            raise UnreachableError(
                f"the PACS broke off ({type(error).__name__})", remedy="Try again"
            ) from error
        except (UnreachableError, UnknownNameError, InputError, GeneratorExit, OSError):
            raise
        except Exception as error:  # no JSON, no DICOM, no multipart
            raise UnreachableError(
                f"the PACS answers what is no DICOMweb ({type(error).__name__}: {error})",
                remedy="Check the address given as --studies",
            ) from error
        else:
            self._silent_until = 0.0

    def _fell_silent(self, why: str) -> None:
        with self._lock:
            self._silent_until = time.monotonic() + self.time_outs.pause
            self._why = why
        logger.warning("The PACS at %s does not answer: %s", self.url, why)


def credentials() -> tuple[str, str] | None:
    """User and password for the PACS: MONAI_LABEL_DATASTORE_USERNAME and _PASSWORD, or their
    older names MONAI_LABEL_DICOMWEB_..., which MONAI Label itself still asks for."""
    for user, password in (
        (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD),
        (settings.MONAI_LABEL_DATASTORE_USERNAME, settings.MONAI_LABEL_DATASTORE_PASSWORD),
    ):
        if user and password:
            return user, password
    return None


def is_default(name: str) -> bool:
    """Whether nobody has set one of MONAI Label's settings."""
    return name not in settings.model_fields_set


def _parsed(page: Callable[[int], list[dict[str, Any]]], offset: int) -> list[Dataset]:
    return [Dataset.from_json(item) for item in page(offset)]


_FIELDS = [
    "Modality", "StudyDate", "StudyTime", "PatientID", "StudyInstanceUID", "SeriesDescription",
    "BodyPartExamined", "NumberOfSeriesRelatedInstances",
]  # fmt: skip


def _refused(error: requests.HTTPError) -> UnreachableError | UnknownNameError:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return UnreachableError(
            f"the PACS refuses this server's credentials (HTTP {status})",
            remedy="Set MONAI_LABEL_DATASTORE_USERNAME and MONAI_LABEL_DATASTORE_PASSWORD",
        )
    if status in (404, 410):
        return UnknownNameError("the PACS does not have it (any more)")
    return UnreachableError(f"the PACS answers with HTTP {status}", remedy="Ask its administrator")


class _Patience(requests.adapters.HTTPAdapter):
    """Waits for every answer so long and no longer."""

    def __init__(self, time_outs: Callable[[], TimeOuts]) -> None:
        self._time_outs = time_outs
        super().__init__()

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        looks_up = request.method == "GET" and "json" in request.headers.get("Accept", "")
        time_outs = self._time_outs()
        limit = time_outs.search if looks_up else time_outs.transfer
        kwargs["timeout"] = (min(_CONNECT, limit), limit)
        return super().send(request, *args, **kwargs)


def _session(
    url: str, credentials: tuple[str, str] | None, time_outs: Callable[[], TimeOuts]
) -> requests.Session:
    if "googleapis.com" in url:
        session: requests.Session = create_session_from_gcp_credentials()
    else:
        session = requests.Session()
        session.auth = credentials
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Patience(time_outs))
    return session
