"""Settings: one file, then the environment, and nothing misspelt goes unnoticed."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from models.duration import parse_duration, spell
from pipelines.cli import cli
from pipelines.settings import SettingsError, load_settings, make_settings

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "pipelines" / "headgate.toml"
DOCS = (ROOT / "docs" / "settings.md").read_text()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "headgate.toml"
    path.write_text('task = "tests.tasks:TwoBlobs"\n[window]\nevery = "1d"\n[guard]\nmax_gradient_norm = 5.0\n')
    return path


def test_the_file_wins_over_defaults_and_the_environment_over_the_file(file):
    settings = load_settings(file, {"HEADGATE_GUARD__MAX_GRADIENT_NORM": "7.5", "HEADGATE_UPDATE__EVERY": "2h"})
    assert settings.window.every == timedelta(days=1) and settings.window.grace == timedelta(seconds=60)
    assert settings.guard.max_gradient_norm == 7.5 and settings.update.every == timedelta(hours=2)


def test_the_template_says_the_defaults_and_every_key():
    template = tomllib.loads(TEMPLATE.read_text())
    assert make_settings(template).shown() == make_settings({"task": template["task"]}).shown()
    shown = make_settings(template).shown()
    unsaid = {(s, key) for s, keys in shown.items() if isinstance(keys, dict) for key in keys if key not in template[s]}
    advanced = DOCS[DOCS.index("## Keys the template leaves out") :]
    listed = {
        (section, key)
        for section, part in re.findall(r"`\[(\w+)\]`:\n\n(.*?)(?:\n\n|\Z)", advanced, re.DOTALL)
        for line in part.splitlines()[2:]
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert unsaid == listed, "keys the template leaves out are listed in docs/settings.md, and no others"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[windw]\nevery = '1h'", "unknown key 'windw'; did you mean 'window'?"),
        ("[guard]\nmax_gradient_nrom = 3", "unknown key guard.max_gradient_nrom; did you mean 'max_gradient_norm'?"),
        ("[window]\nevery = '1 hour'", "window.every: '1 hour' is not a duration"),
        ("[window]\nevery = '7h'", "window.every = "),
        ("[rollout]\nalpha = 2", "rollout"),
        ("[gateway]\nport = 'x'", "gateway.port = 'x'"),
        ("guard = 3", "guard = 3 must be a section"),
        ("[window]\nstart = 2026-01-01T00:00:00", "has no time zone"),
        ("[stream]\nsecurity_protocol = 'SSL'", "'SSL', but bootstrap_servers = '' is a log on this machine"),
        ("[stream]\nprocesses = -1", "processes = -1: 0 (by the size of the window) or more wanted"),
        ("[stream]\nevents_format = 'protobuf'", "stream.events_format = 'protobuf': Input should be 'json' or 'confluent'"),
        ("[stream]\nlabels_format = 'confluent'", "needs schema_registry"),
        ("[stream]\nheaders = ['a', 'a']", "headers = ['a', 'a']: names that differ"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_cure(file, text, message):
    file.write_text(f'task = "tests.tasks:TwoBlobs"\n{text}\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    assert message in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HEADGATE_GARD__MAX_GRADIENT_NORM", "did you mean HEADGATE_GUARD__MAX_GRADIENT_NORM?"),
        ("HEADGATE_GUARD_MAX_GRADIENT_NORM", "did you mean HEADGATE_GUARD__MAX_GRADIENT_NORM?"),
        ("HEADGATE_TSAK", "did you mean HEADGATE_TASK?"),
    ],
)
def test_a_misspelt_environment_name_is_an_error(file, name, message):
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        load_settings(file, {name: "1"})


def test_without_a_file_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(SettingsError, match="headgate init"):
        load_settings(tmp_path / "headgate.toml", {})


def test_secrets_come_from_files_and_print_as_stars(file, tmp_path):
    secret = tmp_path / "journal-url"
    secret.write_text("postgresql+psycopg://me:hunter2@db/headgate\n")
    secret.chmod(0o644)
    with pytest.raises(SettingsError, match="has mode 0644, wanted 0400"):
        load_settings(file, {"HEADGATE_JOURNAL__URL_FILE": str(secret)})
    secret.chmod(0o400)
    settings = load_settings(file, {"HEADGATE_JOURNAL__URL_FILE": str(secret)})
    assert settings.journal.url == "postgresql+psycopg://me:hunter2@db/headgate"
    assert "hunter2" not in json.dumps(settings.shown())


def test_the_digest_follows_the_effective_settings(file):
    plain = load_settings(file, {})
    assert plain.digest() == load_settings(file, {}).digest()
    assert plain.digest() != load_settings(file, {"HEADGATE_UPDATE__EVERY": "2h"}).digest()


@pytest.mark.parametrize("text", ["1m30s", "36h", "7d", "15m", "1.5s", "1d1h30m"])
def test_durations_read_back(text):
    assert spell(parse_duration(text)) == text


def test_init_writes_a_file_and_keys_once_and_config_show_reads_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(cli, ["init"])
    assert first.exit_code == 0, first.output
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "var/keys").iterdir()}
    assert modes["trainer.pem"] == modes["watermark.key"] == 0o400
    again = CliRunner().invoke(cli, ["init"])
    assert "left as it is" in again.output and "left as they are" in again.output
    shown = CliRunner().invoke(cli, ["config", "show", "--json"])
    assert json.loads(shown.output)["window"]["every"] == "1h"


def test_the_effective_settings_are_a_file_that_reads_back_to_them(file, tmp_path):
    settings = load_settings(file, {"HEADGATE_ROLLOUT__STEPS": '["shadow", 10, 100]'})
    copy = tmp_path / "copy.toml"
    copy.write_text(settings.as_toml())
    assert load_settings(copy, {}) == settings


@pytest.mark.parametrize(
    "text",
    [
        '[stream]\nevents = "a"\nlabels = "a"', "[stream]\npartitions = 0", "[stream]\nmax_reject_share = 2.0",
        '[rollout]\nblock = "0s"', '[rollout]\nstale_after = "0s"', '[update]\nevery = "0s"', "[update]\nmin_examples = 0",
        "[training]\nlearning_rate = -1.0", "[training]\nlearning_rate = nan",
    ],
)  # fmt: skip
def test_a_value_without_sense_is_refused_before_anything_runs(file, text):
    file.write_text(f'task = "tests.tasks:TwoBlobs"\n{text}\n')
    with pytest.raises(SettingsError):
        load_settings(file, {})


def test_the_connection_in_the_documentation_can_be_loaded(tmp_path):
    password = tmp_path / "password"
    password.write_text("hunter2\n")
    password.chmod(0o400)
    [block] = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    found = make_settings({"task": "t", **tomllib.loads(block.replace("/run/secrets/kafka-password", str(password)))})
    assert found.stream.sasl_password.reveal() == "hunter2" and found.stream.security_protocol == "SASL_SSL"


def test_a_text_where_a_list_is_wanted_is_told_with_the_list_to_write():
    with pytest.raises(SettingsError, match=r"stream\.headers = 'x': a list wanted, write headers = \[\"x\"\]$"):
        make_settings({"task": "t", "stream": {"headers": "x"}})
