"""Fetches the captions' pictures with img2dataset, resized, into webdataset shards; resumes what
was interrupted.

    python stages/download.py --captions data/captions.parquet --out data/shards

Relative URLs are served over loopback HTTP from `source.pictures`. With --retry-failed, the links
that failed in the finished folder --out are asked again; its shards stay as they are, and new ones
follow them. Speed is set by the environment: DOWNLOAD_PROCESSES (default: number of cores) and
DOWNLOAD_THREADS (default: 32 per process). ENGINE=ray fetches on a Ray cluster, one process per
core, unless there are such pictures of one's own (docs/scale.md).
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import re
from pathlib import Path

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.pairs.download import Effort, download
from pipeline.pairs.params import Download
from pipeline.params import load_params
from pipeline.sources.params import Site
from pipeline.stage import output, parser, progress, run, workers
from pipeline.written import note_written

READS = {"source": ("source", Site), "download": ("download", Download)}
SHARD = re.compile(r"\d{5}\.tar|fetched\.parquet")


def finished(text: str) -> Path:
    """`output`, which may be any finished download: --retry-failed reads what it replaces."""
    there = sorted(path.name for path in Path(text).glob("*"))
    if "fetched.parquet" in there and all(map(SHARD.fullmatch, there)):
        note_written(Path(text))
    return output(text)


def main():
    cli = parser(__doc__)
    cli.add_argument("--captions", type=Path, required=True, help="Parquet: key, caption, url")
    cli.add_argument(
        "--out", type=finished, required=True, help="folder for NNNNN.tar and fetched.parquet"
    )
    cli.add_argument(
        "--retry-failed",
        action="store_true",
        help="ask the failed links of a finished download again; then `dvc commit download`",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    site = Path(p.source.path) / p.source.pictures if p.source.pictures else None
    effort = Effort(workers("DOWNLOAD_PROCESSES"), workers("DOWNLOAD_THREADS", 32))
    earlier = args.out if args.retry_failed else None
    inputs = [args.captions, *([site] if site else []), *([earlier] if earlier else [])]
    with resumable_folder(args.out, fingerprint(p.download, *inputs)) as work:
        counts = download(args.captions, site, work, p.download, effort, progress, earlier)
    words = (
        f"{counts['success']} of {counts['links']} pictures fetched in {counts['shards']} "
        f"shards; {counts['failed_to_download']} links dead, {counts['failed_to_resize']} not "
        "pictures"
    )
    if "urls" in counts:
        words += f"; asked for {counts['urls']} links, once each"
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
