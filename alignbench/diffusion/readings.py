"""What is made of each field of a configuration file, as data, and the check of a file against it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignbench.errors import InputError, shown


def words(*lines: str) -> frozenset[str]:
    """The words of some lines."""
    return frozenset(name for line in lines for name in line.split())


@dataclass(frozen=True)
class Reading:
    """What is made of the configuration of one class, or of several alike."""

    classes: tuple[str, ...]
    honoured: frozenset[str]
    silent: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    otherwise: str = ""  # what is said of another class

    def check(self, place: str, config: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> None:
        """Raise InputError naming the first field of the file at `place` that is not read, and its value. `fixed` are
        further fields that must have one value."""
        for name, kind in classes_of(config).items():
            if kind not in self.classes:
                raise InputError(f"{place} has {name} {shown(kind)}{self.otherwise}; expected {either(self.classes)}.")
        required = {**self.fixed, **(fixed or {})}
        for name, value in config.items():
            if name in required and value != required[name]:
                raise InputError(
                    f"{place} has {name} {shown(value)}, which is not supported; expected {required[name]!r}."
                )
            if name in self.honoured and _largest(value) > (most := MOST_LAYERS if "layers" in name else MOST):
                raise InputError(f"{place} has {name} {shown(value)}; expected at most {most}.")
            known = name in self.honoured or name in self.silent or name in required or name in CLASS_FIELDS
            if not known and not name.startswith("_") and value is not None:
                raise InputError(
                    f"{place} has {name} {shown(value)}, a field that is not known here, so that the model may not be "
                    "what it says; expected the configuration of a plain text-to-image model."
                )


MOST, MOST_LAYERS = 2**20, 1000  # of anything in a configuration; of layers, which take time to build


def _largest(value: object) -> float:
    """The largest number in a value of a file; 0 where it holds none."""
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int | float) else 0


CLASS_FIELDS = ("_class_name", "architectures")


def classes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The class that a configuration names, by the field that does."""
    named = config.get("architectures") or [None]
    found = {"_class_name": config.get("_class_name"), "architectures": named[0] if isinstance(named, list) else named}
    return {name: kind for name, kind in found.items() if kind is not None}


def either(choices: Sequence[str]) -> str:
    """Choices in a sentence, three of many."""
    first = choices if len(choices) <= 4 else [*choices[:3], "another of that kind"]
    return first[0] if len(first) == 1 else f"{', '.join(first[:-1])} or {first[-1]}"


# Fields that transformers once wrote into every file: of text generation, labels, training.
NOTES = words(
    "transformers_version torch_dtype dtype initializer_factor initializer_range attention_dropout dropout use_cache",
    "id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix",
    "gradient_checkpointing tie_word_embeddings tie_encoder_decoder output_attentions tf_legacy_loss use_bfloat16",
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k",
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size",
    "bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id",
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens",
    "begin_suppress_tokens sep_token_id decoder_start_token_id cross_attention_hidden_size",
)
