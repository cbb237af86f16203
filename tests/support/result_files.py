"""Small result files for tests of what reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alignbench.record import result as results
from alignbench.record.contents import SCHEMA


def writer(folder: Path) -> Callable[..., Path]:
    """A function that writes a small complete result file to a folder and returns its path.

    Scores come as a list for the scorer `r`, or as one list per scorer: prompt after prompt, `samples` images each,
    unless `pairs` names (prompt, sample) of every row. `configuration`, `evaluation`, `cost` and the entries of
    `scorers` change single values of what is written; a file with a seed is of a method that trains. `pictures` holds
    a list per statistic of pictures, `digests` one of their SHA-256.
    """
    both = [f"{r}_{d}" for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")]

    def write(
        name,
        scores,
        algorithm="base",
        fields=None,
        seed=None,
        samples=1,
        pairs=None,
        pictures=None,
        digests=None,
        **changes,
    ) -> Path:
        columns = scores if isinstance(scores, dict) else {"r": scores}
        length = len(next(iter(columns.values())))
        pairs = pairs or [(f"p{i // samples}", i % samples) for i in range(length)]
        asked = {
            "algorithm": algorithm, "fields": fields or {}, "model": "tiny", "prompts": "shapes", "split": "test",
            "limit": None, "images_per_prompt": samples, "reward": "r", "train_prompts": None,
            "scorers": list(columns), "sampling": {"steps": 20, "guidance": 3.0, "eta": 1.0}, "dtype": "float32",
            "eval_seed": 0, "seed": seed,
        }  # fmt: skip
        protocol = {
            "model": {"name": "tiny", "image_shape": [3, 32, 32]}, "prompts": "shapes", "split": "test",
            "prompts_sha256": "0" * 64, "eval_seed": 0,
        }  # fmt: skip
        identity = {
            "files": {}, "preprocessing": "none", "tie_epsilon": 0.0, "range": "real", "higher_is_better": True,
            "versions": {},
        }  # fmt: skip
        spent = {
            "alignment": dict.fromkeys(both, 0), "alignment_seconds": 0.0, "per_image": dict.fromkeys(both, 1.0),
            "per_image_seconds": 0.1, "peak_memory_bytes": 2**20,
        }  # fmt: skip
        own = changes.pop("scorers", {})
        cost = changes.pop("cost", {})
        content = {
            "schema": SCHEMA, "status": "complete", "trains": seed is not None, "preset": None,
            "differs_from_paper": {},
            "configuration": asked | changes.pop("configuration", {}),
            "evaluation": protocol | changes.pop("evaluation", {}),
            "sampler": {"kind": "ddim", "steps": 20},
            "scorers": {key: {"id": key} | identity | own.get(key, {}) for key in columns},
            "prompts": [{"id": prompt, "text": f"prompt {prompt}"} for prompt in dict.fromkeys(p for p, _ in pairs)],
            "rows": [
                {
                    "prompt": prompt, "sample": sample, "scores": {key: columns[key][i] for key in columns},
                    "picture": {key: values[i] for key, values in (pictures or {}).items()},
                    "sha256": digests[i] if digests else None,
                }
                for i, (prompt, sample) in enumerate(pairs)
            ],
            "metrics": {}, "curve": [], "budget": None, "cost": None if cost is None else spent | cost,
            "environment": {}, "attempts": 1, "started": "2026-01-01T00:00:00+00:00", "finished": None,
        }  # fmt: skip
        path = folder / f"{name}.json"
        results.write(path, results.Result.model_validate(content | changes))
        return path

    return write
