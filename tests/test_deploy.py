"""The files of `deploy/`, the Dockerfile and the compose file: checked by the programs that read them, where they are
installed, and against this server."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from fake_model import LookupModel
from live_server import live_server, wait_for
from longsight.cli.main import parser
from longsight.cli.paths import PathType
from longsight.server.auth import StaticKey
from longsight.server.keys import KeyStore, NewKey
from longsight.server.metering.database import open_database
from postgres_cluster import cluster

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "longsight.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture
def _any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse commands for another machine: its directories are not here."""
    for kind in PathType.__subclasses__():
        monkeypatch.setattr(kind, "problem", lambda self, path: None)


def tool(name: str, package: str) -> str:
    """A program's path; the test is skipped where it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:{Path(sys.executable).parent}")
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    return path


# --- the image


def instructions() -> list[tuple[str, str]]:
    """(instruction, its text) for each of the Dockerfile, comments left out and continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def last(instruction: str) -> str:
    return [text for name, text in instructions() if name == instruction][-1]


def test_hadolint_finds_nothing() -> None:
    subprocess.run([tool("hadolint", "hadolint"), ROOT / "Dockerfile"], check=True)


def test_the_image_runs_as_nobody_special() -> None:
    user, group = last("USER").split(":")
    assert min(int(user), int(group)) >= 1000
    assert json.loads(last("VOLUME")) == ["/models", "/data"]
    final = [text for name, text in instructions() if name == "FROM"][-1]
    assert " AS " not in final  # what compiled stays in the stage before


def test_the_image_starts_a_command_that_there_is() -> None:
    entrypoint, command = json.loads(last("ENTRYPOINT")), json.loads(last("CMD"))
    assert entrypoint == ["longsight"]
    arguments = parser().parse_args(command)
    assert (arguments.host, arguments.port) == ("0.0.0.0", int(last("EXPOSE")))


def test_the_health_check_tells_a_server_from_none() -> None:
    command = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    assert command[0] == "python"

    def check(url: str) -> int:
        code = command[2].replace("http://127.0.0.1:8000", url)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode

    with live_server() as server:
        assert check(server.url) == 0
        ended = server.url
    assert check(ended) != 0


