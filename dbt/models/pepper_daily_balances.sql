{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='day', on_schema_change='fail') }}
-- Points outstanding at the end of each day (UTC) by perk, and the changes of that day. One row per day and perk.
-- A late action changes the balances of earlier days, so an incremental run computes all days and rewrites those that
-- differ.
-- changed - earned + redeemed - refunded is the change that no action caused: edits, expiries and deletions.
with recursive history as (

    select
        award_id,
        perk_id,
        points,
        valid_from,
        valid_to,
        lead(award_id) over (partition by award_id order by valid_from nulls first) as next_award_id,
        lag(points) over (partition by award_id order by valid_from nulls first) as points_before
    from {{ ref('pepper_award_history') }}

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

),

figures as (

    select
        cast(grid.day as date) as day,
        cast(grid.perk_id as varchar) as perk_id,
        cast(
            coalesce(opening.points, 0)
            + sum(coalesce(changed.points, 0)) over (partition by grid.perk_id order by grid.day) as numeric(38, 4)
        ) as points,
        cast(coalesce(changed.points, 0) as numeric(38, 4)) as changed,
        cast(coalesce(flows.earned, 0) as numeric(38, 4)) as earned,
        cast(coalesce(flows.redeemed, 0) as numeric(38, 4)) as redeemed,
        cast(coalesce(flows.refunded, 0) as numeric(38, 4)) as refunded,
        cast(coalesce(flows.actions, 0) as bigint) as actions
    from grid
    left join opening on opening.perk_id is not distinct from grid.perk_id
    left join changed on changed.day = grid.day and changed.perk_id is not distinct from grid.perk_id
    left join flows on flows.day = grid.day and flows.perk_id is not distinct from grid.perk_id
    where grid.day is not null

)

select day, perk_id, points, changed, earned, redeemed, refunded, actions
from figures
{%- if is_incremental() %}
where day in (
    select newer.day
    from (
        select day, perk_id, points, changed, earned, redeemed, refunded, actions from figures
        except
        select day, perk_id, points, changed, earned, redeemed, refunded, actions from {{ this }}
    ) as newer
    union
    select older.day
    from (
        select day, perk_id, points, changed, earned, redeemed, refunded, actions from {{ this }}
        except
        select day, perk_id, points, changed, earned, redeemed, refunded, actions from figures
    ) as older
)
{%- endif %}
