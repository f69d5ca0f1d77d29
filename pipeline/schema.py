"""The whole of params.yaml, joined from the rooms' sections.

    python -m pipeline.schema params.yaml             # check a file; exit 1 and say what is wrong
    python -m pipeline.schema --write                 # renew params.schema.json after changing a
    section

Of the stages, `params` alone imports this module, so that a new knob reruns only those that read
it.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import stopwordsiso
from pydantic import model_validator

from pipeline.benchmarks.params import (
    Benchmark,
    Evaluate,
    FewShot,
    PromptTemplate,
    Protocols,
    Tuning,
)
from pipeline.clip.params import BackboneParams
from pipeline.clustering.params import Domains, Embed, Label, Topics
from pipeline.episodes.params import Episodes, Labelled, Share, Shots, TaskCount, Ways
from pipeline.errors import InputError
from pipeline.gram.params import (
    Count,
    Method,
    Methods,
    Outer,
    Prompt,
    Rate,
    Regulator,
    Study,
    TokenCount,
    known_pairs,
)
from pipeline.pairs.params import Download, Filter
from pipeline.params import (
    JSON_SCHEMA,
    LEAST,
    MOST,
    Name,
    Section,
    Seed,
    check_names,
    did_you_mean,
    read_yaml,
    validate,
)
from pipeline.report.params import Gallery, Report
from pipeline.sources.params import Source
from pipeline.world.params import DrawnBenchmark, Truth, Web

TOWERS = ("text", "vision")
AVERAGE = "average"  # what tables call their first block or last column


class World(Section):
    """What the demo draws; nothing where the real web and real datasets are used."""

    webs: dict[Name, Web] = {}
    benchmarks: dict[Name, DrawnBenchmark] = {}
    truths: dict[Name, Truth] = {}


class Params(Section):
    """Every key of params.yaml; see the comments there."""

    seed: Seed
    inner_lr: Rate
    inner_steps: Count
    outer_lr: Rate
    regulator_lr: Rate
    meta_batch: Count
    meta_steps: Count
    context_tokens: TokenCount
    ways: Ways
    support_shots: Shots
    query_shots: Shots
    meta_seed: Seed
    held_out_topics: Share
    validation_tasks: TaskCount
    backbone: BackboneParams
    source: Source
    download: Download
    filter: Filter
    embed: Embed
    topics: Topics
    label: Label
    domains: Domains
    episodes: dict[Name, Episodes]
    labelled: dict[Name, Labelled]
    regulator: Regulator
    outer: Outer
    methods: Methods
    benchmarks: dict[Name, Benchmark]
    templates: dict[Name, PromptTemplate]
    protocols: dict[Name, Protocols]
    few_shot: FewShot
    tuning: Tuning
    evaluate: Evaluate
    study: Study
    gallery: Gallery
    report: Report
    world: World

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        problems = list(
            itertools.chain(
                *(_of_methods(place, owner, self) for place, owner in self._owners()),
                *(_of_titles(place, owner) for place, owner in self._owners()),
                *(_alike(what, names) for what, names in self._named_together()),
                _of_captions(self),
                _of_topics(self.topics),
                self._of_tasks(),
                self._of_validation(),
                self._of_tuning(),
                self._of_protocols(),
                self._of_stages(),
                _of_world(self.world),
            )
        )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _owners(self) -> list[tuple[str, Params | Study]]:
        return [("", self), ("study.", self.study)]

    def _of_tasks(self) -> Iterator[str]:
        """Tasks that could not be drawn, hours later."""
        if self.domains.per_topic < 2 and (self.episodes or self.study.episodes):
            yield (
                "domains.per_topic is 1, but tasks of 'episodes' are drawn from topics of two "
                "domains or more; raise it"
            )
        pictures = self.support_shots + self.query_shots
        for place, owner in self._owners():
            for name, labelled in owner.labelled.items():
                if labelled.per_class < pictures:
                    yield (
                        f"{place}labelled.{name}.per_class is {labelled.per_class}, but a class "
                        f"of a task takes {self.support_shots} + {self.query_shots} pictures "
                        "('support_shots', 'query_shots'); raise it"
                    )

    def _of_validation(self) -> Iterator[str]:
        if self.outer.keep == "best" and not self.held_out_topics:
            yield (
                "outer.keep is 'best', but 'held_out_topics' is 0, so that there are no validation "
                "tasks to choose by; raise it, or set 'outer.keep' to last or average"
            )

    def _named_together(self) -> Iterator[tuple[str, list[str]]]:
        """What stands in one folder, or in one table, by its name."""
        for place, owner in self._owners():
            yield f"{place}methods", owner.methods.names
            yield f"{place}episodes and {place}labelled", [*owner.episodes, *owner.labelled]
        yield "benchmarks", list(self.benchmarks)
        for table in ("webs", "benchmarks", "truths"):
            yield f"world.{table}", list(getattr(self.world, table))

    def _of_stages(self) -> Iterator[str]:
        """DVC joins a stage's name from its benchmark's and its method's by '-'."""
        for table in ("direct", "meta"):
            of: dict[str, list[str]] = {}
            for name, method in itertools.product(self.protocols, getattr(self.methods, table)):
                of.setdefault(f"{name}-{method}", []).append(f"'{method}' on '{name}'")
            for joined, both in of.items():
                if len(both) > 1:
                    yield (
                        f"methods.{table} and protocols: {' and '.join(both)} are both the stage "
                        f"'{joined}'; rename one of them"
                    )

    def _of_tuning(self) -> Iterator[str]:
        for table in ("batch_of", "lr_factor_of"):
            for prompt in getattr(self.tuning, table):
                if prompt not in get_args(Prompt):
                    yield (
                        f"tuning.{table} names '{prompt}', which is no kind of prompt "
                        f"({', '.join(get_args(Prompt))})"
                    )
        for prompt, factor in self.tuning.lr_factor_of.items():
            yield from _of_rate(
                f"tuning.lr_factor_of.{prompt}", factor, "tuning.lr", self.tuning.lr
            )
        for seed in self.few_shot.seeds:
            if seed not in self.few_shot.draws:
                yield (
                    f"few_shot.seeds has {seed}, which is none of 'few_shot.draws' "
                    f"({', '.join(map(str, self.few_shot.draws))})"
                )

    def _of_protocols(self) -> Iterator[str]:
        if AVERAGE in self.benchmarks:
            yield (f"benchmarks.{AVERAGE}: tables have a row of that name; give it another one")
        for name, protocols in self.protocols.items():
            place = f"protocols.{name}"
            yield from self._lacks_shots(f"{place}.base_to_new", name, "base", protocols)
            yield from self._lacks_shots(f"{place}.all_classes", name, "all", protocols)
            for both in sorted({*protocols.cross_domain} & {*protocols.cross_dataset}):
                yield (
                    f"{place} names '{both}' under cross_domain and cross_dataset, but a target "
                    "has the source's classes or others; remove one of them"
                )
            for kind in ("cross_domain", "cross_dataset"):
                for target in getattr(protocols, kind):
                    yield from self._lacks_benchmark(f"{place}.{kind}", target)
                    if target == name:
                        yield (
                            f"{place}.{kind} names '{name}' itself; the average over targets "
                            "leaves the source out: remove it (it is judged anyway)"
                        )
        for name in self.study.benchmarks:
            wanted = Protocols(base_to_new=[self.study.shots], all_classes=[])
            yield from self._lacks_shots("study.benchmarks", name, "base", wanted)
        for name in self.benchmarks:
            if name not in self.templates:
                yield (
                    f"templates has no '{name}', which is an entry of 'benchmarks'; add its "
                    'hand-written prompt there, for example "a photo of a {}."'
                )
        for name in self.templates:
            yield from self._lacks_benchmark("templates", name)
        for name in self._gone():
            yield (
                f"if '{name}' is to go: `python -m {__package__}.remove benchmarks.{name}` takes "
                "it out wherever it stands"
            )

    def _gone(self) -> list[str]:
        """What is named as a benchmark, and is none."""
        targets = [[*of.cross_domain, *of.cross_dataset] for of in self.protocols.values()]
        named = [*self.templates, *self.protocols, *self.study.benchmarks]
        return [
            n for n in dict.fromkeys(itertools.chain(named, *targets)) if n not in self.benchmarks
        ]

    def _lacks_benchmark(self, place: str, name: str) -> Iterator[str]:
        if name not in self.benchmarks:
            yield (
                f"{place} names '{name}', which is no entry of 'benchmarks' "
                f"({', '.join(self.benchmarks)})"
            )

    def _lacks_shots(
        self, place: str, name: str, classes: Literal["base", "all"], protocols: Protocols
    ) -> Iterator[str]:
        wanted = protocols.base_to_new if classes == "base" else protocols.all_classes
        if wanted:
            yield from self._lacks_benchmark(place, name)
        for shots in wanted if name in self.benchmarks else ():
            if shots not in getattr(self.benchmarks[name].shots, classes):
                yield (
                    f"{place} asks for {shots} shots, but 'benchmarks.{name}.shots.{classes}' "
                    f"does not list them; add {shots} there"
                )

    def remarks(self) -> list[str]:
        """What is named but left out, as there is no such thing."""
        titles = [
            f"{place}methods.titles names '{name}', but there is no such method; it is left out"
            for place, owner in self._owners()
            for name in owner.methods.titles
            if name not in owner.methods.names
        ]
        return [
            *titles,
            *known_pairs(self.report.pairs, self.methods.called, "report.pairs")[1],
            *known_pairs(self.study.pairs, self.study.methods.called, "study.pairs")[1],
            *(
                f"evaluate.curve_epochs has {epoch}, but 'few_shot.epochs' is "
                f"{self.few_shot.epochs}; it is left out"
                for epoch in self.evaluate.curve_epochs
                if epoch > self.few_shot.epochs
            ),
        ]


