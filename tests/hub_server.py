"""A Hub for tests: one process, in memory, on 127.0.0.1, with the faults that a real one has on bad days."""

import base64
import contextlib
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub.utils import close_session


TOKEN = "hf_right"
READ_TOKEN = "hf_read"
NARROW_TOKEN = "hf_narrow"
ORGANIZATION = "tester"
LFS_UPLOAD = r"^/lfs/"

# As the real one, which tells text from binary by content, these go through LFS at any size.
_LFS_FILES = re.compile(r"\.safetensors$|\.parquet$|tfevents")


@dataclass(kw_only=True)
class Fault:
    """
    Something that goes wrong with the next `times` requests.

    Args:
        method, path: the request's method, and a pattern that is searched in its path.
        status: is answered; 0 closes the connection in the middle of the request's body instead.
        headers: of the answer.
        vanish: the server also stops, until `HubServer.start`.
        delay: seconds before the request is answered; alone, nothing else goes wrong.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    vanish: bool = False
    delay: float = 0.0


@dataclass
class _Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class _Repo:
    private: bool
    commits: list[_Commit]

    def at(self, revision: str) -> _Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)


class HubServer:
    """
    Repositories of models, of data sets under names that begin with `datasets/` and of Spaces under `spaces/`.
    Readable by anyone unless private, writable with `TOKEN` under `ORGANIZATION` only. `READ_TOKEN` may read all of
    it, and `NARROW_TOKEN` write to what `narrow` names, but make no repository.
    """

    def __init__(self) -> None:
        self.repos: dict[str, _Repo] = {}
        self.narrow: set[str] = set()
        self.lfs_objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_up(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        """Listens, at the same port as before where it has stopped."""
        self._server = _Listener(("127.0.0.1", self._port), _Handler)
        self._server.hub = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections and breaks the open ones; what was pushed stays."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            for connection in self.connections:
                _break(connection)
        # Only now the port is free for `start`.
        self._server = None

    def fail(self, method: str, path: str, **fault) -> None:
        """Adds a `Fault`."""
        with self.lock:
            self.faults.append(Fault(method=method, path=path, **fault))

    def add(self, repo: str, private: bool) -> None:
        """Makes a repository, whoever owns it."""
        self.repos[repo] = _Repo(private, [])
        self.commit(self.repos[repo], "initial commit", {".gitattributes": b""})

    def files(self, repo: str) -> dict[str, bytes]:
        """What the repository holds now."""
        return self.repos[repo].commits[-1].files

    def messages(self, repo: str) -> list[str]:
        """Of its commits, oldest first, without the one that made it."""
        return [commit.message for commit in self.repos[repo].commits[1:]]

    def commit(self, repo: _Repo, message: str, files: dict[str, bytes]) -> _Commit:
        sha = secrets.token_hex(20)
        repo.commits.append(_Commit(sha, message, files))
        return repo.commits[-1]

    def due_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    if fault.times == 0:
                        self.faults.remove(fault)
                    return fault
        return None


@contextlib.contextmanager
def logged_in_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with this process logged in to it."""
    server = HubServer()
    server.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    url = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The client's pauses between repetitions of one request, shortened.
    brief = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(0.05)})
    monkeypatch.setattr("huggingface_hub.utils._http.time", brief)
    close_session()
    yield server
    server.stop()
    close_session()


