"""The Files API over real sockets and a real directory, in both dialects, up to `kill -9`."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from clock import Clock
from live_server import LiveServer, live_server, wait_for
from longsight.server.file_errors import FileMissingError, FilePurposeError, FileReferenceError, FileStoreError
from longsight.server.file_store import DAY, ID_LIMIT, VIDEO, FileLimits, FileStore, StoredFile, file_id_of
from longsight.server.identity import Caller
from longsight.server.sniff import HEAD_BYTES, media_type

MB = 2**20
PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 100
MP4 = b"\x00\x00\x00\x20ftypisom" + b"v" * 100
SIGNATURES = {
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "image/png": PNG,
    "image/gif": b"GIF89a",
    "image/webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "video/mp4": MP4,
    "video/x-msvideo": b"RIFF\x10\x00\x00\x00AVI LIST",
    "video/quicktime": b"\x00\x00\x00\x14ftypqt  ",
    "video/x-matroska": b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81\x01\x42\x82\x88matroska",
}


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[FileStore]:
    with FileStore(
        tmp_path / "files", FileLimits(image_bytes=1000, video_bytes=3 * MB, other_bytes=2 * MB), clock
    ) as s:
        yield s


@pytest.fixture
def server(store: FileStore) -> Iterator[LiveServer]:
    with live_server(files=store) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def put(store: FileStore, owner: str, content: bytes, purpose: str, **options: Any) -> StoredFile:
    upload = store.begin(owner)
    try:
        upload.set_purpose(purpose)
        upload.write(content)
        return upload.finish("a name", **options)
    finally:
        upload.abort()


def left(store: FileStore) -> tuple[list[str], list[str]]:
    return sorted(p.name for p in store.content.iterdir()), [p.name for p in store.incoming.iterdir()]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-should-retry"] == "false"
    return dict(response.json()["error"])


def native_error(response: httpx.Response, code: int = 2013) -> str:
    assert response.status_code == 200
    base = response.json()["base_resp"]
    assert base["status_code"] == code
    return str(base["status_msg"])


def test_the_official_client(client: openai.OpenAI, store: FileStore) -> None:
    lines = b'{"a": 1}\n' * 1000
    file = client.files.create(file=("tasks.jsonl", lines), purpose="batch")
    assert re.fullmatch(r"file-\d{1,16}", file.id)
    assert (file.bytes, file.filename, file.purpose, file.object) == (9000, "tasks.jsonl", "batch", "file")
    assert file.status == "processed"
    assert file.expires_at is None
    assert client.files.retrieve(file.id) == file
    assert client.files.retrieve(file.id.removeprefix("file-")) == file
    assert client.files.content(file.id).read() == lines
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=file.id.removeprefix("file-")):
            call(file.id)
    assert left(store) == ([], [])


def test_pages_of_a_list(client: openai.OpenAI, http: httpx.Client) -> None:
    assert http.get("/v1/files").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    # All within one second: the order is that of arrival.
    made = [client.files.create(file=(f"{i}", b"x"), purpose="batch" if i % 2 else "user_data") for i in range(5)]
    assert [f.filename for f in client.files.list()] == ["4", "3", "2", "1", "0"]
    assert [f.filename for f in client.files.list(limit=2)] == ["4", "3", "2", "1", "0"]
    page = client.files.list(limit=2, order="asc", after=made[1].id)
    assert [f.filename for f in page.data] == ["2", "3"]
    assert page.has_more
    assert [f.filename for f in client.files.list(purpose="batch", limit=1)] == ["3", "1"]
    for query, word in (
        ("after=file-1", "after"),
        ("order=up", "order"),
        ("limit=0", "limit"),
        ("limit=" + "9" * 5000, "limit"),
    ):
        error = error_of(http.get(f"/v1/files?{query}"), 400)
        assert error["param"] == word
        assert query.partition("=")[2] in error["message"]


def test_the_native_routes(http: httpx.Client, client: openai.OpenAI) -> None:
    form = {"purpose": VIDEO}
    # The label is wrong and does not matter.
    answer = http.post("/v1/files/upload", data=form, files={"file": ("clip.mp4", MP4, "Video/MOV")}).json()
    assert answer["base_resp"] == {"status_code": 0, "status_msg": "success"}
    file = answer["file"]
    assert set(file) == {"file_id", "bytes", "created_at", "filename", "purpose"}
    assert 0 < file["file_id"] < ID_LIMIT
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(MP4), "clip.mp4", VIDEO)

    assert http.get("/v1/files/list", params={"purpose": VIDEO}).json()["files"] == [file]
    assert http.get("/v1/files/list", params={"purpose": "voice_clone"}).json()["files"] == []
    found = http.get("/v1/files/retrieve", params={"file_id": file["file_id"]}).json()["file"]
    assert {key: found[key] for key in file} == file
    for content in (
        http.get("/v1/files/retrieve_content", params={"file_id": file["file_id"]}),
        http.get(found["download_url"]),
        http.get(f"/v1/files/{file['file_id']}/content"),
    ):
        assert content.content == MP4
        assert content.headers["content-type"] == "video/mp4"
        assert content.headers["x-content-type-options"] == "nosniff"
        assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''clip.mp4"
    assert client.files.retrieve(f"file-{file['file_id']}").expires_at == file["created_at"] + 7 * DAY

    # A number or a string; the purpose of deletion has other names than that of upload.
    body = {"file_id": str(file["file_id"]), "purpose": "t2a_async"}
    gone = http.post("/v1/files/delete", json=body).json()
    assert gone == {"file_id": file["file_id"], "base_resp": {"status_code": 0, "status_msg": "success"}}
    assert str(file["file_id"]) in native_error(http.post("/v1/files/delete", json={"file_id": file["file_id"]}))


def test_native_errors_are_ok_with_a_code(http: httpx.Client) -> None:
    assert "purpose is missing" in native_error(http.get("/v1/files/list"))
    assert "file_id is missing" in native_error(http.get("/v1/files/retrieve"))
    assert "no file 'abc'" in native_error(http.get("/v1/files/retrieve?file_id=abc"))
    assert "no file '9007199254740992'" in native_error(http.get(f"/v1/files/retrieve_content?file_id={2**53}"))
    assert "not valid JSON" in native_error(http.post("/v1/files/delete", content=b"{"))
    assert "not a JSON object" in native_error(http.post("/v1/files/delete", content=b"[]"))
    for value in (True, 1.5, -1, [1], "file-x", "１"):
        assert "there is no file" in native_error(http.post("/v1/files/delete", json={"file_id": value}))
    assert "multipart/form-data" in native_error(http.post("/v1/files/upload", json={}))
    big = {"file": ("x", b"x" * 4 * MB)}
    assert "limit" in native_error(http.post("/v1/files/upload", data={"purpose": VIDEO}, files=big))


BOUNDARY = "b-o-u-n-d"
HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(*parts: tuple[str, bytes], end: str = "--") -> bytes:
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    )
    return body + f"--{BOUNDARY}{end}\r\n".encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(("purpose", b"batch")), "file is missing"),
        (form(("file", b"x")), "purpose is missing"),
        (form(("file", b"x"), ("purpose", b"")), "the purpose '' is not a word"),
        (form(("purpose", b"a b"), ("file", b"x")), "the purpose 'a b' is not a word"),
        (form(("purpose", b"batch" * 1000), ("file", b"x")), "purpose is longer than 1024 bytes"),
        (form(("purpose", b"batch"), ("file", b"x"), ("file", b"y")), "more than one part named file"),
        (form(*[(f"f{i}", b"") for i in range(100)]), "more than 32 parts"),
        (form(("purpose", b"batch"), ("file", b"x"), end=""), "ends before its closing boundary"),
        (form(("purpose", b"batch"), ("file", b"x"))[:-10], "ends before its closing boundary"),
        (b"", "ends before its closing boundary"),
        (b"what is this?", "malformed"),
        (f"--{BOUNDARY}\r\nContent-Disposition: attachment\r\n\r\nx\r\n--{BOUNDARY}--".encode(), "'attachment'"),
        (form(("purpose", b"image"), ("file", b"<html>")), "JPEG, PNG, GIF, WEBP"),
        (form(("purpose", b"image"), ("file", b"")), "first bytes are b''"),
        (form(("file", MP4), ("purpose", b"vision")), "bytes are MP4; 'vision' takes JPEG"),
        (form(("purpose", VIDEO.encode()), ("file", PNG)), "bytes are PNG; 'video_understanding' takes MP4, AVI"),
        (form(("purpose", b"batch"), ("expires_after[seconds]", b"60"), ("file", b"x")), "3600 to 2592000"),
        (form(("purpose", b"batch"), ("expires_after[seconds]", b"9" * 1000), ("file", b"x")), "3600 to 2592000"),
    ],
)
def test_forms_that_are_refused(http: httpx.Client, store: FileStore, body: bytes, words: str) -> None:
    error = error_of(http.post("/v1/files", content=body, headers=HEADERS), 400)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert left(store) == ([], [])
    assert words in native_error(http.post("/v1/files/upload", content=body, headers=HEADERS))


def test_odd_forms_that_are_good(http: httpx.Client, store: FileStore) -> None:
    body = form(
        ("file", b"a\r\n--" + BOUNDARY.encode() + b"x\r\n"), ("else", b"ignored" * 1000), ("purpose", b"user_data")
    )
    # The file first, pieces of a byte, and a line in it that is almost the boundary.
    made = http.post("/v1/files", content=(body[i : i + 1] for i in range(len(body))), headers=HEADERS).json()
    assert http.get(f"/v1/files/{made['id']}/content").content == b"a\r\n--" + BOUNDARY.encode() + b"x\r\n"
    empty = http.post("/v1/files", content=form(("purpose", b"user_data"), ("file", b"")), headers=HEADERS).json()
    assert empty["bytes"] == 0
    assert http.get(f"/v1/files/{empty['id']}/content").content == b""
    name = {"file": ("../../etc/\x07名 \r\n.txt", b"x")}
    named = http.post("/v1/files", data={"purpose": "user_data"}, files=name).json()
    assert named["filename"].endswith(".txt")
    assert "/" not in named["filename"]
    assert "名" in named["filename"]
    assert http.get(f"/v1/files/{named['id']}/content").content == b"x"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("order", [("purpose", "file"), ("file", "purpose")])
def test_a_file_over_the_limit(http: httpx.Client, store: FileStore, chunked: bool, order: tuple[str, str]) -> None:
    def send(size: int, purpose: bytes = b"user_data") -> httpx.Response:
        parts = {"purpose": purpose, "file": b"x" * size}
        body = form(*[(name, parts[name]) for name in order])
        content: Any = (body[i : i + 100_000] for i in range(0, len(body), 100_000)) if chunked else body
        return http.post("/v1/files", content=content, headers=HEADERS)

    for size in (2 * MB + 1, 3 * MB + 1, 60 * MB):
        error = error_of(send(size), 413)
        assert error["code"] == "request_too_large"
        assert error["param"] == "file"
        assert "limit" in error["message"]
    assert left(store) == ([], [])
    assert send(2 * MB).json()["bytes"] == 2 * MB
    assert "1000 bytes" in error_of(send(1001, b"image"), 413)["message"]


def test_a_client_that_sends_all_before_it_listens_hears_the_refusal(server: LiveServer) -> None:
    body = form(("purpose", b"user_data"), ("file", b"x" * 60 * MB))
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    with closing(connection):
        connection.request("POST", "/v1/files", body, HEADERS)
        assert connection.getresponse().status == 413


def test_other_methods_and_servers_without_files(http: httpx.Client) -> None:
    assert http.put("/v1/files").status_code == 405
    assert "upload" in native_error(http.delete("/v1/files/upload"))
    with live_server() as bare, httpx.Client(base_url=bare.url) as other:
        error = error_of(other.get("/v1/files"), 404)
        assert (error["code"], error["message"]) == ("unavailable", "this server keeps no files")
        assert "keeps no files" in native_error(other.get("/v1/files/list?purpose=x"))


CALLERS = {
    "a": Caller("key-a", "red", frozenset({"files"})),
    "b": Caller("key-b", "blue", frozenset({"files"})),
    "c": Caller("key-c", "red", frozenset({"chat"})),
}


class Recognise:
    """Stands in for whatever checks keys."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = dict(scope["headers"])[b"authorization"].decode()
        scope.setdefault("state", {})["caller"] = CALLERS[token]
        await self.app(scope, receive, send)


