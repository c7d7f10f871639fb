-- Points outstanding at the end of each day (UTC) by perk, and what moved them that day. A row for every day and perk.
-- changed - earned + redeemed - refunded is what came or went without an action: edits, expiries, deletions.
with recursive history as (

    select
        award_id,
        perk_id,
        points,
        valid_from,
        valid_to,
        lead(award_id) over (partition by award_id order by valid_from nulls first) as next_award_id,
        lag(points) over (partition by award_id order by valid_from nulls first) as points_before
    from {{ ref('award_history') }}

),

changes as (

    select perk_id, cast(valid_from as date) as day, points - coalesce(points_before, 0) as points
    from history
    union all
    select perk_id, cast(valid_to as date) as day, - points as points
    from history
    where valid_to is not null and next_award_id is null

),

days (day) as (

    select min(day) from changes
    union all
    select cast(days.day + interval '1 day' as date) from days
    where days.day < (select max(changes.day) from changes)

),

grid as (

    select days.day, perks.perk_id
    from days
    cross join (select distinct perk_id from changes) as perks

),

opening as (

    select perk_id, sum(points) as points from changes where day is null group by perk_id

),

changed as (

    select day, perk_id, sum(points) as points from changes where day is not null group by day, perk_id

),

flows as (

    select
        cast({{ pepper_crm.utc('occurred_at') }} as date) as day,
        balances.perk_id,
        sum(case when effect = 'earned' then points_added else 0 end) as earned,
        sum(case when effect = 'redeemed' then points_redeemed else 0 end) as redeemed,
        sum(case when effect = 'refunded' then points_refunded else 0 end) as refunded,
        count(*) as actions
    from {{ source('crm', 'actions') }} as actions
    inner join {{ source('crm', 'award_balances') }} as balances on balances.award_id = actions.award_id
    where effect is not null
    group by 1, 2

)

select
    grid.day,
    grid.perk_id,
    coalesce(opening.points, 0)
    + sum(coalesce(changed.points, 0)) over (partition by grid.perk_id order by grid.day) as points,
    coalesce(changed.points, 0) as changed,
    coalesce(flows.earned, 0) as earned,
    coalesce(flows.redeemed, 0) as redeemed,
    coalesce(flows.refunded, 0) as refunded,
    coalesce(flows.actions, 0) as actions
from grid
left join opening on opening.perk_id is not distinct from grid.perk_id
left join changed on changed.day = grid.day and changed.perk_id is not distinct from grid.perk_id
left join flows on flows.day = grid.day and flows.perk_id is not distinct from grid.perk_id
where grid.day is not null
