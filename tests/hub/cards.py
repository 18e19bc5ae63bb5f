"""Read and check the metadata at the top of a README.md as the Hub does."""

from typing import Any

import yaml

FENCE = "---"
NAMES = ("tags", "datasets", "metrics", "language", "base_model")
"""Keys whose value is a text or a list of texts."""


def read_metadata(text: str) -> dict[str, Any]:
    """The YAML between the fences; empty where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0].strip() != FENCE or FENCE not in lines[1:]:
        return {}
    block = "\n".join(lines[1 : lines.index(FENCE, 1)])
    try:
        data = yaml.safe_load(block)
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from error
    if data is not None and not isinstance(data, dict):
        raise ValueError("The metadata must be a mapping.")
    return data or {}


def find_errors(text: str) -> list[str]:
    """Return the reasons why the Hub would refuse a README.md."""
    try:
        data = read_metadata(text)
    except ValueError as error:
        return [str(error)]
    errors = [f'"{key}" must be a string or a list' for key in NAMES if not _is_texts(data, key)]
    for number, entry in enumerate(data.get("model-index") or []):
        errors += _result_errors(f"model-index[{number}]", entry)
    return errors


def _is_texts(data: dict[str, Any], key: str) -> bool:
    value = data.get(key, "")
    return all(isinstance(item, str) for item in (value if isinstance(value, list) else [value]))


def _result_errors(name: str, entry: dict[str, Any]) -> list[str]:
    errors = [] if entry.get("name") else [f'"{name}.name" is required']
    for number, result in enumerate(entry.get("results") or []):
        place = f"{name}.results[{number}]"
        required = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
        for part, key in required:
            if not result.get(part, {}).get(key):
                errors.append(f'"{place}.{part}.{key}" is required')
        for metric in result.get("metrics") or [{}]:
            if "type" not in metric or "value" not in metric:
                errors.append(f'"{place}.metrics" must have a type and a value each')
    return errors


def tags_of(data: dict[str, Any]) -> list[str]:
    """The tags that the Hub shows: the card's own, and one for each of its other names."""
    prefixes = {"base_model": "base_model:", "datasets": "dataset:", "license": "license:"}
    tags = list(_listed(data, "library_name")) + list(_listed(data, "tags"))
    tags += _listed(data, "language")
    for key, prefix in prefixes.items():
        tags += [f"{prefix}{value}" for value in _listed(data, key)]
    return list(dict.fromkeys(tags))


def _listed(data: dict[str, Any], key: str) -> list[str]:
    value = data.get(key) or []
    return value if isinstance(value, list) else [value]
