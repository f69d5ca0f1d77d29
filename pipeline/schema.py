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
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, model_validator

from pipeline.benchmarks.params import Benchmark, Evaluate, FewShot, Protocols, Tuning
from pipeline.clip.params import BackboneParams
from pipeline.clustering.params import Domains, Embed, Label, Topics
from pipeline.episodes.params import Episodes, Labelled, Shots, Ways
from pipeline.errors import InputError
from pipeline.gram.params import Count, Methods, Outer, Prompt, Rate, Regulator, Study, TokenCount
from pipeline.pairs.params import Download, Filter
from pipeline.params import JSON_SCHEMA, Section, check_names, read_yaml, validate
from pipeline.report.params import Gallery, Report
from pipeline.sources.params import Source
from pipeline.world.params import DrawnBenchmark, Truth, Web


class World(Section):
    """What the demo draws; both empty where the real web and real datasets are used."""

    webs: dict[str, Web]
    benchmarks: dict[str, DrawnBenchmark]
    truths: dict[str, Truth]


class Params(Section):
    """Every key of params.yaml; see the comments there."""

    seed: Annotated[int, Field(ge=0)]
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
    backbone: BackboneParams
    source: Source
    download: Download
    filter: Filter
    embed: Embed
    topics: Topics
    label: Label
    domains: Domains
    episodes: dict[str, Episodes]
    labelled: dict[str, Labelled]
    regulator: Regulator
    outer: Outer
    methods: Methods
    benchmarks: dict[str, Benchmark]
    protocols: dict[str, Protocols]
    few_shot: FewShot
    tuning: Tuning
    evaluate: Evaluate
    study: Study
    gallery: Gallery
    report: Report
    world: World

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        for place, owner in (("", self), ("study.", self.study)):
            methods, kinds = owner.methods, [*owner.episodes, *owner.labelled]
            both = set(owner.episodes) & set(owner.labelled)
            if both:
                raise ValueError(
                    f"'{min(both)}' stands under {place}episodes and {place}labelled; give one of "
                    "them another name"
                )
            for name, method in methods.meta.items():
                if method.episodes not in kinds:
                    raise ValueError(
                        f"{place}methods.meta.{name}.episodes is '{method.episodes}', which is no "
                        f"entry of '{place}episodes' or '{place}labelled' "
                        f"({', '.join(kinds)})"
                    )
            tables = [table for table in ("zero_shot", "direct", "meta") if hasattr(methods, table)]
            for one, other in itertools.combinations(tables, 2):
                both = set(getattr(methods, one)) & set(getattr(methods, other))
                if both:
                    raise ValueError(
                        f"method '{min(both)}' stands under {place}methods.{one} and "
                        f"{place}methods.{other}; give one of them another name"
                    )
        for prompt in self.tuning.batch_of:
            if prompt not in get_args(Prompt):
                raise ValueError(
                    f"tuning.batch_of names '{prompt}', which is no kind of prompt "
                    f"({', '.join(get_args(Prompt))})"
                )
        for seed in self.few_shot.seeds:
            if seed not in self.few_shot.draws:
                raise ValueError(
                    f"few_shot.seeds has {seed}, which is none of 'few_shot.draws' "
                    f"({', '.join(map(str, self.few_shot.draws))})"
                )
        for name, protocols in self.protocols.items():
            self._has_shots(f"protocols.{name}.base_to_new", name, "base", protocols.base_to_new)
            self._has_shots(f"protocols.{name}.all_classes", name, "all", protocols.all_classes)
            for kind in ("cross_domain", "cross_dataset"):
                for target in getattr(protocols, kind):
                    self._is_benchmark(f"protocols.{name}.{kind}", target)
        for name in self.study.benchmarks:
            self._has_shots("study.benchmarks", name, "base", [self.study.shots])
        for place, pairs, methods in (
            ("study.pairs", self.study.pairs, self.study.methods),
            ("report.pairs", self.report.pairs, self.methods),
        ):
            known = methods.titles()
            for name in itertools.chain(*pairs):
                if name not in known:
                    raise ValueError(
                        f"{place} names '{name}', which is no entry of "
                        f"'{'study.' if place.startswith('study') else ''}methods' "
                        f"({', '.join(sorted(known))})"
                    )
        return self

    def _is_benchmark(self, place: str, name: str) -> None:
        if name not in self.benchmarks:
            raise ValueError(
                f"{place} names '{name}', which is no entry of 'benchmarks' "
                f"({', '.join(self.benchmarks)})"
            )

    def _has_shots(self, place: str, name: str, classes: str, wanted: list[int]) -> None:
        self._is_benchmark(place, name)
        for shots in wanted:
            if shots not in getattr(self.benchmarks[name].shots, classes):
                raise ValueError(
                    f"{place} asks for {shots} shots, but 'benchmarks.{name}.shots.{classes}' "
                    f"does not list them; add {shots} there"
                )


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
            check(path)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
