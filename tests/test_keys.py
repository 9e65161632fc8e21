"""Keys are made once, stay private, and a file that is not one is refused with its cure."""

import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from security.keys import SECRETS, SIGNING_KEYS, KeyRefused, key_id, make_keys, private_key, public_key, secret


@pytest.fixture
def directory(tmp_path):
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


def replace(path, content, mode=0o400):
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def test_every_key_is_made_with_mode_0400_in_a_directory_nobody_else_enters(directory):
    files = sorted(directory.iterdir())
    assert len(files) == 2 * len(SIGNING_KEYS) + len(SECRETS)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o400}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_public_half_verifies_what_its_private_half_signed_and_no_other_does(directory):
    signature = private_key(directory, "trainer").sign(b"bytes")
    public_key(directory, "trainer").verify(signature, b"bytes")
    ids = {key_id(public_key(directory, name)) for name in SIGNING_KEYS}
    assert len(ids) == len(SIGNING_KEYS) and all(len(one) == 16 for one in ids)
    assert key_id(private_key(directory, "token").public_key()) == key_id(public_key(directory, "token"))


def test_secrets_are_32_bytes_and_differ(directory):
    assert len(secret(directory, "vault")) == 32
    assert secret(directory, "vault") != secret(directory, "watermark")


def test_making_keys_again_is_refused_and_changes_nothing(directory):
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    (directory / "audit.pem").unlink()
    with pytest.raises(KeyRefused, match="never overwritten"):
        make_keys(directory)
    del before["audit.pem"]
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before


def test_a_dangling_link_in_the_place_of_a_key_is_not_written_through(tmp_path):
    (tmp_path / "vault.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyRefused, match=r"vault\.key"):
        make_keys(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_key_names_the_path_and_the_cure(tmp_path):
    with pytest.raises(KeyRefused, match=r"trainer\.pem.*headgate init"):
        private_key(tmp_path, "trainer")
    with pytest.raises(KeyRefused, match=r"vault\.key.*headgate init"):
        secret(tmp_path, "vault")


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o640, 0o644, 0o777, 0o420])
def test_a_key_open_to_others_is_refused_with_both_modes_and_the_cure(directory, mode):
    (directory / "trainer.pem").chmod(mode)
    (directory / "vault.key").chmod(mode)
    with pytest.raises(KeyRefused, match=f"{mode:04o}, wanted 0400.*chmod 0400"):
        private_key(directory, "trainer")
    with pytest.raises(KeyRefused, match=f"{mode:04o}, wanted 0400.*chmod 0400"):
        secret(directory, "vault")


def test_a_public_half_may_be_read_by_others_but_not_written(directory):
    (directory / "trainer.pub.pem").chmod(0o444)
    public_key(directory, "trainer")
    (directory / "trainer.pub.pem").chmod(0o464)
    with pytest.raises(KeyRefused, match="0464, wanted 0400"):
        public_key(directory, "trainer")


def test_content_that_is_no_such_key_is_refused(directory):
    other = ec.generate_private_key(ec.SECP256R1())
    replace(directory / "trainer.pem", other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    replace(directory / "approver.pem", b"not a key")
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    replace(directory / "audit.pub.pem", public)
    replace(directory / "vault.key", b"short")
    for read, name in ((private_key, "trainer"), (private_key, "approver"), (public_key, "audit")):
        with pytest.raises(KeyRefused, match="no Ed25519 key"):
            read(directory, name)
    with pytest.raises(KeyRefused, match="5 bytes, wanted 32"):
        secret(directory, "vault")


def test_a_directory_or_an_unknown_name_is_refused(directory):
    (directory / "vault.key").unlink()
    (directory / "vault.key").mkdir()
    with pytest.raises(KeyRefused, match="not a regular file"):
        secret(directory, "vault")
    with pytest.raises(KeyRefused, match="the names are"):
        private_key(directory, "../trainer")
