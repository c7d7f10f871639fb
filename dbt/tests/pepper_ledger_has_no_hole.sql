-- Intervals for which actions were never read. crm-balances coverage says how to read these actions.
{{ config(severity='warn') }}
select * from {{ ref('pepper_coverage') }} where kind = 'hole'
