"""Hydra's doors to `dks/config/registry.py`.

Hydra loads this module at each start; no extension is imported before one of its choices is
composed.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SCHEME = "dks-extension"


class ExtensionSearchPath(SearchPathPlugin):
    """The config files of extensions, behind our own; then what they say in code."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra."""
        from dks.config.registry import catalogue

        found = catalogue()
        for conf, owner in found.folders().items():
            search_path.append(provider=owner, path=f"file://{conf}")
        if found.choices:
            search_path.append(provider="dks", path=f"{SCHEME}://")


class GeneratedChoices(ConfigSource):
    """Choices of extensions without a file, and short names of all."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        from dks.config.files import generated_names

        return bool(generated_names(config_path.strip("/")))

    def is_config(self, config_path: str) -> bool:
        from dks.config.files import generated_names

        group, name = _split(config_path)
        return name in generated_names(group)

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of a choice; its extension is imported.

        Raises:
            RequestError: that cannot be done.
        """
        from dks.config.files import generated

        content = generated(*_split(config_path))
        if content is None:
            raise ConfigLoadError(f"Config not found: {config_path}")
        return ConfigResult(
            self.provider, f"{SCHEME}://", OmegaConf.create(content), {"package": "_global_"}
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        from dks.config.files import generated_names

        return [] if results_filter is ObjectType.GROUP else generated_names(config_path.strip("/"))


def _split(config_path: str) -> tuple[str, str]:
    group, _, name = config_path.strip("/").rpartition("/")
    return group, name.removesuffix(".yaml")
