"""A Hub on this machine, for tests: the routes of the Hugging Face Hub that pushing and pulling take, over real HTTP.

It is strict: what a commit names must have been uploaded whole, bytes must have the hash and size they were announced
with, writing needs the token, and a request that it does not know gets a 404 and is kept in `unknown_requests`.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers import forked

TOKEN, READ_TOKEN = "hf_writer", "hf_reader"
KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}  # as in /api/… → as in the other URLs
DATE = "2024-01-01T00:00:00.000Z"


# What a new repository's .gitattributes says.
LFS_SUFFIXES = ".safetensors", ".parquet", ".png", ".bin", ".pt", ".pth"
LFS_SIZE = 10_000_000


@dataclass
class Repo:
    """One repository: its commits, oldest first, each the files that it has: path → SHA-256 of their bytes."""

    kind: str
    name: str
    private: bool = False
    commits: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, str], message: str) -> str:
        content = json.dumps([self.kind, self.name, len(self.commits), files, message], sort_keys=True)
        self.commits.append((hashlib.sha1(content.encode()).hexdigest(), files))
        self.messages.append(message)
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, str]] | None:
        """(commit, files) of a revision; None where there is none such."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (size >= LFS_SIZE or path.endswith(LFS_SUFFIXES))


def front_matter_errors(content: str) -> list[str]:
    """What is wrong with a card's metadata, as far as that can be told without a YAML parser."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return ["the card does not begin with metadata between two lines of ---"]
    keys = re.findall(r"^([^\s#-][^:]*):(?:\s|$)", match[1], re.MULTILINE)
    return [f"{key} is there twice" for key in set(keys) if keys.count(key) > 1]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer(ThreadingHTTPServer):
    """`with HubServer(folder) as hub:` serves at `hub.url`, and keeps all bytes in `folder`.

    Attributes:
        repos: ("models" | "datasets" | "spaces", "org/name") → its repository.
        requests: every request so far as "METHOD /path status"; `unknown_requests` those it has no route for.
        failing: beginning of a path → status that requests to it get instead of an answer; the path as in `requests`.
        slow: likewise → seconds until the answer.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}/storage"  # to the client another host, as on the Hub
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[str] = []
        self.unknown_requests: list[str] = []
        self.failing: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def store(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / digest).write_bytes(data)
        return digest

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """What a repository holds now: path → bytes."""
        _, files = self.repos[kind, name].commits[-1]
        return {path: (self.folder / digest).read_bytes() for path, digest in sorted(files.items())}


