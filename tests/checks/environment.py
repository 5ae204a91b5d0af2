"""A Python environment with what a check compares with, made from PyPI once."""
import subprocess
import sys


def python_with(venv, modules, requirements):
    """The Python of `venv` (a path), in which `modules` can be imported; exits with 77 (skipped) if there is none."""
    python = venv / "bin" / "python"
    probe = [python, "-c", f"import {', '.join(modules)}"]
    if python.exists() and subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0:
        return python
    made = subprocess.run([sys.executable, "-m", "venv", venv]).returncode == 0 and subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:",
         *requirements]).returncode == 0
    if not made:
        print(f"SKIPPED: {', '.join(modules)} cannot be installed from PyPI: is there a network?")
        sys.exit(77)
    return python
