"""Writes the initial tokens of a method that is tuned without meta-learning, and no regulator.

python stages/start.py --name coop --out data/starts/coop
"""

import _repository  # noqa: F401, I001 — first: it sets the import path


import torch

from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.learn import initial_tokens
from pipeline.gram.params import Method, TokenCount
from pipeline.params import Seed, load_params
from pipeline.prompts.starts import Start, save_start
from pipeline.stage import output, parser, run

READS = {
    "seed": ("seed", Seed),
    "context_tokens": ("context_tokens", TokenCount),
    "backbone": ("backbone", BackboneParams),
    "method": ("methods.direct.{name}", Method),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of methods.direct")
    cli.add_argument(
        "--out",
        type=output,
        required=True,
        help="folder for prompt.safetensors and regulator.safetensors",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    _, theta = initial_tokens(
        load_backbone(p.backbone.path),
        p.method,
        p.context_tokens,
        torch.Generator().manual_seed(p.seed),
    )
    save_start(Start(p.method.prompt, p.method.depth, theta, {}, "none"), args.out)
    learned = sum(v.numel() for v in theta.values())
    return f"{args.name}: {learned} numbers to learn", {"learned": learned}, args.metrics


if __name__ == "__main__":
    run(main)
