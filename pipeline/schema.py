"""The whole of params.yaml, joined from the rooms' sections.

    python -m pipeline.schema params.yaml             # check a file; exit 1 and say what is wrong
    python -m pipeline.schema --write                 # renew params.schema.json after changing a section

No stage imports this module, so a new knob reruns only the stages that read it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.benchmarks.params import Benchmark, FewShot, Tuning
from pipeline.clip.params import BackboneParams
from pipeline.clustering.params import Domains, Embed, Label, Topics
from pipeline.episodes.params import Episodes, Labelled, Shots, Ways
from pipeline.errors import InputError
from pipeline.gram.params import Count, Methods, Outer, Rate, Regulator, Study, TokenCount
from pipeline.pairs.params import Download, Filter
from pipeline.params import JSON_SCHEMA, Section, check_names, read_yaml, validate
from pipeline.report.params import Report
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
    few_shot: FewShot
    tuning: Tuning
    study: Study
    report: Report
    world: World

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        both = set(self.episodes) & set(self.labelled)
        if both:
            raise ValueError(f"'{min(both)}' stands under episodes and labelled; give one of them another name")
        for place, methods in (("methods", self.methods), ("study.methods", self.study.methods)):
            for name, method in methods.meta.items():
                if method.episodes not in [*self.episodes, *self.labelled]:
                    raise ValueError(f"{place}.meta.{name}.episodes is '{method.episodes}', which is no entry of 'episodes' or 'labelled' ({', '.join([*self.episodes, *self.labelled])})")
            both = set(methods.direct) & set(methods.meta)
            if both:
                raise ValueError(f"method '{min(both)}' stands under {place}.direct and {place}.meta; give one of them another name")
        known = set(self.study.methods.direct) | set(self.study.methods.meta)
        for pair in self.study.pairs:
            for name in pair:
                if name not in known:
                    raise ValueError(f"study.pairs names '{name}', which is no entry of 'study.methods' ({', '.join(sorted(known))})")
        return self


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
