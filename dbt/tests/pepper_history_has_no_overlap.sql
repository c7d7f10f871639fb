-- Rows that do not end where the next row of the same award begins.
select award_id
from (
    select award_id, valid_to, lead(valid_from) over (partition by award_id order by valid_from nulls first) as next_from
    from {{ ref('pepper_award_history') }}
) as rows_in_order
where next_from is not null and (valid_to is null or valid_to <> next_from)
