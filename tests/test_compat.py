"""The table of refused combinations: each row refuses, in a sentence with value, reason and cure, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from models.compat import REFUSALS, TrainingRefused, refuse, refused
from models.config import TrainingConfig
from pipelines.settings import SettingsError, make_settings

KEYS = {entry.name for entry in fields(TrainingConfig)}
SENTENCES = [
    ({"precision": "fp16"}, "[training] precision = 'fp16' given with privacy on: gradients would be clipped at their scaled "
     "size, and a step skipped on overflow tells of a record (Opacus' update came out 4 times too large); use \"auto\", "
     "\"bf16\" or \"fp32\""),
    ({"precision_by_hooks": "bf16"}, "precision_by_hooks 'bf16' given with privacy on: a layer of this adapter is only known "
     "to Opacus' hooks, which are not built for bfloat16; set [training] precision to \"auto\" or \"fp32\""),
    ({"optimizer": "adamw8bit"}, "[training] optimizer = 'adamw8bit' given with privacy on: a private update takes plain SGD "
     "steps on batches drawn by [privacy] sampling_rate, so this would change nothing; use \"adamw\", which privacy "
     "replaces by SGD"),
    ({"warmup_steps": 3}, "[training] warmup_steps = 3 given with privacy on: a private update takes plain SGD steps on "
     "batches drawn by [privacy] sampling_rate, so this would change nothing; set it to 0"),
    ({"gradient_accumulation_steps": 2}, "[training] gradient_accumulation_steps = 2 given with privacy on: a private update "
     "takes plain SGD steps on batches drawn by [privacy] sampling_rate, so this would change nothing; set it to 1"),
    ({"checkpointing_by_hooks": True}, "checkpointing_by_hooks true given with privacy on: a layer of this adapter is only "
     "known to Opacus' hooks, which do not see the gradients of a block that is computed a second time; set [training] "
     "gradient_checkpointing to false"),
    ({"seed": 7}, "seed 7 given with privacy on: repeatable noise protects nobody; remove it"),
    ({"loss": "coupled"}, "loss 'coupled' given with privacy on: one record would change the gradients of all others in its "
     "batch, so no clip bounds its influence (measured: 1.18 times the bound); use a loss whose value for a record depends on "
     "that record alone; train contrastive losses on public history"),
    ({"replay_rows": 100}, "replay_rows 100 given with privacy on: a record that is trained on again is charged again, and its "
     "budget is for one update; set it to 0"),
    ({"tensor_parallel": 2}, "tensor_parallel 2 given with privacy on: each process sees a part of a gradient's norm (0.73 of "
     "it, measured) and clips too little; set it to 1 and spread examples instead"),
    ({"pipeline_parallel": 2}, "pipeline_parallel 2 given with privacy on: each process sees a part of a gradient's norm and "
     "clips too little; set it to 1 and spread examples instead"),
    ({"gradient_compression": "int8"}, "gradient_compression 'int8' given with privacy on: gradients would be rounded before "
     "the noise, which changes what the clip bounds; use \"none\", or round after the noise"),
    ({"early_stop_patience": 2}, "[training] early_stop_patience = 2 given with privacy on: the step at which training stops "
     "would tell of the private records; set it to 0; the number of steps is chosen before a record is read"),
    ({"tuned_on": "window"}, "tuned_on 'window' given with privacy on: each trial is a query on the window that nobody paid "
     "for; use \"public\": choose clip, rates and features on declared history"),
    ({"sort_across_batches": True}, "sort_across_batches true given with privacy on: a record's batch would depend on the "
     "other records, and the accountant assumes that each is drawn alone; set it to false; sort inside one batch"),
]  # fmt: skip


def asked(choices):
    config = TrainingConfig(**{key: value for key, value in choices.items() if key in KEYS})
    return config, {key: value for key, value in choices.items() if key not in KEYS}


@pytest.mark.parametrize(("choices", "sentence"), SENTENCES, ids=[next(iter(choices)) for choices, _ in SENTENCES])
def test_each_refusal_is_this_sentence_and_only_with_privacy(choices, sentence):
    config, facts = asked(choices)
    assert refused(config, True, **facts) == sentence
    assert refused(config, False, **facts) is None


def test_every_row_of_the_table_has_its_sentence_here():
    assert [next(iter(choices)) for choices, _ in SENTENCES] == [row.choice for row in REFUSALS]


def test_the_defaults_are_refused_by_nothing():
    harmless = {"seed": None, "loss": "single", "replay_rows": 0, "tensor_parallel": 1,
                "tuned_on": "public"}  # fmt: skip
    assert refused(TrainingConfig(), True, **harmless) is None


def test_a_fact_no_row_knows_is_an_error_and_not_a_yes():
    with pytest.raises(ValueError, match=r"facts sed are in no row of compat\.REFUSALS"):
        refused(TrainingConfig(), True, sed=7)


def test_a_refusal_is_raised_as_such():
    with pytest.raises(TrainingRefused, match="seed 7"):
        refuse(TrainingConfig(), True, seed=7)


def test_settings_that_are_refused_do_not_load():
    with pytest.raises(SettingsError, match=r"^settings: \[training\] precision = 'fp16' given with privacy on"):
        make_settings({"task": "t", "training": {"precision": "fp16"}})
    settings = make_settings({"task": "t", "training": {"precision": "fp16"}, "privacy": {"enabled": False}})
    assert settings.training.precision == "fp16"


def test_the_table_is_read_without_torch():
    code = "import sys, models.compat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
