"""The service file of a command line of `mgm serve`: the same options, wherever it is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from mlx_gemma_mtp.cli import options

# What a service needs of the environment it was printed in: where models and timings are.
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "MGM_CACHE_DIR", "MGM_DATA_DIR")


def service_file(kind: str, context: typer.Context) -> str:
    """Return the service file that runs the command of this context. kind: launchd or systemd."""
    from mlx_gemma_mtp.server import units

    # -P: nothing in the folder where it is started can take the place of a package.
    command = [sys.executable, "-P", "-m", "mlx_gemma_mtp", "serve", *_arguments(context)]
    environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if kind == "launchd":
        return units.launchd(command, environment, Path.home())
    return units.systemd(command, environment)


def _arguments(context: typer.Context) -> list[str]:
    """Return the options that were given, with the model by name, and folders in full."""
    values, given = context.params, options.given(context)
    found = [_in_full(values["model_name"] or values["model"])]
    # A key in a file that others may read is no secret: the file says where it belongs.
    hidden = {"model", "model_name", "print_service", "api_key"}
    for parameter in context.command.params:
        value = values.get(str(parameter.name))
        if parameter.name not in given - hidden:
            continue
        name = parameter.opts[0]
        if value is True:
            found.append(name)
        elif value is False:
            found.append(parameter.secondary_opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                shown = str(one).removesuffix(".0") if isinstance(one, float) else str(one)
                found += [name, _in_full(shown) if parameter.name == "drafter" else shown]
    return found


def _in_full(name: str) -> str:
    """Return a folder with its whole path, and any other name as it is."""
    from mlx_gemma_mtp.files.names import is_folder

    return str(Path(name).expanduser().resolve()) if is_folder(name) else name
