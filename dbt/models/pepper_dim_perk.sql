-- Every perk that Pepper shows or that an award belongs to, including perks that Pepper has deleted or never showed.
with known as (

    select _id as perk_id, title, type, _sdc_deleted_at is null as is_active
    from {{ source('crm', 'perks') }}

),

used as (

    select distinct perk_id
    from {{ source('crm', 'award_balances') }}
    where perk_id is not null

)

select
    cast(coalesce(known.perk_id, used.perk_id) as varchar) as perk_id,
    cast(known.title as varchar) as title,
    cast(known.type as varchar) as type,
    cast(coalesce(known.is_active, false) as boolean) as is_active
from known
full outer join used on used.perk_id = known.perk_id