class _Listener(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    hub: HubServer

    def handle_error(self, *_) -> None:
        """Clients that go away are no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub
        with self.hub.lock:
            self.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        fault = self.hub.due_fault(self.command, path)
        if fault is not None:
            time.sleep(fault.delay)
        if fault is not None and (fault.vanish or fault.status == 0):
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            if fault.vanish:
                self.hub.stop()
            _break(self.connection)
            return
        body = self._body()
        if fault is not None and fault.status is not None:
            self._send(fault.status, {"error": "Fault of the test"}, fault.headers)
            return
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                with self.hub.lock:
                    action(self, body, **match.groupdict())
                return
        self._send(404, {"error": f"No such route: {self.command} {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: dict | list | bytes, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _authorized(self) -> bool:
        return self._token() in (TOKEN, READ_TOKEN, NARROW_TOKEN)

    def _is_known(self) -> bool:
        if not self._authorized():
            self._send(401, {"error": "Invalid username or password."})
        return self._authorized()

    def _may_write(self, repo: str) -> bool:
        if not self._is_known():
            return False
        is_own = repo.split("/")[-2] == ORGANIZATION
        may = is_own and (self._token() == TOKEN or (self._token() == NARROW_TOKEN and repo in self.hub.narrow))
        if not may:
            self._send(403, {"error": f"You don't have the rights to write to {repo}"})
        return may

    def _repo(self, repo: str) -> _Repo | None:
        found = self.hub.repos.get(repo)
        if found is None or (found.private and not self._authorized()):
            self._send(401 if not self._authorized() else 404, {}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _revision(self, repo: str, revision: str) -> _Commit | None:
        found = self._repo(repo)
        commit = found.at(revision) if found is not None else None
        if found is not None and commit is None:
            self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def whoami(self, body: bytes) -> None:
        if self._is_known():
            self._send(200, {"type": "user", "name": ORGANIZATION, "orgs": []})

    def create(self, body: bytes) -> None:
        if not self._is_known():
            return
        wanted = json.loads(body)
        if wanted["organization"] != ORGANIZATION or self._token() != TOKEN:
            self._send(403, {"error": f"You don't have the rights to create a model under {wanted['organization']}"})
            return
        if wanted.get("type") == "space" and "sdk" not in wanted:
            self._send(400, {"error": "A Space needs an SDK"})
            return
        folder = {"dataset": "datasets/", "space": "spaces/"}.get(wanted.get("type"), "")
        name = f"{wanted['organization']}/{wanted['name']}"
        repo_id = folder + name
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": name}
        if repo_id in self.hub.repos:
            self._send(409, answer)
            return
        self.hub.add(repo_id, wanted.get("visibility") == "private")
        self._send(200, answer)

    def validate_yaml(self, body: bytes) -> None:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        errors = []
        try:
            if match is None or not isinstance(yaml.safe_load(match[1]), dict):
                errors = [{"message": "no metadata"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may_write(repo) or (commit := self._revision(repo, revision)) is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            lfs = _LFS_FILES.search(file["path"]) is not None
            known = commit.files.get(file["path"])
            files.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": None if known is None else _oid(file["path"], known),
                }
            )
        self._send(200, {"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        if not self._may_write(repo):
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs_objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify"},
                }
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "The content does not have this hash"})
            return
        self.hub.lfs_objects[oid] = body
        self._send(200, {})

    def lfs_verify(self, body: bytes) -> None:
        wanted = json.loads(body)
        whole = len(self.hub.lfs_objects.get(wanted["oid"], b"")) == wanted["size"]
        self._send(200 if whole else 404, {})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may_write(repo) or (before := self._revision(repo, revision)) is None:
            return
        files, message = dict(before.files), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs_objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(self.hub.repos[repo], message, files)
        self._send(200, {"commitOid": commit.sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit.sha}"})

    def auth_check(self, body: bytes, repo: str) -> None:
        if self._repo(repo) is not None and self._may_write(repo):
            self._send(200, {})

    def info(self, body: bytes, repo: str, revision: str | None) -> None:
        if (commit := self._revision(repo, revision or "main")) is not None:
            siblings = [{"rfilename": path} for path in commit.files]
            private = self.hub.repos[repo].private
            self._send(200, {"id": repo, "sha": commit.sha, "siblings": siblings, "private": private, "tags": []})

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None) -> None:
        if (commit := self._revision(repo, revision)) is None:
            return
        inside = f"{folder}/" if folder else ""
        recursive = "recursive=true" in self.path.lower()
        entries = {}
        for path, content in commit.files.items():
            child = inside + path.removeprefix(inside).partition("/")[0]
            if path.startswith(inside) and (recursive or path == child):
                entries[path] = _file_entry(path, content)
            elif path.startswith(inside):
                entries[child] = _folder_entry(child)
        if folder and not entries:
            self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, list(entries.values()))

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        if (commit := self._revision(repo, revision)) is None:
            return
        entries = []
        for wanted in parse_qs(body.decode())["paths"]:
            if wanted in commit.files:
                entries.append(_file_entry(wanted, commit.files[wanted]))
            elif any(path.startswith(f"{wanted}/") for path in commit.files):
                entries.append(_folder_entry(wanted))
        self._send(200, entries)

    def resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        if (commit := self._revision(repo, revision)) is None:
            return
        headers = {"X-Repo-Commit": commit.sha}
        if file not in commit.files:
            self._send(404, {}, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        content = commit.files[file]
        headers["ETag"] = f'"{_oid(file, content)}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers)


_REPO = r"(?P<repo>((datasets|spaces)/)?[^/]+/[^/]+)"
# In the API the kind of a repository is said of models, too.
_API = r"/api/(models/|(?=datasets/|spaces/))"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"{_API}{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", r"/lfs-verify", _Handler.lfs_verify),
    ("POST", rf"{_API}{_REPO}/commit/{_REVISION}", _Handler.commit),
    ("GET", rf"{_API}{_REPO}(/revision/{_REVISION})?", _Handler.info),
    ("GET", rf"{_API}{_REPO}/auth-check/write", _Handler.auth_check),
    ("GET", rf"{_API}{_REPO}/tree/{_REVISION}(/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"{_API}{_REPO}/paths-info/{_REVISION}", _Handler.paths_info),
    ("GET|HEAD", rf"/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
]


def _file_entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "oid": _git_hash(content), "size": len(content)}
    if _LFS_FILES.search(path):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 100}
    return entry


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": _git_hash(path.encode())}


def _oid(path: str, content: bytes) -> str:
    """What the Hub calls a file's content: SHA-256 of LFS files, git's hash of others."""
    return hashlib.sha256(content).hexdigest() if _LFS_FILES.search(path) else _git_hash(content)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # where the other side was faster
        connection.shutdown(socket.SHUT_RDWR)
