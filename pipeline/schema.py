"""The whole of params.yaml, joined from the rooms' sections.

    python -m pipeline.schema params.yaml             # check a file; exit 1 and say what is wrong
    python -m pipeline.schema --write                 # renew params.schema.json after changing a
    section

No stage imports this module, so a new knob reruns only the stages that read it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

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
    Name,
    Section,
    Seed,
    check_names,
    read_yaml,
    validate,
)
from pipeline.report.params import Gallery, Report
from pipeline.sources.params import Source
from pipeline.world.params import DrawnBenchmark, Truth, Web

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
                self._of_tasks(),
                self._of_tuning(),
                self._of_protocols(),
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

    def _of_tuning(self) -> Iterator[str]:
        for table in ("batch_of", "lr_factor_of"):
            for prompt in getattr(self.tuning, table):
                if prompt not in get_args(Prompt):
                    yield (
                        f"tuning.{table} names '{prompt}', which is no kind of prompt "
                        f"({', '.join(get_args(Prompt))})"
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
                f"if '{name}' is to go: `python -m pipeline.remove benchmarks.{name}` takes it out "
                "wherever it stands"
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
    return validate(Params, values, "", path)


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        JSON_SCHEMA.write_text(json.dumps(Params.model_json_schema(), indent=1) + "\n")
        return 0
    try:
        for path in arguments or ["params.yaml"]:
            for remark in check(path).remarks():
                print(f"warning: {path}: {remark}", file=sys.stderr)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
