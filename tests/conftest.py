"""What tests share: clones of the working tree, and commands in them."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
ENVIRONMENT = os.environ | {
    "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org",
}


# What these fixtures give took a demo run, stages in a clone, a download or a server.
WHOLE = {
    *("demo", "edit", "week", "ada", "bucket", "tuned", "fetched", "shared", "server", "database"),
    *("checkout", "diverged", "tiny_world", "starts", "fitted", "model", "published", "world"),
    "repository",
}


# … and what trains a whole method, downloads, or judges pictures again and again.
WHOLE_FILES = {
    *("test_new_method", "test_own_pictures", "test_accelerator", "test_devices"),
    "test_fetching",
}


# The longest first: a worker that takes the demo is busy until the others have done the rest.
FIRST = {"test_demo": 0, "test_team": 1, "test_fetching": 2, "test_training": 3, "test_pairs": 4}


def pytest_collection_modifyitems(items):
    """Whoever asks for one of `WHOLE` is no quick test. A file goes to one worker as a whole, as
    its tests share what was made for them.
    """
    for item in items:
        if WHOLE & set(item.fixturenames) or item.path.stem in WHOLE_FILES:
            item.add_marker("whole")
    items.sort(key=lambda item: FIRST.get(item.path.stem, len(FIRST)))


def run(*command, cwd, check=True, **changes):
    """A command in a folder; its output goes into the failure if it exits non-zero."""
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        cwd=cwd,
        env=ENVIRONMENT | {k: str(v) for k, v in changes.items()},
        capture_output=True,
        text=True,
    )
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


GONE = object()


def with_values(target, changes, source=ROOT / "params.yaml"):
    """params.yaml with other values: {dotted key, or a tuple of its parts: value, or GONE}."""
    yaml = YAML()
    top = yaml.load(source)
    for key, value in changes.items():
        *above, last = key.split(".") if isinstance(key, str) else key
        here = top
        for part in above:
            here = here[part]
        if value is GONE:
            del here[last]
        else:
            here[last] = value
    yaml.dump(top, target)
    return target


def snapshot(folder):
    """Every path below a folder, itself too, with its bytes or where it leads."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        else:
            found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def clone(folder):
    """The working tree as it stands, committed or not, in a repository of its own."""
    run("git", "clone", "--quiet", ROOT, folder, cwd=ROOT)
    changed = (
        run("git", "diff", "--name-only", "HEAD", cwd=ROOT).stdout
        + run("git", "ls-files", "--others", "--exclude-standard", cwd=ROOT).stdout
    )
    for name in changed.splitlines():
        (folder / name).unlink(missing_ok=True)
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "--quiet", "--allow-empty", "-m", "as it stands", cwd=folder)
    return folder


def made_ready(folder):
    """`make` takes the environment that is active for the folder's own."""
    (folder / ".venv").mkdir(exist_ok=True)
    (folder / ".venv" / ".ready").touch()
    return folder


def small_team(folder, stages):
    """A repository with the real Makefile over a dvc.yaml of its own, run and committed; git's and
    DVC's remotes lie beside it.
    """
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "dvc.yaml").write_text(stages)
    (folder / "params.yaml").write_text("seed: 1\n")
    (folder / ".gitignore").write_text("/data/\n/.venv/\n")
    origin = folder.parent / "origin.git"
    run("git", "init", "--quiet", "-b", "main", ".", cwd=folder)
    run("git", "init", "--quiet", "--bare", "-b", "main", origin, cwd=folder)
    run("git", "remote", "add", "origin", origin, cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    run("dvc", "remote", "add", "-d", "team", folder.parent / "share", cwd=folder)
    run("dvc", "repro", "--quiet", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "--quiet", "-m", "one", cwd=folder)
    return made_ready(folder)


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory):
    """The smallest world that learning runs on (tiny.py)."""
    import tiny

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVICE", "cpu")
        return tiny.make_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def starts(tiny_world):
    """A start of every method, made on the processor."""
    import tiny

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVICE", "cpu")
        return tiny.make_starts(tiny_world)
