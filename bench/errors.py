"""The errors of `bench`, by who has to act.

    BenchError
    ├── InputError            the input is wrong: one line with the fix, exit status 2
    │   ├── UnknownNameError    a method, protocol, data set, preset or checkpoint nobody registered
    │   ├── SettingError        a setting that does not exist, or a value outside what it takes
    │   ├── DatasetError        pictures, labels or lists that are missing, broken or do not fit together
    │   ├── CheckpointError     a file of weights that is missing, broken, or of another network
    │   ├── DownloadError       a file that could not be fetched, or is not the one that was promised
    │   ├── FeatureError        a method whose maps cannot be scored (NaN, wrong shape)
    │   ├── MismatchError       a protocol that needs what the method does not give
    │   └── StorageError        a folder that cannot be written, a full disk, a damaged entry
    └── InternalError         a promise of ours was broken: a fault of the harness, exit status 1

Every message says what was seen, what was expected, and what to do, on one line.
"""

from __future__ import annotations


class BenchError(Exception):
    """The root of all errors raised on purpose."""


class InputError(BenchError):
    """What the user gave cannot be used; the message is one line and names the fix."""


class UnknownNameError(InputError):
    """A name that is not registered."""


class SettingError(InputError):
    """A setting that does not exist, or a value it does not take."""


class DatasetError(InputError):
    """Pictures, labels or lists that cannot be used."""


class CheckpointError(InputError):
    """A file of weights that cannot be used."""


class DownloadError(InputError):
    """A file that could not be fetched or verified."""


class FeatureError(InputError):
    """Maps that cannot be scored."""


class MismatchError(InputError):
    """A protocol needs something that the method or data set does not give."""


class StorageError(InputError):
    """Results or cache cannot be written or read."""


class InternalError(BenchError):
    """A promise between two parts of the harness was broken."""
