"""Simulate a merchant's loyalty programme. Users visit, earn and redeem, and tests can read the true balances.

The seed determines everything. Planned steps wait in a queue and are executed in order of time. So the state at a given
time does not depend on how often `advance` is called.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from decimal import Decimal
from functools import partial
from heapq import heappop, heappush
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from pepper_sandbox.records import MILLISECOND, Award, Event, Json, Location, Perk, User, to_datetime, to_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

SECOND_MS = 1000
HOUR_MS = 3600 * SECOND_MS
DAY_MS = 24 * HOUR_MS

VISITS_PER_USER_DAY = 0.6
SEASON_DAYS = 14
CAMPAIGN_DAYS = 5
ONE, QUARTER = Decimal(1), Decimal("0.25")

LOCATIONS = tuple(
    Location(id=f"10ca{number:020x}", title=title, geo=geo)
    for number, (title, geo) in enumerate(
        [("Arches", (-0.0970, 51.5045)), ("Harbour", (-2.5966, 51.4500)), ("Old Mill", (-1.2577, 51.7520))]
    )
)


class Totals(NamedTuple):
    """The points that an award's actions earned, redeemed and refunded, and the number of these actions."""

    earned: Decimal = Decimal(0)
    redeemed: Decimal = Decimal(0)
    refunded: Decimal = Decimal(0)
    actions: int = 0


