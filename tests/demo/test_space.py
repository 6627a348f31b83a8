"""`alit demo --push`: a Space on a Hub that works, and the ways in which it is not made."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import READ_TOKEN, logged_in_hub
from huggingface_hub import HfApi
from packaging.requirements import Requirement
from tiny_model import save_tiny_model

import alit_hf
from alit_hf import pretrained_path
from alit_hf.cli import main


SPACE = "tester/alit-demo"


@pytest.fixture
def hub(monkeypatch):
    """A Hub with this process logged in to it."""
    with logged_in_hub(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def push(*options: str) -> int:
    return main(["demo", "--push", SPACE, "--device", "cpu", *options])


def metadata(readme: bytes) -> dict:
    _, head, text = readme.decode().split("---\n", 2)
    assert text.strip()
    return yaml.safe_load(head)


def app_arguments(app: bytes) -> list[str]:
    """What the app file calls `alit` with."""
    tree = ast.parse(app.decode())
    [call] = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert call.func.id == "main"
    return ast.literal_eval(call.args[0])


def test_space_has_all_that_the_hub_and_the_app_need(hub, model_folder, capsys):
    import gradio

    assert push("--model", model_folder) == 0
    assert capsys.readouterr().out.strip().endswith(f"/spaces/{SPACE}")
    files = hub.files(f"spaces/{SPACE}")
    assert len(hub.messages(f"spaces/{SPACE}")) == 1
    about = metadata(files["README.md"])
    assert (about["sdk"], about["sdk_version"], about["app_file"]) == ("gradio", gradio.__version__, "app.py")
    names = {Requirement(line).name for line in files["requirements.txt"].decode().splitlines()}
    assert {"torch", "transformers", "diffusers", "scikit-image", "huggingface-hub"} <= names
    assert not names & {"gradio", "pytest", "tensorboard", "torchmetrics"}
    assert app_arguments(files["app.py"]) == ["demo", "--model", "model"]
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert files[f"model/{name}"] == (Path(model_folder) / name).read_bytes()
    package = Path(alit_hf.__file__).parent
    for name in ("__init__.py", "cli/demo.py", "demo/layout.py", "demo/style.css", "py.typed"):
        assert files[f"alit_hf/{name}"] == (package / name).read_bytes()
    assert not [name for name in files if "__pycache__" in name or name.startswith("alit_hf/checkpoints/")]


def test_default_model_comes_with_the_package():
    from alit_hf.demo.space import space_files

    files = space_files(None)
    for path in Path(pretrained_path()).iterdir():
        assert f"alit_hf/checkpoints/alit-mini/{path.name}" in files
    assert app_arguments(files["app.py"]) == ["demo"]
    assert not [name for name in files if name.startswith("model/")]
    assert "models" not in metadata(files["README.md"])


def test_model_of_the_hub_is_named_and_not_pushed():
    from alit_hf.demo.space import space_files

    files = space_files("somebody/alit")
    assert app_arguments(files["app.py"]) == ["demo", "--model", "somebody/alit"]
    assert metadata(files["README.md"])["models"] == ["somebody/alit"]
    assert not [name for name in files if name.startswith(("model/", "alit_hf/checkpoints/"))]


def test_pushed_again_it_holds_nothing_of_before(hub, model_folder, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    assert push("--model", other) == 0
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="model/extra.txt", repo_id=SPACE, repo_type="space")
    assert push("--model", model_folder) == 0
    files = hub.files(f"spaces/{SPACE}")
    assert "model/extra.txt" not in files
    assert files["model/model.safetensors"] == (Path(model_folder) / "model.safetensors").read_bytes()
    assert ".gitattributes" in files


def test_of_a_model_folder_only_the_model_goes_up(hub, tmp_path):
    """It may be one of a training run, or hold anything else."""
    folder = Path(save_tiny_model(tmp_path / "model"))
    for name in ("optimizer.bin", "notes.txt", "photo.png", "events.out.tfevents.1.host.2.0", "secret.py", ".env"):
        (folder / name).write_bytes(b"secret")
    (folder / "data").mkdir()
    (folder / "data" / "config.json").write_bytes(b"secret")
    assert push("--model", str(folder)) == 0
    files = hub.files(f"spaces/{SPACE}")
    assert {name for name in files if name.startswith("model/")} == {
        "model/config.json",
        "model/model.safetensors",
        "model/preprocessor_config.json",
    }
    assert b"secret" not in files.values()


def test_of_the_package_only_what_is_installed_goes_up(monkeypatch, tmp_path):
    from alit_hf.demo import space

    package = tmp_path / "alit_hf"
    shutil.copytree(space._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    expected = {name for name in space.space_files(None) if name.startswith("alit_hf/")}
    copied = {path.relative_to(tmp_path).as_posix() for path in package.rglob("*") if path.is_file()}
    assert expected == copied
    for name in ("notes.txt", "demo/photo.jpg", "checkpoints/mine.safetensors", ".idea/x.py", "cli/x.pyc"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_bytes(b"mine")
    monkeypatch.setattr(space, "_PACKAGE", package)
    assert {name for name in space.space_files(None) if name.startswith("alit_hf/")} == expected


def test_a_new_space_is_private_and_another_stays_as_it_is(hub, model_folder):
    hub.add("spaces/tester/public", private=False)
    for name in (SPACE, "tester/public"):
        assert main(["demo", "--push", name, "--device", "cpu", "--model", model_folder]) == 0
    assert hub.repos[f"spaces/{SPACE}"].private
    assert not hub.repos["spaces/tester/public"].private


def test_a_token_that_may_only_read_is_refused(hub, model_folder, monkeypatch, capsys):
    hub.add(f"spaces/{SPACE}", private=True)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert push("--model", model_folder) == 1
    assert f"this login may not write to {SPACE}: use a token with write access to it" in capsys.readouterr().err
    assert hub.messages(f"spaces/{SPACE}") == []


@pytest.mark.slow
def test_pushed_package_runs_from_the_space_alone(hub, model_folder, tmp_path):
    assert push("--model", model_folder) == 0
    for name, content in hub.files(f"spaces/{SPACE}").items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    program = "import alit_hf.cli, alit_hf.demo.layout; print(alit_hf.__file__)"
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / "alit_hf" / "__init__.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [("alit-demo", "must be ORG/NAME"), ("a/b/c", "a/b/c"), ("a b/c", "a b/c"), ("", "''")],
)
def test_name_is_checked_before_any_work(name, message, capsys):
    assert main(["demo", "--push", name, "--model", "missing"]) == 2
    assert message in capsys.readouterr().err


def test_offline_is_said(capsys):
    assert push() == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


def test_login_is_asked_for(hub, model_folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
    code = push("--model", model_folder)
    assert (code, "hf auth login" in capsys.readouterr().err) == (2, True)
    assert not hub.repos


def test_refusal_is_reported(hub, model_folder, capsys):
    assert main(["demo", "--push", "stranger/x", "--device", "cpu", "--model", model_folder]) == 1
    error = capsys.readouterr().err
    assert "stranger/x was not pushed" in error
    assert "rights" in error
