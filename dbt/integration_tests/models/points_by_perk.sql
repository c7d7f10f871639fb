-- An example of a model in your own project that reads the package's models.
select perks.title, daily.day, daily.points
from {{ ref('pepper_crm', 'pepper_daily_balances') }} as daily
inner join {{ ref('pepper_crm', 'pepper_dim_perk') }} as perks on perks.perk_id = daily.perk_id
