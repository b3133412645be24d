"""What a request may use, before it runs, and what it has used, when it has ended: the same at every front door.

admit   ──▶ the quotas and budgets of its key and its owner; a 429 where one has no room
settle  ──▶ what was used instead; usage is counted, whoever asks
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import Struct

from backends.fleet.routing import Routing
from cluster.protocol import Draw, Drawing, Left, Quota, Taken
from core.budgets import Account, ends_of
from core.errors import LimitReached
from core.histograms import OTHER
from core.keys import UNLIMITED, Allowance, Limits, Principal, Window
from core.state import AppState
from core.turn_record import TurnRecord
from core.usage import HOUR_S, Spent, Use
from requests.usage import Tokens

# Of an answer so much is expected: what the client allows, but for what few use.
EXPECTED_TOKENS = 256
MOST_EXPECTED_TOKENS = 4096
NO_LIMIT = 2**53
# When a client may try again that had too much at once.
AT_ONCE_RETRY_S = 1.0
BACKGROUND_RETRY_S = 5.0


class Bound(NamedTuple):
    """A quota of a key or an owner (`whose`, in the words of an error), and of what it is: a key of `WHAT`."""

    quota: Quota
    of: str
    whose: str


class Budget(NamedTuple):
    """A budget of a key, or of an owner (`key` is None), of tokens or of their cost."""

    owner: str
    key: str | None
    whose: str
    allowance: Allowance
    is_cost: bool


class Plan(NamedTuple):
    """All that bounds a principal's turns, and its turns in the background."""

    turns: Sequence[Bound]
    background: Sequence[Bound]
    budgets: Sequence[Budget]


class Tally(Struct, eq=False):
    """What a request that was admitted has taken: of the bounds, and of the accounts of its budgets. `headers` are how
    far those are used."""

    bounds: Sequence[Bound]
    drawing: Drawing
    accounts: Sequence[Account]
    tokens: int
    headers: dict[str, str]

    @property
    def is_refused(self) -> bool:
        """Whether there was no room for it."""
        return self.drawing.taken is not None and self.drawing.taken.refused is not None

    def check(self, routing: Routing) -> None:
        """Puts what is left, when that is known, into the headers of its answer. Raises `LimitReached`."""
        taken = self.drawing.taken
        assert taken is not None
        routing.limits = _headers(self.bounds, taken.left) | self.headers
        if taken.refused is not None:
            raise _refused(self.bounds, taken, routing.limits)


def routing_of(principal: Principal, affinity: Sequence[str], path: str = "") -> Routing:
    """The way of a request of somebody through the fleet: what of it may be warm somewhere, and its front door, where
    that is not every endpoint's."""
    return Routing(
        principal=principal.id, priority=principal.priority, models=principal.models, affinity=affinity, path=path
    )


def is_limited(principal: Principal) -> bool:
    """Whether anything bounds what it may use."""
    return principal.limits is not UNLIMITED or principal.owner_limits is not UNLIMITED


async def admit(
    state: AppState,
    principal: Principal,
    routing: Routing,
    input_tokens: Callable[[], int],
    output_tokens: object = None,
    *,
    answers: int = 1,
    in_background: bool = False,
    is_certain: bool = False,
    with_slot: bool = False,
) -> Tally:
    """Takes what a request may use of the limits of its principal. `input_tokens` estimates how long it is, if that
    matters; `output_tokens` is what the client allows for each of so many `answers`. Puts what is left into the headers
    of its answer. `is_certain`: it was admitted before, so it counts, and is not refused. `with_slot`: it is about to
    choose an endpoint, and where limits are counted behind a network they are taken with the slot, in one round trip.
    Raises `LimitReached`."""
    plan = plan_of(principal)
    bounds = plan.background if in_background else plan.turns
    given = expected = 0
    if plan.budgets or any(bound.of == "tokens" for bound in bounds):
        given = input_tokens()
        expected = given + answers * _expected(output_tokens)
    accounts: Sequence[Account] = ()
    of_budgets: dict[str, str] = {}
    if plan.budgets:
        accounts, of_budgets = await _reserve(state, plan.budgets, expected, is_certain=is_certain)
    draws: list[Draw] = [
        (bound.quota, _amount(bound, given, expected) if bound.of == "tokens" else 1) for bound in bounds
    ]
    if is_certain:
        draws = [(quota._replace(limit=NO_LIMIT), amount) for quota, amount in draws]
    tally = Tally(bounds, state.cluster.quotas.draw(draws), accounts, expected, of_budgets)
    if with_slot and tally.drawing.taken is None:
        routing.admission = tally
        return tally
    try:
        await tally.drawing.settled()
        tally.check(routing)
    except BaseException:
        for account in accounts:
            account.reserved -= expected
        raise
    return tally


