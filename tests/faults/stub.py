"""The bundled CLI's place, taken for one server: sessions of one model get the stub there, all others the CLI."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests import disks

MODEL = "stub"

_CHOOSE = f"""#!/bin/sh
case " $* " in
*" --model {MODEL} "*) exec "${{0%/*}}/python/claude" -I -S "${{0%/*}}/stub_cli.py" "$@" ;;
esac
exec "${{0%/*}}/real/claude" "$@"
"""


def binds(at: Path, bundled: Path) -> disks.Binds:
    """What a server is to see elsewhere, for the stub to be there.

    Args:
        at: a directory to make.
        bundled: where the server looks for the CLI: `_bundled` of its SDK.
    """
    at.mkdir()
    (choose := at / "claude").write_text(_CHOOSE)
    choose.chmod(0o755)
    shutil.copy(Path(__file__).with_name("stub_cli.py"), at)
    for kind in ("real", "python"):
        (at / kind).mkdir()
    (at / "python" / "claude").symlink_to(os.path.realpath(sys.executable))  # by this name faults find agents
    (real := at / "real" / "claude").touch()
    return [(bundled / "claude", real), (at, bundled)]
