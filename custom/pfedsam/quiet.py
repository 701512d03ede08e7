"""Libraries' own warnings kept from the user: they may quote a file's content, and so a patient's name."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# those that read a site's files, and torch's exporter, which talks of itself
LIBRARIES = ("pydicom", "highdicom", "nibabel", "nibabel.global", "PIL", "torch.onnx")
log = logging.getLogger("pfedsam.libraries")


def quiet() -> None:
    """From now on no warning and no log line of a library is shown; at level debug, where a warning came from.

    What a user has to know of a file is said by this package, as a fault or as a note.
    """
    warnings.showwarning = _noted
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.addFilter(_none)  # nibabel prints through a handler of its own
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    if logging.lastResort is not None:  # what shows log lines where nothing is set up
        logging.lastResort.addFilter(ours)


@contextmanager
def quietly() -> Iterator[None]:
    """Within as after `quiet`, and afterwards as before: for a call out of somebody else's program."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    were = [(logger, list(logger.filters), list(logger.handlers), logger.propagate) for logger in loggers]
    last = logging.lastResort
    shown = list(last.filters) if last else []
    with warnings.catch_warnings():
        quiet()
        try:
            yield
        finally:
            for logger, filters, handlers, propagate in were:
                logger.filters, logger.handlers, logger.propagate = filters, handlers, propagate
            if last:
                last.filters = shown


def _noted(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log.debug("a warning of %s, line %d: %s", filename, lineno, category.__name__)


def _none(record: logging.LogRecord) -> bool:
    return False


def ours(record: logging.LogRecord) -> bool:
    """Whether the line is this package's own."""
    return record.name.split(".")[0] == "pfedsam"
