"""find_checkpoint(), with a server on 127.0.0.1 that stands in for the Hugging Face hub, over real HTTP."""

import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PUBLISHED = random.Random(3).randbytes(300_000)
SAM3 = "facebook/sam3/sam3.pt"
TUNED = "someone/tuned.SAM-3_v2"
INDEX = f"{TUNED}/fp16/model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TOKEN = "hf_aTokenThatNobodyMaySee"
REQUESTS = [
    "HEAD",
    "HEAD",
    "GET",
]  # for one file: find_checkpoint() itself sends the first, to see whether a hub answers


class Denial(NamedTuple):
    """An error response of the hub."""

    status: int
    code: str = ""  # the header X-Error-Code
    message: str = ""  # the header X-Error-Message


NO_FILE = Denial(404, "EntryNotFound", "Entry not found")
NO_REPOSITORY = Denial(404, "RepoNotFound", "Repository not found")
# over HTTPS, huggingface_hub takes a 401 without this code for the same
NO_REPOSITORY_OR_PRIVATE = Denial(401, "RepoNotFound", "Invalid username or password.")
HIDDEN = ("401-no-token", "404-hidden-repository")  # the hub's response if there is no such repository, too
NO_ACCESS = [
    pytest.param(Denial(401, "GatedRepo", "Access to model facebook/sam3 is restricted."), "", id="gated-no-token"),
    pytest.param(Denial(401), "", id="401-no-token"),
    pytest.param(Denial(401, "", "Invalid credentials in Authorization header"), TOKEN, id="401-wrong-token"),
    pytest.param(Denial(403, "GatedRepo", "You are not in the authorized list."), TOKEN, id="gated-token-not-approved"),
    pytest.param(Denial(403), TOKEN, id="403-token-without-permission"),
    pytest.param(NO_REPOSITORY, TOKEN, id="404-hidden-repository"),
]

# huggingface_hub retries a failing hub after 1, 2, 4, 8 and 8 seconds; here it retries as often, but does not wait.
FIND_CHECKPOINTS = """
import json, logging, sys, time, traceback
from pathlib import Path
time.sleep = lambda seconds: None
logging.basicConfig(level=logging.INFO)
from sam3_engine.weights import find_checkpoint
outcomes = []
for name in json.loads(sys.argv[1]):
    try:
        outcomes.append({"path": str(find_checkpoint(name, Path(sys.argv[2])))})
    except Exception as error:
        traceback.print_exc()
        outcomes.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(outcomes))
"""


class Request(NamedTuple):
    """A request to the hub, and the status of the response."""

    method: str
    path: str
    headers: dict[str, str]
    status: int


