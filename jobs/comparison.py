"""Every method on the same images at equal cost, and prompts of several lengths, for `jobs.evaluate --methods` and `--lengths`.

Each method gets the operations that the default method needs with the settings at hand (`pez/cost.py`): as many steps as they
pay. All start from the same random tokens. The best prompt is chosen under the guide; the judges only score. The score is that
of the text, tokenized again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from jobs.outcomes import Mean, Originals, by_prompt, generated, mean_of
from pez.errors import UserError
from pez.methods.names import TRAITS, Method
from pipeline.settings import GeneratorSettings
from pipeline.terminal import Activity

if TYPE_CHECKING:
    import pez
    from pez.models.clip import Clip
    from pez.regeneration import Generator


@dataclasses.dataclass(frozen=True)
class Scores:
    """The prompts of one method, and the scores of each."""

    method: str
    settings: pez.PezSettings
    prompts: list[pez.Prompt]
    similarity: list[float]
    """under the guide"""
    judged: dict[str, list[float]]
    """under each judge, by its name"""
    read_back: list[bool]
    """whether tokenizing the text gives the learned tokens"""
    flop: float
    """per prompt, counted"""
    seconds: float
    """per prompt, learned side by side"""
    regenerated: list[float | None] = dataclasses.field(default_factory=list)
    """similarity of generated images and original under the first judge; empty without a generator"""

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]

    @property
    def perplexity(self) -> list[float]:
        """Of each prompt; empty without a fluency text."""
        return [prompt.perplexity for prompt in self.prompts if prompt.perplexity is not None]

    @property
    def soft_similarity(self) -> float | None:
        """The mean of the soft prompts before their projection; None for other methods."""
        values = [prompt.soft_similarity for prompt in self.prompts if prompt.soft_similarity is not None]
        return sum(values) / len(values) if values else None

    def figures(self, first: Scores) -> dict[str, Any]:
        """Means, 95% intervals and paired differences to the first method, as JSON values; per prompt."""
        values: dict[str, Any] = {"label": label_of(self.method), "tokens": self.settings.tokens}
        values |= {"steps": self.prompts[0].steps, **_of("similarity", self.similarity, first.similarity)}
        for i, (name, scores) in enumerate(self.judged.items()):
            found = _of("judge_similarity", scores, first.judged[name])
            values |= found if i == 0 else {"judges": {**values.get("judges", {}), name: found}}
        if self.regenerated:
            values |= _of("regenerated_similarity", self.regenerated, first.regenerated)
        values |= {"read_back": sum(self.read_back) / len(self.read_back), "soft_similarity": self.soft_similarity}
        if self.perplexity:
            values["perplexity"] = mean_of(self.perplexity).mean
        return values | {"flop": self.flop, "seconds": self.seconds, "learning_rate": self.settings.rate}

    def rows(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """One row for each prompt, for a table."""
        return [
            {
                "method": self.method,
                "tokens": self.settings.tokens,
                "key": key,
                "prompt": prompt.text,
                "token_ids": list(prompt.token_ids),
                "similarity": self.similarity[i],
                "judge_similarities": [scores[i] for scores in self.judged.values()],
                "regenerated_similarity": self.regenerated[i] if self.regenerated else None,
                "soft_similarity": prompt.soft_similarity,
                "perplexity": prompt.perplexity,
                "read_back": self.read_back[i],
            }
            for i, (key, prompt) in enumerate(zip(keys, self.prompts, strict=True))
        ]


def _of(name: str, values: Sequence[float | None], first: Sequence[float | None]) -> dict[str, float | None]:
    mean = mean_of([value for value in values if value is not None])
    pairs = [a - b for a, b in zip(values, first, strict=True) if a is not None and b is not None]
    found: dict[str, float | None] = {name: mean.mean, f"{name}_interval": mean.interval}
    if values is not first:
        apart = mean_of(pairs)
        found |= {f"{name}_difference": apart.mean, f"{name}_difference_interval": apart.interval}
    return found


def label_of(method: str) -> str:
    """The name of a method in tables."""
    return next((traits.label for name, traits in TRAITS.items() if name == method), method)


def chosen_methods(names: Sequence[str], bank: bool) -> tuple[list[Method], str | None]:
    """The methods that the user names, each once.

    Args:
        names: methods, or `all`.
        bank: whether there are phrases for the method bank.

    Returns:
        the methods, and a note if `all` leaves one out.

    Raises:
        UserError: an unknown name, or the method bank without phrases.
    """
    known: dict[str, Method] = {name: name for name in get_args(Method)}
    for name in names:
        if name not in (*known, "all"):
            raise UserError(f"--methods contains {name!r}; expected all, or some of {', '.join(known)}")
    if "bank" in names and not bank:
        raise UserError("--methods contains bank, but there are no phrases; expected --bank @FILE with one per line")
    found = [method for method in known.values() if method in names or "all" in names]
    if names[0] in known:  # the first is what the others are compared with
        found.sort(key=lambda method: method != names[0])
    if bank or "bank" not in found:
        return found, None
    return [
        method for method in found if method != "bank"
    ], "note: no --bank @FILE is given; the method bank is left out"


def settings_of(method: Method, settings: pez.PezSettings, phrases: Sequence[str]) -> pez.PezSettings:
    """The settings of a method beside others: tokens, vocabulary and seed are shared, rates are each method's own.

    Args:
        settings: of the default method.
        phrases: for the method bank.
    """
    if method == "default":
        return settings
    restarts = settings.restarts if "restarts" in TRAITS[method].uses else None
    bank = tuple(phrases) if method == "bank" else ()
    return dataclasses.replace(
        settings,
        method=method,
        bank=bank,
        restarts=restarts,
        learning_rate=None,
        weight_decay=None,
        fluency=settings.fluency if "fluency" in TRAITS[method].uses else 0.0,
        candidates_kept=1,
    )


def compare(
    guide: Clip,
    judges: Sequence[Clip],
    originals: Originals,
    chosen: Sequence[pez.PezSettings],
    budget: pez.PezSettings,
    lanes: int,
    activity: Activity,
) -> list[Scores]:
    """Learn with each of the settings, at the cost of the budget's settings, and score the prompts."""
    from pez import cost
    from pez.learn import settings_for

    flop = cost.method_flop(guide, budget, guide.vocabulary(budget))
    settings = []
    for each in chosen:
        own = each if each == budget else cost.within(guide, each, guide.vocabulary(each), flop)
        settings.append(own)
    features = [model.image_features(originals.images) for model in (guide, *judges)]
    found = []
    for each in settings:
        activity.now(f"{each.method}, {each.tokens} tokens")
        steps = activity.counted(
            f"learning {len(originals.keys)} prompts, {each.method}",
            settings_for(guide, each).steps_for(len(originals.keys), lanes),
        )
        found.append(_scores(guide, judges, originals, each, features, lanes, steps))
    return found


