"""A browser that looks at pages."""

import shutil
import subprocess

import pytest


@pytest.fixture
def browser(tmp_path):
    """Opens a page: ``browser(html, "--dump-dom")`` gives what Chromium prints."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("There is no Chromium to open the page with.")

    def run(html, *arguments):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
        offline = "--disable-background-networking --disable-component-update --disable-sync"
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        time = "--virtual-time-budget=10000"
        address = (tmp_path / "page.html").as_uri()
        command = [program, *quiet.split(), *offline.split(), profile, time, *arguments, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return run
