"""What differs on Windows: modules and functions that Python lacks there, links, encodings, paths."""

import hashlib
import http.server
import importlib
import itertools
import json
import ntpath
import os
import pathlib
import subprocess
import sys
import threading
import types

import numpy as np
import PIL.Image
import pytest

from sam3_engine import weights
from sam3_engine.errors import WeightFileError
from testbed.plugin import PLUGIN, REPOSITORY, Plugin

USER = "Jürgen Müller"  # a folder that is in C:\Users of many
PROMPTS = [
    {"input_text": ["shoe", "größe 42"], "confidence_threshold": 0.3},
    {"input_point": [[60, 50], [5, 5]], "input_point_label": [1, 0], "multimask_output": True},
    {"input_box": [[10, 15, 75, 80], [2, 2, 150, 100]]},
    {"input_box": [10, 15, 75, 80], "input_box_label": [1]},
]


class Hub(http.server.BaseHTTPRequestHandler):
    """A Hugging Face hub where facebook/sam3 is gated, and one other repository has one file."""

    def __init__(self, content, *arguments):
        self.content = content
        super().__init__(*arguments)

    def do_HEAD(self):  # noqa: N802 - http.server requires these names
        if self.path.startswith("/facebook/sam3/"):
            self._reply(403, {"X-Error-Code": "GatedRepo"})
        elif self.path == "/owner/tiny/resolve/main/sam3.pt":
            digest = hashlib.sha256(self.content).hexdigest()
            self._reply(200, {"X-Repo-Commit": "0123456789" * 4, "ETag": f'"{digest}"'}, self.content)
        else:
            self._reply(404, {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD  # noqa: N815

    def _reply(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(small_checkpoint):
    """Serve a hub; yield its URL."""
    content = small_checkpoint.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: Hub(content, *arguments)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def small_image(photograph):
    return np.ascontiguousarray(photograph[::4, ::4])


@pytest.fixture
def used(hub, small_checkpoint, small_image, tmp_path):
    """Run :mod:`support.windows_user`; return its results and the folder of the user."""
    home = tmp_path / USER
    for folder in (home / "in", tmp_path / "in"):
        (folder / "Site 1").mkdir(parents=True)
        for name in ("a.png", "Site 1/a.png"):
            PIL.Image.fromarray(small_image).save(folder / name)
    (home / "sam3.pt").write_bytes(small_checkpoint.read_bytes())
    task = {
        "weights": str(home / "sam3.pt"),
        "prompts": PROMPTS,
        "unusable": ["", "owner/none/sam3.pt", r"C:\Users\me\sam3.pt", str(home), str(home / "in" / "a.png")],
        "to_download": "owner/tiny/sam3.pt",
        "folder": str(home / "in"),
        "results": str(home / "results"),
        # Ikomia reads images with OpenCV, which on Windows cannot open all names
        "plain_folder": str(tmp_path / "in"),
        "plain_results": str(tmp_path / "results"),
    }
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONIOENCODING": "cp1252",  # of a pipe in Western Europe
        "PYTHONPATH": str(REPOSITORY),
    }
    scripts = [REPOSITORY / "tests" / "support" / name for name in ("like_windows.py", "windows_user.py")]
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", *scripts],
        input=json.dumps(task),
        capture_output=True,
        encoding="cp1252",
        errors="replace",
        env=environment,
        cwd=home,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Logging error" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1]), home


TRY_WHAT_WINDOWS_LACKS = """
import asyncio  # imports fcntl on Linux
import os, platform, signal, subprocess, sys
from like_windows import hide_posix

hide_posix("__main__")
for line in sys.argv[1:]:
    try:
        exec(line)
    except (ImportError, AttributeError) as error:
        print(error)
import multiprocessing.resource_tracker  # other packages still find what they need
platform.uname()
subprocess.run([sys.executable, "-c", ""], check=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is nothing to hide")
def test_what_windows_lacks_is_hidden_from_our_code_only():
    lines = {
        "import fcntl": "No module named 'fcntl'",
        "from resource import getrusage": "No module named 'resource'",
        "from os import fork": "cannot import name 'fork' from 'os'",
        "os.getuid()": "module 'os' has no attribute 'getuid'",
        "signal.signal(signal.SIGALRM, None)": "module 'signal' has no attribute 'SIGALRM'",
    }
    command = [sys.executable, "-c", TRY_WHAT_WINDOWS_LACKS, *lines]
    folder = REPOSITORY / "tests" / "support"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    messages = done.stdout.splitlines()
    assert len(messages) == len(lines)
    for message, expected in zip(messages, lines.values(), strict=True):
        assert message.startswith(expected)


def answer(masks):
    return [[mask.description, hashlib.sha256(mask.get_mask()).hexdigest()] for mask in masks]


def test_the_plugin_runs_as_on_windows(used, small_checkpoint, small_image):
    found, home = used
    plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
    (mask,) = plugin.segment(small_image, **PROMPTS[0])
    instances = len(mask.get_class_names()) - 1
    expected = [answer(plugin.segment(small_image, **prompt)) for prompt in PROMPTS]
    assert [len(masks) for masks in expected] == [1, 3, 2, 1]
    assert found["answers"] == expected
    assert found["downloaded"] == expected[:1]

    gated, missing, path, folder, picture = found["refusals"]
    assert "No access to facebook/sam3" in gated
    assert "has no repository owner/none, or it is private" in missing
    assert r"model_weight_file = 'C:\Users\me\sam3.pt': there is no such file" in path
    assert f"this is a folder; expected a SAM 3 checkpoint, such as '{home / 'sam3.pt'}'" in folder
    assert "is not a usable SAM 3 checkpoint" in picture

    copies = [name for name in found["ikomia"] if name.endswith(".png")]
    assert len(copies) == 2
    assert len(found["ikomia"]) == 2 * len(["the image", "the mask", "the objects"])

    rows, files = found["batch"]
    assert instances > 1
    assert rows == [["Site 1/a.png", None, instances], ["a.png", None, instances]]
    pictures = [f"{kind}/{name}.png" for kind in ("label_maps", "overlays") for name in ("Site 1/a.png", "a.png")]
    assert [file for file in files if not file.startswith("instances/")] == [*pictures, "run.json"]


class WindowsPath(pathlib.PureWindowsPath):
    r"""A path on a Windows machine that has these files, in the folder C:\work."""

    FILES = tuple(map(pathlib.PureWindowsPath, (r"C:\Users\me\a.pt", r"C:\work\models\b.pt", r"\\nas\share\c.pt")))

    def absolute(self):
        return WindowsPath("C:/work", self)

    def is_file(self):
        return self.absolute() in self.FILES

    def is_dir(self):
        return any(self.absolute() in file.parents for file in self.FILES)

    def iterdir(self):
        return (WindowsPath(file) for file in self.FILES if file.parent == self.absolute())


@pytest.fixture
def find(monkeypatch):
    """Return :func:`~sam3_engine.weights.find_checkpoint` as on that machine; a hub name gives the name itself."""
    path = types.SimpleNamespace(expanduser=ntpath.expanduser, lexists=lambda path: path.is_file() or path.is_dir())
    monkeypatch.setattr(weights, "os", types.SimpleNamespace(path=path))
    monkeypatch.setattr(weights, "Path", WindowsPath)
    monkeypatch.setattr(weights._HubFile, "find", lambda named: f"hub: {named.repository} {named.name}")
    monkeypatch.setenv("USERPROFILE", r"C:\Users\me")
    return lambda typed: str(weights.find_checkpoint(typed))


@pytest.mark.parametrize(
    ("typed", "file"),
    [
        (r"C:\Users\me\a.pt", r"C:\Users\me\a.pt"),
        (r'"C:\Users\me\a.pt"', r"C:\Users\me\a.pt"),
        ("c:/users/ME/a.pt", r"c:\users\ME\a.pt"),
        (r"~\a.pt", r"C:\Users\me\a.pt"),
        ("~/a.pt", r"C:\Users\me\a.pt"),
        (r"models\b.pt", r"models\b.pt"),
        ("models/b.pt", r"models\b.pt"),
        ("/work/models/b.pt", r"\work\models\b.pt"),
        (r"\\nas\share\c.pt", r"\\nas\share\c.pt"),
        ("facebook/sam3", "hub: facebook/sam3 sam3.pt"),
        ("owner/repository/c.pt", "hub: owner/repository c.pt"),
        ("https://huggingface.co/owner/repository/blob/main/c.pt", "hub: owner/repository c.pt"),
    ],
)
def test_a_windows_path_is_no_hugging_face_name(find, typed, file):
    assert find(typed) == file


@pytest.mark.parametrize(
    ("typed", "looked_for"),
    [
        (r"C:\x\y\sam3.pt", ""),
        ("C:/x/y/sam3.pt", ""),
        (r"\\nas\share\x.pt", ""),
        ("/data/x.pt", r" (looked for 'C:\data\x.pt')"),
        (r"owner\repository\c.pt", r" (looked for 'C:\work\owner\repository\c.pt')"),
        (r"~\x.pt", r" (looked for 'C:\Users\me\x.pt')"),
        ("models/x/b.pt", r" (looked for 'C:\work\models\x\b.pt')"),
    ],
)
def test_a_missing_windows_file_is_named_as_it_is_written_there(find, typed, looked_for):
    with pytest.raises(WeightFileError) as caught:
        find(typed)
    assert str(caught.value).startswith(f"weights = '{typed}': there is no such file{looked_for}; expected")


def test_the_files_of_a_windows_folder_are_listed(find):
    with pytest.raises(WeightFileError, match=r"expected a SAM 3 checkpoint, such as 'C:\\Users\\me\\a\.pt'\.$"):
        find("C:/Users/me")


def test_results_of_a_windows_image_are_named_after_its_folders(plugins_directory, monkeypatch):
    saving = importlib.import_module(f"{PLUGIN}.infer_segment_anything_3_saving")
    monkeypatch.setattr(saving, "PurePath", pathlib.PureWindowsPath)
    names = {
        r"C:\photos\street.jpg": ["street", "photos_street.jpg", "photos_street.jpg (2)"],
        "D:/street.jpg": ["street", "street (2)"],
        r"\\nas\share\photos\street.jpg": ["street", "photos_street.jpg", "photos_street.jpg (2)"],
    }
    for source, expected in names.items():
        assert list(itertools.islice(saving._names(source, "", ""), len(expected))) == expected
