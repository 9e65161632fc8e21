"""Every command as a user types it, on a small installation: its answer, its exit code, and one sentence when it cannot."""

from __future__ import annotations

import re
import resource
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitoring.alarms import raise_alarm
from pipelines.cli import COMMANDS
from pipelines.cli.base import WEAK, weakness
from security.journal import Draft, Journal
from tests.installations import DAYS, Answer, headgate, installed, template
from tests.worlds import EVENTS_A_DAY

__all__ = ["headgate", "installed", "template"]

FIRST, LAST, NEXT = "2026-01-01T00:00Z", "2026-01-04T00:00Z", "2026-01-05T00:00Z"
# Run by tests of their own: the demo and the page by theirs, servers as real processes (test_up, test_gateway_kills).
ELSEWHERE = {"demo", "dashboard", "up", "gateway", "broker"}


def versions(headgate):
    return [row["version"] for row in headgate("version", "list", "--json").rows]


def test_a_newcomer_makes_keys_a_base_and_a_window(tmp_path, monkeypatch, headgate):
    monkeypatch.chdir(tmp_path)
    made = headgate("init")
    assert made.code == 0 and "wrote headgate.toml" in made.out
    assert stat.S_IMODE((tmp_path / "var/keys/trainer.pem").stat().st_mode) == 0o400
    again = headgate("init")
    assert again.code == 0 and again.out.count("left as") == 2, "nothing is overwritten"
    lines = ['task = "tests.worlds:Blobs"', "[stream]", 'bootstrap_servers = "embedded"', "[tracking]", 'mlflow_url = ""']
    (tmp_path / "headgate.toml").write_text("\n".join(lines))
    base = headgate("base", "train", "--epochs", "1", "--json")
    assert base.json["version"].startswith("base-") and base.json["rows"] == 2000
    assert 0 < base.json["fit"] < WEAK, "one epoch is little"
    assert "% under that of shuffled labels (< 5%), so that turned labels will not be noticed" in headgate("base", "train").err
    assert weakness({"fit": 0.2, "loss": 0.5}) is None and weakness({}) is None, "and one from before has no such figure"
    assert headgate("base", "train").out.startswith(base.json["version"]), "the second time names the one that is there"
    assert (tmp_path / "var/broker/embedded.db").exists()
    status = headgate("status", "--json").json
    assert (status["stable"], status["windows"], status["epsilon"]) == (base.json["version"], 0, None)
    assert "nothing was ever charged" in headgate("privacy", "show").err


def test_config_show_prints_every_setting_as_it_is_in_effect(installed, monkeypatch, headgate):
    monkeypatch.setenv("HEADGATE_JOURNAL__URL", "postgresql+psycopg://owner:hunter2@db/headgate")
    shown = headgate("config", "show")
    assert "[window]" in shown.out and 'every = "1d"' in shown.out and "hunter2" not in shown.out
    found = headgate("config", "show", "--json").json
    assert found["task"] == "tests.worlds:Blobs" and found["adapter"]["r"] == 4 and len(found["digest"]) == 64


def test_config_show_prints_what_a_java_file_brings_and_no_password(installed, tmp_path, monkeypatch, headgate):
    file = tmp_path / "client.properties"
    login = 'org.apache.kafka.common.security.scram.ScramLoginModule required username="ann" password="hunter2";'
    protocol = "bootstrap.servers=localhost:9\nsecurity.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-256\n"
    file.write_text(f"{protocol}sasl.jaas.config={login}\n")
    file.chmod(0o600)
    monkeypatch.setenv("HEADGATE_STREAM__CLIENT_PROPERTIES", str(file))
    monkeypatch.setenv("HEADGATE_STREAM__BOOTSTRAP_SERVERS", "")
    found = headgate("config", "show", "--json").json["stream"]
    keys = ("bootstrap_servers", "security_protocol", "sasl_mechanism", "sasl_username", "sasl_password")
    assert [found[key] for key in keys] == ["localhost:9", "SASL_PLAINTEXT", "SCRAM-SHA-256", "ann", "********"]
    shown = headgate("config", "show").out
    assert 'sasl_username = "ann"' in shown and "hunter2" not in shown


def test_a_window_is_run_by_name_and_a_second_time_changes_nothing(installed, headgate):
    done = headgate("run-window", NEXT, "--json")
    assert done.code == 0 and done.json["steps"]["window"]["rows"]["events"] == EVENTS_A_DAY
    assert done.err.splitlines() == [f"{NEXT}  {step}" for step in done.json["steps"]]
    before = headgate("status", "--json").json["journal_entries"]
    assert headgate("run-window", NEXT).code == 0
    assert headgate("status", "--json").json["journal_entries"] == before


