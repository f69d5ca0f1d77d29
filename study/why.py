"""Why GRAM does what it does: one experiment a question, on the demo's artifacts after `dvc repro`.

    python study/why.py domains      # true styles as domains: is there a shift to simulate?
    python study/why.py split        # what of R^φ counts: its γ, its β, or a constant drift?
    python study/why.py steps        # more inner steps in training: do prompts stand tuning better?
    python study/why.py length       # tuned on validation tasks, at which rates do they gain?
    python study/why.py temperature  # with the logit scale fitted first, what is left to learn?
    python study/why.py rates        # tuning rates, on the development benchmarks

Every experiment prints a table and writes it to WORK/<experiment>.csv; starts that were learned are
kept in WORK and learned once. docs/study.md says what came out.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.artifacts import read_table, write_table  # noqa: E402
from pipeline.benchmarks.cache import Draw, few_shots  # noqa: E402
from pipeline.benchmarks.evaluation import judge_source  # noqa: E402
from pipeline.benchmarks.headline import headline  # noqa: E402
from pipeline.benchmarks.params import Protocols, Rate, Rates, Sgd, sgd_of  # noqa: E402
from pipeline.clip.backbone import Backbone, load_backbone  # noqa: E402
from pipeline.clip.params import BackboneParams  # noqa: E402
from pipeline.clustering.schemas import DOMAINS  # noqa: E402
from pipeline.episodes.shards import VALIDATION, read_episodes  # noqa: E402
from pipeline.gram.batch import load_batch, shown  # noqa: E402
from pipeline.gram.learn import LEARNING, initial_tokens, learn_start, save_curve  # noqa: E402
from pipeline.gram.learn import training_of as training  # noqa: E402
from pipeline.gram.meta import adapt, cross_entropy  # noqa: E402
from pipeline.gram.params import Learning, MetaMethod  # noqa: E402
from pipeline.gram.regulator import Phi, regulate  # noqa: E402
from pipeline.gram.train import Workplace  # noqa: E402
from pipeline.gram.tune import tune  # noqa: E402
from pipeline.gram.validation import Validation, validation_of  # noqa: E402
from pipeline.params import load_params, settings_of  # noqa: E402
from pipeline.prompts.base import PromptMethod, Tokens, placed  # noqa: E402
from pipeline.prompts.starts import Start, load_start, method_of, save_start  # noqa: E402

READS = {
    **LEARNING,
    "backbone": ("backbone", BackboneParams),
    "method": ("methods.meta.{name}", MetaMethod),
    "rates": ("tuning", Rates),
    "factor_of": ("tuning.lr_factor_of", dict[str, Rate]),
    "draws": ("few_shot.draws", list[int]),
    "sources": ("study.benchmarks", list[str]),
}
TEMPLATE, SHOTS, BATCH = "a photo of a {}.", 16, 32
SATURATED = 20.0  # tanh of it is 1
LONG, STRETCHED = 51, (0.0, 0.0001, 0.0004, 0.002, 0.01)  # steps, and rates; 0: not tuned


@dataclass(frozen=True)
class World:
    """The demo's artifacts, the parameters, and where experiments leave theirs."""

    data: Path
    work: Path
    name: str  # entry of methods.meta
    seeds: list[int]

    @cached_property
    def params(self):
        return load_params(ROOT / "params.yaml", READS, name=self.name)

    @cached_property
    def backbone(self) -> Backbone:
        return load_backbone(self.params.backbone.path)

    @property
    def learning(self) -> Learning:
        return settings_of(Learning, self.params)

    def tasks(self, kind: str, seed: int, domains: Path | None = None) -> Path:
        """Training and validation tasks of an entry of study.episodes."""
        found = domains or self.data / "domains.parquet"
        out = self.work / "episodes" / found.stem / kind / str(seed)
        if not out.is_dir():
            inputs = {"labels": "labels.parquet", "features": "features"}
            inputs |= {"pairs": "pairs.parquet", "shards": "shards"}
            given = [(f"--{k}", self.data / v) for k, v in inputs.items()]
            of = ("--table", "study.episodes", "--name", kind, "--seed", seed, "--out", out)
            stage("episodes", *of, "--domains", found, *itertools.chain(*given))
        return out

    def untrained(self, seed: int) -> Start:
        """What a method starts from before anything is learned."""
        method, settings = self.params.method, self.learning
        generator = torch.Generator().manual_seed(seed)
        theta = initial_tokens(self.backbone, method, settings.context_tokens, generator)[1]
        return Start(method.prompt, method.depth, theta, {}, settings.regulator.input_scale)

    def learned(
        self,
        label: str,
        seed: int,
        tasks: Path,
        settings: Learning | None = None,
        method: MetaMethod | None = None,
    ) -> tuple[Start, dict]:
        """A start, learned or found, and the last row of its curve."""
        folder = self.work / "starts" / self.name / label / str(seed)
        if not (folder / "curve.csv").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            start, curve = learn_start(
                self.backbone,
                method or self.params.method,
                settings or self.learning,
                seed,
                Workplace(tasks, folder),
            )
            save_start(start, folder)
            save_curve(curve, folder / "curve.csv")
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return load_start(folder), pl.read_csv(folder / "curve.csv").row(-1, named=True)

    def tuning(self, batch: int, lr: float | None = None) -> Sgd:
        """As the stage `tune` tunes this kind of prompt; at another rate, if one is given."""
        factor = self.params.factor_of.get(self.params.method.prompt, 1.0)
        own = sgd_of(self.params.rates, {"batch": batch, "lr_factor": factor})
        return own.model_copy(update={"lr": lr}) if lr else own

    def judged(
        self,
        start: Start,
        seed: int,
        lr: float | None = None,
        benchmarks: tuple[Path, list[str]] | None = None,
    ) -> dict[str, float]:
        """base, new and H in percent before tuning (`…_0`) and after, on the seed's own draw."""
        folder, names = benchmarks or (self.data / "benchmarks", self.params.sources)
        draw = self.params.draws[(seed - 1) % len(self.params.draws)]
        protocol, parts = Protocols(base_to_new=[SHOTS], all_classes=[]), {"": [], "_0": []}
        for name in names:
            method = method_of(start.about, self.backbone, TEMPLATE)
            drawn = few_shots(folder / name, method, "base", SHOTS, draw)
            tuned = tune(method, start, drawn, self.tuning(BATCH, lr), draw)[-1]
            for when, tokens in (("", tuned), ("_0", start.theta)):
                states = {"base": {(SHOTS, draw, 0): tokens}, "all": {}}
                verdicts = judge_source(name, protocol, states, lambda _, m=method: m, folder)[0]
                parts[when].append(pl.from_arrow(verdicts))
        found = {when: headline(pl.concat(tables), {}) for when, tables in parts.items()}
        return {f"{k}{when}": v for when, figures in found.items() for k, v in figures.items()}

    def validated(self, start: Start, tasks: Path, at_once: int = 4) -> dict[str, float]:
        """What validation tasks say of a start."""
        settings = training(self.params.method, self.learning)
        method = method_of(start.about, self.backbone, TEMPLATE)
        at_once = 1 if method.sees_pixels else at_once
        inner = replace(settings.judged, input_scale=start.input_scale)
        return Validation(validation_of(tasks), inner, settings.outer, at_once)(
            method, start.theta, start.phi
        )


