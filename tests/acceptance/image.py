"""The build of the CPU image, step by step, without an engine.

    python tests/acceptance/image.py

Reads compose/Dockerfile, and runs the steps of its first stage that make and fill the environment,
in a copy of the tree and an empty folder, as the file says. Then it starts in that environment what
the image would: `spsctl --version`, a service and the probe of its health, and the default command,
which pulls the demo model and serves it. It takes minutes.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
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


def serve(folder: Path, tools: str) -> None:
    """The default command in an empty home, until its health check is well; and its end."""
    (folder / "home").mkdir()
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SPS2_HOME": str(folder / "home"),
        "SPS2_CONFIG": str(ROOT / "compose" / "container.toml"),
    }
    command = [str(ROOT / "compose" / "serve.sh"), "--port", "18800"]
    print("+", shlex.join(command), flush=True)
    container = subprocess.Popen(command, env=environment, cwd=folder / "home")
    try:
        until_s = time.monotonic() + 600
        while subprocess.run(["spsctl", "status"], env=environment, capture_output=True).returncode:
            assert container.poll() is None, "it has ended"
            assert time.monotonic() < until_s, "it is not ready"
            time.sleep(2)
    finally:
        container.terminate()
        assert container.wait(60) == 0


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="sps2-image-") as folder:
        source, environment = f"{folder}/src", f"{folder}/opt"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*ignored()))
        for step in steps(ROOT / "compose" / "Dockerfile"):
            step_here = step.replace(ENVIRONMENT, environment).replace("/src", source)
            argv = shlex.split(step_here)
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
        serve(Path(folder), f"{environment}/bin")
    print("all well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