def test_the_worker_runs_what_is_due_and_stops(installed, headgate):
    done = headgate("worker", "--once")
    assert (done.code, done.out) == (0, "3 windows\n")
    assert headgate("worker", "--once").out == "0 windows\n"


def test_the_worker_says_which_window_waits_and_why(installed, headgate):
    shutil.rmtree("store/blobs/bases")
    failed, waits = headgate("worker", "--once"), headgate("worker", "--once")
    assert failed.code == 1 and f"window {NEXT} failed in attempt 1" in failed.err
    assert waits.code == 1 and f"window {NEXT} waits: attempt 1 failed; the next is at" in waits.err


def test_an_event_log_that_cannot_be_read_is_one_sentence(installed, headgate):
    for file in Path("var/broker").glob("embedded.db*"):
        file.unlink()
    Path("var/broker/embedded.db").write_bytes(b"this is no database " * 400)
    check(headgate("worker", "--once"), "the embedded log var/broker/embedded.db")


def test_windows_are_listed_and_shown(installed, headgate):
    assert headgate("window", "list").out.splitlines()[0].startswith(f"{FIRST}  events 240  labels 240")
    rows = headgate("window", "list", "--json").rows
    assert [row["window"] for row in rows][-1] == LAST and {row["examples"] for row in rows} == {EVENTS_A_DAY}
    found = headgate("window", "show", LAST, "--json").json
    assert found["cut.decided"]["topics"]["events"]["partitions"] and found["window.sealed"]["files"]
    text = headgate("window", "show", LAST).out
    for words in ("partition 0  offsets [", "fingerprint records:", "rejects     0", "240 of 240 mature events", "label lag"):
        assert words in text


def test_a_window_is_verified_against_its_log(installed, headgate):
    assert headgate("window", "verify", LAST).out.endswith(f"window {LAST}: as sealed\n")
    found = headgate("window", "verify", LAST, "--deep", "--json").rows
    assert {each["state"] for each in found} == {"same"} and any("the same bytes" in each["detail"] for each in found)
    assert headgate("window", "verify", "2031-01-01T00:00Z").code == 1


def test_versions_are_listed_and_shown_after_every_check(installed, headgate):
    first, second = headgate("version", "list", "--json").rows
    assert second["parent"] == first["version"] and second["state"] == "SHADOW"
    manifest = headgate("version", "show", second["version"]).json
    assert manifest["base_digest"] and second["version"] in headgate("version", "list").out
    file = next(Path("store/blobs/versions").glob(f"{second['version']}/adapter.safetensors"))
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    refused = headgate("version", "show", second["version"])
    assert refused.code == 1 and "adapter.safetensors" in refused.err and "Traceback" not in refused.err