def test_owners_see_their_own_and_scopes_are_needed(store: FileStore) -> None:
    with live_server(files=store, wrap=Recognise) as server, httpx.Client(base_url=server.url) as http:

        def ask(key: str, method: str, path: str, **options: Any) -> httpx.Response:
            return http.request(method, path, headers={"authorization": key}, **options)

        upload = {"data": {"purpose": "user_data"}, "files": {"file": ("x", b"red's")}}
        made = ask("a", "POST", "/v1/files", **upload).json()
        number = int(made["id"].removeprefix("file-"))
        assert ask("b", "GET", "/v1/files").json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            theirs = ask("b", method, f"/v1/files/{number}{path}")
            nothing = ask("b", method, f"/v1/files/{number + 1}{path}")
            assert (theirs.status_code, theirs.text) == (404, nothing.text.replace(str(number + 1), str(number)))
        assert "no file" in native_error(ask("b", "POST", "/v1/files/delete", json={"file_id": number}))
        assert ask("b", "GET", f"/v1/files?after={number}").status_code == 400
        with pytest.raises(FileMissingError):
            store.open_content("blue", number)
        assert ask("a", "GET", f"/v1/files/{number}/content").content == b"red's"

        error = error_of(ask("c", "GET", "/v1/files"), 403)
        assert error["type"] == "permission_error"
        assert "'files'" in error["message"]
        assert "'files'" in native_error(ask("c", "POST", "/v1/files/upload", **upload), 2061)
        big = {"data": {"purpose": "user_data"}, "files": {"file": ("x", b"x" * 60 * MB)}}
        assert error_of(ask("c", "POST", "/v1/files", **big), 403)