def stage(script: str, *arguments) -> None:
    """Runs a stage script as a person would."""
    path = ROOT / "stages" / f"{script}.py"
    subprocess.run([sys.executable, path, *map(str, arguments)], check=True, cwd=ROOT)


def true_styles(data: Path, out: Path) -> Path:
    """The topics' domains as the demo's world drew them: every style is one."""
    domains = pl.from_arrow(read_table(data / "domains.parquet", DOMAINS))
    captions = pl.read_parquet(data / "captions.parquet", columns=["key", "url"])
    truth = pl.read_parquet(data / "world" / "demo" / "truth.parquet", columns=["url", "style"])
    styles = captions.join(truth.unique("url"), on="url").select("key", "style")
    number = pl.col("style").rank("dense").cast(pl.Int32) - 1
    found = domains.drop("domain").join(styles.with_columns(domain=number), on="key").sort("key")
    write_table(found.select(DOMAINS.names).to_arrow(), out, DOMAINS)
    return out


def domains(world: World) -> Iterator[dict]:
    """(a) Shifted and uniform support, of k-means domains and of the true styles."""
    styles = true_styles(world.data, world.work / "styles.parquet")
    kinds = itertools.product((None, styles), ("shifted", "uniform"))
    for (found, kind), seed in itertools.product(kinds, world.seeds):
        label = f"{kind}, {'true styles' if found else 'k-means'}"
        start, last = world.learned(label, seed, world.tasks(kind, seed, found))
        yield {"support": label, "seed": seed, **validation(last), **world.judged(start, seed)}


def without(phi: Phi, part: str, constant: float) -> Phi:
    """φ with tanh(W g + b) of a part, gamma or beta, replaced by tanh(constant) everywhere."""
    changed = dict(phi)
    for name in phi:
        if name.endswith(f".W_{part}"):
            changed[name] = torch.zeros_like(phi[name])
        elif name.endswith(f".b_{part}"):
            changed[name] = torch.full_like(phi[name], constant)
    return changed


