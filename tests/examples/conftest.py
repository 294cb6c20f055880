"""A language model's server, a running chatbot, and a browser to look at it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

from tests.examples.language_model import LanguageModelServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def language_model() -> Iterator[LanguageModelServer]:
    with LanguageModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that reaches nothing but this machine."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which is refused to root, as in a container
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,900",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def chat_page() -> Iterator[str]:
    """The address of the chatbot as `make chat` starts it, without embeddings, which take long."""
    with served("--embedder", "none") as address:
        yield address


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The address of a chatbot started with these options; Ctrl-C ends it quietly."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "examples"), "HF_HUB_OFFLINE": "1"}
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"):
        environment.pop(name, None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # which a child would inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-u", "-m", "rag_chatbot", *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "http://" in line:
                break
        try:
            assert "http://127.0.0.1:" in "".join(said[-1:]), "".join(said)
            yield said[-1].split()[-1].rstrip("/")
        except BaseException:
            server.terminate()
            raise
        server.send_signal(signal.SIGINT)
        last_words = server.stdout.read()
    assert server.returncode == 0
    assert "KeyboardInterrupt" not in last_words
