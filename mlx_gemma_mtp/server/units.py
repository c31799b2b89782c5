"""Service files that keep `mgm serve` running: launchd's on macOS, systemd's for a user on Linux.

Knows the command line that they run, and nothing of what it means.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError

NAME = "mgm-serve"
LABEL = f"local.{NAME}"

HOPELESS = (UsageError, ModelNotFoundError)  # starting again doesn't help


def launchd(command: Sequence[str], environment: Mapping[str, str], home: Path) -> str:
    """Return the property list of a launch agent.

    command: absolute, with its arguments. environment: variables that it needs. home: the user's.
    """
    log = str(home / "Library" / "Logs" / f"{NAME}.log")
    agent = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "EnvironmentVariables": dict(environment),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},  # not after a stop
        "ThrottleInterval": 30,  # seconds between two starts
        "ProcessType": "Interactive",  # otherwise macOS slows it down as background work
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    xml = plistlib.dumps(agent, sort_keys=False).decode()
    place = f"~/Library/LaunchAgents/{LABEL}.plist"
    # An XML comment cannot contain two hyphens in a row.
    comment = f"""<!--
Save this as {place}, then start it, now and at each login:
    launchctl bootstrap gui/$(id -u) {place}
Stop it and take it out:
    launchctl bootout gui/$(id -u)/{LABEL}
With an API key: chmod 600 the file, and add to EnvironmentVariables
    <key>MGM_API_KEY</key><string>the key</string>
-->
"""
    return re.sub(r"(?m)^(?=<plist )", lambda _: comment, xml, count=1)


def systemd(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return a unit of the user's systemd. Arguments as `launchd`."""
    start = " ".join(_quoted(part, in_command=True) for part in command)
    variables = [f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()]
    codes = sorted({error.exit_code for error in HOPELESS})
    lines = [
        f"# Save this as ~/.config/systemd/user/{NAME}.service. Start it, now and at each login:",
        f"#     systemctl --user daemon-reload && systemctl --user enable --now {NAME}",
        "# Start it at boot, without a login: loginctl enable-linger",
        f"# Its log: journalctl --user -u {NAME}",
        "",
        "[Unit]",
        "Description=mgm serve: a server of language models",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={start}",
        *variables,
        "# With an API key: a file that only you can read, with the line MGM_API_KEY=...",
        f"# EnvironmentFile=%h/.config/{NAME}.env",
        "Restart=on-failure",
        "RestartSec=10",
        f"RestartPreventExitStatus={' '.join(map(str, codes))}",
        "TimeoutStopSec=20",
        "# Limits that leave the GPU, its compilers and the models' folders usable.",
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        "UMask=0077",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str, *, in_command: bool = False) -> str:
    """Return a word as systemd reads it. in_command: where it replaces variables, too."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%")
    if in_command:
        word = word.replace("$", "$$")
    return f'"{word}"'
