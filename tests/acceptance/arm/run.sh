#!/bin/bash
# Compiles the C++ kernels for 64-bit ARM and runs their tests under qemu-user, on Debian as root:
#   make test-arm
# It installs a cross compiler and qemu, and unpacks Python and torch for ARM in build/arm. Further
# arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../../.."
to=$PWD/build/arm
libraries=(libc6 libgcc-s1 libstdc++6 zlib1g libssl3 libffi8 libexpat1 libgomp1 libuuid1 libbz2-1.0
    liblzma5 libsqlite3-0 libcrypt1 libtinfo6 libncursesw6)
python=(libpython3.11-minimal libpython3.11-stdlib python3.11-minimal)
wheels=(torch==2.6.0 filelock typing-extensions sympy==1.13.1 mpmath networkx jinja2 markupsafe
    fsspec numpy pytest pluggy iniconfig packaging pygments pytest-asyncio pytest-timeout msgspec
    hypothesis sortedcontainers)

if ! command -v aarch64-linux-gnu-g++ qemu-aarch64 >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq g++-aarch64-linux-gnu qemu-user >/dev/null
fi
if [ ! -e "$to/unpacked" ]; then
    rm -rf "$to"
    mkdir -p "$to"/{packages,system,wheels}
    dpkg --add-architecture arm64
    apt-get update -qq
    (cd "$to/packages" && apt-get download -qq "${libraries[@]/%/:arm64}" "${python[@]/%/:arm64}")
    dpkg --remove-architecture arm64
    apt-get update -qq
    for package in "$to"/packages/*.deb; do dpkg -x "$package" "$to/system"; done
    # torch's later wheels for ARM need CUDA; `[dev]` has what is not in Python alone
    .venv/bin/python -m pip install --quiet --no-deps --target "$to/wheels" --only-binary=:all: \
        --python-version 3.11 --platform manylinux_2_28_aarch64 \
        --platform manylinux2014_aarch64 "${wheels[@]}"
    touch "$to/unpacked"
fi

rm -rf "$to/tree"
mkdir -p "$to/tree/sps2"
cp sps2/__init__.py "$to/tree/sps2"
cp -r services common kernels cli "$to/tree/sps2"
cp -r tests pyproject.toml "$to/tree"
native=$to/tree/sps2/kernels/native
rm -f "$native"/_attention*.so
aarch64-linux-gnu-g++ -O3 -g0 -std=c++17 -fPIC -shared "$native/attention.cpp" \
    -o "$native/_attention.so" -lpthread
cd "$to/tree"
export PYTHONPATH=$to/tree:$to/wheels
run=(qemu-aarch64 -L "$to/system" "$to/system/usr/bin/python3.11")
"${run[@]}" -c 'from sps2.kernels import native; assert native.level, native.unfit; print("kernels:", native.LEVELS[native.level])'
# A program that the emulated one starts would not be emulated.
exec "${run[@]}" -m pytest -q -p no:cacheprovider -k "(neon or test_native) and not child_of_a_fork" \
    --ignore tests/kernels/gpu "${@:-tests/kernels}"
