-- Models in which a key occurs more than once. This test only checks models whose key has several columns.
select 'pepper_award_history' as model
from {{ ref('pepper_award_history') }}
group by award_id, valid_from
having count(*) > 1
union all
select 'pepper_daily_balances' as model
from {{ ref('pepper_daily_balances') }}
group by day, perk_id
having count(*) > 1
union all
select 'pepper_cohorts' as model
from {{ ref('pepper_cohorts') }}
group by cohort_month, month
having count(*) > 1
union all
select 'pepper_coverage' as model
from {{ ref('pepper_coverage') }}
group by merchant, action_types, after
having count(*) > 1
