"""Files of the page: read once, told apart by their content, sent as small as the client takes."""

from __future__ import annotations

import gzip
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import Request, Response

# Python asks the machine for these, and machines differ.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
COMPRESSED = {".css", ".html", ".js", ".json", ".svg"}  # fonts and pictures are already

# Nothing comes from elsewhere, nothing goes elsewhere, no script or style stands in a page, no page
# of others may frame it, and no text can become markup: a string is refused wherever the browser
# would parse it (Trusted Types), so a question, an answer or a file name stays text.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
SECURITY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent.

    Args:
        zipped: the same in gzip, where that is smaller.
        etag: of the content. Files have no version in their names, so clients ask each time whether
            they have changed; the answer is short.
    """

    body: bytes
    zipped: bytes | None
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, suffix: str) -> PageFile:
        zipped = gzip.compress(body, 9, mtime=0) if suffix in COMPRESSED else None
        media_type = MEDIA_TYPES.get(suffix) or mimetypes.types_map.get(suffix)
        return cls(
            body,
            zipped,
            media_type or "application/octet-stream",
            f'"{sha256(body).hexdigest()[:32]}"',
        )

    def answer(self, request: Request) -> Response:
        """The file, or that the client has it."""
        fields = {**SECURITY, "cache-control": "no-cache", "etag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=fields)
        body = self.body
        if self.zipped is not None:
            fields["vary"] = "accept-encoding"
            if "gzip" in request.headers.get("accept-encoding", ""):
                body = self.zipped
                fields["content-encoding"] = "gzip"
        return Response(body, media_type=self.media_type, headers=fields)


def read_files(folder: Path) -> Mapping[str, PageFile]:
    """Every file below a folder by its path there, with forward slashes. Only these are ever sent,
    so no name that a client makes up reaches the file system.
    """
    return {
        path.relative_to(folder).as_posix(): PageFile.of(path.read_bytes(), path.suffix)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