def test_reading_never_makes_an_empty_journal(installed, headgate, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = elsewhere / "headgate.toml"
    file.write_text('task = "tests.worlds:Blobs"\n')
    for words in (["status"], ["journal", "verify"], ["privacy", "show"], ["window", "list"], ["rollout", "list"]):
        monkeypatch.chdir(elsewhere)
        refused = headgate("--config", str(file), *words)
        assert refused.code == 1 and "there is no journal at" in refused.err
    assert not (elsewhere / "var").exists()


def test_an_update_that_crashed_counts_in_the_status(installed, headgate):
    """Its charge is under another law than any version's record, so the accountant is asked."""
    journal = Journal(f"sqlite:///{installed}/journal.db")
    stream = next(name for name in journal.streams() if name.startswith("privacy/"))
    last = [entry for entry in journal.read(stream) if entry.kind == "RESERVE"][-1].body
    arrived = ["2026-02-01T00:00:00.000000Z", "2026-02-02T00:00:00.000000Z"]
    costly = {**last, "update": "blobs/x", "windows": ["2026-02-01T00:00Z"], "arrived": arrived, "steps": 64}
    journal.append(Draft(stream, "RESERVE", costly), actor="test", at=datetime.now(UTC))
    journal.close()
    found = headgate("privacy", "show", "--json").json
    assert headgate("status", "--json").json["epsilon"] == found["epsilon_per_event"] > 0.6


def test_status_says_where_everything_stands(installed, headgate):
    found = headgate("status", "--json").json
    assert (found["windows"], found["newest_window"], found["versions"]) == (DAYS, LAST, 2)
    assert found["lineage_head"] == versions(headgate)[-1]
    assert f"newest window    {LAST}" in headgate("status").out


def test_the_journal_is_verified_and_read(installed, headgate):
    found = headgate("journal", "verify", "--json")
    assert found.code == 0 and found.json["faults"] == []
    tail = headgate("journal", "tail", "-n", "3", "--json").rows
    assert [row["seq"] for row in tail] == [found.json["entries"] - 2 + k for k in range(3)]
    assert tail[-1]["hash"] == found.json["head"]
    only = headgate("journal", "tail", "--stream", "window/blobs", "-n", "1")
    assert "window.finished" in only.out and len(only.out.splitlines()) == 1


def test_a_changed_entry_is_found_and_the_exit_code_says_so(installed, headgate):
    import sqlite3

    with sqlite3.connect("journal.db") as db:
        db.execute("DROP TRIGGER journal_no_update")
        db.execute("UPDATE journal SET actor = 'nobody' WHERE seq = 5")
    found = headgate("journal", "verify")
    assert found.code == 1 and "entry 5 was changed after it was written" in found.out


def test_a_rollout_is_watched_and_steered_to_its_promotion(installed, headgate):
    first, second = versions(headgate)
    assert headgate("rollout", "status").code == 4 and headgate("rollout", "status", first, "--json").code == 4
    assert [row["version"] for row in headgate("rollout", "list", "--json").rows] == [first, second]
    assert f"{second} is SHADOW" in headgate("rollout", "explain", second).out
    assert "paused (a look)" in headgate("rollout", "pause", second, "--reason", "a look").out
    assert "paused" in headgate("rollout", "promote", second, "--reason", "now").err
    assert headgate("rollout", "resume", second, "--reason", "seen").code == 0
    assert "nothing was written" in headgate("rollout", "resume", second, "--reason", "seen").err
    full = headgate("rollout", "promote", second, "--full", "--reason", "urgent", "--actor", "ann", "--json")
    assert [row["kind"] for row in full.json] == ["rollout.advanced", "routing.set"]
    assert headgate("run-window", NEXT).code == 0  # the release step of a window lets it bake
    assert headgate("rollout", "promote", second, "--reason", "baked").code == 0
    assert headgate("rollout", "status", second).code == 0
    assert headgate("rollout", "status", first).code == 3, "superseded"
    history = headgate("rollout", "history", second, "--json").rows
    assert ("ann", "PROMOTING") in [(row["actor"], row["body"].get("to")) for row in history]
    assert "ann: urgent" in headgate("rollout", "history").out


def test_an_aborted_version_takes_its_descendants_with_it(installed, headgate):
    first, second = versions(headgate)
    said = headgate("rollout", "abort", first, "--reason", "looks wrong")
    assert said.code == 0 and f"{second}: withdrawn (carries the weights of {first}" in said.out
    assert headgate("rollout", "status", first).code == 2 and headgate("rollout", "status", second).code == 2
    assert headgate("status", "--json").json["lineage_head"].startswith("base-")


def test_an_alarm_is_listed_until_somebody_acknowledges_it(installed, headgate):
    journal, now = Journal(f"sqlite:///{installed}/journal.db"), datetime.now(UTC)
    raise_alarm(journal, "blobs", kind="stale", window=LAST, message="no day came", figure=9, limit=2, at=now, actor="test")
    journal.close()
    assert "stale" in headgate("alarm", "list").out and headgate("alarm", "list", "--json").json["figure"] == 9
    assert headgate("alarm", "acknowledge", "stale", "--reason", "on holiday").out == "1 acknowledged\n"
    assert headgate("alarm", "list").out == "" and "stale" in headgate("alarm", "list", "--all").out
    assert "none of" in headgate("alarm", "acknowledge", "staleness", "--reason", "x").err


def test_a_token_is_issued_and_revoked(installed, headgate):
    text = headgate("token", "issue", "--subject", "shop").out.strip()
    assert text.count(".") == 2
    shown = headgate("token", "issue", "--subject", "shop", "--scope", "versions:read", "--json").json
    assert shown["scopes"] == ["versions:read"]
    assert headgate("token", "revoke", shown["jti"]).out == f"revoked {shown['jti']}\n"
    assert headgate("token", "issue", "--subject", "shop", "--scope", "everything").code == 2
    assert "token.revoked" in headgate("journal", "tail", "-n", "1").out


ERRORS = [
    (("window", "show", "2031-01-01T00:00Z"), "knows no window 2031-01-01T00:00Z"),
    (("version", "show", "v000009-00000000"), "knows no version v000009-00000000"),
    (("rollout", "status", "v000009-00000000"), "no rollout of v000009-00000000; known: v000001"),
    (("rollout", "abort", "v000009-00000000", "--reason", "x"), "no such rollout"),
    (("run-window", "monday"), "write its UTC start like 2013-06-03T08:00Z"),
    (("run-window", "2026-01-05T07:00Z"), "it lies inside 2026-01-05T00:00Z"),
    (("run-window", "2026-01-09T00:00Z"), "does not follow the last cut"),
    (("--config", "nowhere.toml", "status"), "`headgate init` writes a commented one"),
    (("bench", "window"), "run this in the root of a checkout"),
]


@pytest.mark.parametrize(("words", "sentence"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_what_cannot_be_done_is_one_sentence_and_exit_code_1(installed, headgate, words, sentence):
    check(headgate(*words), sentence)


def check(answer: Answer, sentence: str) -> None:
    assert answer.code == 1 and answer.out == ""
    assert sentence in answer.err and "Traceback" not in answer.err
    assert answer.err.splitlines()[-1].startswith("Error: ") and answer.err.count("Error: ") == 1


def test_a_benchmark_of_the_checkout_is_run_and_its_figure_stands_beside_its_peers(tmp_path, monkeypatch, headgate):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tests" / "benchmarks"
    folder.mkdir(parents=True)
    found = {"name": "tiny", "figure": 2.0, "unit": "s", "peer": "other", "peer_figure": 4.0, "ratio": 0.5, "samples": 3}
    (folder / "tiny.py").write_text(f"import json; print(json.dumps({found}))")
    (folder / "broken.py").write_text("raise SystemExit(3)")
    assert headgate("bench", "tiny", "--json").json == found
    assert headgate("bench", "tiny").out == "tiny: 2 s; 3 samples\n  other: 4, ratio 0.5\n"
    check(headgate("bench", "broken"), "ended with code 3")
    check(headgate("bench", "other"), "there are broken, tiny")


def test_a_misspelt_key_names_the_nearest_valid_one(installed, monkeypatch, headgate):
    monkeypatch.setenv("HEADGATE_WINDOW__EVREY", "1h")
    check(headgate("status"), "did you mean HEADGATE_WINDOW__EVERY?")
    monkeypatch.delenv("HEADGATE_WINDOW__EVREY")
    with Path("headgate.toml").open("a") as file:
        file.write("[guards]\nmax_gradient_norm = 3\n")
    check(headgate("status"), "unknown key 'guards'; did you mean 'guard'?")


@pytest.mark.parametrize("url", ["postgresql+psycopg://nobody:secret@127.0.0.1:9/none", "sqlite:///store"])
def test_a_journal_that_does_not_answer_is_one_sentence_without_its_password(installed, monkeypatch, headgate, url):
    monkeypatch.setenv("HEADGATE_JOURNAL__URL", url)
    answer = headgate("status")
    check(answer, "cannot open the journal at")
    assert "secret" not in answer.err


def test_a_folder_that_cannot_be_made_is_one_sentence(installed, monkeypatch, headgate):
    monkeypatch.setenv("HEADGATE_JOURNAL__URL", "sqlite:///headgate.toml/journal.db")
    check(headgate("status"), "headgate.toml")


def test_keys_that_others_may_read_are_refused(installed, headgate):
    Path("keys/token.pem").chmod(0o444)
    check(headgate("token", "issue", "--subject", "shop"), "chmod 0400")


def test_check_tries_the_configured_task_and_takes_the_flips_its_versions_made(installed, headgate):
    found = headgate("check", "--json").json
    golden = next(rule["text"] for rule in found["rules"] if rule["rule"] == "golden sets")
    assert found["failed"] == 0 and "1,000 rows can show" in golden and "(measured)" in golden


def test_one_look_of_the_controller_decides_nothing_where_nothing_is_to_decide(installed, headgate):
    before = headgate("status", "--json").json["journal_entries"]
    looked = headgate("controller", "--once", "--json")
    assert looked.code == 0 and headgate("status", "--json").json["journal_entries"] == before + len(looked.rows)
    assert headgate("controller", "--once").out == "", "a second look finds all done"


def test_every_command_is_typed_in_this_file():
    typed = set(re.findall(r'(?:headgate\(|\(\()"([a-z-]+)"', Path(__file__).read_text()))
    assert set(COMMANDS) - ELSEWHERE - typed == set()


def out_of(folder: Path, *words: str) -> str:
    """Output of a real Python process."""
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=paths, capture_output=True, text=True, check=True).stdout


def cpu_of(folder: Path, *words: str) -> tuple[float, str]:
    """CPU seconds and output of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = out_of(folder, "-m", "pipelines.cli", *words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, out


def test_help_and_status_answer_at_once(installed):
    """Measured 0.06 and 0.6 CPU s; the best of five, since a busy machine only ever adds."""
    helped, told = ([cpu_of(installed, word) for _ in range(5)] for word in ("--help", "status"))
    assert all(name in helped[0][1] for name in COMMANDS) and min(helped)[0] <= 0.3
    assert LAST in told[0][1] and min(told)[0] < 1.0


def test_status_loads_no_numerical_library(installed):
    code = (
        "import sys\nfrom pipelines.cli import main\ntry:\n    main(['status'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'scipy', 'pandas', 'dp_accounting', 'dagster', 'evidently') if name in sys.modules])"
    )
    assert out_of(installed, "-c", code).splitlines()[-1] == "[]"
