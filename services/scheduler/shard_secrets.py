"""Shards without what nobody else may know."""

from msgspec import structs

from sps2.common.messages import Shard


def without_tokens(shard: Shard) -> Shard:
    """A shard as decisions need it, without the secrets of its data planes."""
    peers = [structs.replace(peer, token=b"") for peer in shard.peers]
    followers = (
        structs.replace(follower, peer=peer)
        for follower, peer in zip(shard.followers, peers[1:], strict=True)
    )
    return structs.replace(shard, peer=peers[0], followers=tuple(followers))
