"""`python -m tests.support.in_bucket COMMAND ...`: a command whose gs:// is the bucket of a test.

The bucket is another process's; POLARIS_TEST_BUCKET is the address of its HTTP door. tensorstore
goes there by itself, and everything that goes through epath by the backend that tests mount. So
gcsfs need not be installed.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from etils.epath import gpath

from polaris_jax.__main__ import entry
from polaris_jax.system import files
from tests.support.fake_bucket import EpathDoor


class RemoteBucket:
    """What `EpathDoor` asks of a bucket, over HTTP."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.objects = self

    def __contains__(self, name: str) -> bool:
        return self._ask("GET", self._place(name)) is not None

    def read(self, name: str) -> bytes:
        """An object's content."""
        data = self._ask("GET", f"{self._place(name)}?alt=media")
        if data is None:
            raise FileNotFoundError(2, "no such object", name)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Stores an object."""
        bucket, _, rest = name.partition("/")
        query = urllib.parse.urlencode({"uploadType": "media", "name": rest})
        self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", data)

    def delete(self, name: str) -> bool:
        """Removes an object; False when there is none."""
        return self._ask("DELETE", self._place(name)) is not None

    def names(self, prefix: str) -> list[str]:
        """Sorted names of the objects under a prefix."""
        bucket, _, rest = prefix.partition("/")
        query = urllib.parse.urlencode({"prefix": rest})
        found: Any = json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o?{query}") or b"{}")
        return sorted(f"{bucket}/{item['name']}" for item in found.get("items", []))

    def _place(self, name: str) -> str:
        bucket, _, rest = name.partition("/")
        return f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(rest, safe='')}"

    def _ask(self, method: str, path: str, data: bytes | None = None) -> bytes | None:
        request = urllib.request.Request(self._url + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise OSError(error.code, error.reason, path) from None


if __name__ == "__main__":
    gpath._PREFIX_TO_BACKEND["gs"] = EpathDoor(RemoteBucket(os.environ["POLARIS_TEST_BUCKET"]))
    files._STORES["gs"] = ("json", "")
    entry()
