#!/usr/bin/env python3
"""Makes the small tokenizers and their goldens: NAME.json (tokenizer.json) and cases.json.

Needs `pip install tokenizers`. Run once; the results are in git. The training text is made here, so
the files depend on nothing but this script and the version of `tokenizers` (0.23.3).
"""
import json
import os
import random

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

HERE = os.path.dirname(os.path.abspath(__file__))

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SCRIPTS = {
    "latin": "The quick brown fox jumps over the lazy dog; naïve café, Straße, coöperate, Ærøskøbing.",
    "cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак ґанок.",
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος.",
    "hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה. בְּרֵאשִׁית בָּרָא אֱלֹהִים",
    "arabic": "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ٠١٢٣٤٥٦٧٨٩",
    "devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों का राजा। १२३४५६७८९०",
    "thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "han": "敏捷的棕色狐狸跳过了懒狗。天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "kana": "いろはにほへと ちりぬるを わかよたれそ。カタカナ ﾊﾝｶｸ ガギグ が",
    "hangul": "다람쥐 헌 쳇바퀴에 타고파. 키스의 고유조건은 입술끼리 만나야 하고. 한글",
    "tamil": "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்",
    "ethiopic": "ሰማይ አይታረስ ንጉሥ አይከሰስ። ፩፪፫",
}

OTHERS = {
    "empty": "",
    "space": " ",
    "spaces": "a  b   c    d\t\te \n\n f\r\n\r\ng   \n   h     ",
    "odd_spaces": "a\u00a0b\u2003\u2003c\u3000d\u200be\u180ef\u2028g\u0085h\u1680\u202f\u205fi\u000b\u000cj",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️‍🔥 1️⃣ 😀😃😄 🧑🏿‍🚀",
    "controls": "a\x00b\x01\x02\x7f\x1b[31mred\x1b[0m\u0080\u009f\ufeff\ufffe\ufffd\U0010ffff",
    "combining": "e\u0301 \u1e9b\u0323 a\u0323\u0307\u0323 q\u0307\u0323 \u212b \u2126 \ufb01 \u1100\u1161\u11a8 \u0344",
    "long_word": "abcdefghij" * 30,
    "long_repeat": "a" * 301 + "é" * 300,
    "long_spaces": " " * 300 + "x" + "\n" * 40,
    "digits": "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 v2.0.1 0x1F ½ ² ③ Ⅻ ٣٤ 一二",
    "code": "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # it's\n\n\tfor (int i=0;i<n;++i){\n\t\ta[i] += b->c;\n\t}\n",
    "contractions": "I'm you're he'll we've it's they'd don't I'M YOU'RE IT'S 'tis ’s 'ſ don'T",
    "url": "https://example.org/a_b/c-d?x=1&y=%20#frag user@host.tld C:\\dir\\file.txt",
    "punctuation": "...!!!??? -- — «quotes» “double” (a)[b]{c} <d> a/b\\c $5 €7 @#%^&*_+=~`|",
    "surrogate_pairs": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 𠜎𠜱",
    "mixed": "Hello мир 世界 שלום नमस्ते 안녕 γειά สวัสดี مرحبا 123abc456",
}

SPECIAL = {
    "chat": "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "adjacent": "<|im_start|><|im_start|><|im_end|>x<|im_end|>",
    "partial": "<|im_start <|im_end| ><|im_ start|>",
    "strip": "a  <mask>  b<mask>\n c <mask>",
    "single": "wordy word sword word. word's _word_ word",
    "longest": "<tool><tool_call>x</tool_call></tool>",
    "bos_text": "<s>hello</s> <s>again</s><unk>",
    "normalized": "caf\u00e9 cafe\u0301 xcafe\u0301 caf\u00e9s caf\u00e9",
    "leading_space": " <|im_start|> x",
}


def training_text():
    rng = random.Random(7)
    words = [w for text in list(SCRIPTS.values()) + list(OTHERS.values()) for w in text.split(" ")]
    english = ("the of and to in is was for that with as his on be at by had it from which this are "
               "not have an were but they one all you her she there would their we him been has when "
               "who will more no if out so said what up its about into than them can only other new "
               "some could time these two may then do first any my now such like our over man me even "
               "most made after also did many before must through back years where much your way well "
               "return function while class import value print list range self").split()
    for _ in range(900):
        line = [rng.choice(english if rng.random() < 0.8 else words) for _ in range(12)]
        yield rng.choice([" ", " ", " ", "\n", ", "]).join(line)
    for _ in range(3):
        yield from SCRIPTS.values()
        yield from OTHERS.values()


def added():
    return [
        AddedToken("<|im_start|>", special=True, normalized=False),
        AddedToken("<|im_end|>", special=True, normalized=False),
        AddedToken("<mask>", special=True, normalized=False, lstrip=True, rstrip=True),
        AddedToken("<tool>", special=False, normalized=False),
        AddedToken("<tool_call>", special=False, normalized=False),
        AddedToken("</tool_call>", special=False, normalized=True),
        AddedToken("word", special=False, normalized=False, single_word=True),
        AddedToken("café", special=False, normalized=True),
    ]


