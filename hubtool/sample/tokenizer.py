"""A small byte-level BPE tokenizer with DeepSeek's special tokens, for `transformers` and everything built on it."""

from collections.abc import Mapping

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
"""Their ids are 0, 1 and 2, as published."""

CHAT_TOKENS = (
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜begin▁sys｜>",
    "<｜end▁sys｜>",
    "<｜latest_reminder｜>",
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜answer｜>",
    "<｜search｜>",
)
"""Published as added tokens that are not special: decoding shows them."""

WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you
were her all she there would their we him been has when who will more no if out so said what up its about into than them
can only other new some could time these two may then do first any my now such like our over man me even most made after
also did many before must through years where much your way well down should because each just those people how too
little state good very make world still own see men work long get here between both life being under never day same
another know while last might us great old year off come since against go came right used take three states himself few
house use during without again place around however home small found mrs thought went say part once general high upon
school every does got united left number course war until always away something fact though water less public put think
almost hand enough far took head yet government system better set told nothing night end why called eyes find going look
asked later knew point next program city business group give days young let room word began several order light kind
question answer language model number letter sentence story green blue white black river mountain morning evening north
south east west king queen child mother father sister brother friend letter paper book page line table window door
street town country garden tree flower bird horse dog cat fish sun moon star sky wind rain snow fire earth stone gold
silver iron wood glass music song voice sound heart mind hope love fear joy peace truth power law art science nature
history reason measure weight number shape color matter force speed heat energy cell plant animal body blood bone food
bread milk salt sugar apple wine coffee tea money price trade market road ship train machine engine computer network
""".split()
"""Each becomes one token when a space stands before it."""


def tokenizer_files(vocab_size: int) -> Mapping[str, object]:
    """tokenizer.json and tokenizer_config.json of a tokenizer that has every id below `vocab_size`, and no other.

    Merges are dropped to make room, and placeholders fill what is left, as they do in the published one.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    alphabet = [_character(byte) for byte in range(256)]
    special = [BOS, EOS, PAD]
    room = vocab_size - len(special) - len(alphabet) - len(CHAT_TOKENS)
    if room < 0:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for {vocab_size - room} tokens")
    merges = _merges()[:room]
    vocab = [*special, *alphabet, *(left + right for left, right in merges)]
    placeholders = [f"<｜place▁holder▁no▁{number}｜>" for number in range(room - len(merges))]
    added = [_added(text, number, special=True) for number, text in enumerate(special)]
    added += [_added(text, number) for number, text in enumerate([*placeholders, *CHAT_TOKENS], len(vocab))]
    return {"tokenizer.json": _tokenizer(vocab, merges, added), "tokenizer_config.json": _tokenizer_config()}


def _character(byte: int) -> str:
    """The printable character that stands for a byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(256 + sum(other not in printable for other in range(byte)))


def _merges() -> list[tuple[str, str]]:
    """Pairs that grow " word" letter by letter.

    Each begins with the space, so no two compete within a word and the order does not matter to the result.
    """
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        start = _character(ord(" "))
        for letter in word:
            merges[start, letter] = None
            start += letter
    return list(merges)


def _added(text: str, number: int, *, special: bool = False) -> Mapping[str, object]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
        "special": special,
    }


def _tokenizer(vocab: list[str], merges: list[tuple[str, str]], added: list[Mapping[str, object]]) -> object:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocab)},
            "merges": [list(pair) for pair in merges],
        },
    }


def _tokenizer_config() -> Mapping[str, object]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "legacy": True,
        "model_max_length": 1048576,
        "pad_token": EOS,
        "sp_model_kwargs": {},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