def _of_methods(place: str, owner: Params | Study, top: Params) -> Iterator[str]:
    """What does not fit among the methods of params.yaml, or of its study."""
    methods, kinds = owner.methods, [*owner.episodes, *owner.labelled]
    for both in sorted(set(owner.episodes) & set(owner.labelled)):
        yield (
            f"'{both}' stands under {place}episodes and {place}labelled; give one of them another "
            "name"
        )
    for name, meta in methods.meta.items():
        own = f"{place}methods.meta.{name}"
        yield from _of_rate(
            f"{own}.inner_lr_factor", meta.inner_lr_factor, "inner_lr", top.inner_lr
        )
        yield from _of_rate(
            f"{own}.outer_lr_factor", meta.outer_lr_factor, "outer_lr", top.outer_lr
        )
        if meta.episodes not in kinds:
            yield (
                f"{place}methods.meta.{name}.episodes is '{meta.episodes}', which is no entry of "
                f"'{place}episodes' or '{place}labelled' ({', '.join(kinds)})"
            )
    tables = {k: dict(getattr(methods, k, {})) for k in ("zero_shot", "direct", "meta")}
    for one, other in itertools.combinations(tables, 2):
        for both in sorted(set(tables[one]) & set(tables[other])):
            yield (
                f"method '{both}' stands under {place}methods.{one} and {place}methods.{other}; "
                "give one of them another name"
            )
    for table in ("direct", "meta"):
        for name, method in tables[table].items():
            if complaint := _of_prompt(method, top.context_tokens):
                yield f"{place}methods.{table}.{name}: {complaint}"


