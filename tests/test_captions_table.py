"""Captions as the world has them, on their way from the table to the words that name topics."""

import numpy as np
import polars as pl
import pytest
from test_clustering import label
from test_pairs import FILTER

from pipeline.artifacts import to_vectors, write_table
from pipeline.clustering.labels import count_words
from pipeline.errors import InputError
from pipeline.pairs.noise import filter_pairs
from pipeline.pairs.params import Filter
from pipeline.pairs.schemas import KEPT, PAIRS, features_schema
from pipeline.sources.params import Source
from pipeline.sources.table import read_captions
from pipeline.words import number_of_words


def filtered(folder, captions, **rules):
    """`filter_pairs` of captions by key, each with a picture of its own that it matches."""
    folder.mkdir(exist_ok=True)
    keys, count = sorted(captions), len(captions)
    pairs = pl.DataFrame({"key": keys, "caption": [captions[k] for k in keys]}).with_columns(
        *(pl.lit(text).alias(c) for c, text in (("status", "success"), ("shard", "0.tar"))),
        *(pl.lit(64, pl.Int32).alias(c) for c in ("width", "height", "bytes")),
        error=pl.lit(None, pl.String),
        sha256=pl.col("key"),
    )
    write_table(pairs.select(PAIRS.names).to_arrow(), folder / "pairs.parquet", PAIRS)
    features = pl.DataFrame({"key": keys}).to_arrow()
    for column in ("image", "text"):
        features = features.append_column(column, to_vectors(np.eye(count)))
    (folder / "features").mkdir(exist_ok=True)
    write_table(features, folder / "features" / "00000.parquet", features_schema(count))
    settings = FILTER | dict(min_characters=1, max_characters=1000, score="cosine") | rules
    settings |= dict(select="threshold", threshold=0.5)
    kept, _ = filter_pairs(folder / "pairs.parquet", folder / "features", Filter(**settings))
    assert kept.schema.names == KEPT.names
    return pl.from_arrow(kept)


WHOLE = {
    "Chinese": "一只猫坐在红色的沙发上",
    "traditional Chinese": "一隻貓坐在紅色的沙發上",
    "Japanese": "赤い帽子をかぶった犬",
    "Thai": "ผู้ชายกำลังขี่จักรยาน",
    "Lao": "ຜູ້ຊາຍຂີ່ລົດຖີບ",
    "Khmer": "បុរសម្នាក់កំពុងជិះកង់",
    "Burmese": "အမျိုးသားတစ်ယောက်စက်ဘီးစီးနေသည်",
    "Tibetan": "བོད་ཡིག་གི་དཔེ་ཆ",
    "Korean": "빨간 소파에 앉은 고양이",
    "Hindi": "लाल किताब की दुकान",
    "English": "a cat on a mat",
}


@pytest.mark.parametrize("language", WHOLE)
def test_a_sentence_has_more_words_than_the_profiles_ask_for(language):
    assert number_of_words(pl.Series([WHOLE[language]])).to_list()[0] >= 3


@pytest.mark.parametrize("least", [2, 3])
def test_the_filter_keeps_sentences_and_drops_words_of_every_script(tmp_path, least):
    captions = {f"s{n:02d}": caption for n, caption in enumerate(WHOLE.values())}
    words = {
        f"w{n}": word for n, word in enumerate(["猫", "แมว", "コンピューター", "lion", "고양이"])
    }
    judged = filtered(tmp_path / "filter", captions | words, min_words=least)
    reasons = {key: {"s": "", "w": "short caption"}[key[0]] for key in judged["key"]}
    assert dict(judged.select("key", "reason").iter_rows()) == reasons


@pytest.mark.parametrize(
    "word",
    ["猫", "ねこ", "コンピューター", "แมว", "กำแพง!", "ឆ្កែ", "ကြောင်", "ແມວ", "고양이", "lion"],
)
def test_a_word_is_one(word):
    """In the company of a sentence, too, so that both ways of counting are taken."""
    counts = number_of_words(pl.Series([word, WHOLE["Chinese"], "a lion"])).to_list()
    assert counts == [1, 6, 2] == [*number_of_words(pl.Series([word])), *counts[1:]]


@pytest.mark.parametrize(
    "caption, words",
    [
        ("", 0),
        ("! - &", 0),
        ("black & white - 3 cats", 4),
        ("don't re-do it", 3),
        ("iPhone手机壳 red", 4),
        ("cafe\u0301 noir", 2),
    ],
)
def test_words_lie_between_spaces_and_signs_are_none(caption, words):
    assert number_of_words(pl.Series([caption])).to_list() == [words]


TABLE = {  # caption as a table has it → as it is read, and words that may name a topic
    "voil\u00c3\u00a0 le lac": ("voilà le lac", {"voilà", "le", "lac"}),
    "salt &amp pepper mill": ("salt & pepper mill", {"salt", "pepper", "mill"}),
    "it’s a women’s coat": ("it’s a women’s coat", {"women's", "coat"}),
    "it's a women's coat": ("it's a women's coat", {"women's", "coat"}),
    "the bill of a duck": ("the bill of a duck", {"bill", "duck"}),
    "Stock Photo of a stock car": ("Stock Photo of a stock car", {"stock", "car"}),
    "Cafe\u0301 au lait": ("Café au lait", {"au", "lait"}),
    **{sentence: (sentence, None) for sentence in WHOLE.values()},
    "1 2": ("1 2", set()),
}


def test_a_table_of_all_kinds_goes_from_the_table_to_words(tmp_path):
    """A header row of LAION's names, lines that end with CR alone, in a folder of parts."""
    rows = [f"{caption}\thttp://a/{n}" for n, caption in enumerate(TABLE)]
    folder = tmp_path / "table.tsv"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    for part, some in enumerate((rows[::2], rows[1::2])):
        text = "\r".join(["TEXT\tURL", *some]) + "\r"
        (folder / f"part-{part:05d}.tsv").write_bytes(text.encode())
    source = dict(path=str(tmp_path), table="table.tsv", obtain=None, columns=None, pictures=None)
    table, counts = read_captions(Source(bad_rows="error", **source))
    captions = dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))
    assert sorted(captions.values()) == sorted(read for read, _ in TABLE.values())
    assert counts["mended"] == 3
    judged = filtered(tmp_path / "filter", captions, min_words=3)
    dropped = judged.filter(~pl.col("kept"))
    assert dropped.select("caption", "reason").rows() == [("1 2", "short caption")]
    settings = label(stop_words=["Stock  Photo", "CAFÉ"], longest_phrase=2)
    for read, words in TABLE.values():
        if words:
            found = set(count_words([read], settings).words)
            assert {word for word in found if " " not in word} == words
    with pytest.raises(InputError, match="none of 1 captions holds a word"):
        count_words(["1 2"], settings)


def test_a_message_that_quotes_too_much_keeps_both_ends():
    text = str(InputError("file.tsv: " + "x" * 10**6 + "; the remedy"))
    assert text.startswith("file.tsv: ") and text.endswith("; the remedy") and len(text) < 4000