def test_the_build_gets_what_it_reads_and_nothing_else(tmp_path: Path) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [line[1:] for line in rules if line.startswith("!")]
    assert [name for name in allowed if not (ROOT / name).exists()] == []
    dropped = [line.removeprefix("**/") for line in rules[1:] if not line.startswith("!")]
    for name in allowed:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns(*dropped))
        else:
            shutil.copy(ROOT / name, target)
    assert [path for path in tmp_path.rglob("*") if any(fnmatch.fnmatch(path.name, drop) for drop in dropped)] == []
    # The description, the licences and the list of packages come out of that context alone.
    build = [sys.executable, "-c", "from scikit_build_core.build import build_sdist; build_sdist('dist')"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The compiler's files, as CMakeLists.txt names them.
    for source in re.findall(r"csrc/\w+\.cpp", (ROOT / "CMakeLists.txt").read_text()):
        assert (tmp_path / source).is_file()
    (steps,) = [text for name, text in instructions() if name == "RUN" and "setup.py" in text]
    setup = shlex.split(steps.split("&&")[0])
    helped = subprocess.run(
        [sys.executable, setup[1], "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(option in helped.stdout for option in setup if option.startswith("--"))


# --- compose


def test_compose_names_only_what_there_is() -> None:
    services, volumes, secrets = COMPOSE["services"], COMPOSE["volumes"], COMPOSE["secrets"]
    for name, service in services.items():
        assert ("build" in service) or re.search(r":v?\d", service["image"]), f"{name}: an image without a version"
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert source in volumes or source == "./models" or (ROOT / source).is_dir(), volume
        assert set(service.get("secrets", [])) <= set(secrets)
        assert set(service.get("depends_on", [])) <= set(services)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} would be open to the network"
    ignored = (ROOT / ".gitignore").read_text().split()
    for secret in secrets.values():
        assert secret["file"].removeprefix(".") in ignored


@pytest.mark.usefixtures("_any_path")
def test_compose_starts_the_server_with_options_that_there_are() -> None:
    service = COMPOSE["services"]["longsight"]
    command = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"]]
    arguments = parser().parse_args(command)
    assert arguments.host == "0.0.0.0"
    assert seconds(service["stop_grace_period"]) > arguments.drain_seconds


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


# --- systemd


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    systemd_analyze = tool("systemd-analyze", "systemd")
    unit = tmp_path / "longsight.service"
    program = str(Path(sys.executable).parent / "longsight")
    unit.write_text((DEPLOY / "longsight.service").read_text().replace("/opt/longsight/bin/longsight", program))
    done = subprocess.run([systemd_analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("_any_path")
def test_the_unit_starts_a_command_that_there_is() -> None:
    text = (DEPLOY / "longsight.service").read_text().replace("\\\n", " ")
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    arguments = parser().parse_args(shlex.split(settings["ExecStart"])[1:])
    assert float(settings["TimeoutStopSec"]) > arguments.drain_seconds
    for path in (arguments.auth, arguments.ledger, str(arguments.files_dir), str(arguments.signing_key)):
        assert path.startswith(f"/var/lib/{settings['StateDirectory']}/")


# --- Prometheus and Grafana


def expressions() -> dict[str, str]:
    """Every query of the dashboard and every alert, with the dashboard's variables filled in."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$job", "longsight")
            found[f"{panel['title']} {target['refId']}"] = query
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        found[rule["alert"]] = rule["expr"]
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_the_dashboard_asks_for_metrics_that_the_server_has() -> None:
    with live_server() as server:
        with server.client() as client:
            client.completions.create(model="tiny", prompt="abc", max_tokens=4)
        text = httpx.get(f"{server.url}/metrics").text
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    families = list(text_string_to_metric_families(text))
    names = {family.name + suffix for family in families for suffix in suffixes.get(family.type, ("",))}
    labels = {name for family in families for sample in family.samples for name in sample.labels} | {"job", "kind"}
    asked = expressions()
    assert len(asked) > 30
    for where, query in asked.items():
        used = set(re.findall(r"\b(?:longsight|process)_\w+", query))
        assert used <= names or where == "LongsightDown", (where, used - names)
        grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", query) for label in by.split(",")}
        matched = set(re.findall(r"[{,]\s*(\w+)\s*=~?", query))
        assert grouped | matched <= labels, where


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in mine) < 24
        assert not mine & cells, panel["title"]
        cells |= mine


def test_grafana_finds_what_its_files_name() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in COMPOSE["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "longsight.yml").read_text())["providers"]
    mounted = [volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert ["./deploy/grafana/dashboards", provider["options"]["path"]] in mounted


def test_promtool_accepts_the_files() -> None:
    promtool = tool("promtool", "prometheus")
    configuration = DEPLOY / "prometheus" / "prometheus.yml"
    subprocess.run([promtool, "check", "config", "--syntax-only", configuration], check=True)
    subprocess.run([promtool, "check", "rules", DEPLOY / "prometheus" / "alerts.yml"], check=True)


def test_prometheus_reads_the_server_and_answers_the_dashboard(tmp_path: Path) -> None:
    """The configuration as it is, but for addresses and the interval, over a server that asks for keys."""
    prometheus = tool("prometheus", "prometheus")
    key, port = "a-key-for-metrics", free_port()
    (tmp_path / "key").write_text(key)
    with live_server(authenticator=StaticKey(key)) as server:
        configuration = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        configuration = configuration.replace("15s", "1s").replace("/run/secrets/metrics-key", f"{tmp_path}/key")
        configuration = configuration.replace("longsight:8000", server.url.removeprefix("http://"))
        (tmp_path / "prometheus.yml").write_text(configuration)
        shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
        command = [
            *(prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
        ]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:

                def ask(query: str) -> Any:
                    try:
                        url = f"http://127.0.0.1:{port}/api/v1/query"
                        answer = httpx.get(url, params={"query": query}, timeout=10)
                    except httpx.TransportError:
                        return {"data": {"result": []}}
                    # While it starts it says so, in plain text.
                    return {"data": {"result": []}} if answer.status_code == 503 else answer.json()

                def up() -> bool:
                    results = ask('up{job="longsight"}')["data"]["result"]
                    return bool(results) and results[0]["value"][1] == "1"

                wait_for(up, 60)
                for where, query in expressions().items():
                    assert ask(query)["status"] == "success", where
                assert ask("longsight_info")["data"]["result"][0]["metric"]["backend"] == "fake"
            finally:
                process.kill()


# --- nginx


@contextmanager
def behind_nginx(directory: Path, upstream: str) -> Iterator[httpx.Client]:
    """The site of deploy/nginx.conf before a server, and a client that trusts its certificate."""
    nginx = tool("nginx", "nginx")
    authority = trustme.CA()
    certificate = authority.issue_cert("llm.example.org", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "fullchain.pem")
    certificate.private_key_pem.write_to_path(directory / "privkey.pem")
    plain, secure = free_port(), free_port()
    site = (DEPLOY / "nginx.conf").read_text().replace("/etc/ssl/longsight", str(directory))
    site = site.replace("127.0.0.1:8000", upstream.removeprefix("http://"))
    site = site.replace("listen 80;", f"listen 127.0.0.1:{plain};")
    site = site.replace("listen 443 ssl;", f"listen 127.0.0.1:{secure} ssl;")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {directory}/temp;" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""  # its workers write into the test's own directory
    (directory / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {directory}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{site} }}\n"
    )
    context = httpx.create_ssl_context()
    authority.configure_trust(context)
    with subprocess.Popen([nginx, "-p", directory, "-c", "nginx.conf"], stderr=subprocess.PIPE) as process:
        try:
            with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{secure}", timeout=60) as client:
                wait_for(lambda: answers(client) or process.poll() is not None)
                assert process.poll() is None, process.stderr and process.stderr.read()
                redirect = httpx.get(f"http://127.0.0.1:{plain}/v1/models", headers={"host": "llm.example.org"})
                assert redirect.headers["location"] == "https://llm.example.org/v1/models"
                yield client
        finally:
            process.terminate()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_events_pass_nginx_one_by_one(tmp_path: Path) -> None:
    """Before each token the model waits until the client has read the one before: held back, nothing would come."""
    read = threading.Semaphore(1)

    def wait(tokens: list[int]) -> None:
        assert read.acquire(timeout=20), "the event before never arrived"

    fields = {"model": "tiny", "prompt": "x1y2" * 9, "max_tokens": 20, "temperature": 0, "stream": True}
    events = 0
    with (
        live_server(LookupModel(before=wait), speculate=False) as server,
        behind_nginx(tmp_path, server.url) as client,
        client.stream("POST", "/v1/completions", json=fields) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                events += 1
                read.release()
    assert events >= 20


def test_large_bodies_and_metrics_pass_nginx(tmp_path: Path) -> None:
    with live_server() as server, behind_nginx(tmp_path, server.url) as client:
        large = client.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 1_200_000})
        assert large.json()["error"]["code"] == "context_length_exceeded"
        upload = client.post("/v1/files", files={"file": b"x" * 70_000_000}, data={"purpose": "user_data"})
        assert upload.status_code != 413, upload.text
        assert "longsight_info" in client.get("/metrics").text


# --- what the page says


@pytest.mark.usefixtures("_any_path")
def test_commands_of_the_page_are_commands() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    lines = re.findall(r"^    ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    found = 0
    for line in lines:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        for i, word in enumerate(words):
            if word.endswith("longsight") and i + 1 < len(words) and words[i + 1] in ("serve", "keys", "cost"):
                parser().parse_args(words[i + 1 :])
                found += 1
    assert found >= 4
    for path in re.findall(r"(?:^|[ `])(deploy/[\w./-]+\w)", text, re.MULTILINE):
        assert (ROOT / path).exists() or f"/{path}" in (ROOT / ".gitignore").read_text(), path


def test_keys_and_usage_share_a_database_as_compose_has_them() -> None:
    command = COMPOSE["services"]["longsight"]["command"]
    (ledger,) = [word.partition("=")[2] for word in command if word.startswith("--ledger=")]
    auth = COMPOSE["services"]["longsight"]["environment"]["LONGSIGHT_AUTH"]
    assert make_url(ledger).database == make_url(auth).database
    with cluster() as url:
        with closing(KeyStore(url.replace("postgresql://", "postgresql+psycopg://"), create=True)) as keys:
            _, text = keys.create(NewKey("alice"))
        assert text.startswith("lsk_")
        open_database(url).dispose()
        open_database(url).dispose()