def mean_step(world: World, start: Start, tasks: Path, count: int = 40) -> tuple[dict, float]:
    """The mean over training tasks of R^φ's first step, and how much of a step it is: its squared
    length over the mean squared length of the steps.
    """
    method, steps = method_of(start.about, world.backbone, TEMPLATE), []
    inner = training(world.params.method, world.learning).judged
    episodes = read_episodes(tasks, method.sees_pixels)
    for task in itertools.islice(episodes, count):
        batch = load_batch(method, [task])
        copy = {m: v[None].clone().requires_grad_() for m, v in start.theta.items()}
        loss = lambda t, b=batch: cross_entropy(
            method.logits(t, b.classes, b.support), b.support_labels
        )
        raw = adapt(copy, {}, loss, replace(inner, steps=1, second_order=False))[1]
        with torch.no_grad():
            steps.append({m: g[0] for m, g in regulate(start.phi, raw, start.input_scale).items()})
    mean = {m: torch.stack([s[m] for s in steps]).mean(dim=0) for m in start.theta}
    length = lambda step: sum(float(g.square().sum()) for g in step.values())
    share = length(mean) / float(np.mean([length(step) for step in steps]))
    return {m: inner.lr * g for m, g in mean.items()}, share


def split(world: World) -> Iterator[dict]:
    """(b) The learned R^φ taken apart, on validation tasks and in tuning."""
    for seed in world.seeds:
        tasks = world.tasks("shifted", seed)
        start, _ = world.learned("shifted, k-means", seed, tasks)
        drift, share = mean_step(world, start, tasks)
        drifted = {m: v - drift[m] for m, v in start.theta.items()}
        variants = {
            "R^φ": start,
            "β = 0": replace(start, phi=without(start.phi, "beta", 0.0)),
            "γ = 1": replace(start, phi=without(start.phi, "gamma", SATURATED)),
            "plain": replace(start, phi={}),
            "plain from θ* − mean step": replace(start, theta=drifted, phi={}),
        }
        for name, variant in variants.items():
            seen = validation(world.validated(variant, tasks))
            row = {"regulator": name, "seed": seed, **seen, **world.judged(variant, seed)}
            yield row | {"mean_step_share": share}


def steps(world: World) -> Iterator[dict]:
    """(c) Inner steps in training, α divided among them or not."""
    common = world.learning
    settings = {"1 × α": (1, 1.0), "4 × α/4": (4, 0.25), "4 × α": (4, 1.0)}
    for (label, (count, part)), seed in itertools.product(settings.items(), world.seeds):
        changed = replace(common, inner_steps=count, inner_lr=common.inner_lr * part)
        plain = "shifted, k-means" if label == "1 × α" else label.replace("/", "_")
        start, last = world.learned(plain, seed, world.tasks("shifted", seed), changed)
        yield {"inner steps": label, "seed": seed, **validation(last), **world.judged(start, seed)}


def length(world: World) -> Iterator[dict]:
    """(c) Fifty steps of tuning, as sixteen shots of ten classes are, on the support of validation
    tasks; accuracy on their queries, through R^φ, plain, and of the untrained start.
    """
    for seed in world.seeds:
        tasks = world.tasks("shifted", seed)
        learned, _ = world.learned("shifted, k-means", seed, tasks)
        starts = {"R^φ": learned, "plain": replace(learned, phi={}), "host": world.untrained(seed)}
        for label, start in starts.items():
            method = method_of(start.about, world.backbone, TEMPLATE)
            hits: dict[float, list[float]] = {lr: [] for lr in STRETCHED}
            for task in read_episodes(tasks / VALIDATION, method.sees_pixels):
                pictures = shown(method, [task])
                batch = load_batch(method, [task], pictures)
                draw = Draw([pictures[0][0]] * LONG, task.support_labels, list(task.names))
                for lr in hits:
                    tokens = stretched(world, method, start, draw, lr) if lr else start.theta
                    tokens = placed(tokens, method.backbone.device)
                    with torch.no_grad():
                        chosen = method.logits(tokens, batch.classes, batch.query).argmax(dim=-1)
                    hits[lr].append((chosen == batch.query_labels).float().mean().item())
            for lr, found in hits.items():
                yield {"rate": lr, "start": label, "seed": seed, "accuracy": float(np.mean(found))}


def stretched(world: World, method: PromptMethod, start: Start, draw: Draw, lr: float) -> Tokens:
    """Tokens after steps on all of a draw at once, the first at the warm-up's rate."""
    return tune(method, start, draw, world.tuning(len(draw.labels), lr), 0)[-1]


def fitted_scale(world: World, start: Start, tasks: Path) -> float:
    """Times the backbone's logit scale: the least validation loss at θ, over a grid."""
    grid, found = np.geomspace(0.2, 2.0, 11), []
    for factor in grid:
        with scaled(world.backbone, factor):
            found.append(world.validated(start, tasks)["validation_start_loss"])
    return float(grid[int(np.argmin(found))])


