"""A version on disk: the same bytes come back, and anything unsigned, changed, late or odd is refused."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models import tensorfile
from models.config import AdapterConfig
from models.tensorfile import TensorsRefused
from models.version import VersionRefused, open_version, write_version
from security import manifest as manifests

NOW = datetime(2013, 6, 10, 8, tzinfo=UTC)
KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
BASE = "ab" * 32
CONFIG = AdapterConfig(r=2, lora_alpha=4, target_modules=("fc1",), modules_to_save=("head",))
TENSORS = {
    "base_model.model.fc1.lora_A.weight": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4),
    "base_model.model.fc1.lora_B.weight": np.full((6, 2), 0.5, np.float32),
    "base_model.model.head.bias": np.zeros(1, np.float32),
}
EXTRA = {"not_covered": ["the base"], "windows": ["2013-06-03T08:00Z"], "privacy": {"epsilon": 0.5, "delta": 1e-5}}


def write(directory: Path, **changes):
    given = {"number": 7, "task": "blobs", "parent": "v000006-0badcafe", "base_digest": BASE, "tensors": TENSORS,
             "adapter_config": CONFIG, "manifest_extra": EXTRA, "key": KEY, "now": NOW}
    return write_version(directory, **(given | changes))


def open_(path: Path, **changes):
    given = {"trusted": {"trainer": KEY.public_key()}, "base_digest": BASE, "task": "blobs", "now": NOW}
    return open_version(path, **(given | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path).path


def forge(path: Path, change) -> Path:
    """A version whose manifest was changed and signed again by the trusted key: only the later checks can refuse it."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    payload = manifests.encode(manifest)
    (path / "manifest.json").write_bytes(payload)
    (path / "manifest.dsse").write_bytes(manifests.envelope(payload, [manifests.sign(payload, KEY, "trainer")]))
    return path.rename(path.parent / f"{path.name[:8]}{manifests.digest(payload)[:8]}")


def forge_tensors(path: Path, raw: bytes) -> Path:
    """The same for the tensor file: size and hash in the signed manifest fit the new bytes."""
    (path / "adapter.safetensors").write_bytes(raw)

    def change(manifest):
        from hashlib import sha256

        entry = next(e for e in manifest["files"] if e["path"] == "adapter.safetensors")
        entry["size"], entry["sha256"] = len(raw), sha256(raw).hexdigest()

    return forge(path, change)


# ---- what is written


def test_a_version_comes_back_as_it_was_written(path):
    opened = open_(path)
    assert opened.tensors.keys() == TENSORS.keys()
    assert all(np.array_equal(opened.tensors[key], TENSORS[key]) for key in TENSORS)
    assert opened.config == CONFIG and opened.id == path.name
    assert (opened.manifest["version"], opened.manifest["parent"]) == (7, "v000006-0badcafe")
    assert {key: opened.manifest[key] for key in EXTRA} == EXTRA


def test_the_id_is_number_and_hash_of_the_manifest(path):
    payload = (path / "manifest.json").read_bytes()
    assert path.name == f"v000007-{manifests.digest(payload)[:8]}"
    assert sorted(p.name for p in path.iterdir()) == [
        "adapter.safetensors", "adapter_config.json", "manifest.dsse", "manifest.json"]


@pytest.mark.parametrize("alpha", [4, 4.0, 4.5])
def test_a_scale_given_as_any_number_comes_back(tmp_path, alpha):
    config = AdapterConfig(r=2, lora_alpha=alpha, target_modules=("fc1",), modules_to_save=())
    assert open_(write(tmp_path, adapter_config=config).path).config == config


def test_the_same_call_again_gives_the_same_version_and_leaves_no_scrap(tmp_path):
    one, again = write(tmp_path), write(tmp_path)
    assert one == again and [p.name for p in tmp_path.iterdir()] == [one.id]
    assert write(tmp_path, now=NOW + timedelta(seconds=1)).id != one.id


def test_the_manifest_lists_files_and_tensors_with_size_shape_and_largest_value(path):
    manifest = open_(path).manifest
    assert [entry["path"] for entry in manifest["files"]] == ["adapter.safetensors", "adapter_config.json"]
    assert manifest["tensors"][1] == {
        "name": "base_model.model.fc1.lora_B.weight", "dtype": "F32", "shape": [6, 2], "absmax": 0.5}


