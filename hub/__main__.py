"""Write the plugins' definitions for Meltano Hub, from the output of `--about` and from the texts in this module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from target_crm.settings import ENVIRONMENT_PREFIX, URL_PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

HUB = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent
KINDS = {"integer": "integer", "number": "decimal", "boolean": "boolean", "array": "array", "object": "object"}
INTRODUCTION = {
    "variant": "pepper-crm",
    "maintenance_status": "active",
    "quality": "unknown",
    "keywords": ["meltano_sdk", "loyalty", "crm"],
    "domain_url": "https://pepperhq.com",
    "log_parser": "singer-sdk",
}

# Set this to an empty string when the package is in a registry: see docs/release.md.
NOT_PUBLISHED = (
    "The package is not in a registry yet. Set `pip_url` to a wheel that `./dev wheel` has built "
    "(`/path/to/pepper_crm-….whl{extras}`), to a copy of the repository (`/path/to/pepper-crm{extras}`), or to your "
    "own git server (`\"'pepper-crm{extras} @ git+https://git.example.com/team/pepper-crm.git'\"`, with both pairs of "
    "quotes)."
)
# The extras that the crm-balances commands need: a driver, and the packages for `report`.
DRIVER_AND_REPORT = "[postgres,report]"

TAP = {
    **INTRODUCTION,
    "label": "Pepper",
    "pip_url": "pepper-crm",
    "logo_url": "/assets/logos/extractors/pepper.svg",
    "definition": "reads a merchant's loyalty programme (perks, awards, actions and users) from Pepper's API",
    "prereq": (
        "A token and the merchant's code, both issued by Pepper, one pair per merchant. "
        f"{NOT_PUBLISHED.format(extras='')}"
    ),
    "next_steps": (
        "To get a balance per user and award, load with `target-crm`. Any other target can also load the streams. "
        "The stream `users` contains personal data. To read it, set `include_users`, and list the fields that you need "
        "under `select`, such as `users.state`."
    ),
}
WAREHOUSE = "Set the address of the warehouse as `sqlalchemy_url`, or in parts: `dialect`, `host`, `user` …"
TARGET = {
    **INTRODUCTION,
    "label": "CRM balances",
    "pip_url": f"pepper-crm{DRIVER_AND_REPORT}",
    "logo_url": "/assets/logos/loaders/crm.svg",
    "definition": "keeps a ledger of loyalty actions in a SQL warehouse, and a verified balance per user and award",
    "prereq": NOT_PUBLISHED.format(extras=DRIVER_AND_REPORT),
    "settings_preamble": WAREHOUSE,
    "next_steps": "Verify the balances after a load: `meltano --environment prod invoke target-crm:verify`.",
}
UTILITY = {
    **INTRODUCTION,
    "name": "crm-balances",
    "namespace": "crm_balances",
    "executable": "crm-balances",
    "label": "CRM balances",
    "description": "Verifies, reports on and repairs the balances that target-crm keeps in a warehouse.",
    "pip_url": f"pepper-crm{DRIVER_AND_REPORT}",
    "logo_url": TARGET["logo_url"],
    "definition": "verifies, reports on and repairs the balances that `target-crm` keeps in a SQL warehouse",
    "prereq": f"A warehouse that `target-crm` has loaded. {NOT_PUBLISHED.format(extras=DRIVER_AND_REPORT)}",
    "settings_preamble": (
        f"{WAREHOUSE} crm-balances reads target-crm's variables, such as `TARGET_CRM_SQLALCHEMY_URL`."
    ),
    "usage": 'Verify after each load: `meltano job add loyalty --tasks "[tap-pepper target-crm crm-balances:verify]"`.',
}
# The utility takes only these settings of the target, which say where the warehouse is.
ADDRESS = ("sqlalchemy_url", *URL_PARTS, "default_target_schema")


def definitions() -> dict[Path, str]:
    """Return the text of each definition, by its path."""
    project = yaml.safe_load((HUB.parent / "meltano.yml").read_text())
    (utility,) = project["plugins"]["utilities"]
    # The project has a separate extractor for perks. Do not select `*.*`, which would include the names of users.
    tap = {**TAP, "select": ["perks.*", *project["plugins"]["extractors"][0]["select"]]}
    target = {**_definition("target-crm", TARGET), "commands": utility["commands"]}
    settings = [
        {**setting, "env": f"{ENVIRONMENT_PREFIX}{setting['name'].upper()}"}
        for setting in target["settings"]
        if setting["name"] in ADDRESS
    ]
    python_versions = target["supported_python_versions"]
    return {
        HUB / "extractors" / "tap-pepper.yml": _text(_definition("tap-pepper", tap)),
        HUB / "loaders" / "target-crm.yml": _text(target),
        HUB / "utilities" / "crm-balances.yml": _text(
            {
                **UTILITY,
                "supported_python_versions": python_versions,
                "settings": settings,
                "commands": utility["commands"],
            }
        ),
    }


def _definition(plugin: str, more: Mapping[str, Any]) -> dict[str, Any]:
    shown = subprocess.run(  # noqa: S603 - one of this project's own commands
        [SCRIPTS / plugin, "--about", "--format=json"], capture_output=True, text=True, check=True
    )
    about = json.loads(shown.stdout)
    required = about["settings"].get("required", [])
    return {
        "name": plugin,
        "namespace": plugin.replace("-", "_"),
        "executable": plugin,
        "description": about["description"],
        **more,
        "capabilities": sorted(about["capabilities"]),
        "supported_python_versions": about["supported_python_versions"],
        **({"settings_group_validation": [required]} if required else {}),
        "settings": [
            _setting(name, setting)
            for name, setting in about["settings"]["properties"].items()
            if name != "faker_config"  # No extra of the package installs Faker.
        ],
    }


def _setting(name: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    setting: dict[str, Any] = {"name": name, "label": definition["title"], "description": definition["description"]}
    allowed = [value for value in definition.get("enum", []) if value is not None]
    if allowed:
        setting["kind"] = "options"
        setting["options"] = [{"label": value.capitalize(), "value": value} for value in allowed]
    else:
        setting["kind"] = "date_iso8601" if name.endswith("_date") else _kind(definition)
    if definition.get("secret"):
        setting["sensitive"] = True
    if definition.get("default") is not None:
        setting["value"] = definition["default"]
    return setting


def _kind(definition: Mapping[str, Any]) -> str:
    types = definition.get("type", [])
    return next((kind for type_, kind in KINDS.items() if type_ in types), "string")


def _text(definition: Mapping[str, Any]) -> str:
    body = yaml.safe_dump(definition, sort_keys=False, allow_unicode=True, width=120)
    return f"# Written by ./dev hub.\n{body}"


def main() -> None:
    """Write the definitions, and print their paths."""
    for path, text in definitions().items():
        path.write_text(text)
        print(path.relative_to(HUB.parent))


if __name__ == "__main__":
    main()
