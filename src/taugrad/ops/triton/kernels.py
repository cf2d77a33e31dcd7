r"""Fused kernels over rows of K classes, in Triton: a block of whole rows (`_tile`) or a row in chunks (`_chunks`).

    sample             s = x + g, i = argmax s, z = onehot(i), or the relaxation y = softmax(u / tau) of u below
    sample_backward    dx = (dz - <dz, y>) y / tau, and for ReinMax 2 J(pi_D) dz - J(pi) dz / 2
    softmax_backward   dx = (dy - <dy, y>) y / tau
    gumbel_rao         dx = 1/n sum_i J(y_i) dz / tau, y_i = softmax(s_i / tau), s_i ~ p(x + g | z)
    noise              g

    u = s              PERTURBED
        x              PLAIN, MARKED, NONE
        max x for the drawn class, else min(x, max x - gap)              GAPPED

No y is kept for a backward: it is y = 2^((u - m) log2(e) / tau - L), with two numbers a row from the forward, m = max u
and L, the logarithm of the sum; the noise in u is drawn again. One number would not do: u / tau may be large. A
backward that needs the drawn class takes its index (m is max x then), ReinMax's a third number, the L of softmax(x).

Rows lie anywhere: row r starts at (r // inner) * outer + (r % inner) * near of its tensor, and its class k is k * step
further. `inner` is 1 for rows of one stride. tau is a number, or read from `taus`, one for all or one for each row.
A row with NaN, +inf or no finite logit gives NaN, as a tau that is NaN does.
"""

import triton
import triton.language as tl

from taugrad.ops.triton.noise import gumbel, gumbel_run

_PERTURBED = tl.constexpr(1)
_GAPPED = tl.constexpr(3)
_MARKED = tl.constexpr(4)
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
_INF = tl.constexpr(float("inf"))
_NAN = tl.constexpr(float("nan"))


