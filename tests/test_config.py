from __future__ import annotations

import re
from pathlib import Path

import pytest

from config import ROOT, ConfigError, Settings, load_settings
from model_table import model_spec


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def shown(value: object) -> str:
    """As it is written in a file: nothing for nothing, commas between several."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value) if value not in (None, {}) else ""


def test_readme_names_every_setting_with_its_default_and_description() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*)`)? ?\| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    fields = Settings.model_fields
    assert rows == [(name.upper(), shown(field.default), field.description) for name, field in fields.items()]


def test_env_example_names_every_setting_with_its_default_and_description() -> None:
    rows = re.findall(r"^# (.*)\n([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    fields = Settings.model_fields
    assert rows == [(field.description, name.upper(), shown(field.default)) for name, field in fields.items()]


def test_env_example_as_it_stands_changes_nothing() -> None:
    assert load_settings(ROOT / ".env.example") == Settings()


def test_every_setting_is_read_somewhere() -> None:
    sources = [p for p in ROOT.rglob("*.py") if not {".venv", "tests"} & set(p.relative_to(ROOT).parts)]
    code = "\n".join(p.read_text() for p in sources if p.name != "config.py")
    own = (ROOT / "config.py").read_text()
    for name in Settings.model_fields:
        assert f"settings.{name}" in code or f"self.{name}" in own, f"nothing reads {name}"


def test_the_environment_beats_the_file_and_the_command_line_beats_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=1001\nHOST=0.0.0.0\n# a comment\n\nLOG_LEVEL=DEBUG\n")
    monkeypatch.setenv("PORT", "1002")
    settings = load_settings(file)
    assert (settings.port, settings.host, settings.log_level) == (1002, "0.0.0.0", "debug")
    assert load_settings(file, port="1003").port == 1003


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("PORT=many\n", "PORT=many"),
        ("PORT=70000\n", "PORT=70000"),
        ("VOXTRAL_DEVICE=tpu\n", "VOXTRAL_DEVICE=tpu"),
        ("MAX_BATCH_SIZE=-1\n", "MAX_BATCH_SIZE=-1"),
        ("TRUSTED_HOSTS=\n", "* for any"),
        ("TRUSTED_HOSTS=example.*\n", "*.example.org"),
        ("TRUSTED_HOSTS=asr.example.org:8080\n", "without ports"),
        ("VOXTRAL_CACHE_DIR=~nobody-of-this-name/models\n", "in full"),
        ("HOST=127.0.0.1\nthis is no setting\n", "line 2"),
        ("HOST\n", "line 1"),
    ],
)
def test_a_broken_setting_is_named_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / ".env"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = {"VOXTRAL_CACHE_DIR": "cache", "VOXTRAL_REPLACEMENTS": "words.csv", "CHUNK_STORE_DIR": "chunks"}
    file = tmp_path / ".env"
    file.write_text("".join(f"{name}=~/{folder}\n" for name, folder in folders.items()))
    settings = load_settings(file)
    assert [getattr(settings, name.lower()) for name in folders] == [tmp_path / folder for folder in folders.values()]
    (tmp_path / "model").mkdir()
    assert model_spec("~/model").folder == tmp_path / "model"
    assert model_spec("~nobody-of-this-name/model").folder is None


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"\xff\xfe\x00PORT")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(file)
