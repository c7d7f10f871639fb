-- Every location with at least one action. The title comes from the payload of the newest action that contains a title. If
-- target-crm runs with store_payload: false, there are no titles.
with located as (

    select
        location_id,
        {{ pepper_crm.utc('occurred_at') }} as occurred_at,
        action_id,
        payload -> 'context' -> 'location' ->> 'title' as title
    from {{ source('crm', 'actions') }}
    where location_id is not null

),

ranked as (

    select
        *,
        row_number() over (
            partition by location_id
            order by case when title is null then 1 else 0 end, occurred_at desc nulls last, action_id desc
        ) as place
    from located

)

select
    cast(location_id as varchar) as location_id,
    cast(max(case when place = 1 then title end) as varchar) as title,
    cast(min(occurred_at) as timestamp) as first_action_at,
    cast(max(occurred_at) as timestamp) as last_action_at,
    cast(count(*) as bigint) as actions
from ranked
group by location_id