def test_types_are_told_from_bytes(store: FileStore) -> None:
    for kind, head in SIGNATURES.items():
        assert media_type(head) == kind
        assert media_type(head[:3]) in (None, "image/jpeg")
        purpose = "image" if kind.startswith("image/") else VIDEO
        assert put(store, "o", head, purpose).media_type == kind
    for other in (b"", b"RIFF\x10\x00\x00\x00WAVE", b"\x00\x00\x00\x20ftypavif", b"\x1a\x45\xdf\xa3webm", b"%PDF-1.7"):
        assert media_type(other) is None
        assert put(store, "o", other, "user_data").media_type == "application/octet-stream"


def test_a_wrong_type_is_refused_before_all_of_it_came(store: FileStore) -> None:
    upload = store.begin("o")
    upload.set_purpose(VIDEO)
    upload.write(b"x" * (HEAD_BYTES - 1))
    with pytest.raises(Exception, match="first bytes are b'xxxx"):
        upload.write(b"x")
    upload.abort()


def test_references(store: FileStore) -> None:
    file = put(store, "o", MP4, VIDEO)
    assert file_id_of(f"mm_file://{file.id}") == file_id_of(f"mm_file://file-{file.id}") == file.id
    stored, content = store.open_content("o", file.id, VIDEO)
    store.delete("o", file.id)
    with content:
        assert (stored, content.read()) == (file, MP4)  # although deleted since
    picture = put(store, "o", PNG, "image")
    with pytest.raises(FilePurposeError, match="was uploaded for 'image'; 'video_understanding' is due"):
        store.open_content("o", picture.id, VIDEO)
    for url in ("mm_file://", "mm_file://x", "mm_file:1", f"mm_file://{2**53}", "http://1", "mm_file://1/2", "1"):
        with pytest.raises(FileReferenceError, match=re.escape(repr(url))):
            file_id_of(url)