@contextmanager
def scaled(backbone: Backbone, factor: float):
    """The backbone with its logit scale times a factor."""
    scale = backbone.model.logit_scale
    own = scale.detach().clone()
    with torch.no_grad():
        scale.copy_(own + float(np.log(factor)))
    try:
        yield
    finally:
        with torch.no_grad():
            scale.copy_(own)


def temperature(world: World) -> Iterator[dict]:
    """(d) Before and after meta-training, at the backbone's logit scale and at one fitted first."""
    for seed in world.seeds:
        tasks, begun = world.tasks("shifted", seed), world.untrained(seed)
        fitted = fitted_scale(world, begun, tasks)
        for label, factor in (("as it is", 1.0), ("fitted", fitted)):
            with scaled(world.backbone, factor):
                kind = "shifted, k-means" if factor == 1.0 else "fitted scale"
                learned, _ = world.learned(kind, seed, tasks)
                for when, start in (("before", begun), ("after", learned)):
                    seen = validation(world.validated(start, tasks))
                    row = {"scale": label, "training": when, "seed": seed, "factor": factor}
                    yield row | {"best": factor * fitted_scale(world, start, tasks), **seen}


def development(world: World) -> tuple[Path, list[str]]:
    """The development benchmarks, drawn and cached once."""
    yaml, out = YAML(), world.work / "development"
    own, given = YAML(typ="safe").load(ROOT / "study" / "development.yaml"), ROOT / "params.yaml"
    params = yaml.load(given)
    params["world"]["benchmarks"] = own["world"]["benchmarks"]
    params["benchmarks"] = {
        name: entry | {"path": str((out / entry["path"]).resolve())}
        for name, entry in own["benchmarks"].items()
    }
    out.mkdir(parents=True, exist_ok=True)
    yaml.dump(params, out / "params.yaml")
    for name in own["benchmarks"]:
        common = ("--params", (out / "params.yaml").resolve(), "--name", name, "--out")
        if not (out / f"{name}.zip").exists():
            stage("draw_benchmark", *common, (out / f"{name}.zip").resolve())
        if not (out / name).is_dir():
            stage("benchmark", *common, (out / name).resolve())
    return out, list(own["benchmarks"])


def rates(world: World) -> Iterator[dict]:
    """(development benchmarks) Rates of tuning, for a method with its start and for its host."""
    where = development(world)
    for seed in world.seeds:
        learned, _ = world.learned("shifted, k-means", seed, world.tasks("shifted", seed))
        starts = {
            "host": world.untrained(seed),
            world.name: learned,
            f"{world.name}, plain tuning": replace(learned, phi={}),
        }
        for lr, (label, start) in itertools.product((0.002, 0.02, 0.1), starts.items()):
            judged = world.judged(start, seed, lr, where)
            yield {"rate": lr, "start": label, "seed": seed, **judged}


def validation(row: dict) -> dict:
    """The validation figures of a row of a curve."""
    return {k: v for k, v in row.items() if k.startswith("validation")}


EXPERIMENTS: dict[str, Callable[[World], Iterator[dict]]] = {
    f.__name__: f for f in (domains, split, steps, length, temperature, rates)
}


def table(rows: list[dict]) -> pl.DataFrame:
    """Means and standard deviations over seeds of whatever is a figure, by whatever is none."""
    found = pl.DataFrame(rows, infer_schema_length=None)
    figures = [c for c, t in found.schema.items() if t == pl.Float64 and c not in ("rate",)]
    by = [c for c in found.columns if c not in (*figures, "seed")]
    spread = [pl.col(f).std().alias(f"{f}_sd") for f in figures]
    return found.group_by(by, maintain_order=True).agg(
        pl.len().alias("seeds"), *(pl.col(f).mean() for f in figures), *spread
    )


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("experiment", choices=EXPERIMENTS)
    cli.add_argument("--method", default="coop_gram", help="entry of methods.meta")
    cli.add_argument("--seeds", default="1,2,3", help="meta-seeds (default: %(default)s)")
    cli.add_argument("--data", type=Path, default=ROOT / "data", help="the demo's artifacts")
    cli.add_argument("--work", type=Path, default=ROOT / "data" / "why")
    args = cli.parse_args()
    world = World(args.data, args.work, args.method, [int(s) for s in args.seeds.split(",")])
    rows = []
    for row in EXPERIMENTS[args.experiment](world):
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        rows.append(row)
        pl.DataFrame(rows, infer_schema_length=None).write_csv(
            args.work / f"{args.experiment}.csv", float_precision=4
        )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=220, float_precision=3):
        print(table(rows))


if __name__ == "__main__":
    main()
