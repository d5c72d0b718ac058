"""The build of the CPU image, step by step, without an engine.

    python tests/acceptance/image.py

Reads compose/Dockerfile, and runs the steps of its first stage that make and fill the environment,
in a copy of the tree and an empty folder, as the file says. Then it starts in that environment what
the image would: `spsctl --version`, a service and the probe of its health. It takes minutes.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "/opt/sps2"


def steps(dockerfile: Path) -> list[str]:
    """The RUN steps of the first stage that touch the environment."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "Dockerfile"
        shutil.copy(dockerfile, copy)
        instructions = DockerfileParser(str(copy)).structure
    stages = [at for at, each in enumerate(instructions) if each["instruction"] == "FROM"]
    first = instructions[stages[0] : stages[1]]
    return [
        each["value"]
        for each in first
        if each["instruction"] == "RUN" and ENVIRONMENT in each["value"]
    ]


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.removeprefix("**/") for line in lines if line and not line.startswith("!")]


def run(argv: list[str]) -> None:
    print("+", shlex.join(argv), flush=True)
    subprocess.run(argv, check=True)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="sps2-image-") as folder:
        source, environment = f"{folder}/src", f"{folder}/opt"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*ignored()))
        for step in steps(ROOT / "compose" / "Dockerfile"):
            told = step.replace(ENVIRONMENT, environment).replace("/src", source)
            argv = shlex.split(told)
            run([sys.executable, *argv[1:]] if argv[0] == "python" else argv)
        shutil.rmtree(source)  # the image has the environment alone
        config = Path(folder) / "cluster.toml"
        config.write_text("[kvdir]\nbus_port = 18799\n")
        python = f"{environment}/bin/python"
        run([f"{environment}/bin/spsctl", "--version"])
        run([python, "-c", "import sps2.kernels.native as n; assert n.level, 'no C++ kernels'"])
        told = ["--config", str(config)]
        service = subprocess.Popen([python, "-m", "sps2.services.kvdir", *told])
        try:
            run([python, "-m", "sps2.services.health", "kvdir", "--ready", *told])
        finally:
            service.terminate()
            service.wait()
    print("all well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
