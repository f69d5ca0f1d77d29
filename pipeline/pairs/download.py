"""Fetches pictures with img2dataset and leaves shards whose bytes depend on the pictures alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import (
    check_parts,
    read_json,
    read_table,
    replacing,
    shard_paths,
    write_json,
    write_table,
)
from pipeline.engine import on_ray
from pipeline.errors import InputError
from pipeline.owner import shared
from pipeline.pairs.fetch import ALLOWED
from pipeline.pairs.local_site import serve
from pipeline.pairs.params import Download
from pipeline.pairs.schemas import CAPTIONS, FETCHED

ROOT = Path(__file__).resolve().parents[2]
REFUSED = "not a http(s) URL"
ASKED = "asked.json"  # in a work folder: the limits that its links were asked with
LOG = "img2dataset.log"


def _absolute(url: str, base: str | None) -> str | None:
    """The URL to ask for, or None if it must not be asked for (file:, ftp:, data: …)."""
    scheme = urlsplit(url).scheme.lower()
    if scheme in ("http", "https"):
        return url
    if scheme == "" and base is not None:
        return base + quote(url)
    return None


@dataclass(frozen=True)
class Effort:
    """Processes that fetch, and threads in each."""

    processes: int
    threads: int


@dataclass(frozen=True)
class Fetch:
    """What img2dataset is to do.

    Attributes:
        links: Parquet table of url, caption and pair_key. shards: how many it makes of them.
        raw: folder that it leaves them in. allowed: see `pipeline.pairs.fetch`.
        distributor: its name for one machine or several.
    """

    links: Path
    shards: int
    raw: Path
    settings: Download
    effort: Effort
    allowed: str
    distributor: str


def _options(fetch: Fetch) -> dict[str, object]:
    settings = fetch.settings
    return {
        "url_list": fetch.links,
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "save_additional_columns": '["pair_key"]',
        "output_folder": fetch.raw,
        "output_format": "webdataset",
        "number_sample_per_shard": settings.shard_rows,
        "image_size": settings.image_size,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "skip_reencode": True,
        "extract_exif": False,
        "timeout": settings.timeout,
        "retries": settings.retries,
        "processes_count": fetch.effort.processes,
        "thread_count": fetch.effort.threads,
        # pages that refuse it by name are left alone, like those that refuse all
        "user_agent_token": "img2dataset",
        "enable_wandb": False,
        "incremental_mode": "incremental",
        "distributor": fetch.distributor,
    }


def _run_img2dataset(fetch: Fetch, finish: Callable[[str], None], progress) -> None:
    """img2dataset in a process of its own: its signal handler exits 0, and it exits 0 when all
    links fail. `finish` gets the name of every finished shard.
    """
    raw, shards = fetch.raw, fetch.shards
    command = [
        sys.executable,
        "-m",
        "pipeline.pairs.fetch",
        *(f"--{k}={v}" for k, v in _options(fetch).items()),
    ]
    log = raw.parent / LOG
    done: set[str] = set()
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=shared(),
            cwd=ROOT,
            env=os.environ | {ALLOWED: fetch.allowed},
        )
        try:
            with progress(None, "downloading shards", total=shards) as bar:
                while True:
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(0.3)
                    ended = child.returncode is not None
                    for name in sorted(
                        {p.name.removesuffix("_stats.json") for p in raw.glob("*_stats.json")}
                        - done
                    ):
                        finish(name)
                        done.add(name)
                        bar.update()
                    if ended:
                        break
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if child.returncode != 0 or len(done) != shards:
        tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise InputError(
            f"img2dataset ended with exit code {child.returncode} after {len(done)} of {shards} "
            f"shards ({tail}); run the stage again: finished shards are kept"
        )


def _normalise(shard: Path, out: Path) -> None:
    """img2dataset's shard (rows as they came in, with today's date) → one sorted by key, without
    dates.
    """
    if not shard.exists():
        return  # done before an interruption
    keys = dict(
        zip(
            *(
                pq.read_table(shard.with_suffix(".parquet"), columns=["key", "pair_key"])
                .column(c)
                .to_pylist()
                for c in ("key", "pair_key")
            ),
            strict=True,
        )
    )
    with tarfile.open(shard) as raw:
        members = {}
        for member in raw.getmembers():
            stem, _, kind = member.name.partition(".")
            if kind in ("jpg", "txt") and stem in keys:
                members[f"{keys[stem]}.{kind}"] = member
        with (
            replacing(out) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as clean,
        ):
            for name in sorted(members):
                content = raw.extractfile(members[name]).read()  # type: ignore[union-attr]  # all are files
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                clean.addfile(entry, io.BytesIO(content))
    shard.unlink()


def _ask_again(work: Path, settings: Download) -> None:
    """Has img2dataset take what an earlier run could not fetch for work to be done: with other
    limits than these, or after a run that ended with too few pictures, unless they are enough now.
    """
    asked = {"timeout": settings.timeout, "retries": settings.retries}
    told = read_json(work / ASKED) if (work / ASKED).exists() else asked | {"success": 1.0}
    as_before = told.pop("success") >= settings.min_success and told == asked
    for path in [] if as_before else (work / "raw").glob("*_stats.json"):
        if read_json(path)["failed_to_download"]:
            path.unlink()
    write_json(asked | {"success": 1.0}, work / ASKED)


def _known(earlier: Path, captions: pa.Table) -> pa.Table:
    """What became of the links in a finished download of these captions."""
    known = read_table(earlier / "fetched.parquet", FETCHED)
    if known["key"] != captions["key"]:
        raise InputError(
            f"{earlier}: was fetched for other captions; run `dvc repro download` instead of "
            "asking its failed links again"
        )
    if "failed_to_download" not in known["status"].to_pylist():
        raise InputError(f"{earlier}: no link failed; there is nothing to ask again")
    return known


def download(
    captions: Path,
    site: Path | None,
    work: Path,
    settings: Download,
    effort: Effort,
    progress,
    earlier: Path | None = None,
) -> dict:
    """Fetches every caption's picture into `work`: NNNNN.tar (`<key>.jpg`, `<key>.txt`) and
    fetched.parquet.

    Args:
        site: folder or zip that relative URLs point into, served over loopback meanwhile, so that
        this machine fetches all. work: may hold the finished shards of an interrupted run; they are
        not fetched again. earlier: a finished download of these captions. Only its failed links are
        asked, and `work` gets its shards as they are, before the new ones.

    Returns:
        Counts by status and the commonest errors.

    Raises:
        InputError if fewer than `settings.min_success` of the links gave a picture.
    """
    distributor = "ray" if on_ray() and site is None else "multiprocessing"
    table = read_table(captions, CAPTIONS)
    known, first = FETCHED.empty_table(), 0
    if earlier:
        known, first = _known(earlier, table), int(shard_paths(earlier, ".tar")[-1].stem) + 1
        failed = pc.equal(known["status"], "failed_to_download")
        table, known = table.filter(failed), known.filter(pc.invert(failed))
    raw = work / "raw"
    raw.mkdir(exist_ok=True)
    _ask_again(work, settings)

    with serve(site) if site else nullcontext(None) as base:
        urls = [_absolute(u, base) for u in table["url"].to_pylist()]
        if not any(urls):
            raise InputError(
                f"{captions}: holds no http(s) URL, and no relative one with 'source.pictures' "
                "set; there is nothing to download"
            )
        table = table.append_column("asked", pa.array(urls, pa.string()))
        links = (
            table.filter(pc.is_valid(table["asked"]))
            .select(["asked", "caption", "key"])
            .rename_columns(["url", "caption", "pair_key"])
        )
        pq.write_table(links, work / "links.parquet")
        # A folder or zip of one's own comes over loopback; nothing else there may be asked, unless
        # the parameter says so.
        allowed = "*" if settings.private_addresses else urlsplit(base).netloc if base else ""
        _run_img2dataset(
            Fetch(
                links=(work / "links.parquet").absolute(),
                shards=-(-len(links) // settings.shard_rows),
                raw=raw.absolute(),
                settings=settings,
                effort=effort,
                allowed=allowed,
                distributor=distributor,
            ),
            lambda name: _normalise(raw / f"{name}.tar", work / f"{first + int(name):05d}.tar"),
            progress,
        )

    parts = sorted(raw.glob("*.parquet"))
    fetched = pa.concat_tables(
        [pq.read_table(p, columns=["pair_key", "status", "error_message"]) for p in parts]
    )
    fetched = fetched.rename_columns(FETCHED.names).cast(FETCHED)
    refused = table.filter(pc.is_null(table["asked"]))["key"]
    fetched = pa.concat_tables(
        [
            known,
            fetched,
            pa.table(
                [refused, ["failed_to_download"] * len(refused), [REFUSED] * len(refused)],
                schema=FETCHED,
            ),
        ]
    )
    write_table(fetched.sort_by("key"), work / "fetched.parquet", FETCHED)

    statuses = Counter(fetched["status"].to_pylist())
    errors = Counter(e for e in fetched["error"].to_pylist() if e).most_common(3)
    success = statuses["success"] / len(fetched)
    if success < settings.min_success:
        reasons = "; ".join(f"{count}× {error}" for error, count in errors)
        write_json(read_json(work / ASKED) | {"success": success}, work / ASKED)
        raise InputError(
            f"only {success:.1%} of {len(fetched)} links gave a picture (at least "
            f"{settings.min_success:.0%} wanted by 'download.min_success'): {reasons}. Is "
            "the server up? Run again and the failed ones are asked again, or lower the "
            "parameter and what is there is taken"
        )
    before = shard_paths(earlier, ".tar") if earlier else []
    for path in before:
        if not (work / path.name).exists():
            os.link(path, work / path.name)
    tars = [*(p.name for p in before), *(f"{first + int(p.stem):05d}.tar" for p in parts)]
    check_parts(work, tars)
    for path in [*raw.iterdir(), *(work / name for name in (ASKED, "links.parquet", LOG))]:
        path.unlink() if path.is_file() else None
    raw.rmdir()
    return {
        "links": len(fetched),
        "shards": first + len(parts),
        **{s: statuses[s] for s in ("success", "failed_to_download", "failed_to_resize")},
    }