class Hub(ThreadingHTTPServer):
    """Serves ``files``, by repository and path, or responds with ``denial`` if it is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubConnection)
        self.files = {SAM3: PUBLISHED}
        self.commit = "0123456789" * 4  # the latest one of all repositories
        self.denial: Denial | None = None
        self.cuts = 0  # how many GETs, from the first, are cut off halfway through the body
        self.revoked_after = 10**9  # how many GETs are accepted before the token is rejected
        self.requests: list[Request] = []

    @property
    def gets(self) -> list[Request]:
        return [request for request in self.requests if request.method == "GET"]


class HubConnection(BaseHTTPRequestHandler):
    """One client connection to a :class:`Hub`."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        cut = len(self.server.gets) < self.server.cuts
        body = self._answer()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def _answer(self) -> bytes:
        """Record the request, send the status and the headers, and return the body to send."""
        status, headers, body = self._reply()
        self.server.requests.append(Request(self.command, self.path, dict(self.headers), status))
        self.send_response(status)
        headers |= {"Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        return body

    def _reply(self) -> tuple[int, dict[str, str], bytes]:
        denial = self.server.denial
        repository, revision, name = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(self.path)).groups()
        commit = {"X-Repo-Commit": self.server.commit if revision == "main" else revision}
        content = self.server.files.get(f"{repository}/{name}")
        if not any(file.startswith(f"{repository}/") for file in self.server.files):
            denial = NO_REPOSITORY if "authorization" in self.headers else NO_REPOSITORY_OR_PRIVATE
        elif content is None:
            denial = NO_FILE
        elif len(self.server.gets) >= self.server.revoked_after:
            denial = Denial(401, "", "Invalid credentials in Authorization header")
        if denial:
            reasons = {"X-Error-Code": denial.code, "X-Error-Message": denial.message}
            return denial.status, commit | {name: reason for name, reason in reasons.items() if reason}, b"denied"

        headers = commit | {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not wanted:
            return 200, headers, content
        start = int(wanted[1])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, headers, content[start:]

    def log_message(self, *_: object) -> None:
        """Log nothing: the output of the tests needs no line per request."""


@dataclass
class Outcome:
    """What find_checkpoint() returned or raised; ``stderr`` also has the traceback."""

    stderr: str
    path: Path | None = None
    error: str = ""
    message: str = ""


class Machine:
    """A user's machine, with all of its files in ``folder``, and the hub that it connects to."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.home = folder / "home"
        self.beside_the_plugin = folder / "plugin" / "weights" / "sam3.pt"
        self.hf_home = folder / "hf"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.working_directory = folder / "work"
        self.working_directory.mkdir()

    def find_checkpoint(self, weights: str = "", **environment: str) -> Outcome:
        """Call the function in a new process: huggingface_hub reads the environment only when it is imported."""
        (outcome,) = self.find_checkpoints([weights], **environment)
        return outcome

    def find_checkpoints(self, weights: list[str], **environment: str) -> list[Outcome]:
        """Call the function for each of ``weights`` in turn, in one new process."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "XDG_", "TQDM_")) and not name.upper().endswith("_PROXY")
        }
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.hf_home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HOME": str(self.home),
            "PYTHONPATH": str(REPOSITORY),
            "TMPDIR": str(self.temporary),
        }
        done = subprocess.run(
            [sys.executable, "-c", FIND_CHECKPOINTS, json.dumps(weights), str(self.beside_the_plugin.parent)],
            cwd=self.working_directory,
            env=inherited | ours | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout.splitlines()[-1])  # huggingface_hub may have printed something before it
        return [
            Outcome(done.stderr, Path(answer["path"]))
            if "path" in answer
            else Outcome(done.stderr, error=answer["error"], message=answer["message"])
            for answer in answers
        ]


@pytest.fixture
def hub():
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def machine(tmp_path, hub) -> Machine:
    return Machine(tmp_path, f"http://127.0.0.1:{hub.server_port}")


