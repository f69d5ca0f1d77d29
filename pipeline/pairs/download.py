"""Fetches pictures with img2dataset, each once, and accounts for every caption."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import read_json, read_table, shard_paths, write_json, write_table
from pipeline.engine import on_ray
from pipeline.errors import InputError
from pipeline.pairs.clean import forget, normalise, statuses
from pipeline.pairs.fetch import ALLOWED, BEAT, MEGABYTES, SECONDS
from pipeline.pairs.links import plan
from pipeline.pairs.local_site import serve
from pipeline.pairs.params import Download
from pipeline.pairs.schemas import CAPTIONS, FETCHED
from pipeline.pairs.supervise import PATIENCE, check_disk, supervised

# How long a link is waited for decides what is fetched, but not the bytes of what was.
PATIENT = ("timeout", "retries", "deadline", "max_megabytes")
LEFT = ("links.parquet", "patience.json", "beat", "img2dataset.log")


@dataclass(frozen=True)
class Effort:
    """Processes that fetch, and threads in each."""

    processes: int
    threads: int


def _options(settings: Download, links: Path, raw: Path, effort: Effort) -> dict[str, object]:
    return {
        "url_list": links.absolute(),
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": '["pair_key"]',
        "output_folder": raw.absolute(),
        "output_format": "webdataset",
        "number_sample_per_shard": settings.shard_rows,
        "image_size": settings.image_size,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "skip_reencode": True,
        "extract_exif": False,
        "timeout": settings.timeout,
        "retries": settings.retries,
        "processes_count": effort.processes,
        "thread_count": effort.threads,
        # pages that refuse it by name are left alone, like those that refuse all
        "user_agent_token": "img2dataset",
        "enable_wandb": False,
        "incremental_mode": "incremental",
    }


def _run_img2dataset(
    work: Path,
    options: dict,
    allowed: str,
    settings: Download,
    look: Callable[[], set[str]],
    shards: int,
) -> None:
    """img2dataset in a process of its own: its signal handler exits 0, and it exits 0 when all
    links fail. `look` is called every now and then and gives the names of the finished shards.
    """
    command = [
        sys.executable,
        "-m",
        "pipeline.pairs.fetch",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    beat, log = work / "beat", work / "img2dataset.log"
    environment = os.environ | {
        "NO_ALBUMENTATIONS_UPDATE": "1",  # it asks for its newest version when it is imported
        ALLOWED: allowed,
        SECONDS: str(settings.deadline),
        MEGABYTES: str(settings.max_megabytes),
        BEAT: str(beat.absolute()),
    }
    alone = options["distributor"] == "multiprocessing"  # Ray looks after its own workers
    quiet = settings.deadline + settings.timeout + PATIENCE if alone else None
    code = supervised(command, environment, log, beat, quiet, look)
    if code != 0 or len(look()) < shards:
        tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise InputError(
            f"img2dataset ended with exit code {code} after {len(look())} of {shards} shards "
            f"({tail}); run the stage again: finished shards are kept"
        )


def _forget_failures(work: Path) -> None:
    """So that the next run asks again for what failed. Shards without failures stay."""
    (work / "fetched.parquet").unlink(missing_ok=True)
    for stats in (work / "raw").glob("*_stats.json"):
        name = stats.name.removesuffix("_stats.json")
        part = work / "raw" / f"{name}.parquet"
        if not part.exists() or (statuses(part)["status"] != "success").any():
            forget(work / "raw", work, name)


def _share(fetched: pa.Table) -> float:
    return pc.sum(pc.equal(fetched["status"], "success")).as_py() / len(fetched)


def _finished(work: Path, settings: Download) -> bool:
    """Whether an earlier run has asked for everything, and got enough. What failed under other
    limits, or left too few pictures, is forgotten.
    """
    patience, done = work / "patience.json", work / "fetched.parquet"
    if done.exists():
        if _share(read_table(done, FETCHED)) >= settings.min_success:
            return True
        _forget_failures(work)
    limits = settings.model_dump(include=set(PATIENT))
    if patience.exists() and read_json(patience) != limits:
        _forget_failures(work)
    write_json(limits, patience)
    return False


def _accounted(work: Path, captions: pl.DataFrame, shard_rows: int) -> pa.Table:
    """What became of every caption's link.

    Raises InputError naming shards that lack links; the next run fetches these anew.
    """
    raw = work / "raw"
    links = captions["picture"].drop_nulls().n_unique()
    parts = {path.stem: statuses(path) for path in sorted(raw.glob("*.parquet"))}
    lost = []
    for number in range(-(-links // shard_rows)):
        expected = min(shard_rows, links - number * shard_rows)
        name = next((n for n in parts if n.isdigit() and int(n) == number), f"{number:05d}")
        if name not in parts or parts[name]["picture"].n_unique() != expected:
            forget(raw, work, name)
            lost.append(name)
    if lost:
        raise InputError(
            f"{work}: img2dataset lost links of {len(lost)} shards ({', '.join(lost[:3])}; its log "
            "there may say why: a full disk?); run the stage again: it fetches these anew"
        )
    fetched = captions.join(pl.concat(parts.values()).drop("key"), on="picture", how="left")
    return (
        fetched.select(
            "key",
            status=pl.col("status").fill_null("failed_to_download"),
            error=pl.coalesce("error_right", "error"),
        )
        .sort("key")
        .to_arrow()
        .cast(FETCHED)
    )


def _ask(
    captions: pl.DataFrame,
    work: Path,
    settings: Download,
    base: str | None,
    effort: Effort,
    progress,
) -> None:
    """Has img2dataset fetch what is planned, and cleans every shard as soon as it is finished."""
    raw, links = work / "raw", work / "links.parquet"
    raw.mkdir(exist_ok=True)
    first = captions.filter(pl.col("key") == pl.col("picture"))
    pq.write_table(first.select(url="asked", pair_key="key").to_arrow(), links)
    shards = -(-len(first) // settings.shard_rows)
    distributor = "ray" if on_ray() and base is None else "multiprocessing"
    # A folder or zip of one's own comes over loopback; nothing else there may be asked, unless
    # the parameter says so.
    allowed = "*" if settings.private_addresses else urlsplit(base).netloc if base else ""
    done: set[str] = set()
    with progress(None, "downloading shards", total=shards) as bar:

        def look() -> set[str]:
            found = {p.name.removesuffix("_stats.json") for p in raw.glob("*_stats.json")}
            for name in sorted(found - done):
                normalise(raw / f"{name}.tar", work / f"{int(name):05d}.tar", captions)
                done.add(name)
                bar.update()
            return done

        options = _options(settings, links, raw, effort) | {"distributor": distributor}
        _run_img2dataset(work, options, allowed, settings, look, shards)


def _check_success(fetched: pa.Table, settings: Download, local: bool) -> None:
    success = _share(fetched)
    if success >= settings.min_success:
        return
    errors = Counter(e for e in fetched["error"].to_pylist() if e).most_common(3)
    reasons = "; ".join(f"{count}× {error}" for error, count in errors)
    raise InputError(
        f"only {success:.1%} of {len(fetched)} links gave a picture (at least "
        f"{settings.min_success:.0%} wanted by 'download.min_success'): {reasons}. "
        + (
            "Are these the names in 'source.pictures'? Mend the table or the folder"
            if local
            else "Is the server up? Run again: what failed is asked again"
        )
        + ", or lower the parameter: what came stays"
    )


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
    fetched.parquet. A URL is asked for once, however many captions it has.

    Args:
        site: folder or zip that relative URLs point into, served over loopback meanwhile, so that
            this machine fetches all.
        work: may hold the finished shards of an interrupted run; they are not fetched again.
        earlier: a finished download of these captions. Only its failed links are asked, and `work`
            gets its shards as they are, before the new ones.

    Returns:
        Counts by status, which add up to the captions ("links"); "urls", if they are fewer.

    Raises:
        InputError if fewer than `settings.min_success` of the links gave a picture.
    """
    if earlier:
        any_share = settings.model_copy(update={"min_success": 0.0})
        fetch = partial(download, site=site, settings=any_share, effort=effort, progress=progress)
        return _ask_again(fetch, captions, earlier, work)
    check_disk(work)
    with serve(site) if site else nullcontext(None) as base:
        planned = plan(pl.from_arrow(read_table(captions, CAPTIONS)), base)
        if not _finished(work, settings):
            if planned["asked"].null_count() == len(planned):
                why = planned.group_by("error").len().sort("len", descending=True).iter_rows()
                raise InputError(
                    f"{captions}: none of its {len(planned)} URLs can be asked for "
                    f"({'; '.join(f'{n}× {error}' for error, n in why)}); relative ones need "
                    "'source.pictures'"
                )
            _ask(planned, work, settings, base, effort, progress)
            fetched = _accounted(work, planned, settings.shard_rows)
            write_table(fetched, work / "fetched.parquet", FETCHED)
    fetched = read_table(work / "fetched.parquet", FETCHED)
    _check_success(fetched, settings, site is not None)
    shutil.rmtree(work / "raw", ignore_errors=True)
    for name in LEFT:
        (work / name).unlink(missing_ok=True)
    urls = planned["picture"].drop_nulls()
    return _counts(work, fetched) | (
        {"urls": urls.n_unique()} if urls.n_unique() < len(urls) else {}
    )


