#!/bin/sh
# The image's default command: a whole cluster in one container. Arguments are those of `spsctl up`.
# The gateway listens on every address of the container, so it has keys: they are made at the first
# start. No API key is made here, since it would be in the container's log.
set -eu
keys=${SPS2_KEYS:-$SPS2_HOME/keys}
test -e "$keys/cluster.key" || spsctl keys init --keys "$keys"
exec spsctl up --config "${SPS2_CONFIG:-/etc/sps2/container.toml}" --keys "$keys" \
    ${SPS2_MODEL:+--model "$SPS2_MODEL"} "$@"