def write(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def fill_cache(machine: Machine, hub: Hub, weights: str = "") -> Path:
    """Download a file into the Hugging Face cache, then clear the recorded requests."""
    cached = machine.find_checkpoint(weights).path
    assert cached is not None
    hub.requests.clear()
    return cached


def serve_shards(hub: Hub) -> None:
    weight_map = {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}
    hub.files[INDEX] = json.dumps({"metadata": {"total_size": 2}, "weight_map": weight_map}).encode()
    hub.files |= {f"{TUNED}/fp16/{shard}": shard.encode() for shard in SHARDS}


def assert_says_where_to_put_the_file(outcome: Outcome, machine: Machine) -> None:
    assert outcome.message.endswith(
        " You can also download sam3.pt from https://huggingface.co/facebook/sam3 on any machine, and put it at "
        f"{machine.beside_the_plugin} or set weights to its path."
    )


def assert_says_what_to_download(outcome: Outcome, source: str) -> None:
    assert outcome.error == "WeightsError"
    assert outcome.message.endswith(f" You can also download {source} on any machine, and set weights to its path.")


# Search order


def test_a_named_file_takes_precedence(machine, hub):
    fill_cache(machine, hub)
    write(machine.beside_the_plugin)
    named = write(machine.folder / "mine.pt")

    assert machine.find_checkpoint(str(named)).path == named
    assert hub.requests == []


@pytest.mark.parametrize("nothing_named", ["", "  "])
def test_the_weights_folder_takes_precedence_over_the_cache(machine, hub, nothing_named):
    fill_cache(machine, hub)
    write(machine.beside_the_plugin)

    assert machine.find_checkpoint(nothing_named).path == machine.beside_the_plugin
    assert hub.requests == []


def test_the_cache_is_used_without_a_request_to_the_hub(machine, hub):
    cached = fill_cache(machine, hub)

    assert machine.find_checkpoint().path == cached
    assert hub.requests == []


def test_the_file_is_downloaded_if_it_is_not_on_this_machine(machine, hub):
    assert machine.find_checkpoint().path.read_bytes() == PUBLISHED
    assert [request.method for request in hub.requests] == REQUESTS


# A file named by the user


def test_a_path_may_begin_with_a_tilde_and_have_spaces_and_quotation_marks_around_it(machine):
    named = write(machine.home / "mine.pt")
    ways = ["~/mine.pt", f"  {named}\t", " ~/mine.pt\n", f'"{named}"', f" '{named}' ", '" ~/mine.pt"']

    assert [outcome.path for outcome in machine.find_checkpoints(ways)] == [named] * len(ways)


def test_invisible_marks_around_a_path_are_removed(machine):
    named = write(machine.home / "mine.pt")
    ways = [f"\u202a{named}", f"\ufeff{named}", f"\u202a{named}\u202c ", f' \u202a"{named}"', f"\u200e{named}\xa0"]

    assert [outcome.path for outcome in machine.find_checkpoints(ways)] == [named] * len(ways)


def test_a_path_with_a_control_character_says_how_to_write_backslashes(machine, hub):
    paths = ["C:\temp\\sam3.pt", "D:\new.pt", "weights\best.pt", r"C:\models\sam3.pt"]  # \t, \n, \b and none

    *outcomes, correct = machine.find_checkpoints(paths)

    for outcome in outcomes:
        assert r"It has a control character: in Python code, write r'C:\temp\sam3.pt' or" in outcome.message
    assert "control character" not in correct.message
    assert correct.message.startswith(r"weights = 'C:\models\sam3.pt': there is no such file (looked for ")
    assert hub.requests == []


def test_a_path_that_the_system_refuses_is_refused_with_the_reason(machine, hub):
    path = f"{machine.working_directory}/{'a' * 300}/sam3.pt"  # longer than a file's name may be

    outcome = machine.find_checkpoint(path)

    assert outcome.error == "WeightFileError"
    assert outcome.message.startswith(f"weights = '{path}': this file cannot be opened (File name too long); expected")
    assert hub.requests == []


def test_quotation_marks_around_nothing_are_blank(machine):
    assert machine.find_checkpoint('""').path == machine.find_checkpoint().path


def test_a_missing_file_is_refused_with_the_path_that_was_looked_for(machine, hub):
    write(machine.beside_the_plugin)
    here = machine.working_directory
    looked_for = {
        " absent/mine.pt ": f" (looked for '{here}/absent/mine.pt')",
        "absent.pt": f" (looked for '{here}/absent.pt')",
        "./a/b/absent.pt": f" (looked for '{here}/a/b/absent.pt')",
        "~/absent.pt": f" (looked for '{machine.home}/absent.pt')",
        f"{here}/absent.pt": "",
    }

    outcomes = machine.find_checkpoints(list(looked_for))

    for (typed, place), outcome in zip(looked_for.items(), outcomes, strict=True):
        assert outcome.error == "WeightFileError"
        start = f"weights = '{typed.strip()}': there is no such file{place}; expected a SAM 3 checkpoint"
        assert outcome.message.startswith(start)
    assert hub.requests == []


def test_a_folder_is_refused_with_the_weight_files_in_it(machine, hub):
    here = machine.working_directory
    (here / "empty").mkdir()
    for name in ("config.json", "sam3.pt", "model.safetensors"):
        write(here / "clone" / name)
    write(here / "sharded" / "model.safetensors.index.json")
    write(here / "facebook" / "sam3" / "sam3.pt")

    outcomes = machine.find_checkpoints(["empty", "clone/", f"{here}/sharded", "facebook/sam3"])

    assert {outcome.error for outcome in outcomes} == {"WeightFileError"}
    assert [outcome.message.partition(": ")[2] for outcome in outcomes] == [
        "this is a folder; expected a SAM 3 checkpoint.",
        f"this is a folder; expected a SAM 3 checkpoint, such as '{here}/clone/model.safetensors' or "
        f"'{here}/clone/sam3.pt'.",
        f"this is a folder; expected a SAM 3 checkpoint, such as '{here}/sharded/model.safetensors.index.json'.",
        f"this is a folder; expected a SAM 3 checkpoint, such as '{here}/facebook/sam3/sam3.pt'.",
    ]
    assert hub.requests == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file")
def test_a_special_file_is_refused(machine):
    assert "this is not a file" in machine.find_checkpoint("/dev/zero").message


# Successful downloads


def test_a_download_stays_in_the_cache_and_happens_once(machine, hub):
    path = machine.find_checkpoint(HF_TOKEN=TOKEN).path

    assert path.read_bytes() == PUBLISHED
    assert path.is_relative_to(machine.hf_home / "hub")
    files = [file for file in machine.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert [file for file in files if file.stat().st_size > 1000] == [path.resolve()]

    hub.requests.clear()
    assert machine.find_checkpoint(HF_TOKEN=TOKEN).path == path
    assert hub.requests == []


@pytest.mark.parametrize("logged_in", [False, True], ids=["HF_TOKEN", "hf-auth-login"])
def test_a_download_carries_the_token(machine, hub, logged_in):
    if logged_in:
        write(machine.hf_home / "token", TOKEN.encode())
        machine.find_checkpoint()
    else:
        machine.find_checkpoint(HF_TOKEN=TOKEN)

    carried = [(request.method, request.headers.get("authorization")) for request in hub.requests]
    assert carried == [(method, f"Bearer {TOKEN}") for method in REQUESTS]


def test_a_download_shows_its_progress_on_stderr(machine):
    shown = machine.find_checkpoint(TQDM_POSITION="-1").stderr  # otherwise tqdm shows it only on a terminal

    assert "sam3.pt: 100%" in shown
    assert "300k/300k" in shown


def test_a_download_resumes_when_the_connection_is_cut(machine, hub):
    # huggingface_hub writes 10 MiB at a time: if the connection is cut earlier, there is nothing to resume
    hub.files[SAM3] = random.Random(4).randbytes(25 * 2**20)
    hub.cuts = 1

    outcome = machine.find_checkpoint(HF_TOKEN=TOKEN)

    whole, rest = hub.gets
    assert (whole.status, rest.status) == (200, 206)
    assert "Range" not in whole.headers
    assert rest.headers["Range"] == f"bytes={10 * 2**20}-"
    assert outcome.path.read_bytes() == hub.files[SAM3]


def test_a_file_missing_on_the_hub_is_requested_again_in_the_next_call(machine, hub):
    hub.denial = NO_FILE
    assert machine.find_checkpoint().error == "WeightsError"

    hub.denial = None
    assert machine.find_checkpoint().path.read_bytes() == PUBLISHED


# Failed downloads


@pytest.mark.parametrize(("denial", "token"), NO_ACCESS)
def test_denied_access_gives_the_steps_to_get_access(machine, hub, denial, token):
    hub.denial = denial

    outcome = machine.find_checkpoint(HF_TOKEN=token)

    assert outcome.error == "WeightsError"
    steps = ["https://huggingface.co/facebook/sam3 ", "read token", "`hf auth login`", "HF_TOKEN"]
    assert [step for step in steps if step not in outcome.message] == []
    assert_says_where_to_put_the_file(outcome, machine)
    carried = {request.headers.get("authorization") for request in hub.requests}
    assert carried == {f"Bearer {token}" if token else None}


def test_a_file_missing_on_the_hub_can_be_provided_by_hand(machine, hub):
    hub.denial = NO_FILE

    outcome = machine.find_checkpoint()

    assert outcome.error == "WeightsError"
    assert "facebook/sam3 has no file sam3.pt" in outcome.message
    assert_says_where_to_put_the_file(outcome, machine)


@pytest.mark.parametrize("status", [500, 503])
def test_server_errors_name_the_http_status(machine, hub, status):
    hub.denial = Denial(status)

    outcome = machine.find_checkpoint()

    assert outcome.error == "WeightsError"
    assert f"HTTP {status}" in outcome.message
    assert "hf auth login" not in outcome.message
    assert_says_where_to_put_the_file(outcome, machine)


def test_an_unreachable_hub_says_where_to_put_the_file(machine):
    with socket.socket() as closed_port:  # bound, so that no other process takes it, but not listening
        closed_port.bind(("127.0.0.1", 0))
        machine.endpoint = f"http://127.0.0.1:{closed_port.getsockname()[1]}"
        outcome = machine.find_checkpoint(HF_TOKEN=TOKEN)

    assert outcome.error == "WeightsError"
    assert "cannot be reached" in outcome.message
    assert TOKEN not in outcome.message + outcome.stderr
    assert_says_where_to_put_the_file(outcome, machine)


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": "socks5://127.0.0.1:9"},
        {"HTTP_PROXY": "::bad::"},
        {"HF_ENDPOINT": "http://[::1"},
        {"HF_HUB_ETAG_TIMEOUT": "abc"},
    ],
    ids=str,
)
def test_invalid_network_settings_say_where_to_put_the_file(machine, environment):
    machine.endpoint = "http://192.0.2.1"  # not this machine: requests to it bypass proxies
    outcome = machine.find_checkpoint(**environment)
    assert outcome.error == "WeightsError"
    assert_says_where_to_put_the_file(outcome, machine)


