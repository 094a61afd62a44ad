"""The errors a user can cause. One message, one line: the place, what was found, what was expected, what to do."""


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