def test_what_the_privacy_statement_leaves_out_must_be_said(tmp_path):
    for extra in ({}, {"not_covered": "nothing"}, {"not_covered": [1]}):
        with pytest.raises(VersionRefused, match="not_covered"):
            write(tmp_path, manifest_extra=extra)
    with pytest.raises(VersionRefused, match="manifest_extra sets base_digest, task"):
        write(tmp_path, manifest_extra=EXTRA | {"task": "x", "base_digest": "y"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tensors_that_are_not_finite_are_not_written(tmp_path, value):
    broken = TENSORS | {"base_model.model.head.bias": np.array([value], np.float32)}
    with pytest.raises(VersionRefused, match=r"head\.bias holds 1 non-finite values"):
        write(tmp_path, tensors=broken)


# ---- what is refused: the folder


@pytest.mark.parametrize("name", ["v7-1a2b3c4d", "latest", "v000007-1A2B3C4D", "v000007-1a2b3c4d ", ".v000007-1a2b3c"])
def test_a_folder_that_is_not_named_as_a_version_is_not_even_read(path, name):
    with pytest.raises(VersionRefused, match="is not a version id"):
        open_(path.rename(path.parent / name))


def test_a_folder_named_after_another_manifest_is_refused(path):
    with pytest.raises(VersionRefused, match="the id says deadbeef"):
        open_(path.rename(path.parent / "v000007-deadbeef"))


def test_a_missing_version_is_refused_as_one(tmp_path):
    with pytest.raises(VersionRefused, match="cannot be read"):
        open_(tmp_path / "v000007-1a2b3c4d")


def test_links_are_not_followed(path, tmp_path):
    shutil.copytree(path, tmp_path / "real" / path.name)
    for file in ("adapter.safetensors", "manifest.json"):
        (path / file).unlink()
        (path / file).symlink_to(tmp_path / "real" / path.name / file)
        with pytest.raises(VersionRefused, match="cannot be read"):
            open_(path)
    shutil.rmtree(path)
    path.symlink_to(tmp_path / "real" / path.name, target_is_directory=True)
    with pytest.raises(VersionRefused, match="is a link or no folder"):
        open_(path)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(path):
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    with pytest.raises(VersionRefused, match="not a regular file"):
        open_(path)


def test_one_file_too_many_or_too_few_is_refused(path):
    (path / "weights.bin").write_bytes(b"x")
    with pytest.raises(VersionRefused, match=r"extra \['weights.bin'\]"):
        open_(path)
    (path / "weights.bin").unlink()
    (path / "manifest.dsse").unlink()
    with pytest.raises(VersionRefused, match=r"missing \['manifest.dsse'\]"):
        open_(path)


def test_a_file_beyond_its_size_is_refused(path):
    (path / "manifest.json").write_bytes(b" " * ((256 << 10) + 1))
    with pytest.raises(VersionRefused, match=r"manifest\.json has more than 262144 bytes"):
        open_(path)


# ---- what is refused: signature and terms


@pytest.mark.parametrize("file", ["adapter.safetensors", "adapter_config.json", "manifest.json", "manifest.dsse"])
def test_one_changed_byte_in_any_file_is_refused(path, file):
    """Every 37th byte of the file, one after another."""
    good = (path / file).read_bytes()
    for at in range(0, len(good), 37):
        (path / file).write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(VersionRefused):
            open_(path)
    (path / file).write_bytes(good)
    assert open_(path).id == path.name


def test_a_version_signed_by_another_key_is_refused(tmp_path):
    with pytest.raises(VersionRefused):
        open_(write(tmp_path, key=OTHER).path)


def test_a_role_that_must_sign_and_did_not_is_missed(path):
    trusted = {"trainer": KEY.public_key(), "approver": OTHER.public_key()}
    with pytest.raises(VersionRefused, match="approver"):
        open_(path, trusted=trusted, required_roles=("trainer", "approver"))
    with pytest.raises(VersionRefused):
        open_(path, trusted={})


@pytest.mark.parametrize(("given", "said"), [
    ({"task": "fraud"}, "task is 'blobs', wanted 'fraud'"),
    ({"base_digest": "cd" * 32}, "base_digest is 'abab"),
    ({"min_version": 8}, "version 7 < rollback floor 8"),
    ({"now": NOW - timedelta(hours=1)}, "now it is 2013-06-10T07:00"),
    ({"now": NOW + timedelta(days=400)}, "valid from 2013-06-10T07:55:00.000000Z until 2014-07-15"),
])
def test_a_version_that_is_not_for_this_place_or_time_is_refused(path, given, said):
    with pytest.raises(VersionRefused, match=said):
        open_(path, **given)


def test_a_signed_number_that_is_not_the_folders_is_refused(path):
    def renumber(manifest):
        manifest["version"] = 8

    with pytest.raises(VersionRefused, match="version is 8, wanted 7"):
        open_(forge(path, renumber))


@pytest.mark.parametrize("field", ["schema", "task", "not_after", "files", "tensors", "adapter"])
def test_a_signed_manifest_that_lacks_a_field_is_refused(path, field):
    with pytest.raises(VersionRefused, match="missing or of the wrong kind"):
        open_(forge(path, lambda manifest: manifest.pop(field)))


def test_adapter_settings_that_differ_from_the_signed_ones_are_refused(path):
    def widen(manifest):
        manifest["adapter"]["target_modules"] = ["fc1", "fc2"]

    with pytest.raises(VersionRefused, match=r"adapter_config\.json is not the file"):
        open_(forge(path, widen))


def test_a_manifest_that_lists_another_file_is_refused(path):
    def extend(manifest):
        manifest["files"].append({"path": "../../etc/passwd", "size": 1, "sha256": "0" * 64})

    with pytest.raises(VersionRefused, match="the manifest lists"):
        open_(forge(path, extend))


# ---- what is refused: tensors, even when signed


def raw_tensors(header: str, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


def entry(name: str, begin: int, end: int, shape: str = "[1]", dtype: str = "F32") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


ONE = [{"name": "a", "dtype": "F32", "shape": [1], "absmax": 1.0}]
HALF = np.array([0.5], np.float32).tobytes()


def test_a_signed_file_with_other_tensors_than_listed_is_refused(path):
    raw = tensorfile.encode({"base_model.model.head.bias": np.zeros(1, np.float32)})
    with pytest.raises(VersionRefused, match=r"tensor names differ: missing .*lora_A"):
        open_(forge_tensors(path, raw))


def test_plain_tensors_are_read():
    assert tensorfile.decode(raw_tensors("{" + entry("a", 0, 4) + "}", HALF), ONE)["a"].tolist() == [0.5]


@pytest.mark.parametrize(("raw", "said"), [
    (b"", "header of -1 bytes"),
    ((1 << 40).to_bytes(8, "little") + b"{}", "header of 1099511627776 bytes"),
    (raw_tensors("{" + entry("a", 0, 4), HALF), "not JSON"),
    (raw_tensors("[]", HALF), "not a table"),
    (raw_tensors('{"a":1}', HALF), "not a table"),
    (raw_tensors("{" + entry("a", 0, 4) + "," + entry("a", 0, 4) + "}", HALF), "names a key twice"),
    (raw_tensors('{"__metadata__":{"x":"y"},' + entry("a", 0, 4) + "}", HALF), "__metadata__"),
    (raw_tensors("{" + entry("../a", 0, 4) + "}", HALF), r"unknown \['../a'\]"),
    (raw_tensors("{" + entry("a", 0, 4, "[1,1]") + "}", HALF), r"a is F32 \[1, 1\]"),
    (raw_tensors("{" + entry("a", 0, 4, dtype="I32") + "}", HALF), "a is I32"),
    (raw_tensors("{" + entry("a", 0, 4) + "}", HALF + b"tail"), "not a safetensors file"),
    (raw_tensors("{" + entry("a", 4, 8) + "}", HALF * 2), "not a safetensors file"),
    (raw_tensors("{" + entry("a", 0, 400) + "}", HALF), "not a safetensors file"),
    (raw_tensors("{" + entry("a", 0, 4) + "}", np.array([np.nan], np.float32).tobytes()), "1 non-finite"),
    (raw_tensors("{" + entry("a", 0, 4) + "}", np.array([1.5], np.float32).tobytes()), r"\|value\| 1.5 > absmax 1"),
])
def test_tensors_that_are_not_what_was_listed_are_refused(raw, said):
    with pytest.raises(TensorsRefused, match=said):
        tensorfile.decode(raw, ONE)


def test_equal_tensors_give_equal_bytes_in_any_order():
    turned = dict(reversed(TENSORS.items()))
    assert tensorfile.encode(TENSORS) == tensorfile.encode(turned)


def test_a_type_an_adapter_has_no_use_for_is_refused():
    with pytest.raises(TensorsRefused, match="has type complex64"):
        tensorfile.encode({"a": np.zeros(1, np.complex64)})