def test_a_damaged_cache_says_where_to_put_the_file(machine, hub):
    (fill_cache(machine, hub).parents[2] / "refs" / "main").write_bytes(b"\xff\xfe")
    outcome = machine.find_checkpoint()
    assert outcome.error == "WeightsError"
    assert_says_where_to_put_the_file(outcome, machine)


def test_a_download_ends_if_the_connection_keeps_failing(machine, hub):
    hub.cuts = 100

    outcome = machine.find_checkpoint()

    assert outcome.error == "WeightsError"
    assert "The download of sam3.pt failed: " in outcome.message
    assert len(hub.gets) > 1
    assert_says_where_to_put_the_file(outcome, machine)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root may mount")
def test_a_full_disk_is_reported_and_the_next_call_works_once_there_is_space(machine, hub):
    machine.hf_home.mkdir()
    disk = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(machine.hf_home)]
    if subprocess.run(disk, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        outcome = machine.find_checkpoint(HF_TOKEN=TOKEN)
    finally:
        subprocess.run(["umount", str(machine.hf_home)], check=True)

    assert outcome.error == "WeightsError"
    assert "No space left on device" in outcome.message
    assert_says_where_to_put_the_file(outcome, machine)
    assert machine.find_checkpoint(HF_TOKEN=TOKEN).path.read_bytes() == PUBLISHED


def test_a_token_revoked_during_the_download_gives_the_steps_to_get_access(machine, hub):
    hub.files[SAM3] = random.Random(4).randbytes(25 * 2**20)
    hub.cuts, hub.revoked_after = 1, 1

    outcome = machine.find_checkpoint(HF_TOKEN=TOKEN)

    assert outcome.error == "WeightsError"
    assert "HTTP 401" in outcome.message
    assert "hf auth login" in outcome.message
    assert TOKEN not in outcome.message


def test_a_revoked_token_does_not_matter_if_the_file_is_cached(machine, hub):
    cached = fill_cache(machine, hub)
    hub.denial = Denial(401, "", "Invalid credentials in Authorization header")
    assert machine.find_checkpoint(HF_TOKEN=TOKEN).path == cached
    assert hub.requests == []


def test_offline_mode_makes_no_request_and_says_where_to_put_the_file(machine, hub):
    outcome = machine.find_checkpoint(HF_HUB_OFFLINE="1")

    assert outcome.error == "WeightsError"
    assert "HF_HUB_OFFLINE" in outcome.message
    assert_says_where_to_put_the_file(outcome, machine)
    assert hub.requests == []


@pytest.mark.parametrize("denial", [None, Denial(401), Denial(403, "GatedRepo"), NO_FILE, Denial(503)])
def test_the_token_is_in_no_message(machine, hub, denial):
    hub.denial = denial

    outcome = machine.find_checkpoint(HF_TOKEN=TOKEN, TQDM_POSITION="-1", HF_HUB_VERBOSITY="debug")

    assert outcome.stderr
    assert TOKEN not in outcome.message + outcome.stderr
    assert hub.requests[0].headers["authorization"].endswith(TOKEN)


# Names on Hugging Face


@pytest.mark.parametrize(
    ("repository", "name", "size"),
    [("facebook/sam3", "sam3.pt", "3.45 GB"), ("facebook/sam3.1", "sam3.1_multiplex.pt", "3.50 GB")],
)
def test_the_official_repositories_are_known_by_name(machine, hub, repository, name, size):
    write(machine.beside_the_plugin)
    content = hub.files[f"{repository}/{name}"] = random.Random(5).randbytes(1000)

    outcome = machine.find_checkpoint(f" {repository}\n")

    assert outcome.path.read_bytes() == content
    assert [request.method for request in hub.requests] == REQUESTS
    assert f"Looking for {name} of {repository} on Hugging Face." in outcome.stderr
    assert f"Downloading {name} from {repository} ({size}, once)." in outcome.stderr


def test_a_folder_without_weights_does_not_hide_an_official_name(machine, hub):
    hub.files["facebook/sam3/model.safetensors"] = b"transformers"
    write(machine.working_directory / "facebook" / "sam3" / "README.md")

    official, file = machine.find_checkpoints(["facebook/sam3", "facebook/sam3/model.safetensors"])

    assert official.path.read_bytes() == PUBLISHED
    assert file.path.read_bytes() == b"transformers"


def test_an_official_name_may_be_written_in_other_ways(machine, hub):
    cached = fill_cache(machine, hub, "facebook/sam3")
    address = "https://huggingface.co/facebook/sam3"
    ways = ["Facebook/SAM3", "facebook/sam3/", "'facebook/sam3'", "FACEBOOK/sam3/sam3.pt", "hf://facebook/sam3"]
    ways += [address, f"{address}/", f"{address}/tree/main", f"{address}/blob/main/sam3.pt"]

    assert {outcome.path for outcome in machine.find_checkpoints(ways)} == {cached}
    assert hub.requests == []


def test_the_address_of_a_file_is_a_name(machine, hub):
    hub.files[f"{TUNED}/a b/model.pt"] = b"tuned"
    address = f"https://huggingface.co/{TUNED}"
    ways = [f"{address}/blob/main/a%20b/model.pt", f"{address}/resolve/main/a%20b/model.pt?download=true"]

    outcomes = machine.find_checkpoints([*ways, f"hf://{TUNED}/a b/model.pt", f"{TUNED}/a b/model.pt"])

    assert len({outcome.path for outcome in outcomes}) == 1
    assert outcomes[0].path.read_bytes() == b"tuned"
    assert len(hub.gets) == 1


def test_an_address_that_cannot_be_used_is_refused_without_a_request(machine, hub):
    other = f"https://huggingface.co/{TUNED}/blob/0123abc/model.pt"
    revision, *elsewhere = machine.find_checkpoints([other, "https://example.com/a/b/c.pt", "file:///data/sam3.pt"])

    assert revision.message == (
        f"weights = '{other}': the revision '0123abc' cannot be named; expected an address with main."
    )
    for outcome in elsewhere:
        assert "': this is not the address of a file in a repository on Hugging Face; expected " in outcome.message
    assert hub.requests == []


def test_a_name_in_the_cache_is_used_without_a_request_to_the_hub(machine, hub):
    serve_shards(hub)
    names = ["facebook/sam3", SAM3, INDEX]
    cached = machine.find_checkpoints(names)
    requests = len(hub.requests)
    hub.denial = Denial(503)

    again = machine.find_checkpoints(names)

    assert [outcome.path for outcome in again] == [outcome.path for outcome in cached]
    assert cached[0].path == cached[1].path == machine.find_checkpoint().path
    assert len(hub.requests) == requests


def test_any_file_of_any_repository_can_be_named(machine, hub):
    names = ["best.safetensors", "runs/7/last.PT", "a b/ü.pth", "checkpoints.old/x.ckpt", "pytorch_model.bin"]
    names = [f"{TUNED}/{name}" for name in names] + ["facebook/sam3/model.safetensors"]
    hub.files |= {name: name.encode() for name in [*names, f"{TUNED}/not_named.pt"]}

    outcomes = machine.find_checkpoints(names)

    assert [outcome.path.read_bytes().decode() for outcome in outcomes] == names
    assert len(hub.gets) == len(names)
    assert f"Downloading best.safetensors from {TUNED} (once)." in outcomes[0].stderr
    assert "Downloading model.safetensors from facebook/sam3 (once)." in outcomes[0].stderr


def test_a_path_that_exists_takes_precedence_over_a_name(machine, hub):
    hub.files[f"{TUNED}/model.pt"] = b"from the hub"
    names = [f"{TUNED}/model.pt", "facebook/sam3"]
    for name in names:
        write(machine.working_directory / name, b"local")

    outcomes = machine.find_checkpoints(names)

    assert [outcome.path for outcome in outcomes] == [Path(name) for name in names]
    assert hub.requests == []


def test_a_mistyped_path_in_an_existing_folder_is_not_looked_up_on_the_hub(machine, hub):
    hub.files["models/sam/3.pt"] = b"of a stranger"
    (machine.working_directory / "models").mkdir()

    outcome = machine.find_checkpoint("models/sam/3.pt")

    assert outcome.error == "WeightFileError"
    here = machine.working_directory
    assert (
        f"weights = 'models/sam/3.pt': there is no such file (looked for '{here}/models/sam/3.pt')" in outcome.message
    )
    assert f"It is not looked up on Hugging Face, because the folder '{here}/models' exists." in outcome.message
    assert hub.requests == []


NOT_NAMES = [
    r"C:\x\sam3.pt",
    "C:/x/sam3.pt",
    r"models\a\b.pt",
    r"models/a\b/c.pt",
    "/nowhere/a/b.pt",
    "./models/a/b.pt",
    "../models/a/b.pt",
    "~/models/a/b.pt",
    "models/../a/b.pt",
    "models/a/../b.pt",
    "models/a//b.pt",
    "models/a/b\n.pt",
    "models/a/.pt/",
    "a--b/c/d.pt",
    "my models/a/b.pt",
    "models/b.pt",
    "sam3.pt",
]


def test_what_does_not_look_like_a_name_is_a_path(machine, hub):
    outcomes = machine.find_checkpoints(NOT_NAMES)

    assert {outcome.error for outcome in outcomes} == {"WeightFileError"}
    assert [outcome.message for outcome in outcomes if "there is no such file" not in outcome.message] == []
    assert hub.requests == []
    hint = "or a name on Hugging Face: facebook/sam3, facebook/sam3.1 or owner/repository/file.safetensors."
    hinted = [name for name, outcome in zip(NOT_NAMES, outcomes, strict=True) if outcome.message.endswith(hint)]
    assert [name for name in NOT_NAMES if name not in hinted] == ["/nowhere/a/b.pt", "~/models/a/b.pt"]


def test_an_incomplete_name_is_refused_with_what_is_missing(machine, hub):
    repositories, others = ["Comfy-Org/sam3.1", "facebook/sam4"], ["models/a/b.gguf", "models/a/b.onnx", "models/a/b"]

    outcomes = machine.find_checkpoints([*repositories, *others])

    assert {outcome.error for outcome in outcomes} == {"WeightFileError"}
    for name, outcome in zip(repositories, outcomes[:2], strict=True):
        hint = f", or a name on Hugging Face with the file in the repository: {name}/file.safetensors."
        assert outcome.message.endswith(hint)
    for outcome in outcomes[2:]:
        assert " a name on Hugging Face that ends in .pt, .pth, .ckpt, .bin, .safetensors or " in outcome.message
        assert outcome.message.endswith("; other formats, such as GGUF, are not supported.")
    assert hub.requests == []


@pytest.mark.parametrize("token", ["", TOKEN], ids=["no-token", "token"])
def test_a_name_that_the_hub_does_not_have_may_be_a_mistyped_path(machine, hub, token):
    hub.files[f"{TUNED}/model.pt"] = b""

    no_repository, no_file = machine.find_checkpoints(["networks/sam/3.pt", f"{TUNED}/other.pt"], HF_TOKEN=token)

    assert no_repository.error == no_file.error == "WeightFileError"
    here = machine.working_directory
    assert (
        "weights = 'networks/sam/3.pt': there is no such file on this machine "
        f"(looked for '{here}/networks/sam/3.pt'), and the Hugging Face hub has no repository networks/sam"
    ) in no_repository.message
    assert "has no repository networks/sam, or it is private" in no_repository.message
    assert "`hf auth login`" in no_repository.message
    assert f"weights = '{TUNED}/other.pt': there is no such file on this machine" in no_file.message
    assert f"{TUNED} on the Hugging Face hub has no file other.pt." in no_file.message


@pytest.mark.parametrize(("denial", "token"), [case for case in NO_ACCESS if case.id not in HIDDEN])
def test_denied_access_to_any_repository_gives_the_steps_for_it(machine, hub, denial, token):
    hub.files[f"{TUNED}/model.pt"] = b""
    hub.denial = denial

    outcome = machine.find_checkpoint(f"{TUNED}/model.pt", HF_TOKEN=token)

    assert outcome.error == "WeightsError"
    steps = [
        f"No access to {TUNED}",
        f"request access at https://huggingface.co/{TUNED} ",
        "`hf auth login`",
        "HF_TOKEN",
    ]
    assert [step for step in steps if step not in outcome.message] == []
    assert "facebook" not in outcome.message
    assert TOKEN not in outcome.message + outcome.stderr
    assert_says_what_to_download(outcome, f"model.pt from https://huggingface.co/{TUNED}")


@pytest.mark.parametrize("denial", [Denial(401, "GatedRepo"), NO_REPOSITORY], ids=["gated", "hidden"])
def test_denied_access_to_sam_3_1_gives_the_steps_for_it(machine, hub, denial):
    hub.files["facebook/sam3.1/sam3.1_multiplex.pt"] = b""
    hub.denial = denial

    outcome = machine.find_checkpoint("facebook/sam3.1")

    assert outcome.error == "WeightsError"
    assert "No access to facebook/sam3.1. The SAM 3.1 weights are gated. " in outcome.message
    assert "request access at https://huggingface.co/facebook/sam3.1 " in outcome.message
    assert_says_what_to_download(outcome, "sam3.1_multiplex.pt from https://huggingface.co/facebook/sam3.1")


@pytest.mark.parametrize("obstacle", ["offline", "no connection", "server error"])
def test_a_name_that_cannot_be_looked_up_says_what_to_download(machine, hub, obstacle):
    serve_shards(hub)
    hub.files[f"{TUNED}/runs/m.pt"] = b""
    hub.denial = Denial(503)
    environment = {"HF_HUB_OFFLINE": "1"} if obstacle == "offline" else {}
    if obstacle == "no connection":
        environment = {"HTTP_PROXY": "http://127.0.0.1:9"}
        machine.endpoint = "http://192.0.2.1"

    file, official, index = machine.find_checkpoints([f"{TUNED}/runs/m.pt", "facebook/sam3", INDEX], **environment)

    said = "HTTP 503 for runs/m.pt" if obstacle == "server error" else "The Hugging Face hub cannot be reached"
    assert file.message.startswith(
        f"There is no file '{machine.working_directory}/{TUNED}/runs/m.pt' on this machine, so it was looked up as a "
        "name on Hugging Face. The Hugging Face hub "
    )
    assert said in file.message
    assert official.message.startswith("The Hugging Face hub ")
    assert_says_what_to_download(file, "runs/m.pt")  # the name may be a mistyped path: no address is made up of it
    assert_says_what_to_download(official, "sam3.pt from https://huggingface.co/facebook/sam3")
    files = "fp16/model.safetensors.index.json and the files that it names, into one folder,"
    assert_says_what_to_download(index, files)
    assert ("Retrying in" in file.stderr) == (obstacle == "server error")


def test_invalid_network_settings_do_not_matter_for_paths(machine, hub):
    outcome = machine.find_checkpoint("models/b.pt", HF_HUB_ETAG_TIMEOUT="abc")
    assert outcome.error == "WeightFileError"


def test_processes_that_start_together_download_a_name_once(machine, hub):
    hub.files[f"{TUNED}/model.pt"] = random.Random(4).randbytes(25 * 2**20)

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(machine.find_checkpoint, [f"{TUNED}/model.pt"] * 2))

    assert outcomes[0].path == outcomes[1].path
    assert len(hub.gets) == 1


