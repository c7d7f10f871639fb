-- Awards whose history is wrong, except deleted awards. A history is wrong if it does not have exactly one row without an
-- end, or if the points of this row differ from the balance.
select balances.award_id
from {{ source('crm', 'award_balances') }} as balances
left join {{ source('crm', 'awards') }} as awards on awards._id = balances.award_id
left join {{ ref('pepper_award_history') }} as history
    on history.award_id = balances.award_id and history.valid_to is null
where awards._sdc_deleted_at is null
group by balances.award_id, balances.points
having count(history.award_id) <> 1 or min(history.points) <> balances.points