def test_files_expire(store: FileStore, clock: Clock) -> None:
    video = put(store, "o", MP4, VIDEO)
    short = put(store, "o", b"x", "batch", expires_after=3600)
    long = put(store, "o", MP4, VIDEO, expires_after=30 * DAY)
    forever = put(store, "o", b"x", "batch")
    assert (short.expires_at, long.expires_at) == (clock.now + 3600, clock.now + 7 * DAY)
    clock.now += 3600
    assert list(store.list("o", newest_first=False)) == [video, long, forever]
    clock.now += 7 * DAY - 3601
    store.open_content("o", video.id)[1].close()
    clock.now += 1
    # Refused from this moment, removed at the next sweep.
    for call in (store.get, store.open_content, store.delete):
        with pytest.raises(FileMissingError, match=str(video.id)):
            call("o", video.id)
    assert list(store.list("o")) == [forever]
    assert len(left(store)[0]) == 4
    store.sweep()
    assert left(store)[0] == [str(forever.id)]


def test_retention_is_configurable(tmp_path: Path, clock: Clock) -> None:
    limits = FileLimits(video_seconds=None, other_seconds=60)
    with FileStore(tmp_path, limits, clock) as store:
        assert put(store, "o", MP4, VIDEO).expires_at is None
        assert put(store, "o", b"x", "batch").expires_at == clock.now + 60


