"""Serves a folder, and parts of its files: ranges, which Python's own server does not know.

python3 serve.py FOLDER [--port 8000]
"""

import argparse
import re
import shutil
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO


def part_of(header: str, size: int) -> tuple[int, int] | None:
    """Where the part of a file begins and ends that a ``Range`` header names; None for the whole.

    Raises:
        ValueError: the file has nothing of it.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.groups() == ("", ""):  # several parts at once, or no range at all
        return None
    first, last = match.groups()
    if first == "":
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return None
    if begin >= end:
        raise ValueError(header)
    return begin, end


class Handler(SimpleHTTPRequestHandler):
    """Answers GET and HEAD, a range with 206, or with 416 where there is nothing of it."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> BinaryIO | None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().send_head()
        state = path.stat()
        tag = f'"{state.st_mtime_ns:x}-{state.st_size:x}"'
        wanted = self.headers.get("Range", "")
        if self.headers.get("If-Range", tag) != tag:  # of another version of the file
            wanted = ""
        try:
            part = part_of(wanted, state.st_size)
        except ValueError:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{state.st_size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        begin, end = part or (0, state.st_size)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
        if part:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{state.st_size}")
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        with path.open("rb") as file:
            file.seek(begin)
            return BytesIO(file.read(end - begin))

    def copyfile(self, source: Any, outputfile: Any) -> None:
        # A page that is left while it reads.
        try:
            shutil.copyfileobj(source, outputfile)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def main() -> None:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serves a folder, with ranges.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    handler = partial(Handler, directory=str(options.folder))
    with ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
        print(f"http://localhost:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
