-- Perks whose points on the last day differ from the sum over their awards. Deleted awards do not count.
with last_day as (
    select perk_id, points from {{ ref('pepper_daily_balances') }}
    where day = (select max(day) from {{ ref('pepper_daily_balances') }})
),

standing as (
    select balances.perk_id, sum(balances.points) as points
    from {{ source('crm', 'award_balances') }} as balances
    left join {{ source('crm', 'awards') }} as awards on awards._id = balances.award_id
    where awards._sdc_deleted_at is null
    group by balances.perk_id
)

select last_day.perk_id
from last_day
left join standing on standing.perk_id is not distinct from last_day.perk_id
where last_day.points <> coalesce(standing.points, 0)
