"""`python -m lora_operator`: run the operator, in a cluster or beside one (with the current kubeconfig)."""

from __future__ import annotations

import logging
import sys
from socket import gethostname

import kopf
from kopf._core.engines.peering import Identity

from .handlers import Wiring
from .settings import ProfilesFile, SettingsError, read_settings


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        settings = read_settings()
        profiles = ProfilesFile(settings.profiles_file)
    except SettingsError as error:
        print(f"lora-operator: {error}", file=sys.stderr)
        return 64
    wiring = Wiring(settings, profiles)
    kopf.run(
        registry=wiring.registry,
        # kopf's own guess asks for a user's name, and the user of a pod has none
        identity=Identity(gethostname()),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=list(settings.namespaces),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
