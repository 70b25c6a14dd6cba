"""What a run prints can be copied: commands are quoted for a shell, and brackets are no markup."""

import io
import shlex

import pytest
from rich.console import Console

from unirl_env.run.record.folder import RunFolder
from unirl_env.run.summary import print_summary, resume_command

NAMES = ["a run", "it's", "[bold]mine[/]", "[/]", "x[0]", 'say "yes"', "$HOME;ls", "a\\b", "ünï", "-n"]


def console(width=80):
    return Console(file=io.StringIO(), width=width, color_system=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_folder_back(name, tmp_path):
    words = shlex.split(resume_command(RunFolder(tmp_path / name), "iterations=4"))
    assert words == ["python", "-m", "unirl_env.train", f"resume={tmp_path / name}", "iterations=4"]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_words_of_a_run_hold_its_folder_whole(name, tmp_path):
    folder = RunFolder(tmp_path / name)
    folder.create()
    folder.config.write_text(f"name: {name!r}\niterations: 3\n")
    out = console()
    print_summary(out, folder)
    lines = out.file.getvalue().splitlines()
    commands = [line for line in lines if "python -m" in line]
    assert len(commands) == 2
    for line in commands:
        words = shlex.split(line[line.index("python") :])
        assert str(folder.path) in [word.removeprefix("resume=") for word in words]


def test_the_first_words_hold_it_as_well(tmp_path):
    from unirl_env.run.launch import find_place
    from unirl_env.settings import RunConfig

    cfg = RunConfig()
    cfg.name, cfg.logging.folder = "[red]x[/]", str(tmp_path)
    taken = RunFolder(tmp_path / cfg.name)
    taken.create()
    taken.config.write_text("iterations: 1\n")
    out = console()
    assert find_place(cfg, out).folder.path == tmp_path / "[red]x[/]-2"
    assert f"{taken.path} holds a run already" in out.file.getvalue()
