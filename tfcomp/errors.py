"""The errors that tfcomp raises for what a caller can mend."""


class TfcompError(ValueError):
    """A mistake in what was asked, told in one line: expected, received, what to do.

    The command line prints the message alone and exits with code 2.
    """


class UnsupportedModelError(TfcompError):
    """The model is of a kind that cannot be walked: subclassed, unbuilt, or not a model."""


class ConversionError(TfcompError):
    """The converted file is not what was asked for; the message names the offending ops."""


class DamagedFileError(TfcompError):
    """A file is truncated, empty or not of the format that its name says."""