class _Refused(Exception):
    """A request that gets an error: status, message, and what the Hub calls it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    # One request ------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(max((delay for start, delay in self.server.slow.items() if path.startswith(start)), default=0))
        try:
            for start, status in self.server.failing.items():
                if path.startswith(start):
                    raise _Refused(status, "The server is out of order")
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("/"):
                    with self.server.lock:
                        return answer(self, **match.groupdict())
            self.server.unknown_requests.append(f"{self.command} {path}")
            raise _Refused(404, "Unknown route")
        except _Refused as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self._send(error.status, {"error": str(error)}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.server.requests.append(f"{self.command} {unquote(urlsplit(self.path).path)} {status}")
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _require_writer(self) -> None:
        if self._token() not in (TOKEN, READ_TOKEN):
            raise _Refused(401, "Invalid username or password.")
        if self._token() != TOKEN:
            raise _Refused(403, "You must use a token with write access to this repository")

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and self._token() not in (TOKEN, READ_TOKEN)):
            # The Hub does not tell strangers what is private and what is not there.
            status = 404 if self._token() in (TOKEN, READ_TOKEN) else 401
            raise _Refused(status, "Repository not found", "RepoNotFound")
        return repo

    def _revision(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, str]]:
        found = self._repo(kind, name).at(revision)
        if found is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # Routes -----------------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        if self._token() not in (TOKEN, READ_TOKEN):
            raise _Refused(401, "Invalid credentials in Authorization header")
        role = "write" if self._token() == TOKEN else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self._send(200, {"type": "user", "name": "org", "orgs": [], "auth": auth})

    def create(self) -> None:
        self._require_writer()
        wanted = json.loads(self.body)
        kind, name = f"{wanted.get('type', 'model')}s", f"{wanted.get('organization') or 'org'}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{KINDS[kind]}{name}", "name": name}
        if (kind, name) in self.server.repos:
            return self._send(409, {"error": "You already created this repo", **url})
        if kind == "spaces" and wanted.get("sdk") not in ("gradio", "docker", "static"):
            raise _Refused(400, "A Space needs an sdk")
        is_private = wanted.get("visibility") == "private" or wanted.get(
            "private", False
        )  # the latter of older clients
        repo = self.server.repos[kind, name] = Repo(kind, name, is_private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.commit({".gitattributes": self.server.store(attributes.encode())}, "initial commit")
        self._send(200, url)

    def validate(self) -> None:
        errors = front_matter_errors(json.loads(self.body)["content"])
        if errors:
            return self._send(400, {"errors": [{"message": error} for error in errors], "warnings": []})
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self._require_writer()
        _, files = self._revision(kind, name, revision)
        answers = []
        for wanted in json.loads(self.body)["files"]:
            base64.b64decode(wanted["sample"], validate=True)
            mode = "lfs" if is_lfs(wanted["path"], wanted["size"]) else "regular"
            oid = None
            if wanted["path"] in files:
                data = (self.server.folder / files[wanted["path"]]).read_bytes()
                oid = files[wanted["path"]] if mode == "lfs" else git_oid(data)
            answers.append({"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": answers})

    def commit(self, kind: str, name: str, revision: str) -> None:
        self._require_writer()
        repo, files = self._repo(kind, name), dict(self._revision(kind, name, revision)[1])
        if revision != "main":
            raise _Refused(400, "Only main can be committed to")
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["key"] != "header" or not header["value"]["summary"]:
            raise _Refused(400, "The first line must be the header, with a summary")
        for operation in operations:
            path, value = operation["value"]["path"], operation["value"]
            match operation["key"]:
                case "file":
                    data = base64.b64decode(value["content"], validate=True)
                    if is_lfs(path, len(data)):
                        raise _Refused(400, f"{path} must be uploaded by LFS")
                    files[path] = self.server.store(data)
                case "lfsFile":
                    if not (self.server.folder / value["oid"]).is_file():
                        raise _Refused(400, f"{path}: its bytes were not uploaded")
                    files[path] = value["oid"]
                case "deletedFile" if path in files:
                    del files[path]
                case key:
                    raise _Refused(400, f"{key} of {path} cannot be done")
        commit = repo.commit(files, header["value"]["summary"])
        url = f"{self.server.url}/{KINDS[kind]}{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def lfs_batch(self, prefix: str, name: str) -> None:
        self._require_writer()
        self._repo(_kind(prefix), name)
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not (self.server.folder / wanted["oid"]).is_file():
                href = f"{self.server.storage}/{wanted['oid']}?size={wanted['size']}"
                answer["actions"] = {"upload": {"href": href}}
            answers.append(answer)
        self._send(200, {"transfer": "basic", "objects": answers})

    def put(self, oid: str) -> None:
        if len(self.body) != int(self.query["size"]) or hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "These are not the bytes that were announced")
        self.server.store(self.body)
        self._send(200, b"")

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        commit, files = self._revision(kind, name, revision)
        content = {"_id": "0", "id": name, "sha": commit, "private": self._repo(kind, name).private, "tags": []}
        content |= {"lastModified": DATE, "createdAt": DATE, "gated": False, "disabled": False, "downloads": 0}
        self._send(200, {**content, "likes": 0, "siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        _, files = self._revision(kind, name, revision)
        start = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        below = {path: digest for path, digest in files.items() if path.startswith(start)}
        if start and not below:
            raise _Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries, folders = [], set()
        for path, digest in sorted(below.items()):
            parents = path.removeprefix(start).split("/")[:-1]
            folders |= {start + "/".join(parents[: depth + 1]) for depth in range(len(parents) if recursive else 1)}
            if recursive or not parents:
                entries.append(self._entry(path, digest))
        folders = sorted(path for path in folders if path != start)
        self._send(200, [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in folders] + entries)

    def _entry(self, path: str, digest: str) -> dict[str, Any]:
        data = (self.server.folder / digest).read_bytes()
        entry = {"type": "file", "oid": git_oid(data), "size": len(data), "path": path}
        if is_lfs(path, len(data)):
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return entry

    def resolve(self, prefix: str, name: str, revision: str, path: str) -> None:
        commit, files = self._revision(_kind(prefix), name, revision)
        if path not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        data = (self.server.folder / files[path]).read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_oid(data)}"', "Accept-Ranges": "bytes"}
        if is_lfs(path, len(data)):  # lies in another place, as on the Hub
            headers |= {"X-Linked-ETag": f'"{files[path]}"', "X-Linked-Size": str(len(data))}
            return self._send(302, b"", {**headers, "Location": f"{self.server.storage}/{files[path]}"})
        self._send_range(data, headers)

    def get(self, oid: str) -> None:
        if not (self.server.folder / oid).is_file():
            raise _Refused(404, "No such object")
        self._send_range((self.server.folder / oid).read_bytes(), {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _send_range(self, data: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, data, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        self._send(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


def _kind(prefix: str) -> str:
    return prefix.rstrip("/") or "models"


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[\w.-]+/[\w.-]+)"
_FILES = r"/(?P<prefix>(?:datasets/|spaces/)?)(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.put),
    ("GET/HEAD", r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.get),
    ("GET", _API, _Handler.info),
    ("GET", rf"{_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    ("GET/HEAD", rf"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


# Its users ------------------------------------------------------------------------------------------------------------


def environment(hub: str, home: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
    """Of a process that knows no Hub but `hub`, and whose caches are in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHONPATH"))}
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    settings |= {"NO_PROXY": "127.0.0.1,localhost", **({"HF_TOKEN": token} if token else {})}
    return {**kept, **settings, **more}


def run(arguments: list, folder: Path, variables: dict[str, str], fails: bool = False) -> subprocess.CompletedProcess:
    done = forked.run(arguments, folder, variables)
    assert (done.returncode != 0) == fails, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done


def put(hub: HubServer, kind: str, name: str, folder: Path) -> None:
    """A repository with these files, as somebody else has pushed it."""
    files = {
        str(path.relative_to(folder)): hub.store(path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }
    hub.repos[kind, name] = Repo(kind, name)
    hub.repos[kind, name].commit(files, "by somebody else")
