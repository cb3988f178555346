"""Components by name: what a recipe writes as `{name: dvae, ...}` and how users add their own.

A `Component` is a torch-free description of one part (tokenizer, backbone, head, task). The
`Registry` of its family maps the name in a recipe to the class, `build()` makes the real part.
Users add theirs with the registry's decorator, in a module that the recipe lists under
`imports:` or that an installed package names in the entry-point group `toto.plugins`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from toto.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Component", "Config", "Registry", "import_plugin", "nearest"]

ENTRY_POINT_GROUP = "toto.plugins"


class Config(BaseModel):
    """Base of everything that a recipe can hold: frozen, numbers finite, no unknown key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class Component(Config):
    """A Config that a recipe chooses by name; dumps carry the name, so that they load again."""

    registered_name: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _drop_name(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, dict) and data.get("name") == cls.registered_name:
            data = {key: value for key, value in data.items() if key != "name"}
        return handler(data)

    @model_serializer(mode="wrap")
    def _add_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.registered_name, **handler(self)}


C = TypeVar("C", bound=Component)


class Registry(Generic[C]):
    """The components of one family, by name.

    Args:
        family: what messages call it, for example "tokenizer".
        builtins: the torch-free module that registers toto's own, imported at the first look-up.
    """

    def __init__(self, family: str, builtins: str) -> None:
        self.family = family
        self._builtins = builtins
        self._classes: dict[str, type[C]] = {}

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Decorate a Component class to make `name` mean it in recipes.

        A class that is defined again, as a notebook does, takes the place of its former self.

        Raises:
            UserError: the name is taken by another class, or the class is no complete Config.
        """

        def decorate(cls: type[C]) -> type[C]:
            owner = self._classes.get(name)
            if owner is not None and _full_name(owner) != _full_name(cls):
                raise UserError(
                    f"{self.family} {name!r} is already registered by {_full_name(owner)}. "
                    f"Register {_full_name(cls)} under another name, or import only one of them"
                )
            self._check_complete(name, cls)
            cls.registered_name = name
            self._classes[name] = cls
            return cls

        return decorate

    def _check_complete(self, name: str, cls: type[C]) -> None:
        if not issubclass(cls, Component):
            raise UserError(
                f"{self.family} {name!r}: {cls.__name__} is not the Config of a {self.family}. "
                "Register the class that derives from that"
            )
        lacking = sorted(cls.__abstractmethods__)
        if lacking:
            raise UserError(
                f"{self.family} {name!r}: {cls.__name__} lacks {', '.join(lacking)}. Its base "
                "class says what each gives"
            )

    def get(self, name: str) -> type[C]:
        """The class of that name.

        Raises:
            KeyError: no such name; the message lists the names and the nearest one.
        """
        importlib.import_module(self._builtins)
        if name not in self._classes:
            _load_entry_points()
        if name not in self._classes:
            raise KeyError(
                f"{unknown_name(self.family, name, sorted(self._classes))} If it is yours, "
                "decorate its Config and have the module imported: `imports: [mine.py]` in a "
                "recipe, --import mine.py on the command line"
            )
        return self._classes[name]

    def names(self) -> list[str]:
        """All names, those of installed plug-ins included, sorted."""
        importlib.import_module(self._builtins)
        _load_entry_points()
        return sorted(self._classes)

    def parse(self, value: Any) -> C:
        """Make the component that `{name: ..., field: ...}` (or the bare name) describes.

        Raises:
            pydantic.ValidationError, PydanticCustomError: as pydantic reports them.
        """
        if isinstance(value, Component):
            return value  # type: ignore[return-value]  # already built, by code rather than YAML
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            raise PydanticCustomError(
                "component_shape",
                "a {family} is a name or a mapping with a name, not {value}",
                {"family": self.family, "value": repr(value)},
            )
        name = value.get("name")
        if not isinstance(name, str):
            raise PydanticCustomError(
                "component_unnamed",
                "{what}; {family}s are {names}",
                {
                    "what": "has no name" if name is None else f"the name {name!r} is no word",
                    "family": self.family,
                    "names": ", ".join(self.names()),
                },
            )
        try:
            cls = self.get(name)
        except KeyError as error:
            raise PydanticCustomError(
                "component_unknown", "{message}", {"message": error.args[0]}
            ) from None
        return cls.model_validate(value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Lets `Annotated[TokenizerConfig, TOKENIZERS]` be the type of a recipe's field.

        Inside the brackets it may also be `TokenizerConfig | None`.
        """
        component = core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda component: component.model_dump(mode="json")
            ),
        )
        may_be_none = type(None) in get_args(source)
        return core_schema.nullable_schema(component) if may_be_none else component


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def nearest(name: str, names: list[str]) -> str | None:
    """The entry of `names` that `name` was probably meant to be, or None."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return found[0] if found else None


def unknown_name(family: str, name: str, names: list[str]) -> str:
    """The sentence that refuses an unknown name."""
    guess = nearest(name, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return f"unknown {family} {name!r}; there are {', '.join(names)}.{hint}"


def import_plugin(reference: str, folder: Path) -> None:
    """Import what a recipe lists under `imports:`, so that its decorators run.

    Args:
        reference: a module name, or the path of a .py file, relative to `folder`.
        folder: where a relative path starts.

    Raises:
        UserError: there is no such module or file. What its code raises passes through.
    """
    if reference.endswith(".py"):
        _import_file((folder / reference).resolve())
    else:
        _import_module(reference)


def _import_module(reference: str) -> None:
    refusal = UserError(
        f"imports: no module {reference!r}. Install its package, or give the path of a .py file"
    )
    if not all(reference.split(".")):
        raise refusal  # empty, or relative to nothing
    try:
        importlib.import_module(reference)
    except ModuleNotFoundError as error:
        if not f"{reference}.".startswith(f"{error.name}."):
            raise  # something that the plug-in needs
        raise refusal from None


def _import_file(path: Path) -> None:
    # Files of one name in two folders are two modules, and one file is always the same.
    name = f"toto_plugin_{path.stem}_{blake2b(os.fsencode(path), digest_size=8).hexdigest()}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise UserError(f"imports: no file {path}. Correct the path")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


_entry_points_loaded = False


def _load_entry_points() -> None:
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except ImportError as error:
            raise UserError(
                f"the plug-in {entry_point.name!r} ({entry_point.value}) cannot be imported: "
                f"{error}. Mend or uninstall its package"
            ) from error