def _of_titles(place: str, owner: Params | Study) -> Iterator[str]:
    """Methods that would be one in tables and plots; pairs that would be there twice."""
    of: dict[str, str] = {}
    for name, title in owner.methods.called.items():
        plain = " ".join(unicodedata.normalize("NFKC", title).casefold().split())
        if plain in of:
            yield (
                f"{place}methods.titles: '{of[plain]}' and '{name}' are both called '{title}', so "
                "that tables and plots could not tell them apart; give one of them another title"
            )
        of.setdefault(plain, name)
    pairs = owner.pairs if isinstance(owner, Study) else owner.report.pairs
    for pair in pairs:
        if pair[::-1] in pairs and pair < pair[::-1]:
            yield (
                f"{place or 'report.'}pairs compares '{pair[0]}' with '{pair[1]}' and the other "
                "way round; leave one of them"
            )


def _alike(what: str, names: list[str]) -> Iterator[str]:
    """Names that some file systems, and legends of plots, take for one."""
    of: dict[str, str] = {}
    for name in names:
        other = of.setdefault(name.casefold(), name)
        if other != name:
            yield (
                f"{what}: '{other}' and '{name}' differ in capital letters alone, and would be one "
                "folder where a file system does not tell these apart; rename one of them"
            )


def _of_rate(place: str, factor: float, name: str, rate: float) -> Iterator[str]:
    if not LEAST <= rate * factor <= MOST:
        yield (
            f"{place} is {factor}, and '{name}' {rate}: their product is none that 32 bits hold; "
            "choose others"
        )


def _of_captions(top: Params) -> Iterator[str]:
    """Rules by which no pair would be kept, or no word would be left out."""
    rules, size = top.filter, top.download.image_size
    if rules.min_side > size:
        yield (
            f"filter.min_side is {rules.min_side}, but the shorter side of every picture is "
            f"{size} pixels at most ('download.image_size'), so that none would be kept; lower the "
            "one or raise the other"
        )
    if rules.min_words > rules.max_characters:
        yield (
            f"filter.min_words ({rules.min_words}) is above 'filter.max_characters' "
            f"({rules.max_characters}): no caption would be kept; lower it"
        )
    most = 1 if rules.score == "cosine" else 4  # csls: twice a cosine, less two means of cosines
    if rules.select == "threshold" and abs(rules.threshold) > most:
        yield (
            f"filter.threshold is {rules.threshold}, but with 'score: {rules.score}' all scores "
            f"lie between {-most} and {most}; choose a number there"
        )
    known, language = stopwordsiso.langs(), top.label.language
    if language is not None and language not in known:
        hint = did_you_mean(language.lower(), known)
        yield f"label.language is '{language}', and there are no stop words for it{hint}"