@triton.jit
def _start(row, inner, outer, near):
    return (row // inner) * outer + (row % inner) * near


@triton.jit
def _tau(tau, taus, tau_step, row, live, like):
    """The temperature of each row."""
    if taus is None:
        return tl.zeros_like(row).to(like) + tau
    else:
        return tl.load(taus + row * tau_step, mask=live, other=1.0).to(like)


@triton.jit
def _scale(t):
    """Factor `c` with exp(x / t) = exp2(c x)."""
    return 1.4426950408889634 / t


@triton.jit
def _noise_of_rows(first, row, k, K, seed, stream, RUN: tl.constexpr, DOUBLE: tl.constexpr):
    """Noise (rows, classes) of a block; with RUN, one of consecutive elements from `first` on."""
    if RUN:
        g = gumbel_run(first, seed, stream, row.shape[0] * k.shape[0])
        return tl.reshape(g, (row.shape[0], k.shape[0]))
    else:
        return gumbel(row[:, None] * K + k[None, :], seed, stream, DOUBLE)


@triton.jit
def _noise_of_chunk(row, k, start, K, seed, stream, RUN: tl.constexpr, DOUBLE: tl.constexpr):
    if RUN:
        return gumbel_run(row * K + start, seed, stream, k.shape[0])
    else:
        return gumbel(row * K + k, seed, stream, DOUBLE)


@triton.jit
def _relaxed(x, s, k, index, most, gap, RELAXATION: tl.constexpr):
    """The logits u whose softmax is the relaxation."""
    if RELAXATION == _GAPPED:
        behind = most - gap
        return tl.where(k == index, most, tl.where(x > behind, behind, x))  # NaN stays
    elif RELAXATION == _PERTURBED:
        return s
    else:
        return x


@triton.jit
def sample_tile(
    x, x_outer, x_near, x_step,
    out, out_outer, out_near, out_step,
    indices, kept, seed, tau, taus, tau_step, gap, gaps, rows, K, inner,
    RELAXATION: tl.constexpr, HARD: tl.constexpr, DRAWN: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr, RUN: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """R whole rows of at most B classes."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    first = tl.program_id(0).to(tl.int64) * R
    row = first + tl.arange(0, R)
    k = tl.arange(0, B)
    live = row < rows
    mask = live[:, None] & (k < K)[None, :]
    at = _start(row, inner, x_outer, x_near)[:, None] + k[None, :].to(tl.int64) * x_step
    v = tl.load(x + at, mask=mask, other=-_INF).to(wide)
    t = _tau(tau, taus, tau_step, row, live, wide)
    scale = _scale(t)[:, None]
    s = v
    index = tl.zeros((R,), tl.int32)
    if DRAWN:
        s = v + _noise_of_rows(first * K, row, k, K, tl.load(seed), 0, RUN, DOUBLE)
        top = tl.max(s, 1)
        index = tl.min(tl.where((s == top[:, None]) & mask, k[None, :], K), 1)  # the first; K where all are NaN
    most = tl.max(v, 1)
    if gaps is not None:
        gap = tl.load(gaps)
    u = _relaxed(v, s, k[None, :], index[:, None], most[:, None], gap, RELAXATION)
    m = tl.max(u, 1)
    w = tl.exp2((u - m[:, None]) * scale)
    total = tl.sum(w, 1)  # NaN where there is no sample
    if out is not None:
        at = _start(row, inner, out_outer, out_near)[:, None] + k[None, :].to(tl.int64) * out_step
        if HARD:
            z = tl.where(total[:, None] == total[:, None], tl.where(k[None, :] == index[:, None], 1.0, 0.0), _NAN)
            tl.store(out + at, z, mask=mask)
        else:
            tl.store(out + at, w / total[:, None], mask=mask)
    if indices is not None:
        tl.store(indices + row, tl.where(index < K, index, 0), mask=live)
    if kept is not None:
        tl.store(kept + row, m, mask=live)
        tl.store(kept + rows + row, tl.log2(total), mask=live)
        if RELAXATION == _MARKED:
            plain = tl.sum(tl.exp2((v - m[:, None]) * _LOG2E), 1)
            tl.store(kept + rows + rows + row, tl.log2(plain), mask=live)


@triton.jit
def _added(total, m, u, scale):
    """The largest u so far and the sum of exp(u - m), with those of a chunk."""
    most = tl.maximum(m, tl.max(u, 0))
    reference = tl.where(most == -_INF, 0.0, most)
    return total * tl.exp2((m - reference) * scale) + tl.sum(tl.exp2((u - reference) * scale), 0), most


@triton.jit
def sample_chunks(
    x, x_outer, x_near, x_step,
    out, out_outer, out_near, out_step,
    indices, kept, seed, tau, taus, tau_step, gap, gaps, rows, K, inner,
    RELAXATION: tl.constexpr, HARD: tl.constexpr, DRAWN: tl.constexpr,
    B: tl.constexpr, RUN: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """One row, B classes at a time."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    x += _start(row, inner, x_outer, x_near)
    t = _tau(tau, taus, tau_step, row, row < rows, wide)
    scale = _scale(t)
    if gaps is not None:
        gap = tl.load(gaps)
    if DRAWN:
        key = tl.load(seed)
    top = tl.full((), -_INF, wide)
    most, m, m_plain = top, top, top
    total = tl.zeros((), wide)
    plain = total
    index = tl.zeros((), tl.int32)
    for start in range(0, K, B):
        k = start + tl.arange(0, B)
        v = tl.load(x + k.to(tl.int64) * x_step, mask=k < K, other=-_INF).to(wide)
        s = v
        if DRAWN:
            s = v + _noise_of_chunk(row, k, start, K, key, 0, RUN, DOUBLE)
            highest = tl.max(s, 0)
            index = tl.where(highest > top, tl.min(tl.where((s == highest) & (k < K), k, K), 0), index)
            top = tl.maximum(top, highest)
        if RELAXATION == _GAPPED:
            most = tl.maximum(most, tl.max(v, 0))
        else:
            total, m = _added(total, m, _relaxed(v, s, k, index, most, gap, RELAXATION), scale)
        if RELAXATION == _MARKED:
            plain, m_plain = _added(plain, m_plain, v, _LOG2E)
    if RELAXATION == _GAPPED:
        for start in range(0, K, B):
            k = start + tl.arange(0, B)
            v = tl.load(x + k.to(tl.int64) * x_step, mask=k < K, other=-_INF).to(wide)
            total, m = _added(total, m, tl.where(k < K, _relaxed(v, v, k, index, most, gap, RELAXATION), -_INF), scale)
    total = tl.where(total > 0, total, _NAN)
    if out is not None:
        out += _start(row, inner, out_outer, out_near)
        for start in range(0, K, B):
            k = start + tl.arange(0, B)
            if HARD:
                y = tl.where(total == total, tl.where(k == index, 1.0, 0.0), _NAN)
            else:
                v = tl.load(x + k.to(tl.int64) * x_step, mask=k < K, other=-_INF).to(wide)
                s = v
                if RELAXATION == _PERTURBED:
                    s = v + _noise_of_chunk(row, k, start, K, key, 0, RUN, DOUBLE)
                y = tl.exp2((_relaxed(v, s, k, index, most, gap, RELAXATION) - m) * scale) / total
            tl.store(out + k.to(tl.int64) * out_step, y, mask=k < K)
    if indices is not None:
        tl.store(indices + row, tl.where(index < K, index, 0))
    if kept is not None:
        tl.store(kept + row, m)
        tl.store(kept + rows + row, tl.log2(total))
        if RELAXATION == _MARKED:
            tl.store(kept + rows + rows + row, tl.log2(plain))


@triton.jit
def _first_jacobian(x, s, k, index, m, L, gap, scale, RELAXATION: tl.constexpr):
    """The probabilities p of the Jacobian J(p) of a sample: y, or pi_D for ReinMax."""
    y = tl.exp2((_relaxed(x, s, k, index, m, gap, RELAXATION) - m) * scale - L)
    if RELAXATION == _MARKED:
        return (y + tl.where(k == index, 1.0, 0.0)) * 0.5
    else:
        return y


@triton.jit
def sample_backward_tile(
    grad, grad_outer, grad_near, grad_step,
    x, x_outer, x_near, x_step,
    dx, dx_outer, dx_near, dx_step,
    dtau, indices, kept, seed, tau, taus, tau_step, gap, gaps, rows, K, inner,
    RELAXATION: tl.constexpr, R: tl.constexpr, B: tl.constexpr, RUN: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """R whole rows of at most B classes."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    first = tl.program_id(0).to(tl.int64) * R
    row = first + tl.arange(0, R)
    k = tl.arange(0, B)
    live = row < rows
    mask = live[:, None] & (k < K)[None, :]
    at = _start(row, inner, x_outer, x_near)[:, None] + k[None, :].to(tl.int64) * x_step
    v = tl.load(x + at, mask=mask, other=-_INF).to(wide)
    at = _start(row, inner, grad_outer, grad_near)[:, None] + k[None, :].to(tl.int64) * grad_step
    g = tl.load(grad + at, mask=mask, other=0.0).to(wide)
    t = _tau(tau, taus, tau_step, row, live, wide)
    m = tl.load(kept + row, mask=live, other=0.0)[:, None]
    L = tl.load(kept + rows + row, mask=live, other=0.0)[:, None]
    index = tl.zeros((R,), tl.int64)
    if gaps is not None:
        gap = tl.load(gaps)
    if RELAXATION >= _GAPPED:
        index = tl.load(indices + row, mask=live, other=0)
    s = v
    if RELAXATION == _PERTURBED:
        s = v + _noise_of_rows(first * K, row, k, K, tl.load(seed), 0, RUN, DOUBLE)
    scale = _scale(t)[:, None]
    p = _first_jacobian(v, s, k[None, :], index[:, None], m, L, gap, scale, RELAXATION)
    p = tl.where(mask, p, 0.0)
    dot = tl.sum(g * p, 1)[:, None]
    if RELAXATION == _MARKED:
        pi = tl.exp2((v - m) * _LOG2E - tl.load(kept + rows + rows + row, mask=live, other=0.0)[:, None])
        d = 2 * (g - dot) * p - 0.5 * (g - tl.sum(g * pi, 1)[:, None]) * pi
    else:
        d = (g - dot) * p / t[:, None]
    at = _start(row, inner, dx_outer, dx_near)[:, None] + k[None, :].to(tl.int64) * dx_step
    tl.store(dx + at, d, mask=mask)
    if dtau is not None:  # u = tau log y + const, and d sums to zero over a row
        tl.store(dtau + row, tl.sum(tl.where(p > 0, d * tl.log2(p), 0.0), 1) * -0.6931471805599453, mask=live)


@triton.jit
def sample_backward_chunks(
    grad, grad_outer, grad_near, grad_step,
    x, x_outer, x_near, x_step,
    dx, dx_outer, dx_near, dx_step,
    dtau, indices, kept, seed, tau, taus, tau_step, gap, gaps, rows, K, inner,
    RELAXATION: tl.constexpr, B: tl.constexpr, RUN: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """One row, B classes at a time, twice: for the products <dz, p>, and for dx."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    x += _start(row, inner, x_outer, x_near)
    grad += _start(row, inner, grad_outer, grad_near)
    dx += _start(row, inner, dx_outer, dx_near)
    t = _tau(tau, taus, tau_step, row, row < rows, wide)
    scale = _scale(t)
    m = tl.load(kept + row)
    L = tl.load(kept + rows + row)
    L_pi = L
    index = tl.zeros((), tl.int64)
    if gaps is not None:
        gap = tl.load(gaps)
    if RELAXATION >= _GAPPED:
        index = tl.load(indices + row)
    if RELAXATION == _MARKED:
        L_pi = tl.load(kept + rows + rows + row)
    if RELAXATION == _PERTURBED:
        key = tl.load(seed)
    dot = tl.zeros((), wide)
    dot_pi, to_tau = dot, dot
    for start in range(0, K, B):
        k = start + tl.arange(0, B)
        v = tl.load(x + k.to(tl.int64) * x_step, mask=k < K, other=-_INF).to(wide)
        g = tl.load(grad + k.to(tl.int64) * grad_step, mask=k < K, other=0.0).to(wide)
        s = v
        if RELAXATION == _PERTURBED:
            s = v + _noise_of_chunk(row, k, start, K, key, 0, RUN, DOUBLE)
        p = _first_jacobian(v, s, k, index, m, L, gap, scale, RELAXATION)
        dot += tl.sum(g * p, 0)
        if RELAXATION == _MARKED:
            dot_pi += tl.sum(g * tl.exp2((v - m) * _LOG2E - L_pi), 0)
    for start in range(0, K, B):
        k = start + tl.arange(0, B)
        v = tl.load(x + k.to(tl.int64) * x_step, mask=k < K, other=-_INF).to(wide)
        g = tl.load(grad + k.to(tl.int64) * grad_step, mask=k < K, other=0.0).to(wide)
        s = v
        if RELAXATION == _PERTURBED:
            s = v + _noise_of_chunk(row, k, start, K, key, 0, RUN, DOUBLE)
        p = _first_jacobian(v, s, k, index, m, L, gap, scale, RELAXATION)
        if RELAXATION == _MARKED:
            pi = tl.exp2((v - m) * _LOG2E - L_pi)
            d = 2 * (g - dot) * p - 0.5 * (g - dot_pi) * pi
        else:
            d = (g - dot) * p / t
        tl.store(dx + k.to(tl.int64) * dx_step, d, mask=k < K)
        if dtau is not None:
            to_tau += tl.sum(tl.where(p > 0, d * tl.log2(p), 0.0), 0)
    if dtau is not None:
        tl.store(dtau + row, to_tau * -0.6931471805599453)


@triton.jit
def softmax_backward_tile(
    grad, y, dx, tau, taus, tau_step, rows, K, R: tl.constexpr, B: tl.constexpr, DOUBLE: tl.constexpr
):
    """R whole rows, contiguous, of at most B classes."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    k = tl.arange(0, B)
    live = row < rows
    mask = live[:, None] & (k < K)[None, :]
    at = row[:, None] * K + k[None, :]
    p = tl.load(y + at, mask=mask, other=0.0).to(wide)
    g = tl.load(grad + at, mask=mask, other=0.0).to(wide)
    t = _tau(tau, taus, tau_step, row, live, wide)
    tl.store(dx + at, (g - tl.sum(g * p, 1)[:, None]) * p / t[:, None], mask=mask)


@triton.jit
def softmax_backward_chunks(grad, y, dx, tau, taus, tau_step, rows, K, B: tl.constexpr, DOUBLE: tl.constexpr):
    """One row, contiguous, B classes at a time."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    t = _tau(tau, taus, tau_step, row, row < rows, wide)
    dot = tl.zeros((), wide)
    for start in range(0, K, B):
        k = start + tl.arange(0, B)
        p = tl.load(y + row * K + k, mask=k < K, other=0.0).to(wide)
        dot += tl.sum(tl.load(grad + row * K + k, mask=k < K, other=0.0).to(wide) * p, 0)
    for start in range(0, K, B):
        k = start + tl.arange(0, B)
        p = tl.load(y + row * K + k, mask=k < K, other=0.0).to(wide)
        g = tl.load(grad + row * K + k, mask=k < K, other=0.0).to(wide)
        tl.store(dx + row * K + k, (g - dot) * p / t, mask=k < K)


@triton.jit
def _conditional(log_pi, g, top, k, index, scale):
    """exp(s / tau) of logits perturbed given the drawn class: its s is its noise `top`, another's is cut off there."""
    ahead = log_pi + g - top
    behind = tl.where(ahead < 0, ahead, 0.0) - _LN2 * tl.log2(1.0 + tl.exp2(-tl.abs(ahead) * _LOG2E))
    return tl.where(k == index, 1.0, tl.exp2(behind * scale))


@triton.jit
def gumbel_rao_tile(
    grad, grad_outer, grad_near, grad_step,
    x, x_outer, x_near, x_step,
    dx, dx_outer, dx_near, dx_step,
    indices, kept, seed, draws, tau, taus, tau_step, rows, K, inner,
    R: tl.constexpr, B: tl.constexpr, RUN: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """R whole rows of at most B classes. Draw i of the noise that fits z is stream i of the seed."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    first = tl.program_id(0).to(tl.int64) * R
    row = first + tl.arange(0, R)
    k = tl.arange(0, B)
    live = row < rows
    mask = live[:, None] & (k < K)[None, :]
    at = _start(row, inner, x_outer, x_near)[:, None] + k[None, :].to(tl.int64) * x_step
    log_pi = tl.load(x + at, mask=mask, other=-_INF).to(wide) - tl.load(kept + row, mask=live, other=0.0)[:, None]
    log_pi -= tl.load(kept + rows + row, mask=live, other=0.0)[:, None] * _LN2
    at = _start(row, inner, grad_outer, grad_near)[:, None] + k[None, :].to(tl.int64) * grad_step
    g = tl.load(grad + at, mask=mask, other=0.0).to(wide)
    index = tl.load(indices + row, mask=live, other=0)[:, None]
    t = _tau(tau, taus, tau_step, row, live, wide)[:, None]
    key = tl.load(seed)
    mean = tl.zeros((R, B), wide)
    for i in range(1, draws + 1):
        noise = _noise_of_rows(first * K, row, k, K, key, i, RUN, DOUBLE)
        top = tl.sum(tl.where(k[None, :] == index, noise, 0.0), 1)[:, None]
        w = _conditional(log_pi, noise, top, k[None, :], index, _scale(t))
        total = tl.sum(w, 1)[:, None]
        mean += (g - tl.sum(w * g, 1)[:, None] / total) * w / total
    at = _start(row, inner, dx_outer, dx_near)[:, None] + k[None, :].to(tl.int64) * dx_step
    tl.store(dx + at, mean / (t * draws), mask=mask)


@triton.jit
def gumbel_rao_chunks(
    grad, grad_outer, grad_near, grad_step,
    x, x_outer, x_near, x_step,
    dx, dx_outer, dx_near, dx_step,
    sums, indices, kept, seed, draws, tau, taus, tau_step, rows, K, inner,
    WRITES: tl.constexpr, B: tl.constexpr, RUN: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """One row, B classes at a time. A first call fills `sums`, (rows, draws, 2): of w and of w dz. The next WRITES."""
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    x += _start(row, inner, x_outer, x_near)
    grad += _start(row, inner, grad_outer, grad_near)
    dx += _start(row, inner, dx_outer, dx_near)
    sums += row * draws * 2
    m = tl.load(kept + row)
    log_Z = tl.load(kept + rows + row) * _LN2
    index = tl.load(indices + row)
    t = _tau(tau, taus, tau_step, row, row < rows, wide)
    key = tl.load(seed)
    if WRITES:
        for start in range(0, K, B):
            k = start + tl.arange(0, B)
            log_pi = tl.load(x + k.to(tl.int64) * x_step, mask=k < K, other=-_INF).to(wide) - m - log_Z
            g = tl.load(grad + k.to(tl.int64) * grad_step, mask=k < K, other=0.0).to(wide)
            mean = tl.zeros((B,), wide)
            for i in range(1, draws + 1):
                noise = _noise_of_chunk(row, k, start, K, key, i, RUN, DOUBLE)
                top = tl.sum(gumbel(row * K + index + tl.zeros((1,), tl.int64), key, i, DOUBLE), 0)
                w = _conditional(log_pi, noise, top, k, index, _scale(t))
                total = tl.load(sums + 2 * (i - 1))
                mean += (g - tl.load(sums + 2 * i - 1) / total) * w / total
            tl.store(dx + k.to(tl.int64) * dx_step, mean / (t * draws), mask=k < K)
    else:
        for i in range(1, draws + 1):
            top = tl.sum(gumbel(row * K + index + tl.zeros((1,), tl.int64), key, i, DOUBLE), 0)
            total = tl.zeros((), wide)
            dot = total
            for start in range(0, K, B):
                k = start + tl.arange(0, B)
                log_pi = tl.load(x + k.to(tl.int64) * x_step, mask=k < K, other=-_INF).to(wide) - m - log_Z
                g = tl.load(grad + k.to(tl.int64) * grad_step, mask=k < K, other=0.0).to(wide)
                noise = _noise_of_chunk(row, k, start, K, key, i, RUN, DOUBLE)
                w = _conditional(log_pi, noise, top, k, index, _scale(t))
                total += tl.sum(w, 0)
                dot += tl.sum(w * g, 0)
            tl.store(sums + 2 * (i - 1), total)
            tl.store(sums + 2 * i - 1, dot)


@triton.jit
def noise_run(out, seed, count, B: tl.constexpr, DOUBLE: tl.constexpr):
    """B consecutive elements of noise."""
    first = tl.program_id(0).to(tl.int64) * B
    at = first + tl.arange(0, B)
    g = gumbel(at, tl.load(seed), 0, DOUBLE) if DOUBLE else gumbel_run(first, tl.load(seed), 0, B)
    tl.store(out + at, g, mask=at < count)