def _scores(
    guide: Clip,
    judges: Sequence[Clip],
    originals: Originals,
    settings: pez.PezSettings,
    features: Sequence[Any],
    lanes: int,
    steps: Any,
) -> Scores:
    import pez
    from pez import cost

    vocabulary = guide.vocabulary(settings)
    # A soft prompt would be projected at every step for those who look on, which is not its cost.
    on_step = None if settings.method == "soft" else lambda _: steps()
    start = time.perf_counter()
    prompts = pez.learn_prompts(guide, originals.images, settings, originals.keys, on_step, lanes)
    seconds = (time.perf_counter() - start) / len(prompts)
    texts = [prompt.text for prompt in prompts]
    scores = [
        (model.text_features(texts) * feature).sum(-1).tolist()
        for model, feature in zip((guide, *judges), features, strict=True)
    ]
    read = guide.tokens.read(texts)
    return Scores(
        settings.method,
        settings,
        prompts,
        scores[0],
        {judge.name: values for judge, values in zip(judges, scores[1:], strict=True)},
        [list(prompt.token_ids) == ids for prompt, ids in zip(prompts, read, strict=True)],
        cost.method_flop(guide, settings, vocabulary),
        seconds,
    )


def regenerated(
    scores: Scores,
    settings: GeneratorSettings,
    judge: Clip,
    generator: Generator,
    originals: Originals,
    activity: Activity,
) -> Scores:
    """The scores with those of generated images."""
    from pez.regeneration import image_similarities, seed_for

    times = settings.verify_images
    seeds = [seed_for(settings.verify_seed, key, n) for key in originals.keys for n in range(times)]
    repeated = [text for text in scores.texts for _ in range(times)]
    kind = f"{scores.method} ({scores.settings.tokens} tokens)"
    made = generated(generator.images, repeated, seeds, settings.verify_batch, kind, activity)
    features = judge.image_features(originals.images).repeat_interleave(times, 0)
    return dataclasses.replace(scores, regenerated=by_prompt(image_similarities(judge, features, made), times))


def table_of(found: Sequence[Scores], lengths: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the results, for a terminal or Markdown.

    Args:
        lengths: the results are of one method with several numbers of tokens.
    """
    first, judges = found[0], list(found[0].judged)
    headings = ["tokens" if lengths else "method", "guide", *judges]
    if not lengths and len(found) > 1:
        headings += ["guide, difference", *(f"{name}, difference" for name in judges)]
    if first.regenerated:
        headings.append("regenerated")
    if first.perplexity:
        headings.append("perplexity")
    headings += ["read back", "GFLOP", "s"]
    rows = []
    for each in found:
        row = [str(each.settings.tokens) if lengths else label_of(each.method)]
        if each.soft_similarity is not None:
            row[0] += f" (soft {each.soft_similarity:.3f})"
        row += [str(mean_of(values)) for values in (each.similarity, *each.judged.values())]
        if not lengths and len(found) > 1:
            row += [_difference(each.similarity, first.similarity)]
            row += [_difference(each.judged[name], first.judged[name]) for name in judges]
        if first.regenerated:
            row.append(str(mean_of([value for value in each.regenerated if value is not None])))
        if first.perplexity:
            row.append(f"{mean_of(each.perplexity).mean or 0.0:.1f}")
        rows.append(
            [*row, f"{sum(each.read_back) / len(each.read_back):.0%}", f"{each.flop / 1e9:.3g}", f"{each.seconds:.2g}"]
        )
    return headings, rows


def _difference(values: Sequence[float], first: Sequence[float]) -> str:
    if values is first:
        return ""
    apart: Mean = mean_of([a - b for a, b in zip(values, first, strict=True)])
    sign = "+" if (apart.mean or 0) >= 0 else ""
    return f"{sign}{apart}"


def peak_of(found: Sequence[Scores]) -> dict[str, int]:
    """The number of tokens with the highest mean of each score."""
    scores = {"similarity": [each.similarity for each in found]}
    scores |= {name: [each.judged[name] for each in found] for name in found[0].judged}
    if found[0].regenerated:
        scores["regenerated"] = [[value for value in each.regenerated if value is not None] for each in found]
    means = {name: [mean_of(values).mean or 0.0 for values in each] for name, each in scores.items()}
    return {name: found[values.index(max(values))].settings.tokens for name, values in means.items()}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
