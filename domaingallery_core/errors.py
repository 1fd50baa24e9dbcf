"""The errors that the core raises on purpose.

DomainGalleryError
  InputError      what the user asked for cannot work
  AdapterError    an adapter does not fit the model
  FileError       a file cannot be written, read or understood
  TrainingError   a run cannot go on

A message says what was expected, what came, and what to do.
"""


class DomainGalleryError(Exception):
    """Base of every error that the core raises on purpose.

    The host shows an error's module, which for a pack is a path.
    """

    __module__ = "domaingallery"


class InputError(DomainGalleryError):
    """Raised when a value that a user chose cannot work."""

    __module__ = "domaingallery"


class AdapterError(DomainGalleryError):
    """Raised when an adapter does not fit the model that it is for."""

    __module__ = "domaingallery"


class FileError(DomainGalleryError):
    """Raised when a file cannot be written, read or understood."""

    __module__ = "domaingallery"


class TrainingError(DomainGalleryError):
    """Raised when a training run cannot go on."""

    __module__ = "domaingallery"
