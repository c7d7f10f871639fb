-- The intervals for which all actions were read: a row per interval (kind 'read'), and a row per hole between two intervals
-- (kind 'hole'). A filter that includes all types that change balances counts as no filter. Every other filter has its own
-- rows.
with recorded as (

    select
        coalesce(merchant, '') as merchant,
        case
            when action_types like '%"AWARD_POINTS_REFUNDED"%'
                and action_types like '%"REDEEM_PERK"%' and action_types like '%"REWARD_EARNED"%' then 'all'
            else coalesce(action_types, 'all')
        end as action_types,
        {{ pepper_crm.utc('covered_from') }} as covered_from,
        {{ pepper_crm.utc('covered_until') }} as covered_until
    from {{ source('crm', '_crm_coverage') }}

),

ordered as (

    select
        *,
        max(covered_until) over (
            partition by merchant, action_types order by covered_from, covered_until
            rows between unbounded preceding and 1 preceding
        ) as read_until
    from recorded

),

numbered as (

    select
        *,
        sum(case when covered_from <= read_until then 0 else 1 end) over (
            partition by merchant, action_types order by covered_from, covered_until
            rows between unbounded preceding and current row
        ) as interval_number
    from ordered

),

intervals as (

    select merchant, action_types, min(covered_from) as covered_from, max(covered_until) as covered_until
    from numbered
    group by merchant, action_types, interval_number

),

followed as (

    select *, lead(covered_from) over (partition by merchant, action_types order by covered_from) as next_from
    from intervals

)

select
    cast(merchant as varchar) as merchant,
    cast(action_types as varchar) as action_types,
    cast('read' as varchar) as kind,
    cast(covered_from as timestamp) as after,
    cast(covered_until as timestamp) as until
from followed
union all
select
    cast(merchant as varchar) as merchant,
    cast(action_types as varchar) as action_types,
    cast('hole' as varchar) as kind,
    cast(covered_until as timestamp) as after,
    cast(next_from as timestamp) as until
from followed
where next_from is not null
