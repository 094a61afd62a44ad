"""The errors a user can cause. One message, one line: the place, what was found, what was expected, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class RfcalcError(Exception):
    """Base of every error that is the user's to mend; the command line prints it and exits 2."""


class DesignError(RfcalcError):
    """A target that cannot be loaded or built into exactly one model."""


class NoDesignError(DesignError):
    """A file that runs and defines no design at all: one to skip when many files are searched."""


class InputError(RfcalcError):
    """An input shape that is malformed or does not fit the model."""


class ForwardError(RfcalcError):
    """The model's own forward raised; the message names the module and torch's reason."""


class ConfigError(RfcalcError):
    """A [tool.rfcalc] section or a flag that sets what cannot be set; the message names the file and the key."""


class HistoryError(RfcalcError):
    """A git repository or a revision of it that cannot be read."""


class DataError(RfcalcError):
    """A data set that is missing, damaged, or does not fit the design; the message names the file or the folder."""


class RecipeError(RfcalcError):
    """A recipe with an unknown key or an impossible value; the message names the key."""


class RunError(RfcalcError):
    """A run folder that cannot be written, is damaged, or is of another design or version; the message names it."""


class NotFiniteError(RfcalcError):
    """A training whose loss is no longer a number; the message names the epoch and the step."""


class MissingError(RfcalcError):
    """A library that an optional part needs and that is not installed."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of an optional part: a missing library names the extra of this package that brings it.

    Raises MissingError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed; get it by pip install 'rfcalc-torch[{name}]'") from error
