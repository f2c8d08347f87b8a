"""``python -m merge_ops`` is ``lora-alloy``."""

import sys

from .cli import main

sys.exit(main())
