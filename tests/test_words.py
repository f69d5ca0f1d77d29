"""Words and names in any script, topics that have no name, and JSON that is JSON."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from test_clustering import label

from pipeline.artifacts import read_json, write_json, write_table
from pipeline.clustering.edits import Edits, apply_edits
from pipeline.clustering.labels import coherence, count_words, describe_topics
from pipeline.clustering.schemas import DOMAINS, LABELS, TOPICS
from pipeline.clustering.words import splitter, stop_words, stop_words_of, what_to_set
from pipeline.episodes.params import Episodes
from pipeline.episodes.tasks import Pool, draw
from pipeline.errors import InputError
from pipeline.pairs.schemas import KEPT, PAIRS


@pytest.mark.parametrize(
    "text, words",
    [
        ("किताब की दुकान", ["किताब", "की", "दुकान"]),  # vowel signs
        ("हिन्दी क्रिकेट", ["हिन्दी", "क्रिकेट"]),  # viramas
        ("กี่ ที่นี่", ["กี่", "ที่นี่"]),  # two marks on one letter
        ("كِتَابٌ جَمِيلٌ", ["كِتَابٌ", "جَمِيلٌ"]),
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        ("می‌خواهم", ["می‌خواهم"]),  # a joiner inside
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),  # one word in two spellings
        ("Don't re-do 3d B2 a -foo- x", ["don't", "re-do", "b2", "foo"]),
        ("Добрый ёж", ["добрый", "ёж"]),
    ],
)
def test_words_are_not_torn(text, words):
    assert splitter(label())(text) == words


def test_topics_in_other_scripts_have_whole_names():
    captions = ["लाल किताब"] * 4 + ["नीली गाड़ी"] * 4 + ["كِتَابٌ جَمِيلٌ"] * 4
    counted = count_words(captions, label(language=None))
    described = describe_topics(counted, np.repeat(np.arange(3), 4), label())
    whole = {word for caption in captions for word in caption.split()}
    assert {w for d in described for w in d["words"]} == whole


@pytest.mark.parametrize(
    "language, text, words",
    [
        ("zh", "一只猫坐在红色的沙发上", {"猫", "红色", "沙发"}),
        ("ja", "赤い帽子をかぶった犬", {"帽子", "犬"}),
        ("th", "กำแพงสีแดง", {"กำแพง", "แดง"}),
        ("en", "a lion's 🦁 tail 𝒳", {"lion's", "tail"}),  # signs beyond 16 bits
    ],
)
def test_a_dictionary_finds_words_without_spaces(language, text, words):
    pytest.importorskip("icu")
    found = splitter(label(segmenter="icu", language=language))(text)
    assert words <= set(found) and text not in found


def test_stop_words_are_those_of_the_language():
    captions = ["der rote Bus und die Katze"] * 3 + ["der Löwe und die Maus"] * 3
    german = count_words(captions, label(language="de"))
    assert {"der", "und", "die"}.isdisjoint(german.words) and "löwe" in german.words
    assert {"der", "und"} <= set(count_words(captions, label(language=None)).words)
    assert "the" in stop_words("en") and not stop_words(None)
    with pytest.raises(InputError, match="'label.language' is 'klingon'.*de, el, en"):
        stop_words("klingon")


def test_captions_of_another_language_are_told_of():
    assert what_to_set(["a lion", "a bus"] * 50, label()) == []
    thai = ["a lion"] * 30 + ["กำแพงสีแดง"] * 10
    hints = what_to_set(thai, label())
    assert len(hints) == 2 and all(hint.startswith("25.0% of the captions") for hint in hints)
    assert "'label.segmenter' to icu" in hints[0] and "'label.language'" in hints[1]
    assert what_to_set(thai, label(language="th", segmenter="icu")) == []
    assert len(what_to_set(["добрый кот"] * 9, label())) == 1


def test_a_topic_without_a_word_of_its_own_has_no_name():
    captions = ["lion cub"] * 5 + ["red bus"] * 5 + ["tea pot"] * 5 + ["12 34 !!"] * 5
    described = describe_topics(count_words(captions, label()), np.repeat(np.arange(4), 5), label())
    assert [d["name"] is None for d in described] == [False, False, False, True]
    assert described[3]["words"] == described[3]["scores"] == [] and described[3]["size"] == 5


def test_a_name_that_others_took_is_not_numbered():
    """Three topics share one word: two of them would be "lion 1" and "lion 2"."""
    captions = ["lion"] * 9 + ["bus"] * 3 + ["tea"] * 3 + ["hat"] * 3
    described = describe_topics(count_words(captions, label()), np.repeat(np.arange(6), 3), label())
    assert [d["name"] for d in described] == ["lion", None, None, "bus", "tea", "hat"]
    assert described[1]["words"] == ["lion"]


def test_two_topics_have_no_names_by_eq_3_but_by_bertopic_s_formula():
    captions, topic = ["lion cub"] * 4 + ["red bus"] * 4, np.repeat([0, 1], 4)
    counted = count_words(captions, label())
    found = describe_topics(counted, topic, label())
    assert [d["name"] for d in found] == [None, None]
    assert coherence(counted, [d["words"] for d in found]) is None
    named = describe_topics(counted, topic, label(formula="bertopic"))
    assert [d["name"] for d in named] == ["cub", "bus"]


def test_a_person_may_name_what_has_no_name():
    topic, names = np.array([0, 1, 2, 3]), ["lion", None, "bus", None]
    edits = Edits(merge={}, rename={"topic 1": "kitten"}, drop=["bus"])
    assert apply_edits(topic, names, edits, "edits.yaml")[1] == ["lion", "kitten", None]
    spelled = Edits(merge={}, rename={"Lion": "cub"}, drop=[])
    assert apply_edits(topic, names, spelled, "edits.yaml")[1] == ["cub", None, "bus", None]
    with pytest.raises(InputError, match="there is no topic 'topic 2'"):
        apply_edits(topic, names, Edits(merge={}, rename={}, drop=["topic 2"]), "edits.yaml")


def stage(name, *arguments):
    return subprocess.run(
        [sys.executable, f"stages/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{path}: {constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("formula, unnamed", [("eq3", 2), ("bertopic", 0)])
def test_the_label_stage_counts_and_says_what_has_no_name(tmp_path, formula, unnamed):
    captions = ["lion cub"] * 6 + ["red bus"] * 6
    keys = [f"k{n:02d}" for n in range(12)]
    kept = pl.DataFrame({"key": keys, "caption": captions}).with_columns(
        score=pl.lit(1.0, pl.Float32), kept=pl.lit(True), reason=pl.lit("")
    )
    topics = pl.DataFrame({"key": keys, "topic": np.repeat([0, 1], 6)}).with_columns(
        pl.lit(1.0, pl.Float32).alias(c) for c in ("strength", "x", "y")
    )
    for table, schema, name in ((kept, KEPT, "kept"), (topics, TOPICS, "topics")):
        write_table(table.to_arrow(), tmp_path / f"{name}.parquet", schema)
    text = (ROOT / "params.yaml").read_text()
    assert text.count("formula: eq3") == 1
    (tmp_path / "params.yaml").write_text(text.replace("formula: eq3", f"formula: {formula}"))
    done = stage(
        "label",
        *("--params", tmp_path / "params.yaml", "--kept", tmp_path / "kept.parquet"),
        *("--topics", tmp_path / "topics.parquet", "--clusters", tmp_path / "clusters.parquet"),
        *("--out", tmp_path / "labels.parquet", "--metrics", tmp_path / "label.json"),
    )
    assert done.returncode == 0, done.stderr
    figures = strict(tmp_path / "label.json")
    assert figures["unnamed"] == unnamed and figures["named"] == 2 - unnamed
    assert ("coherence" in figures) == (unnamed == 0)
    names = pl.read_parquet(tmp_path / "labels.parquet")["name"]
    assert names.null_count() == unnamed and not names.str.contains("topic").any()
    warned = "2 of 2 topics have no word of their own" in done.stderr
    assert warned == (unnamed > 0)
    if unnamed:
        assert "topic 0 (6 captions), topic 1 (6 captions)" in done.stderr
        assert "set 'label.formula' to bertopic" in done.stderr


def named_pool(names, each=6):
    topic = np.repeat([t for t, name in enumerate(names) if name is not None], each)
    return Pool(
        topic,
        np.tile(np.arange(each) % 2, len(topic) // each),
        names,
        [f"k{n}" for n in range(len(topic))],
        np.random.default_rng(0).normal(size=(len(topic), 8)).astype(np.float16),
    )


def test_tasks_have_no_class_without_a_name():
    settings = Episodes(support="one_domain", tasks=30, confusable=0.5)
    pool = named_pool(["lion", None, "bus", "tea", None, "hat"])
    tasks = draw(pool, settings, ways=3, shots=2, queries=2, seed=0)
    assert {int(t) for task in tasks for t in task.topics} == {0, 2, 3, 5}
    with pytest.raises(InputError, match=r"only 4 topics with a name \(2 without\), but 'ways'"):
        draw(pool, settings, ways=5, shots=2, queries=2, seed=0)


def test_the_episodes_stage_leaves_them_out(tmp_path):
    """Up to the pictures, which it asks for of the named topics alone."""
    keys = [f"k{n:02d}" for n in range(12)]
    domains = pl.DataFrame({"key": keys, "topic": np.repeat([0, 1], 6), "domain": [0, 1] * 6})
    labels = pl.DataFrame(
        {"topic": [0, 1], "name": ["lion", None], "size": [6, 6], "words": [["lion"], []]}
    ).with_columns(scores=pl.lit([], pl.List(pl.Float32)))
    write_table(domains.to_arrow(), tmp_path / "domains.parquet", DOMAINS)
    write_table(labels.to_arrow(), tmp_path / "labels.parquet", LABELS)
    from pipeline.artifacts import to_vectors
    from pipeline.pairs.schemas import features_schema

    (tmp_path / "features").mkdir()
    vectors = to_vectors(np.random.default_rng(0).normal(size=(12, 8)))
    table = pl.DataFrame({"key": keys}).to_arrow()
    for column in ("image", "text"):
        table = table.append_column(column, vectors)
    write_table(table, tmp_path / "features" / "00000.parquet", features_schema(8))
    pairs = pl.DataFrame({"key": keys}).with_columns(
        *(pl.lit("a").alias(c) for c in ("caption", "status", "error", "shard", "sha256")),
        *(pl.lit(8).alias(c) for c in ("width", "height", "bytes")),
    )
    write_table(pairs.to_arrow(), tmp_path / "pairs.parquet", PAIRS)
    done = stage(
        "episodes",
        *("--name", "shifted", "--domains", tmp_path / "domains.parquet"),
        *("--labels", tmp_path / "labels.parquet", "--features", tmp_path / "features"),
        *("--pairs", tmp_path / "pairs.parquet", "--shards", tmp_path / "shards"),
        *("--out", tmp_path / "episodes"),
    )
    assert done.returncode == 1 and "only 1 topics with a name (1 without)" in done.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_strict(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json({"figure": [1, value]}, tmp_path / "figures.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "figures.json").write_text(json.dumps({"figure": value}))
    with pytest.raises(InputError, match="figures.json: not valid JSON"):
        read_json(tmp_path / "figures.json")


NOUNS = "bill bottom system fire mill mine back front top side call cry detail show well still"


def test_english_stop_words_are_no_nouns_that_pictures_show():
    stop = stop_words("en")
    assert stop.isdisjoint(NOUNS.split())
    assert {"the", "of", "with", "it", "is", "under", "two", "seven", "and", "not"} <= stop
    counted = count_words(["the bill of a duck", "a fire in the mill"], label(longest_phrase=2))
    assert {"bill", "bill duck", "fire mill"} <= set(counted.words)


@pytest.mark.parametrize("choose", ["words", "pictures"])
@pytest.mark.parametrize(
    "given, gone, left",
    [
        ("Photo", {"photo", "photo lion"}, {"stock", "lion"}),
        ("cafe\u0301", {"café", "café photo"}, {"lion"}),
        ("Stock  Photo", {"stock photo", "photo", "photo lion"}, {"stock car", "lion"}),
        ("women’s", {"women's"}, {"hat"}),
        ("T\u2011Shirt", {"t-shirt"}, {"lion"}),
        ("", set(), {"photo"}),
    ],
)
def test_stop_words_are_split_and_spelled_as_captions_are(given, gone, left, choose):
    captions = ["stock photo lion", "STOCK CAR", "café photo hat", "women's hat", "lion t-shirt"]
    settings = label(longest_phrase=2, choose=choose)
    before = set(count_words(captions, settings).words)
    words = set(
        count_words(
            ["stock photo lion", "stock car", "café hat", "women's hat", "lion t-shirt"],
            settings.model_copy(update={"stop_words": [given]}),
        ).words
    )
    assert gone <= before and gone.isdisjoint(words) and left <= words


def test_a_stop_phrase_is_no_name_where_stop_words_stand_between():
    counted = count_words(
        ["stock of a photo", "photo stock"], label(longest_phrase=2, stop_words=["stock photo"])
    )
    assert set(counted.words) == {"stock", "photo", "photo stock"}


@pytest.mark.parametrize("sign", "'’‘ʼ`´＇")
@pytest.mark.parametrize(
    "language, text, words",
    [
        ("en", "it{}s women{}s day", ["women's", "day"]),
        ("en", "I{}ve, don{}t, can{}t, they{}ll, isn{}t, won{}t, who{}d, let{}s", []),
        ("en", "O{}Brien d{}Artagnan rock{}n{}roll", ["o'brien", "d'artagnan", "rock'n'roll"]),
        ("fr", "l{}eau d{}un lac qu{}elle", ["eau", "lac"]),
        ("fr", "presqu{}île d{}Aujourd{}hui", ["presqu'île"]),
        ("it", "l{}acqua dell{}isola", ["acqua", "isola"]),
        ("uk", "п{}ять об{}єктів", ["п'ять", "об'єктів"]),
        ("tr", "İstanbul{}da köprü", ["i\u0307stanbul'da", "köprü"]),
        (None, "l{}eau", ["l'eau"]),
    ],
)
def test_apostrophes_have_one_spelling_and_short_forms_name_nothing(sign, language, text, words):
    settings = label(language=language)
    split = splitter(settings)
    found = stop_words_of(settings, split).without(split(text.replace("{}", sign)))
    assert found == words


def test_a_stop_list_s_own_phrases_are_phrases():
    settings = label(language="vi")
    split = splitter(settings)
    assert stop_words_of(settings, split).without(split("Bất chợt con mèo")) == ["mèo"]


def test_hyphens_have_one_spelling():
    assert splitter(label())("T\u2011shirt t\u2010shirt photo\u00adgraph") == [
        "t-shirt",
        "t-shirt",
        "photograph",
    ]
