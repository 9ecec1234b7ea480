"""Ikomia's own client installs the plugin from a HUB and runs it."""

import functools
import hashlib
import http.server
import json
import re
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import zipfile
from pathlib import Path

import cv2
import pytest

from sam3_engine import __version__
from testbed.plugin import PLUGIN, REPOSITORY, Plugin

LARGEST_PACKAGE = 2_000_000  # bytes


class Hub(http.server.BaseHTTPRequestHandler):
    """A HUB for Ikomia's client, with this plugin as its only algorithm."""

    def __init__(self, package: Path, *arguments):
        self.package = package
        super().__init__(*arguments)

    def do_GET(self):  # noqa: N802 - http.server requires this name
        address = urllib.parse.urlparse(self.path)
        if address.path == "/v1/hub/":
            self._send("application/json", json.dumps(self._algorithms()).encode())
        elif address.path == f"/package/{PLUGIN}/download/":
            self._send("application/zip", self.package.read_bytes())
        else:
            self.send_error(404)

    def _algorithms(self):
        host, port = self.server.server_address
        platform = {"os": ["LINUX", "WINDOWS"], "ikomia": ">=0.16.0", "python": ">=3.11.0", "architecture": []}
        package = {"url": f"http://{host}:{port}/package/{PLUGIN}/", "version": __version__, "platform": platform}
        return {"count": 1, "results": [{"name": PLUGIN, "language": "PYTHON", "packages": [package]}]}

    def _send(self, kind, content):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(package):
    """Serve a HUB that has the plugin; yield its URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, package)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def use_from_hub(hub, small_checkpoint, photograph, tmp_path):
    """Run :mod:`support.hub_user` with a given Python; return its output and its results."""

    def use(python):
        for folder in ("Python", "C++", "Transfer"):  # Ikomia's own plugins folder has these
            (tmp_path / "plugins" / folder).mkdir(parents=True)
        picture = tmp_path / "china.png"
        cv2.imwrite(str(picture), cv2.cvtColor(photograph, cv2.COLOR_RGB2BGR))
        script = Path(__file__).parent / "support" / "hub_user.py"
        command = [python, str(script), hub, str(tmp_path / "plugins"), str(small_checkpoint), str(picture)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads(done.stdout.splitlines()[-1])

    return use


def test_a_workflow_installs_the_plugin_from_the_hub_and_segments(use_from_hub, small_checkpoint, photograph, tmp_path):
    printed, found = use_from_hub(sys.executable)
    assert Path(found["module"]).is_relative_to(tmp_path / "plugins" / "Python" / PLUGIN)
    (mask,) = Plugin(model_weight_file=small_checkpoint, cuda=False).segment(photograph, input_box=[60, 80, 300, 330])
    assert found["description"] == mask.description
    assert found["digest"] == hashlib.sha256(mask.get_mask()).hexdigest()
    for requirements in ("build_requirements.txt", "requirements.txt"):  # pip prints where each requirement comes from
        for name in re.findall(r"^[A-Za-z][\w-]*", (REPOSITORY / requirements).read_text(), re.MULTILINE):
            if name != "triton-windows":
                assert re.search(rf"{name}.* \(from -r .*{requirements}", printed), name


def test_the_package_contains_only_what_users_need(package):
    with zipfile.ZipFile(package) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    top = {name.partition("/")[0] for name in names}
    assert {f"{PLUGIN}.py", f"{PLUGIN}_process.py", f"{PLUGIN}_widget.py", f"{PLUGIN}_test.py", "__init__.py"} <= top
    assert {"README.md", "LICENSE", "requirements.txt", "build_requirements.txt", "icons/icon.png"} <= names
    assert names >= {f"sam3_engine/{path.name}" for path in (REPOSITORY / "sam3_engine").glob("*.py")}
    assert names >= {"SECURITY.md", "docs/README.md", "examples/text_prompt.py", "images/demo.png", "images/scene.png"}
    assert not {"tests", "demo", "benchmarks", "sam3_batch", "testbed", "training", ".ci", "requirements-dev.txt"} & top
    assert package.stat().st_size < LARGEST_PACKAGE


@pytest.mark.install
def test_an_environment_with_only_ikomia_is_enough(use_from_hub):
    with tempfile.TemporaryDirectory() as environment:  # gigabytes, so do not keep it as pytest keeps tmp_path
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = Path(environment) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "ikomia>=0.16.1,<0.17"], check=True)
        _, found = use_from_hub(str(python))
        assert found["description"].startswith("object, score ")
        subprocess.run([*pip, "check"], check=True)
