"""The settings of one installation: `headgate.toml`, then `HEADGATE_<SECTION>__<KEY>` from the environment, read once.

Nobody else reads the environment; every other module receives values. An unknown name, in the file or in the environment,
is an error that names the nearest valid one: a misspelt limit that silently keeps its default is worse than no start.
It knows the sections' dataclasses, which live beside the code that uses them, and not what they do.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import tomllib
import typing
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from assets.update_due import UpdatePolicy
from assets.windows.clock import WindowPolicy, windows_between
from models.compat import refused
from models.config import AdapterConfig, GuardConfig, PoisoningConfig, RetentionConfig, TrainingConfig
from models.duration import parse_duration, spell
from models.release_policy import RolloutPolicy
from monitoring.drift_config import DriftConfig
from monitoring.switches import silence
from pipelines.secret import STARS, Secret, read_secret
from pipelines.stream_section import Stream
from security.reservation import PrivacyPolicy

ENVIRONMENT = "HEADGATE_"
CONFIG = "HEADGATE_CONFIG"  # names the settings file where no command line can (Dagster)
DEFAULT_FILE = "headgate.toml"


class SettingsError(Exception):
    """The settings cannot be used; the message says where, what was found and what would be right."""


@dataclasses.dataclass(frozen=True)
class Store:
    url: str = "var/store"
    retention: timedelta = timedelta(days=400)

    def __post_init__(self) -> None:
        if "://" in self.url:
            raise ValueError(f"[store] url = {self.url!r}: only a local folder is supported so far; give a path")


@dataclasses.dataclass(frozen=True)
class JournalSettings:
    url: str = "sqlite:///var/journal.db"


@dataclasses.dataclass(frozen=True)
class Keys:
    directory: str = "var/keys"


@dataclasses.dataclass(frozen=True)
class Alarms:
    webhook: str = ""


@dataclasses.dataclass(frozen=True)
class Tracking:
    mlflow_url: str = "sqlite:///var/mlflow.db"


@dataclasses.dataclass(frozen=True)
class GatewaySettings:
    host: str = "127.0.0.1"
    port: int = 8900
    issuer: str = "headgate"
    audience: str = "headgate-gateway"
    recording: typing.Literal["available", "strict"] = "available"


@dataclasses.dataclass(frozen=True)
class DashboardSettings:
    host: str = "127.0.0.1"
    port: int = 8901


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything the file can say. One field a section; `task` is the only key without a default."""

    task: str
    store: Store = Store()
    journal: JournalSettings = JournalSettings()
    keys: Keys = Keys()
    stream: Stream = Stream()
    window: WindowPolicy = WindowPolicy(every=timedelta(hours=1), start=datetime(2026, 1, 1, tzinfo=UTC))
    update: UpdatePolicy = UpdatePolicy()
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyPolicy = PrivacyPolicy()
    guard: GuardConfig = GuardConfig()
    poisoning: PoisoningConfig = PoisoningConfig()
    retention: RetentionConfig = RetentionConfig()
    rollout: RolloutPolicy = RolloutPolicy()
    drift: DriftConfig = DriftConfig()
    alarms: Alarms = Alarms()
    tracking: Tracking = Tracking()
    gateway: GatewaySettings = GatewaySettings()
    dashboard: DashboardSettings = DashboardSettings()

    def __post_init__(self) -> None:
        if sentence := refused(self.training, self.privacy.enabled):
            raise ValueError(sentence)
        for first, last in self.retention.born().values():
            windows_between(self.window, first, last)  # ValueError for one that is no window

    def digest(self) -> str:
        """sha256 over the effective settings, secrets as stars: part of every version's manifest."""
        return hashlib.sha256(json.dumps(self.shown(), sort_keys=True).encode()).hexdigest()

    def shown(self) -> dict[str, Any]:
        """The effective settings as plain values, as `headgate config show` prints them."""
        shown = typing.cast(dict[str, Any], _plain(self))
        if self.alarms.webhook:  # its path is the credential
            shown["alarms"]["webhook"] = STARS
        return shown

    def as_toml(self) -> str:
        """The effective settings as a file that reads back to them, except for secrets."""
        return toml_of(self.shown())


def toml_of(shown: Mapping[str, Any]) -> str:
    """What `Settings.shown` gives, as the text of a settings file."""
    lines = []
    for section, values in shown.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        else:
            lines.append(f"{section} = {json.dumps(values)}")
    return "\n".join(lines) + "\n"


# Values that a file with mode 0400 may hold instead: `url_file = "..."`, or HEADGATE_JOURNAL__URL_FILE.
SECRETS = {
    ("journal", "url"), ("alarms", "webhook"), ("stream", "sasl_password"), ("stream", "ssl_key_password"),
    ("stream", "schema_registry_password"),
}  # fmt: skip


