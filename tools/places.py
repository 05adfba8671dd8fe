"""Where things are in a checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = "comfyui-beyond-cfg"  # the folder's name in custom_nodes
VENV = ROOT / ".venv"
HOSTS = ROOT / ".host"  # fetched ComfyUIs, and what they share
MODELS = HOSTS / "models"
BROWSERS = HOSTS / "browsers"  # Playwright's
OUTPUT = ROOT / "output"
DEMO_MODELS = ROOT / "benchmarks/models"
