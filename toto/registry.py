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
from abc import ABC
from dataclasses import dataclass
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
from pydantic_core import PydanticCustomError, core_schema, to_json

from toto.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Set
    from pathlib import Path

__all__ = [
    "Component",
    "Config",
    "Difference",
    "Implementation",
    "Registry",
    "differences",
    "import_plugin",
    "nearest",
]

ENTRY_POINT_GROUP = "toto.plugins"


class Config(BaseModel):
    """Base of everything that a recipe can hold: frozen, numbers finite, no unknown key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    identity_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that belong to `identity` at their default too; those of base classes are added.

    Hashes that are already written contain these fields. A field that is added later stays out of
    this set, so that at its default it changes no hash; its default must therefore mean what the
    component did before the field existed.
    """

    def identity(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """Return what defines this config, as plain JSON values: the content of fingerprints.

        A field at its default is left out unless `identity_fields` names it, so a new field with a
        default keeps the identity of existing weights, tokens and checkpoints.

        Args:
            exclude: names of fields that are left out in any case.
        """
        always = frozenset().union(
            *(vars(base).get("identity_fields", ()) for base in type(self).__mro__)
        )
        added_later = {
            name
            for name, field in type(self).model_fields.items()
            if name not in always
            and not field.is_required()
            and getattr(self, name) == field.get_default(call_default_factory=True)
        }
        content = self.model_dump(mode="json", exclude={*exclude, *added_later})
        for name in content.keys() & type(self).model_fields.keys():
            value = getattr(self, name)
            if isinstance(value, Config):
                content[name] = value.identity()
        return content

    def identity_json(self, exclude: Set[str] = frozenset()) -> bytes:
        """Return `identity` as compact JSON, the bytes that fingerprints hash."""
        return to_json(self.identity(exclude))


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


class Implementation(ABC):  # noqa: B024  # its subclasses have the abstract methods
    """Base of the classes that a Component builds: one that lacks a method is refused by name.

    Raises:
        UserError: an abstract method has no implementation.
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Name what is missing, where ABC alone would end in a traceback."""
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise UserError(
                f"{cls.__qualname__} does not define {', '.join(missing)}. Its base class "
                f"{cls.__mro__[1].__name__} says what each returns"
            )
        return super().__new__(cls)


C = TypeVar("C", bound=Component)


@dataclass(frozen=True)
class Difference:
    """A field that two configs do not agree in.

    Attributes:
        field: its name; `name` where they are different components.
        theirs: its value in the first; None where that has no such field.
        ours: its value in the second, likewise.
    """

    field: str
    theirs: Any
    ours: Any


def differences(theirs: Component, ours: Component) -> list[Difference]:
    """Return the fields in which two components differ, in plain JSON values.

    Components of two names differ in their name alone: their fields mean different things.
    """
    first, second = theirs.model_dump(mode="json"), ours.model_dump(mode="json")
    if first["name"] != second["name"]:
        return [Difference("name", first["name"], second["name"])]
    return [
        Difference(field, first.get(field), second.get(field))
        for field in [*second, *(first.keys() - second.keys())]
        if first.get(field) != second.get(field)
    ]


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