def without_some_merges(model):
    """Whole words that no merge makes any more: found only by `ignore_merges`."""
    state = json.loads(model)["model"]
    merges = [tuple(m) for m in state["merges"]]
    words = {"Ġ" + w for w in " ".join(SCRIPTS.values()).split()} | {"Ġassistant", "user", "Ġjumps"}
    return models.BPE(vocab=state["vocab"], merges=[m for m in merges if m[0] + m[1] not in words],
                      ignore_merges=True)


def byte_level(pre, normalizer=None, bos=None, ignore_merges=False, vocab=900, train_pre=None):
    t = Tokenizer(models.BPE())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = train_pre or pre
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.pre_tokenizer = pre
    if ignore_merges:
        t.model = without_some_merges(t.to_str())
    t.add_tokens(added()) if bos is None else t.add_tokens(added() + [AddedToken(bos, special=True, normalized=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        t.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                          special_tokens=[(bos, t.token_to_id(bos))])])
    return t


def sentencepiece(normalizer, pre, decoder, normalized_specials, eos=False):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.decoder = decoder
    specials = ["<unk>", "<s>", "</s>"]
    # Train word by word, as SentencePiece does, then put the true pipeline in place.
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, limit_alphabet=180,
        special_tokens=specials + [f"<0x{b:02X}>" for b in range(256)]))
    state = json.loads(trained.to_str())["model"]
    t.model = models.BPE(vocab=state["vocab"], merges=[tuple(m) for m in state["merges"]],
                         unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    t.add_special_tokens([AddedToken(s, special=True, normalized=normalized_specials) for s in specials])
    t.add_tokens(added())
    end = [("</s>", t.token_to_id("</s>"))] if eos else []
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A" + (" </s>" if eos else ""), pair="<s> $A <s> $B",
        special_tokens=[("<s>", t.token_to_id("<s>"))] + end)
    return t


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tokenizers():
    llama2_decoder = lambda: decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1, right=0)])
    return {
        "llama3": byte_level(split_then_bytes(LLAMA3), bos="<|begin_of_text|>", ignore_merges=True),
        "qwen2": byte_level(split_then_bytes(QWEN2), normalizers.NFC()),
        "smollm": byte_level(pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
            train_pre=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), vocab=1200),
        "gpt2": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), vocab=700),
        "llama2": sentencepiece(
            normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
            llama2_decoder(), False),
        "mistral": sentencepiece(
            normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            llama2_decoder(), True, eos=True),
    }


def old_merges(text):
    """The file as older versions wrote it: each merge one string."""
    state = json.loads(text)
    state["model"]["merges"] = [" ".join(m) for m in state["model"]["merges"]]
    return json.dumps(state, ensure_ascii=False)


def case(tokenizer, name, text):
    tokenizer.encode_special_tokens = False
    with_special = tokenizer.encode(text, add_special_tokens=True)
    plain = tokenizer.encode(text, add_special_tokens=False)
    tokenizer.encode_special_tokens = True
    as_text = tokenizer.encode(text, add_special_tokens=False)
    tokenizer.encode_special_tokens = False
    out = {"name": name, "ids": plain.ids,
           "decoded": tokenizer.decode(plain.ids, skip_special_tokens=False)}
    if with_special.ids != plain.ids:
        out["with_special"] = with_special.ids
    if as_text.ids != plain.ids:
        out["as_text"] = as_text.ids
    if name in SPECIAL:
        out["tokens"] = [tokenizer.id_to_token(i) for i in plain.ids]
        out["decoded_without_special"] = tokenizer.decode(plain.ids, skip_special_tokens=True)
    return out


def broken_ids(tokenizer, seed):
    """Sequences that are not the encoding of anything: half characters, stray bytes."""
    rng = random.Random(seed)
    size = tokenizer.get_vocab_size()
    for _ in range(12):
        ids = [rng.randrange(size if rng.random() < 0.4 else 300) for _ in range(10)]
        yield {"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)}


def main():
    texts = {**SCRIPTS, **OTHERS, **SPECIAL}
    golden = {"texts": texts, "tokenizers": {}}
    for name, tokenizer in tokenizers().items():
        state = tokenizer.to_str()
        if name == "smollm":
            state = old_merges(state)
        with open(os.path.join(HERE, name + ".json"), "w", encoding="utf-8") as f:
            f.write(json.dumps(json.loads(state), ensure_ascii=False, separators=(",", ":")) + "\n")
        golden["tokenizers"][name] = {
            "size": tokenizer.get_vocab_size(),
            "cases": [case(tokenizer, k, v) for k, v in texts.items()],
            "broken": list(broken_ids(tokenizer, 11)),
        }
    with open(os.path.join(HERE, "cases.json"), "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