def settle(
    state: AppState, record: TurnRecord, routing: Routing, tokens: Tokens, tally: Tally | None, from_cache: bool = False
) -> None:
    """Counts what a request has used, gives back what it has not, and keeps a record of it, which gets the name by
    which its model is counted. To be called once, at its end, whatever that was."""
    model, there, principal = record.model, routing.model, record.principal
    if tally is not None and tally.is_refused:  # It was no request.
        _give_back(state, tally, routing, model, tokens)
        return
    cost = _cost(state, model, there, tokens) if state.config.prices else 0.0
    counted = model if model == there else state.pool.endpoints.counted_name(model, there)
    # What has never got a slot was no request, unless that was its error.
    if there or from_cache or record.error:
        where = (principal.owner, int(record.ended_at // HOUR_S), principal.key, counted, routing.endpoint)
        slot_s = 0.0 if from_cache else routing.slot_s
        state.usage.add(where, Use(1, 1 if record.error else 0, *tokens, slot_s, 1 if from_cache else 0, cost))
    if counted is not model:
        record.model = counted or OTHER
    record.request.ending = record.status
    state.telemetry.end(record)
    if tally is not None:
        _give_back(state, tally, routing, model, tokens, from_cache=from_cache)


def _give_back(
    state: AppState, tally: Tally, routing: Routing, model: str, tokens: Tokens, *, from_cache: bool = False
) -> None:
    """Gives back what a request has taken and not used."""
    used = tokens.input + tokens.output
    cost = _cost(state, model, routing.model, tokens) if state.config.prices else 0.0
    now = time.time()
    for account in tally.accounts:
        account.reserved -= tally.tokens
        account.add(Spent(used, cost), now)
    taken = tally.drawing.taken
    if taken is not None and taken.refused is None:
        amounts = {"requests": int(bool(routing.model) or from_cache), "tokens": used}
        state.cluster.quotas.settle(taken, [amounts.get(bound.of, 0) for bound in tally.bounds])


def _cost(state: AppState, model: str, there: str, tokens: Tokens) -> float:
    price = state.config.prices.get(model) or state.config.prices.get(there)
    return price.cost(tokens.input, tokens.cached, tokens.output) if price is not None else 0.0


def plan_of(principal: Principal) -> Plan:
    """What bounds a principal: the limits of its key, and those that all keys of its owner have together."""
    # By the object, of which there is one a key: to hash all that it holds costs more than the rest.
    known = _plans.get(id(principal))
    if known is not None and known[0] is principal:
        return known[1]
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    plan = _new_plan(principal)
    _plans[id(principal)] = principal, plan
    return plan


MOST_PLANS = 4096
_plans: dict[int, tuple[Principal, Plan]] = {}


def _new_plan(principal: Principal) -> Plan:
    each = (
        (principal.limits, f"key {principal.key}", f"the key '{principal.key}'", principal.key),
        (principal.owner_limits, f"owner {principal.owner}", f"the owner '{principal.owner}'", None),
    )
    turns: list[Bound] = []
    background: list[Bound] = []
    budgets: list[Budget] = []
    for limits, name, whose, key in each:
        by_minute = _by_minute(limits, name, whose)
        turns += by_minute
        background += by_minute
        if limits.concurrent is not None:
            turns.append(Bound(Quota(f"{name} concurrent", limits.concurrent, 0.0), "concurrent", whose))
        if limits.background is not None:
            background.append(Bound(Quota(f"{name} background", limits.background, 0.0), "background", whose))
        budgets += [Budget(principal.owner, key, whose, allowance, False) for allowance in limits.budget]
        budgets += [Budget(principal.owner, key, whose, allowance, True) for allowance in limits.cost]
    return Plan(turns, background, budgets)


def _by_minute(limits: Limits, name: str, whose: str) -> list[Bound]:
    bounds: list[Bound] = []
    if limits.rpm is not None:
        bounds.append(Bound(Quota(f"{name} requests", limits.rpm), "requests", whose))
    if limits.tpm is not None:
        bounds.append(Bound(Quota(f"{name} tokens", limits.tpm), "tokens", whose))
    return bounds


def _expected(allowed: object) -> int:
    if isinstance(allowed, int) and not isinstance(allowed, bool) and allowed > 0:
        return min(allowed, MOST_EXPECTED_TOKENS)
    return EXPECTED_TOKENS


def _amount(bound: Bound, given: int, expected: int) -> int:
    """What a request takes of a quota of tokens: no more than there is, unless it is too long by itself."""
    limit = bound.quota.limit
    return max(min(expected, limit), given)


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _reserve(
    state: AppState, budgets: Sequence[Budget], expected: int, *, is_certain: bool
) -> tuple[Sequence[Account], dict[str, str]]:
    """The accounts of some budgets, in which a request's tokens are reserved, and how far they are used, as headers.
    Raises `LimitReached`."""
    now = time.time()
    accounts = [await state.budgets.account(budget.owner, budget.key, now) for budget in budgets]
    headers = _headers_of_budgets(budgets, accounts, now)
    for budget, account in zip(budgets, accounts, strict=True):
        if not is_certain:
            _check(budget, account, expected, now, headers)
    unique = tuple(set(accounts))
    for account in unique:
        account.reserved += expected
    return unique, headers


def _check(budget: Budget, account: Account, expected: int, now: float, headers: dict[str, str]) -> None:
    """Raises `LimitReached` where a budget has no room for a request."""
    amount, window = budget.allowance.amount, budget.allowance.per
    spent = account.used_in(window, now)
    if budget.is_cost:
        has_room, of_what, used = spent.cost < amount, f"a cost of {amount:g}", f"{spent.cost:.6g}"
    else:
        has_room, of_what = spent.tokens + account.reserved + expected <= amount, f"{amount:.0f} tokens"
        used = str(spent.tokens)
    if has_room:
        return
    left_s = ends_of(window, now).end - now
    message = (
        f"You exceeded your current quota: {budget.whose} may use {of_what} a {window}; {used} are used, "
        f"{account.reserved} tokens are expected of what runs, and {expected} of this request. "
        f"The next {window} begins in {duration(left_s)}."
    )
    code = "insufficient_quota"
    raise LimitReached(message, code, headers, retry_after_s=left_s, code=code)


def _headers_of_budgets(budgets: Sequence[Budget], accounts: Sequence[Account], now: float) -> dict[str, str]:
    """How far the budgets of the day and the month are used, as Codex reads and shows it: the share of that which is
    used most."""
    shares: dict[Window, float] = {}
    for budget, account in zip(budgets, accounts, strict=True):
        amount, window = budget.allowance.amount, budget.allowance.per
        spent = account.used_in(window, now)
        share = (spent.cost if budget.is_cost else spent.tokens) / amount
        shares[window] = max(shares.get(window, 0.0), min(share, 1.0))
    headers: dict[str, str] = {}
    for window, share in shares.items():
        name = f"x-codex-{CODEX_WINDOWS[window]}"
        begin, end = ends_of(window, now)
        headers[f"{name}-used-percent"] = f"{100 * share:.1f}"
        headers[f"{name}-window-minutes"] = str((end - begin) // 60)
        headers[f"{name}-reset-at"] = str(end)
    return headers


CODEX_WINDOWS: dict[Window, str] = {"day": "primary", "month": "secondary"}


# ── errors and headers ───────────────────────────────────────────────────────────────────────────────────────────────


def _refused(bounds: Sequence[Bound], taken: Taken, headers: dict[str, str]) -> LimitReached:
    """The error of a request for which there is no room, in the words of OpenAI's: clients read them."""
    index = next(i for i, (quota, _) in enumerate(taken.draws) if quota is taken.refused or quota == taken.refused)
    bound, amount, left = bounds[index], taken.draws[index][1], taken.left[index]
    limit = bound.quota.limit
    what = WHAT[bound.of]
    wait_s = taken.wait_s or (BACKGROUND_RETRY_S if bound.of == "background" else AT_ONCE_RETRY_S)
    message = f"Rate limit reached for {bound.whose} on {what}: Limit {limit}, Used {limit - left.amount}, "
    kind = "tokens" if bound.of == "tokens" else "requests"
    if math.isinf(wait_s):
        message = (
            f"Request too large for {bound.whose} on {what}: Limit {limit}, Requested {amount}. "
            "The input must be shorter."
        )
        return LimitReached(message, kind, headers, retry_after_s=None, code="rate_limit_exceeded")
    message += f"Requested {amount}. Please try again in {duration(wait_s)}."
    return LimitReached(message, kind, headers, retry_after_s=wait_s, code="rate_limit_exceeded")


WHAT = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "concurrent": "turns at once",
    "background": "background turns that wait or run",
}


def _headers(bounds: Sequence[Bound], left: Sequence[Left]) -> dict[str, str]:
    """What is left of requests and tokens a minute: of the key or of its owner, whichever has less."""
    headers: dict[str, str] = {}
    tightest: dict[str, tuple[int, float, int]] = {}
    for bound, (amount, reset_s) in zip(bounds, left, strict=True):
        if (of := bound.of) in HEADERS and (of not in tightest or amount < tightest[of][0]):
            tightest[of] = amount, reset_s, bound.quota.limit
    for of, (amount, reset_s, limit) in tightest.items():
        of_limit, of_left, of_reset = HEADERS[of]
        headers[of_limit], headers[of_left], headers[of_reset] = str(limit), str(amount), duration(reset_s)
    return headers


HEADERS = {
    of: tuple(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset")) for of in ("requests", "tokens")
}


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
