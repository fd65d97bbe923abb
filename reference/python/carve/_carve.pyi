from typing import Any

__version__: str
tables: str

def result_shape(
    tensors: list[tuple[str, Any, str | None]],
    settings: list[tuple[str, str]],
    name: str,
    /,
) -> list[int]: ...
def solve(
    tensors: list[tuple[str, Any, str | None]],
    settings: list[tuple[str, str]],
    results: list[tuple[str, Any, str | None]],
    backward: bool,
    /,
) -> None: ...
def verify(
    tensors: list[tuple[str, Any, str | None]],
    settings: list[tuple[str, str]],
    /,
) -> tuple[str, str, str]: ...
def save(
    tensors: list[tuple[str, Any, str | None]],
    settings: list[tuple[str, str]],
    path: str,
    /,
) -> None: ...
def relate(
    relation: str,
    dumps: list[tuple[str, list[tuple[str, Any, str | None]], list[tuple[str, str]]]],
    /,
) -> tuple[str, str]: ...
def stages(
    tensors: list[tuple[str, Any, str | None]],
    settings: list[tuple[str, str]],
    path: str | None,
) -> tuple[str, str]: ...