def test_the_directory_outlives_the_server_and_is_taken_once(tmp_path: Path, clock: Clock) -> None:
    with FileStore(tmp_path, clock=clock) as store:
        kept = [put(store, "o", content, "batch") for content in (b"whole", b"cut", b"gone")]
        old = put(store, "o", MP4, VIDEO)
        with pytest.raises(FileStoreError, match="in use by another process"):
            FileStore(tmp_path)
    (store.content / str(kept[1].id)).write_bytes(b"cu")
    (store.content / str(kept[2].id)).unlink()
    (store.content / "12345").write_bytes(b"no row speaks of this")
    (store.incoming / "abc").write_bytes(b"half an upl")
    clock.now += 8 * DAY
    with FileStore(tmp_path, clock=clock) as store:
        assert list(store.list("o")) == [kept[0]]
        assert left(store) == ([str(kept[0].id)], [])
        assert old.id not in store.index.sizes()


def test_files_are_for_the_servers_user_alone(tmp_path: Path) -> None:
    with FileStore(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileStoreError, match="cannot be used: Not a directory"):
        FileStore(tmp_path / "file" / "files")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "index.sqlite").write_bytes(b"this is no database, and long enough to be seen as none" * 100)
    with pytest.raises(FileStoreError, match="file is not a database"):
        FileStore(damaged)


