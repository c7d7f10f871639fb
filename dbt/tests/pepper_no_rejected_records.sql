-- Records in quarantine. The column reason says what is wrong with each. Fix the cause, then run crm-balances replay.
{{ config(severity='warn') }}
select rejected_id, stream, reason, rejected_at from {{ source('crm', 'rejected_records') }}
