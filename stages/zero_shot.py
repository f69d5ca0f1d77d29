"""Judges CLIP with hand-written prompts on the test pictures of every source and its targets;
nothing is tuned.

    python stages/zero_shot.py --name clip --benchmarks data/benchmarks --out data/scores/clip
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.benchmarks.evaluation import judge_source
from pipeline.benchmarks.headline import headline, in_words, rounded
from pipeline.benchmarks.judged import read_verdicts, save_judged
from pipeline.benchmarks.params import PromptTemplate, Protocols
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.params import ZeroShot
from pipeline.params import load_params
from pipeline.prompts.template import Template
from pipeline.stage import output, parser, progress, run, warn_of_left_overs
from pipeline.tracking.journal import keep

READS = {
    "method": ("methods.zero_shot.{name}", ZeroShot),
    "protocols": ("protocols", dict[str, Protocols]),
    "templates": ("templates", dict[str, PromptTemplate]),
    "backbone": ("backbone", BackboneParams),
}
UNTUNED = {(0, 0, 0): {}}  # shots, seed and epoch of what learns nothing


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of methods.zero_shot")
    cli.add_argument("--benchmarks", type=Path, required=True, help="folder of benchmarks")
    cli.add_argument(
        "--out", type=output, required=True, help="folder for <source>.parquet and <source>.csv"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    warn_of_left_overs(args.benchmarks, p.templates)
    backbone = load_backbone(p.backbone.path)
    for name, protocols in progress(p.protocols.items(), "sources"):
        judged = judge_source(
            name,
            protocols,
            {"base": UNTUNED, "all": UNTUNED},
            lambda benchmark: Template(backbone, p.method.templates or [p.templates[benchmark]]),
            args.benchmarks,
        )
        save_judged(judged, args.out, name)
    keep(args.out.glob("*.csv"))
    figures = headline(read_verdicts(args.out, p.protocols), p.protocols)
    return f"{args.name}: {in_words(figures)}", rounded(figures), args.metrics


if __name__ == "__main__":
    run(main, tracked=True)