def load_settings(
    file: Path | None = None, environ: MutableMapping[str, str] | None = None, *, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the file, then the environment, then `overrides` ({section: {key: value}}); the later one wins.

    Without `file` it is the one `settings_file` finds. Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    silence_telemetry(environ)
    path = file or settings_file(environ)
    found = _read_file(path)
    _check_names(found, str(path))
    for section, key, value, where in _environment(environ):
        _put(found, section, key, value)
        _check_names(found, where)
    for section, values in (overrides or {}).items():
        found[section] = {**found.get(section, {}), **values} if isinstance(values, Mapping) else values
    return make_settings(found, str(path))


def silence_telemetry(environ: MutableMapping[str, str] | None = None) -> None:
    """Switch off what libraries would send home; MLflow and Dagster look at the environment when they are imported."""
    silence(os.environ if environ is None else environ)


def settings_file(environ: Mapping[str, str] | None = None) -> Path:
    """The file a process reads that was not told one: HEADGATE_CONFIG, else `headgate.toml` in the current folder."""
    return Path((os.environ if environ is None else environ).get(CONFIG, DEFAULT_FILE)).absolute()


def make_settings(found: Mapping[str, Any], where: str = "settings") -> Settings:
    """Settings from nested plain values (durations as text such as "36h"). Raises SettingsError."""
    _check_names(found, where)
    values = {name: _prepared(name, value, where) for name, value in found.items()}
    try:
        return TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # of a section of ours: it names its value itself, and the whole is no help
            cause = first["ctx"]["error"]
            raise SettingsError(f"{where}: {cause}" if place in str(cause) else f"{where}: {place}: {cause}") from cause
        if first["type"] == "missing":
            raise SettingsError(f"{where}: {place} is missing; add it, `headgate init` writes a whole file") from error
        if first["type"] == "tuple_type":
            cure = f"a list wanted, write {place.split('.')[-1]} = [{json.dumps(first['input'], default=str)}]"
            raise SettingsError(f"{where}: {place} = {first['input']!r}: {cure}") from error
        raise SettingsError(f"{where}: {place} = {first['input']!r}: {first['msg']}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise SettingsError(
            f"there is no {path}: `headgate init` writes a commented one, or name another with --config FILE"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def _sections() -> dict[str, Any]:
    """Section -> its dataclass; None for a plain key such as `task`."""
    hints = typing.get_type_hints(Settings)
    return {name: kind if dataclasses.is_dataclass(kind) else None for name, kind in hints.items()}


def _keys_of(section: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(section) if entry.init]


def _check_names(found: Mapping[str, Any], where: str) -> None:
    sections = _sections()
    for name, value in found.items():
        if name not in sections:
            raise SettingsError(f"{where}: unknown key {name!r}{_nearest(name, sections)}")
        section = sections[name]
        if section is None:
            continue
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where}: {name} = {value!r} must be a section: write [{name}] and its keys below it")
        valid = _keys_of(section) + [f"{key}_file" for owner, key in SECRETS if owner == name]
        for key in value:
            if key not in valid:
                raise SettingsError(f"{where}: unknown key {name}.{key}{_nearest(key, valid)}")


def _nearest(name: str, valid: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(valid), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; valid are {', '.join(sorted(valid))}"


def _environment(environ: Mapping[str, str]) -> typing.Iterator[tuple[str, str | None, Any, str]]:
    sections = _sections()
    names = {f"{ENVIRONMENT}{name}".upper() for name, kind in sections.items() if kind is None}
    for section, kind in sections.items():
        names |= {f"{ENVIRONMENT}{section}__{key}".upper() for key in (_keys_of(kind) if kind else ())}
    names |= {f"{ENVIRONMENT}{section}__{key}_file".upper() for section, key in SECRETS}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT) or name == CONFIG:
            continue
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.4)
            cure = f"did you mean {near[0]}?" if near else f"names are {ENVIRONMENT}<SECTION>__<KEY>"
            raise SettingsError(f"environment: unknown name {name}; {cure}")
        section, _, key = name.removeprefix(ENVIRONMENT).lower().partition("__")
        secret = (section, key) in SECRETS  # a password of digits is text
        yield section, key or None, environ[name] if secret else _environment_value(environ[name]), f"environment {name}"


def _environment_value(text: str) -> Any:
    try:  # numbers, lists, true and false as TOML writes them; anything else is text
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(found: dict[str, Any], section: str, key: str | None, value: Any) -> None:
    if key is None:
        found[section] = value
    else:
        found[section] = {**found.get(section, {}), key: value}


def _prepared(section: str, values: Any, where: str) -> Any:
    kind = _sections()[section]
    if kind is None:
        return values
    hints = typing.get_type_hints(kind)
    default = next(entry.default for entry in dataclasses.fields(Settings) if entry.name == section)
    prepared = {key: getattr(default, key) for key in _keys_of(kind)}
    for key, value in values.items():
        if (section, key.removesuffix("_file")) in SECRETS and key not in hints:
            key, value = key.removesuffix("_file"), _secret_file(value, f"{where}: {section}.{key}")
        elif hints[key] is Secret:
            value = _secret(value, f"{where}: {section}.{key}")
        elif hints[key] is timedelta and isinstance(value, str):
            try:
                value = parse_duration(value)
            except ValueError as error:
                raise SettingsError(f"{where}: {section}.{key}: {error}") from error
        elif hints[key] is datetime and isinstance(value, datetime) and value.tzinfo is None:
            raise SettingsError(f"{where}: {section}.{key} = {value} has no time zone: write {value:%Y-%m-%dT%H:%M:%S}Z")
        prepared[key] = value
    return prepared


def _secret_file(path: Any, where: str) -> Secret:
    try:
        return read_secret(Path(path))
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{where}: {error}") from error


def _secret(value: Any, where: str) -> Secret:
    """A value that no error may show."""
    if not isinstance(value, str):
        raise SettingsError(f"{where} is no text: write it in quotes, or better in a file that {where.split()[-1]}_file names")
    if value == STARS:
        raise SettingsError(f"{where} is {STARS}, as `headgate config show` prints it: name a file in {where.split()[-1]}_file")
    return Secret(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value) if entry.init}
    if isinstance(value, timedelta):
        return spell(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, str):
        return re.sub(r"(://[^:/@]+:|password=)[^@/&]+", r"\1********", value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
