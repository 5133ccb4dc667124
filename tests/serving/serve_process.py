"""Starts the real server with any engine command, as a process of its own; the tests talk to its port.

Run: python serve_process.py JSON   where JSON has the fields of `ServingSettings` that differ from a plain server
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from registry.cli.server_options import LOG_FORMAT
from serving.cli import serve_settings
from serving.errors import ServingError
from serving.settings import LimitSettings, ServingSettings, SupervisionSettings


def main() -> int:
    document = json.loads(sys.argv[1])
    document["home"] = Path(document["home"])
    document["limits"] = LimitSettings(**document.get("limits", {}))
    supervision = document.get("supervision", {})
    supervision["command"] = tuple(supervision["command"])
    document["supervision"] = SupervisionSettings(**supervision)
    document["preload"] = tuple(document.get("preload", ()))
    logging.basicConfig(level=logging.DEBUG, format=LOG_FORMAT)
    try:
        serve_settings(ServingSettings(**document))
    except ServingError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
