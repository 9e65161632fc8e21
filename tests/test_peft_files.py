"""PEFT's files both ways, with PEFT as the oracle: what it writes we answer alike, and what we cannot honour is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from models.adapters import lora, peft_files
from models.adapters.lora import AdapterRefused
from models.config import AdapterConfig
from tests.adapters import EMPTY, KINDS, adapted, ids, net, stirred

X = ids(9)
SPOKEN = ("linear", "embedding", "convolution", "everything")
WITH_ALL = AdapterConfig(r=2, lora_alpha=3, target_modules=("words", "conv", "fc"), modules_to_save=("head",))


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="PEFT is the oracle for its own file format")


def setting(kind: str) -> AdapterConfig:
    return WITH_ALL if kind == "everything" else KINDS[kind]


def theirs(peft, config: AdapterConfig, **options):
    """Their adapter on our base; with nothing at zero, so that it says something."""
    torch.manual_seed(5)
    plain = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": list(config.target_modules),
             "modules_to_save": list(config.modules_to_save) or None, "init_lora_weights": False}
    return peft.get_peft_model(net(), peft.LoraConfig(**plain | options)).eval()


def ours(folder):
    module = net()
    config, tensors = peft_files.read_adapter(folder)
    lora.attach(module, config)
    lora.load(module, tensors)
    return module


@pytest.mark.parametrize("kind", SPOKEN)
def test_peft_loads_what_we_write_and_answers_the_same(peft, kind, tmp_path):
    module = net()
    lora.attach(module, setting(kind), torch.Generator().manual_seed(2))
    stirred(module)
    peft_files.write_adapter(tmp_path, setting(kind), lora.extract(module), "0" * 64)
    loaded = peft.PeftModel.from_pretrained(net(), str(tmp_path)).eval()
    assert torch.allclose(loaded(X), module(X), atol=1e-6) and (module(X) - net()(X)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SPOKEN)
def test_we_load_what_peft_writes_and_answer_the_same(peft, kind, tmp_path):
    written = theirs(peft, setting(kind))
    written.save_pretrained(str(tmp_path))
    module = ours(tmp_path)
    assert torch.allclose(module(X), written(X), atol=1e-6) and (module(X) - net()(X)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SPOKEN)
def test_what_goes_through_peft_comes_back_bit_for_bit(peft, kind, tmp_path):
    written = theirs(peft, setting(kind))
    written.save_pretrained(str(tmp_path / "theirs"))
    config, tensors = peft_files.read_adapter(tmp_path / "theirs")
    peft_files.write_adapter(tmp_path / "ours", config, lora.extract(ours(tmp_path / "theirs")), "0" * 64)
    again, back = peft_files.read_adapter(tmp_path / "ours")
    assert again == config and all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_the_other_scale_of_rslora_is_honoured(peft, tmp_path):
    written = theirs(peft, WITH_ALL, use_rslora=True)
    written.save_pretrained(str(tmp_path))
    assert torch.allclose(ours(tmp_path)(X), written(X), atol=1e-6)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"use_dora": True}, "sets use_dora = True"),
    ({"rank_pattern": {"fc": 1}}, "sets rank_pattern = .* train with one r"),
    ({"alpha_pattern": {"fc": 1}}, "sets alpha_pattern"),
    ({"bias": "all"}, "sets bias = 'all'"),
    ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
    ({"lora_dropout": 0.1}, "sets lora_dropout = 0.1, .* set it to 0"),
    ({"lora_bias": True}, "sets lora_bias"),
    ({"init_lora_weights": "pissa"}, "sets init_lora_weights = 'pissa'.* changes the base"),
    ({"init_lora_weights": "olora"}, "sets init_lora_weights"),
    ({"target_modules": ".*fc"}, "target_modules = '.*fc' is no list of names"),
    ({"exclude_modules": ["fc2"]}, "sets exclude_modules"),
    ({"layers_to_transform": [0], "layers_pattern": "layers"}, "sets layers_pattern"),
    ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
    ({"target_parameters": ["fc.weight"]}, "sets target_parameters"),
])
def test_an_option_of_peft_that_we_cannot_honour_is_refused_by_name(peft, options, sentence, tmp_path):
    peft.LoraConfig(**{"target_modules": ["fc"]} | options).save_pretrained(str(tmp_path))
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    with pytest.raises(AdapterRefused, match=sentence):
        peft_files.config_from_peft(said)


def test_the_plain_settings_of_peft_are_read(peft, tmp_path):
    peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS").save_pretrained(str(tmp_path))
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert peft_files.config_from_peft(said) == AdapterConfig(4, 8, ("q_proj", "v_proj"), ())


@pytest.mark.parametrize(("said", "sentence"), [
    ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    ([], r"peft_type \[\]"),
    ({"peft_type": "LORA", "target_modules": ["fc"], "r": 0}, "rank 0 < 1"),
    ({"peft_type": "LORA", "target_modules": ["fc"], "r": "2"}, "adapter_config.json"),
    ({"peft_type": "LORA", "target_modules": [3]}, "no list of names"),
    ({"peft_type": "LORA", "target_modules": None}, "nothing would be trained"),
    ({"peft_type": "LORA", "target_modules": ["fc"], "something_new": 1}, "sets something_new = 1"),
])
def test_settings_that_make_no_adapter_are_refused(said, sentence):
    with pytest.raises(AdapterRefused, match=sentence):
        peft_files.config_from_peft(said)


def saved(folder, tensors) -> None:
    said = {"peft_type": "LORA", "target_modules": ["fc"], "r": 2, "lora_alpha": 3}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")


def test_a_folder_that_is_no_readable_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterRefused, match="cannot be read as a PEFT adapter"):
        peft_files.read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(AdapterRefused, match="a pickle, which can run code"):
        peft_files.read_adapter(tmp_path)
    tensors = lora.extract(adapted("linear"))
    key = next(iter(tensors))
    saved(tmp_path, tensors | {key: np.full_like(tensors[key], np.nan)})
    with pytest.raises(AdapterRefused, match="non-finite values"):
        peft_files.read_adapter(tmp_path)
    saved(tmp_path, tensors | {"base_model.model.fc.base_layer.weight": tensors[key]})
    with pytest.raises(AdapterRefused, match="save_embedding_layers=False"):
        peft_files.read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(AdapterRefused, match="is damaged"):
        peft_files.read_adapter(tmp_path)


def test_copies_alone_are_not_written_for_peft_which_would_refuse_them(tmp_path):
    with pytest.raises(AdapterRefused, match="target_modules is empty"):
        peft_files.write_adapter(tmp_path, KINDS["copy"], lora.extract(adapted("copy")), "0" * 64)


@pytest.mark.parametrize("kind", ["bottleneck", "prompt"])
def test_a_kind_that_peft_has_no_word_for_is_not_written_for_it(peft, kind, tmp_path):
    with pytest.raises(AdapterRefused, match="PEFT knows neither"):
        peft_files.write_adapter(tmp_path, KINDS[kind], lora.extract(adapted(kind)), "0" * 64)
    (tmp_path / "adapter_config.json").write_text(json.dumps(KINDS[kind].as_peft("0" * 64)))
    with pytest.raises((KeyError, ValueError), match="HEADGATE"):  # a version's own file: PEFT must not half read it
        peft.PeftConfig.from_pretrained(str(tmp_path))
    assert set(EMPTY) <= set(KINDS[kind].listed())
