"""What decoding loses by keys and values that are coded on their way to decode shards.

    python benchmarks/coded_kv.py [--documents code page] [--tokens 2000] [--answer 800]

The first tokens of a document are prefilled exactly; their keys and values are coded and restored
in two spans, layer by layer, as from two prefill shards. The tokens behind attend to what came.
Printed, as Markdown: the bytes against bfloat16's, the change of perplexity in % with its standard
error, and the mean KL divergence in nats.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sps2.cli.bench.documents import read
from sps2.common.model.attend import inline
from sps2.common.model.config import ModelConfig
from sps2.common.model.llama import Llama
from sps2.common.model.weights import load
from sps2.common.models import locate
from sps2.common.spans import Span, even_split
from sps2.common.text.tokens import Tokenizer
from sps2.kernels.coded_blocks import Steps
from sps2.services import coded_kv
from sps2.services.prefill.methods.codec import from_wire, to_wire

RANKS = 2
BFLOAT16 = 2
STEPS = (Steps(0.06, 0.2), Steps(0.03, 0.1), Steps(0.015, 0.06), coded_kv.STEPS)

Restored = tuple[Sequence[Tensor], Tensor, Tensor]
"""The tensors that were sent, and the keys and values that came."""
Form = Callable[[Tensor, Tensor, Tensor, Span], Restored]


def coded(config: ModelConfig, steps: Steps) -> Form:
    """Coded with some steps."""

    def form(k: Tensor, v: Tensor, q: Tensor, span: Span) -> Restored:
        sent = coded_kv.pack(k, v, q, span.start, config, steps)
        keys, values = coded_kv.unpack(sent, span.start, config, k.dtype, steps)
        return sent, keys, values

    return form


def in_int8(k: Tensor, v: Tensor, q: Tensor, span: Span) -> Restored:
    """As with `kv_transfer_dtype` int8, for comparison."""
    sent = to_wire(k, v, "int8")
    return sent, *from_wire(sent, len(k), k.dtype)


class Behind:
    """The `Attend` of a prompt whose last tokens see restored keys and values of the first ones."""

    def __init__(self, config: ModelConfig, first: int, form: Form | None) -> None:
        self._config = config
        self._first = first
        self._form = form
        self.sent_bytes = self.plain_bytes = 0

    async def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._form is None:
            return self._attend(q, k, v)
        first, keys, values = self._first, [], []
        for span in even_split(first, RANKS):
            rows = slice(span.start, span.stop)
            sent, *came = self._form(k[rows], v[rows], q[rows], span)
            self.sent_bytes += sum(each.nbytes for each in sent)
            self.plain_bytes += BFLOAT16 * (k[rows].numel() + v[rows].numel())
            keys.append(came[0])
            values.append(came[1])
        exact = self._attend(q[:first], k[:first], v[:first])
        all_keys, all_values = torch.cat((*keys, k[first:])), torch.cat((*values, v[first:]))
        return torch.cat((exact, self._attend(q[first:], all_keys, all_values)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = self._config.heads // self._config.kv_heads
        k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        seen = torch.ones(len(q), k.shape[1], dtype=torch.bool).tril(k.shape[1] - len(q))
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1), k, v, attn_mask=seen, scale=self._config.scale
        )
        return out.transpose(0, 1)


def scores(model: Llama, ids: Tensor, first: int, attend: Behind) -> Tensor:
    """Log-probabilities of all tokens in place of those from `first` on."""
    hidden = asyncio.run(model.forward(ids, torch.arange(len(ids)), attend, inline))
    return torch.log_softmax(model.logits(hidden[first - 1 : -1]).float(), -1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", nargs="+", default=["code", "page"])
    parser.add_argument("--tokens", type=int, default=2000, help="whose KV is sent")
    parser.add_argument("--answer", type=int, default=800, help="tokens behind them")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    folder = locate(options.model)
    model, tokenizer = load(folder, "float32"), Tokenizer(folder)
    forms: dict[str, Form] = {
        f"{steps.keys:g}, {steps.values:g}": coded(model.config, steps) for steps in STEPS
    }
    print("| document | steps (keys, values) | bytes | ppl % | KL |\n|---|---|---|---|---|")
    for name in options.documents:
        ids = torch.tensor(tokenizer.encode(read(name))[: options.tokens + options.answer])
        answer = ids[options.tokens :, None]
        right = scores(model, ids, options.tokens, Behind(model.config, options.tokens, None))
        for label, form in (*forms.items(), ("int8", in_int8)):
            attend = Behind(model.config, options.tokens, form)
            found = scores(model, ids, options.tokens, attend)
            worse = (right - found).gather(1, answer)[:, 0]
            error = 100 * float(worse.std()) / len(worse) ** 0.5
            change = 100 * float(worse.mean().exp() - 1)
            lost = float((right.exp() * (right - found)).sum(-1).mean())
            share = attend.sent_bytes / attend.plain_bytes
            print(
                f"| {name} | {label} | {share:.3f} | {change:+.2f} ± {error:.2f} | {lost:.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
