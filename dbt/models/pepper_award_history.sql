-- Each award's points over time: a row lasts from one observation until the next. Before its first action, an award has its
-- opening points. The date on which the user got them is unknown, so they count from the beginning.
with actions as (

    select
        award_id,
        action_id,
        {{ pepper_crm.utc('occurred_at') }} as seen_at,
        points_available as points,
        case effect
            when 'earned' then points_added
            when 'redeemed' then - points_redeemed
            else points_refunded
        end as delta,
        row_number() over (partition by award_id order by occurred_at, action_id) as number
    from {{ source('crm', 'actions') }}
    where effect is not null

),

snapshots as (

    select award_id, {{ pepper_crm.utc('as_of') }} as seen_at, points
    from {{ source('crm', 'award_balances') }}
    where as_of_source = 'award'

),

openings as (

    select award_id, points - delta as points
    from actions
    where number = 1
    union all
    select award_id, points
    from snapshots
    where not exists (select 1 from actions where actions.award_id = snapshots.award_id)

),

observations as (

    select award_id, cast(null as timestamp) as seen_at, 0 as number, points from openings
    union all
    -- A balance comes from a snapshot if the snapshot is newer than all actions.
    select award_id, seen_at, 0 as number, points from snapshots
    union all
    select award_id, seen_at, number, points from actions

),

intervals as (

    select
        award_id,
        points,
        seen_at as valid_from,
        lead(seen_at) over (partition by award_id order by seen_at nulls first, number) as next_seen_at
    from observations

)

select
    cast(intervals.award_id as varchar) as award_id,
    cast(balances.user_id as varchar) as user_id,
    cast(balances.perk_id as varchar) as perk_id,
    cast(intervals.points as numeric(38, 4)) as points,
    cast(intervals.valid_from as timestamp) as valid_from,
    cast(least(intervals.next_seen_at, {{ pepper_crm.utc('awards._sdc_deleted_at') }}) as timestamp) as valid_to
from intervals
inner join {{ source('crm', 'award_balances') }} as balances on balances.award_id = intervals.award_id
left join {{ source('crm', 'awards') }} as awards on awards._id = intervals.award_id
where
    intervals.valid_from is null
    or intervals.valid_from < coalesce(
        least(intervals.next_seen_at, {{ pepper_crm.utc('awards._sdc_deleted_at') }}), timestamp '9999-12-31 00:00:00'
    )