def _of_topics(topics: Topics) -> Iterator[str]:
    """Samples in which there is no topic, or not the neighbours that are asked for."""
    least = {"components": topics.components, "min_samples": topics.min_samples}
    if topics.selection != "plscan":
        least["min_cluster_size"] = topics.min_cluster_size - 1
    for sample, needs in (("fit_on", least), ("map_on", {})):
        most = getattr(topics, sample)
        for name, need in (needs | {"neighbours": topics.neighbours}).items():
            if need >= most:
                yield (
                    f"topics.{sample} is {most}, which is too few captions for 'topics.{name}' "
                    f"({getattr(topics, name)}); raise the one or lower the other"
                )


def _of_world(world: World) -> Iterator[str]:
    for name, web in world.webs.items():
        lost = web.dead_links + web.truncated + web.not_pictures
        if lost > 1:
            yield (
                f"world.webs.{name}: 'dead_links', 'truncated' and 'not_pictures' are shares of "
                f"all links, and their sum is {lost:g}; lower them to 1 at most"
            )


def lacking(top: Params) -> Iterator[str]:
    """What a stage would lack here that may be late; whoever does not run it needs none of it."""
    wanted = [
        ("icu", "label.segmenter is 'icu'", top.label.segmenter == "icu"),
        ("fast_hdbscan", "topics.selection is 'plscan'", top.topics.selection == "plscan"),
    ]
    if (model := top.embed.model).startswith("package:"):
        package = model.removeprefix("package:").partition("/")[0]
        wanted.append((package, f"embed.model is '{model}'", package.isidentifier()))
    for package, why, asked in wanted:
        if asked and importlib.util.find_spec(package) is None:
            yield f"{why}, but the package {package} is not installed here; its stage would fail"
    if not Path(top.label.edits).is_file():
        yield (
            f"label.edits is '{top.label.edits}', but there is no such file here; the stage label "
            "would fail"
        )


def _of_prompt(method: Method, context_tokens: int) -> str | None:
    """What a kind of prompt refuses when it is made, which may be hours later."""
    tokens = method.tokens or context_tokens
    if method.prompt == "joint" and tokens % 2:
        return (
            f"a joint prompt divides its tokens between text and image, but there are {tokens}; "
            "make 'tokens' or 'context_tokens' an even number"
        )
    if method.prompt == "cocoop" and method.depth > 1:
        return "'depth' of cocoop is 1: it learns tokens at the text tower's input only"
    return None


def check(path: Path | str) -> Params:
    """The validated file; InputError with one line per problem."""
    values = read_yaml(path)
    check_names(values, Params.model_fields, path)
    found = validate(Params, values, "", path)
    if problems := list(_of_backbone(found)):
        raise InputError("\n".join(f"{path}: {problem}" for problem in problems))
    return found


def _of_backbone(top: Params) -> Iterator[str]:
    """Prompts that do not fit into the towers, as far as the backbone is here and tells."""
    try:
        config = json.loads((Path(top.backbone.path) / "open_clip_config.json").read_text("utf-8"))
        text, vision = (config["model_cfg"][f"{tower}_cfg"] for tower in ("text", "vision"))
        room = text.get("context_length", 77)
        layers = {"text": text.get("layers", 12), "vision": vision.get("layers", 12)}
        if "hf_model_name" in text:
            del layers["text"]
        if vision.get("timm_model_name") or not isinstance(layers["vision"], int):
            del layers["vision"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # whoever loads it says what is wrong with it
    for place, owner in top._owners():
        for name, method in [*owner.methods.direct.items(), *owner.methods.meta.items()]:
            if told := _of_towers(method, method.tokens or top.context_tokens, layers, room):
                yield f"{place}methods: '{name}' {told}"


def _of_towers(method: Method, tokens: int, layers: dict[str, int], room: int) -> str | None:
    """What a prompt of so many tokens asks of the towers that they do not have."""
    of = {"coop": ("text",), "vpt": ("vision",), "joint": TOWERS, "coupled": TOWERS}
    for tower in of.get(method.prompt, ()):
        if tower in layers and method.depth > layers[tower]:
            return (
                f"has a depth of {method.depth}, but the backbone's {tower} tower has "
                f"{layers[tower]} blocks; lower 'depth'"
            )
    words = {"vpt": 0, "joint": tokens // 2}.get(method.prompt, tokens)
    if words + 3 > room:  # a start, an end, and a token of the class's name
        return (
            f"learns {words} tokens of text, but the backbone reads {room}, with the class's name "
            "and two of its own; lower 'tokens' or 'context_tokens'"
        )
    return None


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        JSON_SCHEMA.write_text(json.dumps(Params.model_json_schema(), indent=1) + "\n")
        return 0
    try:
        for path in arguments or ["params.yaml"]:
            found = check(path)
            for remark in [*found.remarks(), *lacking(found)]:
                print(f"warning: {path}: {remark}", file=sys.stderr)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
