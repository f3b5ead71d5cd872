"""Files as the C++ library reads and writes them: regular ones, that are old or new but never half.

Its messages name the path, the reason and the remedy; the errors are OSError, and ValueError for a
path with a NUL byte, as Python's own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nsn import _C

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def readable(path: AnyPath) -> bytes:
    """A path that libraries get which say only by a message why a file cannot be opened.

    Raises:
        OSError: where it is no regular file that can be read; its kind says why.
    """
    encoded = os.fsencode(path)
    os.close(_C.open_for_reading(encoded))
    return encoded


def read(path: AnyPath) -> bytes:
    """The contents of a regular file; a FIFO, a device or a folder is refused without waiting."""
    with os.fdopen(_C.open_for_reading(os.fsencode(path)), "rb") as file:
        return file.read()


def write(path: AnyPath, content: bytes | memoryview) -> None:
    """Writes a file at once: ``path`` holds what it held, or all of the new contents.

    Links are followed, and mode and owner stay; what is no regular file, may not be written or has
    other hard links is refused.
    """
    _C.write_file(os.fsencode(path), content)


@contextmanager
def new_folder(path: AnyPath) -> Iterator[Path]:
    """A folder that gets the name ``path``, which must be free, where the block ends without error.

    Raises:
        FileExistsError: where there is something of that name.
    """
    parent = Path(os.fsdecode(path)).parent
    parent.mkdir(parents=True, exist_ok=True)
    new = _C.NewFolder(os.fsencode(path))
    try:
        yield Path(os.fsdecode(new.place))
        new.commit()
    finally:
        new.discard()


def reason(error: OSError) -> str:
    """What a failed call says, with the file's name in it once and nsn's own only in front."""
    text = (error.strerror or str(error)).removeprefix("nsn: ")
    if error.filename is None or str(error.filename) in text:
        return text
    return f"{error.filename}: {text}"
