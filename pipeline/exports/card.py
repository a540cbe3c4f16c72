"""Files about a whole export: sizes.json of a WebDataset, and the card of a data set."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pez
from pipeline.exports.folder import ExportFolder, ExportReport


def write_summary(folder: ExportFolder, reports: Sequence[ExportReport], run: dict[str, Any]) -> None:
    """Write what a format has beside its units.

    Args:
        reports: of all finished units.
        run: contents of the `_run.json` of the output.

    Raises:
        OutputError: a file cannot be written.
    """
    if folder.settings.format == "webdataset":
        sizes = {f"{report.stem}.tar": report.rows for report in sorted(reports, key=lambda report: report.stem)}
        folder.put("sizes.json", (json.dumps(sizes, indent=1) + "\n").encode())
    elif folder.settings.format == "datasets":
        folder.put("README.md", dataset_card(folder, reports, run).encode())


def dataset_card(folder: ExportFolder, reports: Sequence[ExportReport], run: dict[str, Any]) -> str:
    """The card: what is in the data set, how it was made, and its scores."""
    rows = sum(report.rows for report in reports)
    left_out: Counter[str] = Counter()
    for report in reports:
        left_out.update(report.left_out)
    similarity = sum(report.similarity for report in reports) / rows if rows else 0.0
    model = run.get("settings", {}).get("model", {})
    name = " ".join(str(value) for value in model.values())
    export = {key: value for key, value in folder.described.items() if key != "prompts"}
    excluded = "".join(f"- {number:,} rows: {reason}\n" for reason, number in left_out.most_common())
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
task_categories:
- text-to-image
tags:
- image
- pez-captions
size_categories:
- {_size(rows)}
---

# Images with learned prompts

{rows:,} images, each with a hard prompt learned by [PEZ](https://arxiv.org/abs/2302.03668) under the CLIP `{name}`.
Mean cosine similarity of image and prompt: {similarity:.3f}.

| column | meaning |
|---|---|
| `image` | the image, unchanged |
| `text` | the text to train on |
| `prompt`, `caption` | the learned prompt, and the text that came with the image |
| `similarity`, `caption_similarity` | cosine of the image and the prompt, and of the image and the caption, under that CLIP |
| `regenerated_similarity` | cosine of the image and of those generated from the prompt, under another CLIP; null if absent |
| `key`, `shard` | where the image is from |
| `width`, `height`, `model` | of the image; the CLIP |

## How it was made

With pez-captions {pez.__version__}. The license of the images is that of their source. Learning:

```json
{json.dumps(run.get("settings", {}), indent=2)}
```

Export:

```json
{json.dumps(export, indent=2)}
```
{f"{chr(10)}Left out:{chr(10)}{chr(10)}{excluded}" if excluded else ""}"""


def _size(rows: int) -> str:
    """The hub's name for a number of rows."""
    steps = [(1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")]
    return next((name for most, name in steps if rows < most), "n>10M" if rows < 1e12 else "n>1T")
