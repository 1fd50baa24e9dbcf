"""The errors that the core raises on purpose.

DomainGalleryError
  InputError      what the user asked for cannot work
  AdapterError    an adapter does not fit the model
  FileError       a file cannot be written, read or understood
  TrainingError   a run cannot go on

A message says what was expected, what came, and what to do.
"""


class DomainGalleryError(Exception):
    """Base of every error that the core raises on purpose."""


class InputError(DomainGalleryError):
    """Raised when a value that a user chose cannot work."""


class AdapterError(DomainGalleryError):
    """Raised when an adapter does not fit the model that it is for."""


class FileError(DomainGalleryError):
    """Raised when a file cannot be written, read or understood."""


class TrainingError(DomainGalleryError):
    """Raised when a training run cannot go on."""