def _counts(work: Path, fetched: pa.Table) -> dict[str, int]:
    statuses = Counter(fetched["status"].to_pylist())
    return {
        "links": len(fetched),
        "shards": len(shard_paths(work, ".tar")),
        **{s: statuses[s] for s in ("success", "failed_to_download", "failed_to_resize")},
    }


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


def _ask_again(
    fetch: Callable[..., dict[str, int]], captions: Path, earlier: Path, work: Path
) -> dict[str, int]:
    """A finished download with its failed links asked again: `work` gets its shards as they are,
    and new ones after them.

    Args:
        fetch: `download` for given `captions` into a folder `work`.
        earlier: the finished download of `captions`.

    Raises:
        InputError if that is of other captions, or no link failed.
    """
    table, again = read_table(captions, CAPTIONS), work / "again"
    known, first = _known(earlier, table), int(shard_paths(earlier, ".tar")[-1].stem) + 1
    if not (work / "fetched.parquet").exists():  # else: interrupted while it was put together
        failed = pc.equal(known["status"], "failed_to_download")
        again.mkdir(exist_ok=True)
        write_table(table.filter(failed), work / "failed.parquet", CAPTIONS)
        fetch(work / "failed.parquet", work=again)
        for path in sorted(again.glob("*.tar")):
            os.replace(path, work / f"{first + int(path.stem):05d}.tar")
        asked = read_table(again / "fetched.parquet", FETCHED)
        fetched = pa.concat_tables([known.filter(pc.invert(failed)), asked])
        write_table(fetched.sort_by("key"), work / "fetched.parquet", FETCHED)
    shutil.rmtree(again, ignore_errors=True)
    (work / "failed.parquet").unlink(missing_ok=True)
    for path in shard_paths(earlier, ".tar"):
        if not (work / path.name).exists():
            os.link(path, work / path.name)
    return _counts(work, read_table(work / "fetched.parquet", FETCHED))
