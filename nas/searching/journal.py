"""The file that a study is kept in: Optuna's journal, that survives what happens to writers."""

import contextlib
import errno
import json
import logging
import os
import pathlib
from collections.abc import Generator, Iterator
from typing import Any

from optuna.storages.journal import JournalFileBackend

from nas.locks import locked

JOURNAL = "journal.log"
# Of optuna.storages.journal._storage.JournalOperation.
_CREATE_STUDY, _CREATE_TRIAL, _SET_TRIAL_STATE_VALUES = 0, 4, 6
_NAMES_A_TRIAL = (5, 6, 7, 8, 9)


class Journal(JournalFileBackend):
    """Optuna's journal file, with a lock that dies with its holder and lines that may be damaged.

    A write cut short (power, full disk) leaves half a line, to which the next writer would append,
    making the file unreadable for ever. Here every append first cuts such a tail off and keeps it
    in `<journal>.damaged`; a failed append takes back what it wrote. A damaged line in the middle
    is left out, and said.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(os.fspath(path))
        self.next_log = (0, 0)  # the number of the next log, and where in the file it begins
        self._damaged: dict[int, dict[str, Any] | None] = {}  # where -> what stands for it
        with _read_only(), self._locked():
            self._heal()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Whole lines from this number on; without the damaged ones, which have no number."""
        number, start = self.next_log if self.next_log[0] <= log_number_from else (0, 0)
        with open(self._file_path, "rb") as file:
            end = os.fstat(file.fileno()).st_size  # what others append meanwhile waits
            file.seek(start)
            for line in file:
                where, start = start, start + len(line)
                if start > end or not line.endswith(b"\n"):
                    return  # being written
                log = _parsed(line) or self._instead_of(where, line)
                if log is None:
                    continue
                number += 1
                self.next_log = number, start
                if number > log_number_from:
                    yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or none; on the disk, if they finish a trial."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._locked():
            self._heal()
            with open(self._file_path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(lines.encode()) != len(lines.encode()):
                        raise OSError(28, "No space left on device")  # ENOSPC: a short write
                    # What a power cut takes of an unfinished trial is done again: only a finished
                    # one is worth waiting for the disk, and takes all before it there.
                    if any(log["op_code"] == _SET_TRIAL_STATE_VALUES for log in logs):
                        os.fsync(file.fileno())
                except OSError as error:
                    with contextlib.suppress(OSError):
                        os.truncate(self._file_path, size)
                    raise OSError(
                        error.errno,
                        f"{error.strerror}: cannot write {self._file_path}; every finished trial is"
                        " in it: make room and run the same command again",
                    ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(pathlib.Path(self._file_path + ".lock")):
            yield

    def _heal(self) -> None:
        with open(self._file_path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            if not end:
                return
            length, tail = 256, b""
            while True:  # the last line, with the line end before it
                start = max(end - length, 0)
                file.seek(start)
                tail = file.read(end - start)
                if start == 0 or b"\n" in tail[:-1]:
                    break
                length *= 4
            last = tail[tail[:-1].rfind(b"\n") + 1 :]
            if last.endswith(b"\n") and _parsed(last) is not None:
                return
            with open(self._file_path + ".damaged", "ab") as damaged:
                damaged.write(last.rstrip(b"\n") + b"\n")
            file.truncate(end - len(last))

    def _instead_of(self, where: int, line: bytes) -> dict[str, Any] | None:
        """What stands for a damaged line: an empty trial where it began one, else nothing.

        Trials are numbered in the order of their lines, so without it all later ones would be
        taken for their neighbours.
        """
        if where not in self._damaged:
            path = pathlib.Path(self._file_path)
            content = path.read_bytes()
            place = f"{path}, line {content[:where].count(10) + 1} is damaged ({line[:40]!r}...)"
            self._damaged = _replacements(content, place)
            logging.getLogger(__name__).warning(
                f"{place} and left out: what it said of one trial is lost, all else is as it was;"
                " to have it back, restore the file from a backup"
            )
        return self._damaged.get(where)


@contextlib.contextmanager
def _read_only() -> Iterator[None]:
    """A journal that cannot be written can be read all the same."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of a journal; None where it is none."""
    try:
        log = json.loads(line)
    except ValueError:
        return None
    return log if isinstance(log, dict) and "op_code" in log else None


def _replacements(content: bytes, place: str) -> dict[int, dict[str, Any] | None]:
    """What stands for each damaged line of a journal, by its place: see `Journal._instead_of`.

    A trial that is spoken of, but of which there is no first line, had it in the last damaged line
    before. `ValueError` where that line, at `place`, is the one that begins the study.
    """
    found: dict[int, dict[str, Any] | None] = {}
    studies, trials, where = 0, 0, 0
    for line in content.split(b"\n")[:-1]:
        log = _parsed(line)
        if log is None:
            found[where] = None
        elif log["op_code"] == _CREATE_STUDY:
            studies += 1
        elif log.get("study_id", 0) >= studies:
            raise ValueError(f"{place}, which began the study: restore the file from a backup")
        elif log["op_code"] == _CREATE_TRIAL:
            trials += 1
            study_id = log["study_id"]
        elif log["op_code"] in _NAMES_A_TRIAL and log["trial_id"] >= trials:
            lost = [place for place, other in found.items() if other is None]
            for missing in lost[trials - log["trial_id"] - 1 :]:
                found[missing] = {
                    "op_code": _CREATE_TRIAL,
                    "worker_id": "",
                    "study_id": study_id if trials else 0,
                    "datetime_start": None,
                }
                trials += 1
        where += len(line) + 1
    return found
