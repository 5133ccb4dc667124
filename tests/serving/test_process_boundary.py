from __future__ import annotations

import subprocess
import sys


def test_the_api_process_never_imports_torch_or_the_engine() -> None:
    """Torch in the API process would cost seconds at the start and gigabytes of memory."""
    program = (
        "import sys, serving.cli, serving.server\n"
        "names = {name.split('.')[0] for name in sys.modules} | set(sys.modules)\n"
        "bad = {'torch', 'transformers', 'peft', 'bitsandbytes', 'basemodel', 'serving.engine'} & names\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