class World:
    """A merchant's users, perks, awards and actions.

    Sometimes the simulation edits points without an action, as a merchant may do by hand. Two changes of one award
    never share a millisecond, but changes of different awards may.

    Args:
        seed: the same seed gives the same history.
        users: the number of users.
        days: the length of the history, which ends at `now`.
        now: the world's current time, which `advance` moves.
        late_fraction: the fraction of actions that become visible late. The award's points still change at once.
        late_seconds_max: the longest time until such an action becomes visible.
    """

    def __init__(
        self,
        *,
        seed: int = 7,
        users: int = 500,
        days: float = 60,
        now: datetime,
        late_fraction: float = 0.02,
        late_seconds_max: float = 240,
    ) -> None:
        self._random = Random(seed)
        self._late_fraction = late_fraction
        self._late_ms_max = int(late_seconds_max * SECOND_MS)
        self._now_ms = to_ms(now) - int(days * DAY_MS)
        self._queue: list[tuple[int, int, User | None, Callable[[], None]]] = []
        self._planned = 0
        self._perks: dict[str, Perk] = {}
        self._awards: dict[str, Award] = {}
        self._award_ids: list[str] = []
        self._events: list[Event] = []
        self._events_by_id: dict[str, Event] = {}

        self._stamps = self._open_perk("STAMP_CARD", "Coffee card", earn_steps_max=3, redeem_from=10)
        self._cash = self._open_perk("PSEUDO_CURRENCY", "Cashback", step=QUARTER, earn_steps_max=12, redeem_from=5)
        self._voucher = self._open_perk("VOUCHER", "Free pastry", earn_steps_max=1, redeem_from=1)
        self._season = self._open_season()
        self._plan(CAMPAIGN_DAYS * DAY_MS, self._run_campaign)
        self._users = {user.id: user for user in sorted(map(self._join, range(users)), key=lambda user: user.id)}
        self._advance_to(to_ms(now))

    @property
    def now(self) -> datetime:
        """The world's current time, in UTC and whole milliseconds."""
        return to_datetime(self._now_ms)

    def advance(self, period: timedelta) -> None:
        """Advance time by whole milliseconds. Raise a ValueError for a negative period."""
        if period < 0 * MILLISECOND:
            raise ValueError(f"cannot advance time by {period}")
        self._advance_to(self._now_ms + period // MILLISECOND)

    def change_points(self, award_id: str, points: Decimal) -> None:
        """Advance time by a millisecond, then edit an award's points without an action."""
        self.advance(MILLISECOND)
        self._set_points(self._awards[award_id], points)

    def open_perk(self, title: str) -> str:
        """Add a perk that users do not earn by visits, and return its id."""
        return self._open_perk("VOUCHER", title, earn_steps_max=1, redeem_from=1).id

    def delete_perk(self, perk_id: str) -> None:
        """Delete a perk. Its awards keep their points."""
        del self._perks[perk_id]

    # Data for the API.

    def perks(self) -> list[Json]:
        """Return the existing perks, ordered by id."""
        return [self._perks[perk_id].as_json() for perk_id in sorted(self._perks)]

    def awards(self, *, since: datetime | None = None, start_id: str = "") -> Iterator[Json]:
        """Yield the awards from `start_id` on, ordered by id.

        With `since`, yield only the awards that changed at that time or later.
        """
        since_ms = None if since is None else to_ms(since)
        for award_id in islice(self._award_ids, bisect_left(self._award_ids, start_id), None):
            award = self._awards[award_id]
            if since_ms is None or award.updated_ms >= since_ms:
                yield award.as_json()

    def users(self, *, after: datetime | None = None, with_credentials: bool = False) -> Iterator[Json]:
        """Yield the users that changed after a time, ordered by id. By default, yield all users."""
        after_ms = None if after is None else to_ms(after)
        for user in self._users.values():
            if after_ms is None or user.updated_ms > after_ms:
                yield user.as_json(with_credentials=with_credentials)

    def actions(
        self,
        *,
        after: datetime | None = None,
        until: datetime | None = None,
        user_id: str | None = None,
        start_id: str | None = None,
    ) -> Iterator[Json]:
        """Yield the visible actions after `after`, up to and including `until`, oldest first.

        With `user_id`, yield only this user's actions. With `start_id`, begin with this action.

        Raises:
            KeyError: the user or the action `start_id` does not exist.
            ValueError: the user has no such action.
        """
        events = self._events if user_id is None else self._users[user_id].events
        return (event.as_json() for event in self._visible(events, after, until, start_id))

    def action_count(self) -> int:
        """Return the number of visible actions."""
        return sum(1 for _ in self._visible(self._events))

    # The true values, for tests.

    def balances(self, at: datetime | None = None) -> dict[str, Decimal]:
        """Return the true points of each award that existed at a time, by award id. None means now."""
        at_ms = self._now_ms if at is None else to_ms(at)
        points = ((award_id, self._awards[award_id].points_at(at_ms)) for award_id in self._award_ids)
        return {award_id: balance for award_id, balance in points if balance is not None}

    def award_totals(self, *, after: datetime | None = None, until: datetime | None = None) -> dict[str, Totals]:
        """Return, by award id, the totals of the visible actions after `after`, up to and including `until`.

        Legacy actions and edits by hand change no total. Awards without a loyalty action are omitted.
        """
        totals: dict[str, Totals] = {}
        for event in self._visible(self._events, after, until):
            if event.award is not None:
                total = totals.get(event.award.id, Totals())
                totals[event.award.id] = Totals(
                    earned=total.earned + event.delta * (event.type == "REWARD_EARNED"),
                    redeemed=total.redeemed + event.delta * (event.type == "REDEEM_PERK"),
                    refunded=total.refunded + event.delta * (event.type == "AWARD_POINTS_REFUNDED"),
                    actions=total.actions + 1,
                )
        return totals

    def _visible(
        self,
        events: list[Event],
        after: datetime | None = None,
        until: datetime | None = None,
        start_id: str | None = None,
    ) -> Iterator[Event]:
        first = 0 if after is None else bisect_right(events, to_ms(after), key=_occurred_ms)
        end = len(events) if until is None else bisect_right(events, to_ms(until), key=_occurred_ms)
        if start_id is not None:
            start = self._events_by_id[start_id]
            first = max(first, events.index(start, bisect_left(events, start.occurred_ms, key=_occurred_ms)))
        shown = (events[position] for position in range(first, end))
        return (event for event in shown if event.visible_ms <= self._now_ms)

    # Simulation. The queue contains steps and their times. While a step is executed, `_now_ms` is the time of the step.

    def _advance_to(self, until_ms: int) -> None:
        while self._queue[0][0] <= until_ms:
            self._now_ms, _, user, step = heappop(self._queue)
            if user is None:
                step()
            elif self._now_ms > user.last_ms:
                user.last_ms = self._now_ms
                step()
            else:
                self._plan(1, step, user)
        self._now_ms = until_ms

    def _plan(self, wait_ms: int, step: Callable[[], None], user: User | None = None) -> None:
        """Add a step to the queue. Steps of one user never share a millisecond."""
        self._planned += 1
        heappush(self._queue, (self._now_ms + wait_ms, self._planned, user, step))

    def _below(self, limit: int) -> int:
        """Return a random integer from 0 to `limit` - 1."""
        return int(self._random.random() * limit)

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(96):024x}"

    def _open_perk(self, kind: str, title: str, *, step: Decimal = ONE, earn_steps_max: int, redeem_from: int) -> Perk:
        perk = Perk(self._new_id(), kind, title, step, earn_steps_max, Decimal(redeem_from), created_ms=self._now_ms)
        self._perks[perk.id] = perk
        return perk

    def _open_season(self) -> Perk:
        self._plan(SEASON_DAYS * DAY_MS, self._change_season)
        return self._open_perk("STAMP_CARD", "Seasonal card", earn_steps_max=2, redeem_from=6)

    def _change_season(self) -> None:
        """Replace the seasonal perk. Awards of the old perk keep their points."""
        del self._perks[self._season.id]
        self._season = self._open_season()

    def _run_campaign(self) -> None:
        """Give a voucher to about one user in ten, to all of them in the same millisecond."""
        for user in self._users.values():
            if self._below(10) == 0:
                self._plan(0, partial(self._earn, user, self._voucher, None), user)
        self._plan(CAMPAIGN_DAYS * DAY_MS, self._run_campaign)

    def _join(self, number: int) -> User:
        """Create a user who joined before the history begins.

        About half of the users have a coffee card with points that no action explains.
        """
        created_ms = self._now_ms - DAY_MS - self._below(300 * DAY_MS)
        user = User(
            id=self._new_id(),
            number=number + 1,
            platform=("IOS", "ANDROID", "WEB")[self._below(3)],
            created_ms=created_ms,
            updated_ms=created_ms,
            wants_marketing=self._below(2) == 0,
        )
        if self._below(2):
            granted_ms = created_ms + self._below(self._now_ms - created_ms)
            self._open_award(user, self._stamps).history.append((granted_ms, Decimal(self._below(12))))
        self._plan_visit(user)
        return user

    def _plan_visit(self, user: User) -> None:
        wait_ms = int(self._random.expovariate(VISITS_PER_USER_DAY) * DAY_MS)
        self._plan(1 + wait_ms, partial(self._visit, user), user)

    def _visit(self, user: User) -> None:
        """Check in or order, then earn or redeem, and sometimes cause a special case."""
        chance = self._random.random
        location = LOCATIONS[self._below(len(LOCATIONS))] if chance() < 0.75 else None
        self._record(user, "CHECK_IN" if location and chance() < 0.4 else "ORDER_COMPLETED", location)
        wait_ms = 0
        for perk, likelihood in ((self._stamps, 0.8), (self._cash, 0.7), (self._season, 0.4), (self._voucher, 0.2)):
            if chance() < likelihood:
                wait_ms += 1 + self._below(20 * SECOND_MS)
                self._plan(wait_ms, partial(self._use, user, perk, location), user)
        draw = chance()
        for share, special_case in (
            (0.03, self._earn_by_legacy),
            (0.03, self._edit_points),
            (0.02, self._change_profile),
            (0.01, self._record_unknown_type),
        ):
            if 0 <= draw < share:
                self._plan(wait_ms + 1 + self._below(HOUR_MS), partial(special_case, user), user)
            draw -= share
        self._plan_visit(user)

    def _use(self, user: User, perk: Perk, location: Location | None) -> None:
        """Sometimes redeem, if the award has enough points. Otherwise earn, except on deleted perks and on vouchers."""
        award = user.awards.get(perk.id)
        if award and award.points >= perk.redeem_from and self._random.random() < 0.6:
            self._redeem(award, location)
        elif perk.id in self._perks and perk is not self._voucher:
            self._earn(user, perk, location)

    def _earn(self, user: User, perk: Perk, location: Location | None) -> None:
        award = user.awards.get(perk.id) or self._open_award(user, perk)
        self._change_by_action(award, "REWARD_EARNED", (1 + self._below(perk.earn_steps_max)) * perk.step, location)

    def _redeem(self, award: Award, location: Location | None) -> None:
        perk = award.perk
        spare_steps = int((award.points - perk.redeem_from) / perk.step)
        points = perk.redeem_from + self._below(spare_steps + 1) * perk.step
        self._change_by_action(award, "REDEEM_PERK", points, location)
        if self._below(10) == 0:
            refund = points if self._below(3) else perk.step
            wait_ms = 1 + self._below(2 * DAY_MS)
            self._plan(
                wait_ms, partial(self._change_by_action, award, "AWARD_POINTS_REFUNDED", refund, None), award.user
            )

    def _open_award(self, user: User, perk: Perk) -> Award:
        award = Award(self._new_id(), user, perk)
        user.awards[perk.id] = award
        self._awards[award.id] = award
        insort(self._award_ids, award.id)
        return award

    def _change_by_action(self, award: Award, kind: str, delta: Decimal, location: Location | None) -> None:
        before = award.points if award.history else Decimal(0)
        after = before - delta if kind == "REDEEM_PERK" else before + delta
        award.history.append((self._now_ms, after))
        self._record(award.user, kind, location, award=award, delta=delta)

    def _edit_points(self, user: User) -> None:
        """Reset an award or add a few points, without an action."""
        if user.awards:
            award = list(user.awards.values())[self._below(len(user.awards))]
            points = award.points + (1 + self._below(5)) * award.perk.step if self._below(3) else Decimal(0)
            self._set_points(award, points)

    def _set_points(self, award: Award, points: Decimal) -> None:
        award.user.last_ms = self._now_ms
        award.history.append((self._now_ms, points))

    def _earn_by_legacy(self, user: User) -> None:
        """Record an action in a legacy format: its type is current, but it has no points."""
        details = (None, {"trigger": "GLOBAL"}, {"perkId": self._stamps.id, "loyaltyEarned": 1})[self._below(3)]
        self._record(user, "REWARD_EARNED", None, details=details)

    def _change_profile(self, user: User) -> None:
        user.wants_marketing = not user.wants_marketing
        user.updated_ms = self._now_ms
        self._record(user, "USER_UPDATED", None, details={"fields": ["hasAgreedToReceiveMarketing"]})

    def _record_unknown_type(self, user: User) -> None:
        """Record an action of an undocumented type."""
        self._record(user, "TABLE_SERENADED", LOCATIONS[self._below(len(LOCATIONS))], details={"songs": 3})

    def _record(
        self,
        user: User,
        kind: str,
        location: Location | None,
        *,
        award: Award | None = None,
        delta: Decimal = Decimal(0),
        details: Json | None = None,
    ) -> None:
        late_ms = 1 + self._below(self._late_ms_max) if self._random.random() < self._late_fraction else 0
        event = Event(
            id=self._new_id(),
            type=kind,
            occurred_ms=self._now_ms,
            visible_ms=self._now_ms + late_ms,
            user=user,
            location=location,
            award=award,
            delta=delta,
            available=award.points if award else Decimal(0),
            details=details,
        )
        self._events.append(event)
        self._events_by_id[event.id] = event
        user.events.append(event)


def _occurred_ms(event: Event) -> int:
    return event.occurred_ms
