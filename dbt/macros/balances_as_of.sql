{# Each award's points at a given time. The time is a SQL timestamp without time zone, in UTC:
   select * from ({{ pepper_crm.balances_as_of("timestamp '2026-10-01 00:00:00'") }}) as balances #}
{% macro balances_as_of(moment) %}
select award_id, user_id, perk_id, points
from {{ ref('pepper_crm', 'pepper_award_history') }}
where (valid_from is null or valid_from <= {{ moment }}) and (valid_to is null or valid_to > {{ moment }})
{% endmacro %}
