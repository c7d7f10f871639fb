-- Cohorts of users, grouped by the month (UTC) in which an action first changed their points. One row per cohort and month.
with monthly as (

    select
        user_id,
        cast(date_trunc('month', {{ pepper_crm.utc('occurred_at') }}) as date) as month,
        sum(case when effect = 'earned' then points_added else 0 end) as earned,
        sum(case when effect = 'redeemed' then points_redeemed else 0 end) as redeemed,
        sum(case when effect = 'refunded' then points_refunded else 0 end) as refunded
    from {{ source('crm', 'actions') }}
    where effect is not null
    group by 1, 2

),

since as (

    select monthly.*, min(month) over (partition by user_id) as cohort_month from monthly

),

sizes as (

    select cohort_month, count(distinct user_id) as users from since group by cohort_month

)

select
    cast(since.cohort_month as date) as cohort_month,
    cast(since.month as date) as month,
    cast(
        12 * (extract(year from since.month) - extract(year from since.cohort_month))
        + extract(month from since.month) - extract(month from since.cohort_month) as integer
    ) as months_since,
    cast(sizes.users as bigint) as cohort_users,
    cast(count(*) as bigint) as active_users,
    cast(sum(since.earned) as numeric(38, 4)) as earned,
    cast(sum(since.redeemed) as numeric(38, 4)) as redeemed,
    cast(sum(since.refunded) as numeric(38, 4)) as refunded
from since
inner join sizes on sizes.cohort_month = since.cohort_month
group by 1, 2, 3, 4