# Sharded checkpoints


def test_an_index_brings_its_shards(machine, hub):
    serve_shards(hub)

    path = machine.find_checkpoint(INDEX).path

    assert path.read_bytes() == hub.files[INDEX]
    assert [path.with_name(shard).read_bytes().decode() for shard in SHARDS] == list(SHARDS)
    assert len(hub.gets) == 3


def test_shards_come_from_the_commit_of_their_index(machine, hub):
    serve_shards(hub)
    missing = hub.files.pop(f"{TUNED}/fp16/{SHARDS[1]}")

    outcome = machine.find_checkpoint(INDEX)

    assert outcome.error == "WeightFileError"
    assert f"{TUNED} on the Hugging Face hub has no file fp16/{SHARDS[1]}, which this index names." in outcome.message

    old, hub.commit = hub.commit, "ab" * 20
    hub.files[f"{TUNED}/fp16/{SHARDS[1]}"] = missing
    hub.requests.clear()
    path = machine.find_checkpoint(INDEX).path

    assert path.parent.joinpath(SHARDS[1]).read_bytes() == missing
    assert {request.path for request in hub.requests} == {f"/{TUNED}/resolve/{old}/fp16/{SHARDS[1]}"}


def test_a_bad_index_is_refused_and_brings_nothing(machine, hub):
    shards = ["../up.safetensors", "/etc/x.safetensors", r"a\b.safetensors", "C:x.safetensors", "..", "x.pt", "", 5, []]
    indexes = [json.dumps({"weight_map": {"tensor": shard}}) for shard in shards]
    indexes += ["<html>", "[]", "{}", '{"weight_map": ["x.safetensors"]}', "[" * 100_000, "\ud800"]
    names = [f"{TUNED}/{number}.safetensors.index.json" for number in range(len(indexes))]
    hub.files |= {name: index.encode(errors="surrogatepass") for name, index in zip(names, indexes, strict=True)}

    outcomes = machine.find_checkpoints(names)

    assert {outcome.error for outcome in outcomes} == {"CheckpointError"}
    for shard, outcome in zip(shards[:-1], outcomes, strict=False):
        assert f"names '{shard}'" in outcome.message
    assert {request.path for request in hub.requests} == {
        f"/{TUNED}/resolve/main/{number}.safetensors.index.json" for number in range(len(indexes))
    }
