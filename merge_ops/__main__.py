"""``python -m merge_ops`` runs ``lora-alloy``."""

import sys

from .cli import main

sys.exit(main())
