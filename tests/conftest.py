"""What every test runs under: shapes and types checked, no network, one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: on tiny tensors a second thread costs more than it does

import jaxtyping

jaxtyping.install_import_hook("kleash", "type_guard.check")  # before kleash: every annotation is checked at every call

import network_guard
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("<pad>", "<end>", "<unk>", "user", "assistant", "system", *"abcdefghijklmnopqrstuvwxyz", *"0123456789")

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, digits and role names, each a token between spaces; pad and end apart; a chat template."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    """A Llama of two layers with random weights, the same in every test, over the vocabulary of `tiny_tokenizer`."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


class Network:
    """The connections beyond this machine that were tried and refused."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def attempts(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def forgive(self) -> None:
        """Forget the attempts that a test planted itself."""
        self._log.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def _network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    log = tmp_path_factory.mktemp("network") / "attempts"
    os.environ["KLEASH_NETWORK_LOG"] = str(log)
    guard = str(Path(network_guard.__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [guard, os.environ.get("PYTHONPATH")]))
    return Network(log)


@pytest.fixture(autouse=True)
def network(_network: Network) -> Iterator[Network]:
    """Fails a test under which something tried to leave this machine, even if the refusal was swallowed (F17)."""
    yield _network
    attempts = _network.attempts()
    _network.forgive()
    assert not attempts, f"F17: a network call that nobody asked for: {attempts}"
