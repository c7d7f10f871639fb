-- Times of which actions were never read: crm-balances coverage says how to read them.
{{ config(severity='warn') }}
select * from {{ ref('ledger_coverage') }} where kind = 'hole'
