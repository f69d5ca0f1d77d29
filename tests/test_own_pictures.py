"""docs/own-pictures.md, command by command."""

import re
import shlex

from conftest import ROOT
from test_face import few_steps, gram, save_pictures  # noqa: F401

BLOCK = re.compile(r"<!-- (\w+) -->\n```sh\n(.*?)```", re.S)


def typed(line):
    """A line of the page, in this process; `> FILE` as a shell does it."""
    words = shlex.split(line)
    assert words[0] == "gram", line
    words, target = (words[:-2], words[-1]) if ">" in words else (words, None)
    done = gram(*words[1:])
    assert done.exit_code == 0, done.output
    if target:
        with open(target, "wb") as file:
            file.write(done.stdout_bytes)
    return done.output


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    """All shell blocks have a name; they run in order, in a folder with pictures and a backbone."""
    page = (ROOT / "docs" / "own-pictures.md").read_text()
    blocks = BLOCK.findall(page)
    assert page.count("```sh") == len(blocks) == 4
    save_pictures(tmp_path / "pictures")
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    said = {name: "".join(map(typed, script.splitlines())) for name, script in blocks}
    assert "0 problems" in said["check"] and "this will take about" in said["adapt"]
    assert (tmp_path / "model" / "report.html").is_file()
    assert (tmp_path / "named.csv").read_text().startswith("path,label,probability,unsure,set")
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 12
    assert "95% interval" in said["evaluate"] and "backbone.sha256" in said["evaluate"]