def test_a_client_that_goes_away_leaves_nothing(server: LiveServer, store: FileStore) -> None:
    body = form(("purpose", b"user_data"), ("file", b"x" * MB))

    def broken() -> Iterator[bytes]:
        yield body[: MB // 2]
        while not left(store)[1]:
            pass
        raise InterruptedError

    with pytest.raises(InterruptedError):
        httpx.post(f"{server.url}/v1/files", content=broken(), headers=HEADERS)
    wait_for(lambda: left(store) == ([], []))


SERVER = """
import sys, uvicorn
from pathlib import Path
from types import SimpleNamespace
from starlette.applications import Starlette
from longsight.server.file_store import FileStore
from longsight.server.files import routes
from longsight.server.listen import listen
app = Starlette(routes=routes)
app.state.service = SimpleNamespace(files=FileStore(Path(sys.argv[1])))
listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off")).run(sockets=[listener])
"""


@contextmanager
def server_process(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", SERVER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def peak_memory(process: subprocess.Popen[str]) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded_and_kill_9_leaves_whole_files(tmp_path: Path) -> None:
    whole = os.urandom(60 * MB)
    with server_process(tmp_path) as (process, url):
        small = httpx.post(f"{url}/v1/files", data={"purpose": "user_data"}, files={"file": ("s", b"s" * 5 * MB)})
        assert small.status_code == 200
        before = peak_memory(process)
        made = httpx.post(
            f"{url}/v1/files", data={"purpose": "user_data"}, files={"file": ("w", io.BytesIO(whole))}, timeout=30
        ).json()
        assert httpx.get(f"{url}/v1/files/{made['id']}/content", timeout=30).content == whole
        assert peak_memory(process) - before < 16 * MB

        body = form(("purpose", b"user_data"), ("file", whole[: 10 * MB]))
        arrived = threading.Event()

        def half() -> Iterator[bytes]:
            yield body[: 5 * MB]
            while not any(path.stat().st_size for path in (tmp_path / "incoming").iterdir()):
                pass
            process.send_signal(signal.SIGKILL)
            process.wait()
            arrived.set()
            yield body[5 * MB :]

        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/v1/files", content=half(), headers=HEADERS)
        assert arrived.is_set()
    assert any((tmp_path / "incoming").iterdir())
    with FileStore(tmp_path) as store:
        assert [f.filename for f in store.list("anonymous")] == ["w", "s"]
        content = store.open_content("anonymous", int(made["id"].removeprefix("file-")))[1]
        with content:
            assert content.read() == whole
        assert left(store)[1] == []
        assert len(left(store)[0]) == 2


# Each child process dies, by its own kill -9, as it enters one of the steps of finish().
CRASHES = """
import os, signal, sys
from pathlib import Path
import longsight.server.file_store as module
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def child(name):
    store = module.FileStore(Path(sys.argv[1]) / name)
    upload = store.begin("o")
    upload.set_purpose("batch")
    upload.write(b"x" * 100_000)
    match name:
        case "fsync" | "link": setattr(module.os, name, die)
        case "sync": module._sync_directory = die
        case "add": store.index.add = die
        case "unlink": module.Path.unlink = die
    upload.finish("name")
    if name == "delete":
        store.unlink = die
        store.delete("o", store.list("o")[0].id)
    die()
for name in sys.argv[2:]:
    if (pid := os.fork()) == 0:
        child(name)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (name, status)
"""


def test_a_crash_at_any_step_leaves_all_or_nothing(tmp_path: Path) -> None:
    names = {"fsync": 0, "link": 0, "unlink": 0, "sync": 0, "add": 0, "end": 1, "delete": 0}
    subprocess.run([sys.executable, "-c", CRASHES, str(tmp_path), *names], check=True, timeout=60)
    for name, files in names.items():
        # The rest of an upload or a deletion was there to be swept.
        debris = [p for part in ("content", "incoming") for p in (tmp_path / name / part).iterdir()]
        assert len(debris) == (2 if name == "unlink" else 1), name
        with FileStore(tmp_path / name) as store:
            found = store.list("o")
            assert len(found) == files, name
            assert left(store) == ([str(f.id) for f in found], []), name
            for file in found:
                with store.open_content("o", file.id)[1] as content:
                    assert content.read() == b"x" * 100_000


def test_uploads_at_the_same_time(client: openai.OpenAI, store: FileStore) -> None:
    def upload(i: int) -> bool:
        content = bytes([i]) * 1_500_000
        file = client.files.create(file=(f"{i}", content), purpose="user_data")
        return client.files.content(file.id).read() == content

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(upload, range(24)))
    assert sorted(int(f.filename) for f in store.list("anonymous")) == list(range(24))


def test_the_documents_examples(tmp_path: Path) -> None:
    """Every command of docs/files.md, in a shell and a Python of their own."""
    text = (Path(__file__).parents[1] / "docs" / "files.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "python"]
    (tmp_path / "clip.mp4").write_bytes(MP4)
    (tmp_path / "picture.png").write_bytes(PNG)
    output = []
    with FileStore(tmp_path / "files") as store, live_server(files=store) as server:
        for language, code in blocks:
            command = {"sh": ["bash", "-ec"], "python": [sys.executable, "-c"]}[language]
            code = code.replace("http://127.0.0.1:8000", server.url)
            done = subprocess.run([*command, code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            output.append(done.stdout)
        assert output[0].count('"status_code":0') == 2
        assert output[1].split() == [*output[1].split()[:1], str(len(PNG)), "picture.png", str(len(PNG))]
        assert [f.filename for f in store.list("anonymous")] == ["picture.png", "clip.mp4"]
